// SPDX-License-Identifier: MIT
// Queue pairs whose sends and receives complete into two routers, and queue pairs that the program
// has made itself.
#include "rdma/fixture.hpp"

#include <array>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/rdma/async_srq.hpp>
#include <asyncverbs/verbs/address_handle.hpp>

#include "verbs/failure.hpp"

using namespace asyncverbs;
using namespace asyncverbs::support;

namespace {

// The ends of RouterFixture complete into one queue; `two` is an end with two, connected to itself.
struct TwoRouters : RouterFixture {
    TwoRouters() {
        two->queue_pair().init({.access = all_access});
        two->queue_pair().connect(two->queue_pair().local_address());
    }

    void run_sends() {
        for (int i = 0; i < 4; ++i) {
            notifier.notify();
            notifier.run();
        }
    }
    void run_receives() {
        for (int i = 0; i < 4; ++i) {
            receive_notifier.notify();
            receive_notifier.run();
        }
    }
    int queued(const Router& of) const {
        return sim.queued_completions(of.completion_queue().native_handle());
    }

    ManualNotifier receive_notifier;
    std::optional<Router> receive_router{std::in_place,
                                         AsyncCq(CompletionQueue(context, 64), receive_notifier)};
    std::optional<AsyncQp> two{std::in_place, *router, *receive_router, domain,
                               QueuePairOptions{.max_send_wr = 4, .max_recv_wr = 4}};
};

// The objects of a C program, with two connected queue pairs on one queue.
struct Program {
    explicit Program(ibv_qp_type type = IBV_QPT_RC) {
        ibv_device** devices = ibv_get_device_list(nullptr);
        context = ibv_open_device(devices[0]);
        ibv_free_device_list(devices);
        pd = ibv_alloc_pd(context);
        channel = ibv_create_comp_channel(context);
        cq = ibv_create_cq(context, 63, nullptr, channel, 0);
        for (ibv_qp*& qp : qps) {
            ibv_qp_init_attr attr{};
            attr.send_cq = cq;
            attr.recv_cq = cq;
            attr.qp_type = type;
            attr.cap = {4, 4, 1, 1, 0};
            qp = ibv_create_qp(pd, &attr);
        }
    }
    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;
    ~Program() {
        for (ibv_qp* const qp : qps) ibv_destroy_qp(qp);
        ibv_destroy_cq(cq);
        ibv_destroy_comp_channel(channel);
        ibv_dealloc_pd(pd);
        ibv_close_device(context);
    }

    simulated::SimulatedVerbs sim;
    ibv_context* context = nullptr;
    ibv_pd* pd = nullptr;
    ibv_comp_channel* channel = nullptr;
    ibv_cq* cq = nullptr;
    std::array<ibv_qp*, 2> qps{};
};

// What is made with them: the program's objects are destroyed after it.
struct Adopted {
    explicit Adopted(Program& owner,
                     const QueuePairOptions& options = {.max_send_wr = 4, .max_recv_wr = 4})
        : program(owner), domain(borrow(owner.pd)) {
        for (std::size_t i = 0; i < 2; ++i) {
            const CompletionQueue& cq = router->completion_queue();
            ends[i].emplace(*router, QueuePair(borrow(program.qps[i]), cq, cq, options));
        }
    }

    void connect() {
        for (auto& end : ends) end->queue_pair().init({.access = all_access});
        ends[0]->queue_pair().connect(ends[1]->queue_pair().local_address());
        ends[1]->queue_pair().connect(ends[0]->queue_pair().local_address());
    }
    void run() {
        for (int i = 0; i < 8; ++i) {
            notifier.notify();
            notifier.run();
        }
    }
    ibv_qp_state state(std::size_t end) const { return program.sim.qp_state(program.qps[end]); }

    Program& program;
    ManualNotifier notifier;
    ProtectionDomain domain;
    MemoryRegion region = MemoryRegion::allocate(domain, 64, all_access);
    std::optional<Router> router{std::in_place,
                                 AsyncCq(CompletionQueue(borrow(program.cq)), notifier)};
    std::array<std::optional<AsyncQp>, 2> ends;
};

} // namespace

// --- two routers ---

TEST_CASE("AsyncQp: sends and receives complete into two queues", "[rdma]") {
    TwoRouters f;
    f.write(0, "hello");
    Awaiting received(f.two->recv(f.slice(100, 8)));
    Awaiting sent(f.two->send(f.slice(0, 5)));
    CHECK(f.queued(*f.router) == 1);
    CHECK(f.queued(*f.receive_router) == 1);
    f.run_receives();
    REQUIRE(received.completion);
    CHECK(f.read(100, 5) == "hello");
    CHECK(!sent.done());
    f.run_sends();
    CHECK(sent.completion);
    // Each queue has entries for one direction only.
    CHECK(f.receive_router->completion_queue().reserved() == 4);
    CHECK(f.router->completion_queue().reserved() == 4 + 2 * 8);
}

TEST_CASE("AsyncQp: a router that has gathered receives of a pair posts them before its sends",
          "[rdma]") {
    TwoRouters f;
    std::vector<std::string> doorbells;
    f.sim.on_call([&](const simulated::Call& call) {
        if (call.verb.starts_with("ibv_post_") && call.moment == simulated::Call::Moment::before) {
            doorbells.emplace_back(call.verb.substr(9));
        }
    });
    Operation gathered;
    Operation send;
    Operation trigger = f.two->recv(f.slice(100, 1));
    const auto reply = [&]() -> Coroutine {
        co_await trigger;
        gathered = f.two->recv(f.slice(101, 1)); // the receives' router delivers a batch
        CHECK(doorbells.empty());
        send = f.two->send(f.slice(0, 1)); // the other router does not
        CHECK(doorbells == std::vector<std::string>{"recv", "send"});
    };
    const Coroutine replier = reply();
    Operation first = f.two->send(f.slice(0, 1));
    doorbells.clear();
    f.run_receives();
    CHECK(replier.done());
    replier.get();
    f.sim.on_call(nullptr);
    f.run_sends();
    f.run_receives();
    CHECK(gathered.done());
    CHECK(send.done());
}

TEST_CASE("AsyncQp: drain waits for two queues", "[rdma][I12]") {
    TwoRouters f;
    f.sim.hold_delivery();
    Operation receive = f.two->recv(f.slice(100, 1));
    Operation send = f.two->send(f.slice(0, 1));
    Draining drained(*f.two);
    SECTION("the sends complete first") {
        f.run_sends();
        CHECK(send.done());
        CHECK(!drained.done());
        f.run_receives();
    }
    SECTION("the receives complete first") {
        f.run_receives();
        CHECK(receive.done());
        CHECK(!drained.done());
        f.run_sends();
    }
    CHECK(drained.completion);
    CHECK(send.done());
    CHECK(receive.done());
}

TEST_CASE("AsyncQp: if either queue fails, drain fails", "[rdma][I5]") {
    TwoRouters f;
    Operation receive = f.two->recv(f.slice(100, 1));
    f.sim.fail("ibv_poll_cq");
    f.run_receives();
    CHECK(receive.done());
    Draining drained(*f.two);
    REQUIRE(drained.error);
    CHECK(drained.code() == std::errc::io_error);
    Awaiting sent(f.two->send(Slices())); // is not affected
    f.run_sends();
    CHECK(sent.done());
    CHECK(sent.code() != std::errc::io_error);
}

TEST_CASE("AsyncQp: with two routers it may be destroyed at any time", "[rdma][I12]") {
    TwoRouters f;
    f.sim.hold_delivery();
    Awaiting received(f.two->recv(f.slice(100, 1)));
    Awaiting sent(f.two->send(f.slice(0, 1)));
    SECTION("before its routers") {
        f.two.reset();
        f.notifier.run(); // without an event
        CHECK(sent.code() == std::errc::operation_canceled);
        CHECK(!received.done());
        f.receive_notifier.run();
        CHECK(received.code() == std::errc::operation_canceled);
    }
    SECTION("after the router of its receives") {
        f.receive_router.reset();
        Awaiting later(f.two->recv(f.slice(100, 1)));
        CHECK(later.code() == std::errc::operation_canceled);
        f.two.reset();
        f.notifier.run();
        CHECK(sent.code() == std::errc::operation_canceled);
    }
    SECTION("after both") {
        f.receive_router.reset();
        f.a.reset();
        f.b.reset();
        f.router.reset();
        f.two.reset();
    }
}

TEST_CASE("AsyncQp: only the receives of solicited messages wake the program", "[rdma]") {
    TwoRouters f;
    ManualNotifier solicited_notifier;
    Router solicited(
        AsyncCq(CompletionQueue(f.context, 8), solicited_notifier, {.solicited_only = true}));
    AsyncQp qp(*f.router, solicited, f.domain, {.max_send_wr = 2, .max_recv_wr = 2});
    qp.queue_pair().connect(qp.queue_pair().local_address());
    Operation first = qp.recv(f.slice(100, 1));
    Operation second = qp.recv(f.slice(101, 1));
    Awaiting sent(qp.send(f.slice(0, 1)));
    const ibv_comp_channel* channel = solicited.completion_queue().channel().native_handle();
    CHECK(f.sim.queued_events(channel) == 0);
    f.run_sends();
    CHECK(sent.completion); // the events of sends are not suppressed
    Operation urgent = qp.send(f.slice(0, 1), {.solicited = true});
    CHECK(f.sim.queued_events(channel) == 1);
    solicited_notifier.notify();
    solicited_notifier.run();
    CHECK(first.done());
    CHECK(second.done());
}

TEST_CASE("AsyncQp: a shared receive queue belongs to the router of the receives", "[rdma]") {
    TwoRouters f;
    const AsyncSrq receives(*f.receive_router, f.domain);
    CHECK(failure_text(std::errc::invalid_argument, [&] {
              AsyncQp(*f.router, f.domain, receives);
          }).starts_with("the AsyncSrq belongs to another Router"));
}

// --- queue pairs that the program has made ---

TEST_CASE("AsyncQp: on a queue pair that the program has made", "[rdma][adopt]") {
    Program program;
    Adopted f(program);
    f.connect();
    Awaiting received(f.ends[1]->recv(f.region.slice(32, 8)));
    Awaiting sent(f.ends[0]->send(f.region.slice(0, 8)));
    f.run();
    CHECK(sent.completion);
    CHECK(received.completion);
    SECTION("it is left as it is if nothing is posted") {
        f.ends[0].reset();
        CHECK(f.state(0) == IBV_QPS_RTS);
    }
    SECTION("the device drops what is posted") {
        program.sim.hold_delivery();
        SECTION("receives") {
            Awaiting pending(f.ends[0]->recv(f.region.slice(0, 8)));
            f.ends[0].reset();
            f.run();
            CHECK(pending.code() == std::errc::operation_canceled);
        }
        SECTION("sends") {
            Awaiting pending(f.ends[0]->send(f.region.slice(0, 8)));
            f.ends[0].reset();
            f.run();
            CHECK(pending.code() == std::errc::operation_canceled);
        }
        CHECK(f.state(0) == IBV_QPS_RESET);
        CHECK(program.sim.posted_receives(program.qps[0]) == 0);
        CHECK(program.sim.posted_sends(program.qps[0]) == 0);
    }
    // The same queue pair again. What is left of the requests before completes nothing (I13).
    f.ends[0].reset();
    program.sim.release_delivery();
    const CompletionQueue& cq = f.router->completion_queue();
    f.ends[0].emplace(
        *f.router, QueuePair(borrow(program.qps[0]), cq, cq, {.max_send_wr = 4, .max_recv_wr = 4}));
    if (f.state(0) == IBV_QPS_RESET) return;
    Awaiting again(f.ends[0]->write(f.region.slice(0, 8), f.region.remote_slice().slice(8, 8)));
    f.run();
    CHECK(again.completion);
}

TEST_CASE("AsyncQp: a borrowed queue pair is drained as any other", "[rdma][adopt][I12]") {
    Program program;
    Adopted f(program);
    f.connect();
    Awaiting received(f.ends[0]->recv(f.region.slice(0, 8)));
    Draining drained(*f.ends[0]);
    f.run();
    CHECK(drained.completion);
    CHECK(received.code() == make_wc_error(IBV_WC_WR_FLUSH_ERR));
    f.ends[0].reset();
    CHECK(f.state(0) == IBV_QPS_ERR);
}

TEST_CASE("AsyncQp: a queue pair on other completion queues", "[rdma][adopt]") {
    RouterFixture f;
    const CompletionQueue other(f.context, 64);
    const CompletionQueue& own = f.router->completion_queue();
    const auto text = [&](const CompletionQueue& sends, const CompletionQueue& receives) {
        return failure_text(std::errc::invalid_argument,
                            [&] { AsyncQp(*f.router, QueuePair(f.domain, sends, receives)); });
    };
    CHECK(text(other, own).starts_with("the sends of the ibv_qp complete into another"));
    CHECK(text(own, other).starts_with("the receives of the ibv_qp complete into another"));
    QueuePair moved(f.domain, own, own);
    AsyncQp qp(*f.router, std::move(moved)); // as with the options
    CHECK(!qp.queue_pair().is_adopted());
    CHECK(failure_text(std::errc::invalid_argument, [&] {
              AsyncQp(*f.router, std::move(moved)); // NOLINT(bugprone-use-after-move)
          }).starts_with("this QueuePair was moved from"));
}

TEST_CASE("AsyncQp: sends that complete in any order", "[rdma][adopt]") {
    Program program(IBV_QPT_DRIVER);
    Adopted f(program);
    AsyncQp& qp = *f.ends[0];
    for (auto& end : f.ends) end->queue_pair().activate();
    std::optional<AddressHandle> peer(std::in_place, f.domain, f.ends[1]->queue_pair(),
                                      f.ends[1]->queue_pair().local_address());
    const std::uint32_t number = f.ends[1]->queue_pair().qp_num();
    program.sim.hold_delivery();
    // Each round takes the slots in another order. One that is not signaled would never complete.
    for (int round = 0; round < 3; ++round) {
        std::vector<std::unique_ptr<Awaiting>> sends;
        for (std::size_t i = 0; i < 5; ++i) { // one waits for room
            sends.push_back(std::make_unique<Awaiting>(qp.send_to(
                f.region.slice(i, 1), *peer, number, InitOptions{}.qkey, {.signaled = false})));
        }
        if (round == 2) peer.reset(); // the operations keep it
        program.sim.reverse_sends(program.qps[0]);
        program.sim.deliver_from(program.qps[0], 1);
        f.run();
        CHECK(program.sim.calls("ibv_destroy_ah") == 0);
        CHECK(sends[3]->completion); // only that
        CHECK(!sends[0]->done());
        CHECK(!sends[2]->done());
        CHECK(!sends[4]->done());
        program.sim.reverse_sends(program.qps[0]);
        program.sim.deliver_from(program.qps[0], 3);
        f.run();
        CHECK(sends[4]->completion);
        CHECK(sends[0]->completion);
        CHECK(!sends[2]->done());
        CHECK(f.router->in_flight().size() == 1);
        program.sim.deliver_from(program.qps[0], 1);
        f.run();
        CHECK(sends[2]->completion);
        CHECK(f.router->in_flight().empty());
        CHECK(f.router->ignored_completions() == 0);
    }
    CHECK(program.sim.calls("ibv_destroy_ah") == 1);
}

TEST_CASE("AsyncQp: the sending half of an XRC connection", "[rdma][adopt]") {
    // The simulation has no XRC. It sees an RC queue pair, and the library sees the other type.
    static std::uint32_t remote_srq = 0;
    static int (*post_send)(ibv_qp*, ibv_send_wr*, ibv_send_wr**) = nullptr;
    const auto note_srq = [](ibv_qp* qp, ibv_send_wr* wr, ibv_send_wr** bad_wr) {
        remote_srq = wr->qp_type.xrc.remote_srqn;
        qp->qp_type = IBV_QPT_RC;
        const int result = post_send(qp, wr, bad_wr);
        qp->qp_type = IBV_QPT_XRC_SEND;
        return result;
    };
    Program program;
    Adopted f(program);
    f.connect();
    f.ends[0].reset();
    program.qps[0]->qp_type = IBV_QPT_XRC_SEND;
    ibv_cq* const receives = std::exchange(program.qps[0]->recv_cq, nullptr);
    post_send = std::exchange(program.context->ops.post_send, +note_srq);

    const CompletionQueue& cq = f.router->completion_queue();
    QueuePair adopted(borrow(program.qps[0]), cq, cq, {.max_send_wr = 4, .max_recv_wr = 4});
    CHECK(adopted.options().max_recv_wr == 0);
    {
        AsyncQp qp(*f.router, std::move(adopted));
        const RemoteSlice remote = f.region.remote_slice().slice(8, 8);
        const SendRequest write = SendRequest::write(f.region.slice(0, 8), remote);
        Awaiting written(qp.post(write.to_srq(7)));
        f.run();
        CHECK(written.completion);
        CHECK(remote_srq == 7);
        CHECK(failure_text(std::errc::invalid_argument, [&] {
                  static_cast<void>(qp.recv(f.region.slice(0, 8)));
              }).starts_with("a queue that was made for no work requests"));
    }
    program.context->ops.post_send = post_send;
    program.qps[0]->qp_type = IBV_QPT_RC;
    program.qps[0]->recv_cq = receives;
}
