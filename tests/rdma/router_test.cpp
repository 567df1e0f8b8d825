// SPDX-License-Identifier: MIT
// What a Router does with completions, stops, failures and its own end.
#include "rdma/fixture.hpp"

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "support/escaping.hpp"

using namespace asyncverbs;
using namespace asyncverbs::support;
using detail::WrId;

namespace {

// One posted send and one posted receive of `a`, which must not complete.
struct Pending : RouterFixture {
    Pending() {
        sim.hold_delivery();
        send = a->send(slice(0, 8));
        receive = a->recv(slice(100, 8));
        region.reset(); // if a slot is released, the simulation finds the region in use
    }

    std::uint32_t qp_num() const { return a->queue_pair().qp_num(); }
    void complete(ibv_wc wc) { sim.push(native, wc); }

    // What was pushed was ignored; the operations complete, with their own status.
    void check_ignored(std::uint64_t count) {
        run();
        CHECK(!send.done());
        CHECK(!receive.done());
        CHECK(router->ignored_completions() == count);
        CHECK(sim.calls("ibv_dereg_mr") == 0);
        sim.time_out();
        run();
        Awaiting sent(std::move(send));
        CHECK(sent.code() == make_wc_error(IBV_WC_RETRY_EXC_ERR));
        Awaiting received(std::move(receive));
        CHECK(received.code() == make_wc_error(IBV_WC_RETRY_EXC_ERR));
        CHECK(sim.calls("ibv_dereg_mr") == 1);
    }

    static std::uint64_t send_wr_id() { return WrId::make(0, WrId::first_tag); }
    static std::uint64_t receive_wr_id() { return WrId::make(1, WrId::first_tag); }

    Operation send;
    Operation receive;
};

ibv_wc completion(std::uint64_t wr_id, ibv_wc_status status, std::uint32_t qp_num,
                  ibv_wc_opcode opcode) {
    ibv_wc wc{};
    wc.wr_id = wr_id;
    wc.status = status;
    wc.qp_num = qp_num;
    wc.opcode = opcode;
    return wc;
}

} // namespace

// --- completions of other requests ---

TEST_CASE("Router: a wr_id of other code completes nothing", "[rdma][I13]") {
    int object = 0;
    const std::uint64_t wr_id =
        GENERATE_COPY(as<std::uint64_t>(), 0, 1, 2, std::uint64_t{1} << 20, 0xffffffff,
                      ~std::uint64_t{}, ~std::uint64_t{} - 1,
                      static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(&object)));
    const bool of_this_queue_pair = GENERATE(true, false);
    Pending f;
    const std::uint32_t qp_num = of_this_queue_pair ? f.qp_num() : 0;
    f.complete(completion(wr_id, IBV_WC_SUCCESS, qp_num, IBV_WC_SEND));
    f.complete(completion(wr_id, IBV_WC_SUCCESS, qp_num, IBV_WC_RECV));
    f.complete(completion(wr_id, IBV_WC_REM_ACCESS_ERR, qp_num, IBV_WC_SEND));
    f.check_ignored(3);
}

TEST_CASE("Router: a wr_id of its own completes nothing on another queue pair", "[rdma][I13]") {
    Pending f;
    const std::uint32_t other = f.b->queue_pair().qp_num();
    for (const ibv_wc_status status : {IBV_WC_SUCCESS, IBV_WC_REM_ACCESS_ERR}) {
        f.complete(completion(f.send_wr_id(), status, other, IBV_WC_SEND));
        f.complete(completion(f.receive_wr_id(), status, other, IBV_WC_RECV));
    }
    f.check_ignored(4);
}

TEST_CASE("Router: a wr_id of its own completes nothing in the other direction", "[rdma][I13]") {
    Pending f;
    f.complete(completion(f.send_wr_id(), IBV_WC_SUCCESS, f.qp_num(), IBV_WC_RECV));
    f.complete(completion(f.send_wr_id(), IBV_WC_SUCCESS, f.qp_num(), IBV_WC_RECV_RDMA_WITH_IMM));
    f.complete(completion(f.receive_wr_id(), IBV_WC_SUCCESS, f.qp_num(), IBV_WC_RDMA_READ));
    f.check_ignored(3);
}

TEST_CASE("Router: a wr_id of a slot that is free completes nothing", "[rdma][I13]") {
    Pending f;
    f.complete(completion(f.send_wr_id() + 1, IBV_WC_SUCCESS, f.qp_num(), IBV_WC_SEND));
    f.complete(completion(f.receive_wr_id() + 1, IBV_WC_SUCCESS, f.qp_num(), IBV_WC_RECV));
    f.complete(completion(f.send_wr_id() + 100, IBV_WC_SUCCESS, f.qp_num(), IBV_WC_SEND));
    f.complete(
        completion(WrId::make(100, WrId::first_tag), IBV_WC_SUCCESS, f.qp_num(), IBV_WC_SEND));
    f.check_ignored(4);
}

TEST_CASE("Router: a raw queue pair on its completion queue completes no operation",
          "[rdma][I13]") {
    RouterFixture f;
    f.sim.hold_delivery();
    const CompletionQueue& cq = f.router->completion_queue();
    QueuePair raw(f.domain, cq, cq, {.max_send_wr = 2, .max_recv_wr = 2});
    QueuePair peer(f.domain, cq, cq, {.max_send_wr = 2, .max_recv_wr = 2});
    raw.connect(peer.local_address());
    peer.connect(raw.local_address());
    Operation receive = f.a->recv(f.slice(100, 8));
    Operation send = f.a->send(f.slice(0, 8));
    peer.post_recv(0, f.slice(200, 8));
    raw.post_send(0, f.slice(0, 8));
    CHECK(f.sim.deliver_from(raw.native_handle()) == 1);
    f.run();
    CHECK(f.router->ignored_completions() == 2);
    CHECK(!receive.done());
    CHECK(!send.done());
    f.sim.time_out();
    f.run();
    CHECK(receive.done());
    CHECK(send.done());
}

TEST_CASE("Router: a completion that outlives its queue pair completes nothing", "[rdma][I13]") {
    for (const auto& provider : {simulated::rxe, simulated::mlx5}) {
        RouterFixture f(provider);
        const QueuePairOptions options{.max_send_wr = 4, .max_recv_wr = 4};
        for (int round = 0; round < 3; ++round) {
            std::optional<AsyncQp> brief(std::in_place, *f.router, f.domain, options);
            brief->queue_pair().connect(f.b->queue_pair().local_address());
            Operation lost = brief->recv(f.slice(100, 1));
            const std::uint32_t qp_num = brief->queue_pair().qp_num();
            brief->queue_pair().to_error(); // queues the completion
            brief.reset();                  // before the next one, which takes its route
            f.sim.set_next_qp_num(qp_num);  // and its number
            brief.emplace(*f.router, f.domain, options);
            brief->queue_pair().connect(f.b->queue_pair().local_address());
            Operation alive = brief->recv(f.slice(100, 1));
            f.run();
            CHECK(lost.done());
            CHECK(!alive.done());
            brief.reset();
        }
    }
}

// --- stops, failures and the end ---

TEST_CASE("Router: an AsyncCq with a waiter is not taken over", "[rdma]") {
    RouterFixture f;
    ManualNotifier notifier;
    AsyncCq cq(CompletionQueue(f.context, 8), notifier);
    std::array<ibv_wc, 1> wcs;
    const auto wait = [&]() -> Coroutine { co_await cq.poll(wcs); };
    const Coroutine waiter = wait();
    try {
        const Router router(std::move(cq));
        FAIL("no exception");
    } catch (const std::system_error& error) {
        CHECK(error.code() == std::errc::device_or_resource_busy);
        CHECK_THAT(error.what(), contains("waits for this AsyncCq"));
    }
}

TEST_CASE("Router: a stop takes effect while the queue is never empty", "[rdma]") {
    RouterFixture f;
    std::stop_source stop;
    Awaited stopped;
    Operation receive = f.b->recv(f.slice(100, 1));
    const Coroutine waiter = await<Operation&>(receive, stopped, stop.get_token());
    int writes = 0;
    int writes_before_stop = 0;
    const auto write_on = [&]() -> Coroutine {
        for (; writes < 100; ++writes) {
            co_await f.a->write(f.slice(0, 1), f.remote(200, 1));
            if (writes == 10) stop.request_stop();
            if (!stopped.done()) writes_before_stop = writes;
        }
    };
    const Coroutine writer = write_on();
    f.run();
    CHECK(writer.done());
    CHECK(stopped.code() == std::errc::operation_canceled);
    CHECK(writes_before_stop == 10);
}

TEST_CASE("Router: destroyed while coroutines wait", "[rdma]") {
    RouterFixture f;
    Awaited outcome;
    std::optional<Coroutine> waiter(await(f.b->recv(f.slice(100, 1)), outcome));
    Operation kept = f.b->recv(f.slice(100, 1));
    f.router.reset();
    CHECK(!outcome.done());
    Awaiting later(f.a->send(f.slice(0, 1)));
    CHECK(later.code() == std::errc::operation_canceled);
    waiter.reset();
}

TEST_CASE("Router: close() reports queue pairs that are left, and can be repeated",
          "[rdma][close]") {
    RouterFixture f;
    ibv_qp_init_attr attr{};
    attr.send_cq = attr.recv_cq = f.native;
    attr.qp_type = IBV_QPT_RC;
    ibv_qp* const raw = ibv_create_qp(f.domain.native_handle(), &attr);
    std::error_code error;
    const auto close = [&]() -> Coroutine {
        Operation receive = f.b->recv(f.slice(100, 1));
        co_await receive;
        error = f.router->close(); // while the router resumes this coroutine
    };
    const Coroutine closer = close();
    Awaiting waiter(f.b->recv(f.slice(100, 1)));
    Operation sent = f.a->send(f.slice(0, 1));
    Operation second = f.a->send(f.slice(0, 1));
    f.run();
    CHECK(closer.done());
    CHECK(error == std::errc::device_or_resource_busy);
    CHECK(!waiter.done());
    Awaiting later(f.a->send(f.slice(0, 1)));
    CHECK(later.code() == std::errc::operation_canceled);

    f.a.reset();
    f.b.reset();
    CHECK(f.router->close() == std::errc::device_or_resource_busy);
    f.sim.take_problems(); // the simulation takes EBUSY for a mistake of the application
    ibv_destroy_qp(raw);
    CHECK(f.router->close() == std::error_code());
    CHECK(f.sim.counters(f.native).events_acked == 1);
    CHECK(f.router->close() == std::error_code()); // as of one that was moved from
}

TEST_CASE("Router: a resumed coroutine may destroy everything", "[rdma][I8]") {
    RouterFixture f;
    Operation sent = f.a->send(f.slice(0, 1));
    const auto destroy = [&]() -> Coroutine {
        Operation receive = f.b->recv(f.slice(100, 1));
        co_await receive;
        f.a.reset();
        f.router.reset();
        f.b.reset();
    };
    const Coroutine destroyer = destroy();
    Awaiting other(f.b->recv(f.slice(100, 1)));
    f.run();
    CHECK(destroyer.done());
    CHECK(!other.done());
}

TEST_CASE("Router: a coroutine that is resumed with its failure may destroy it", "[rdma][I5][I8]") {
    RouterFixture f;
    Awaited outcome;
    const auto give_up = [&]() -> Coroutine {
        try {
            co_await f.b->recv(f.slice(100, 1));
        } catch (const std::system_error& error) {
            outcome.error = error;
        }
        f.a.reset();
        f.b.reset();
        f.router.reset();
    };
    const Coroutine giver_up = give_up();
    const bool by_verb = GENERATE(false, true);
    if (by_verb) {
        f.sim.fail("ibv_poll_cq");
        f.notifier.notify();
    } else {
        f.notifier.notify(std::make_error_code(std::errc::bad_file_descriptor));
    }
    CHECK(f.notifier.run());
    CHECK(giver_up.done());
    CHECK(outcome.code() == (by_verb ? std::errc::io_error : std::errc::bad_file_descriptor));
    CHECK(f.sim.calls("ibv_destroy_cq") == 1);
}

TEST_CASE("Router: made and destroyed by a coroutine that the AsyncCq has resumed", "[rdma][I8]") {
    simulated::SimulatedVerbs sim;
    const Context context = Context::open();
    ManualNotifier notifier;
    const auto take_over_and_leave = [](AsyncCq cq) -> Coroutine {
        std::array<ibv_wc, 1> wcs;
        co_await cq.poll(wcs);
        const Router router(std::move(cq));
    };
    AsyncCq cq(CompletionQueue(context, 8), notifier);
    ibv_cq* const native = cq.native_handle();
    const Coroutine one = take_over_and_leave(std::move(cq));
    sim.complete(native, 1);
    notifier.notify();
    CHECK(notifier.run());
    CHECK(one.done());
    CHECK(sim.calls("ibv_destroy_cq") == 1);
}

TEST_CASE("Router: does not wait on a completion queue that has failed", "[rdma][I1][I5]") {
    simulated::SimulatedVerbs sim;
    const Context context = Context::open();
    ManualNotifier notifier;
    AsyncCq cq(CompletionQueue(context, 8), notifier);
    std::array<ibv_wc, 1> wcs;
    std::error_code error;
    const auto poll = [&]() -> Coroutine { co_await cq.poll(wcs, error); };
    const Coroutine first = poll(); // which has waited
    sim.complete(cq.native_handle(), 1);
    notifier.notify();
    CHECK(notifier.run());
    const bool before = GENERATE(false, true);
    sim.fail("ibv_poll_cq");
    if (before) {
        const Coroutine failed = poll();
        CHECK(error == std::errc::io_error);
    }
    const Router router(std::move(cq));
    CHECK_FALSE(notifier.waiting());
}

TEST_CASE("Router: moved, and assigned to", "[rdma]") {
    RouterFixture f;
    Router moved = std::move(*f.router);
    Awaiting outcome(f.b->recv(f.slice(100, 1)));
    Operation sent = f.a->send(f.slice(0, 1));
    f.run();
    CHECK(outcome.completion);
    ManualNotifier notifier;
    moved = Router(AsyncCq(CompletionQueue(f.context, 8), notifier));
    Awaiting later(f.a->send(f.slice(0, 1)));
    CHECK(later.code() == std::errc::operation_canceled);
}

namespace {

Escaping throw_after(Operation& operation) {
    co_await operation;
    throw std::runtime_error("from a coroutine");
}

} // namespace

TEST_CASE("Router: an exception of a resumed coroutine reaches the caller of the loop", "[rdma]") {
    RouterFixture f;
    Operation receive = f.b->recv(f.slice(100, 1));
    const Escaping thrower = throw_after(receive);
    Awaiting behind(f.b->recv(f.slice(100, 1)));
    Operation sent = f.a->send(f.slice(0, 1));
    CHECK_THROWS_WITH(f.run(), contains("from a coroutine"));
    REQUIRE(behind.error);
    CHECK_THAT(behind.error->what(), contains("from a coroutine"));
    thrower.handle.destroy();
}

TEST_CASE("Router: what is in flight", "[rdma][router]") {
    RouterFixture f; // of 4 sends and 4 receives
    CHECK(f.router->in_flight().empty());
    f.sim.hold_delivery();
    std::vector<Operation> operations;
    operations.push_back(f.b->recv(f.slice(100, 8)));
    operations.push_back(f.a->send(f.slice(0, 8)));
    operations.push_back(f.a->read(f.slice(8, 8), f.remote(200, 8)));
    (void)f.a->write(f.slice(0, 8), f.remote(200, 8), {.signaled = false}); // not awaited
    operations.push_back(f.a->fetch_and_add(f.slice(16, 8), f.remote(200, 8), 1));
    operations.push_back(f.a->send(f.slice(0, 8))); // waits for room
    const auto list = [&] {
        std::vector<std::tuple<std::uint32_t, ibv_wc_opcode, bool>> requests;
        for (const RequestInFlight& request : f.router->in_flight()) {
            requests.emplace_back(request.qp_num, request.opcode, request.posted);
        }
        return requests;
    };
    const std::uint32_t a = f.a->queue_pair().qp_num();
    const std::uint32_t b = f.b->queue_pair().qp_num();
    const std::vector<std::tuple<std::uint32_t, ibv_wc_opcode, bool>> all = {
        {a, IBV_WC_SEND, true},      {a, IBV_WC_RDMA_READ, true}, {a, IBV_WC_RDMA_WRITE, true},
        {a, IBV_WC_FETCH_ADD, true}, {a, IBV_WC_SEND, false},     {b, IBV_WC_RECV, true}};
    CHECK(list() == all);
    CHECK(list() == all);
    CHECK(f.sim.calls("ibv_post_send") == 4);

    f.b.reset();
    f.a.reset();
    CHECK(f.router->in_flight().empty());
}

TEST_CASE("Router: how long something is in flight", "[rdma][router]") {
    using namespace std::chrono_literals;
    RouterFixture f;
    const auto first_time = [&] { return f.router->in_flight().front().reported_for; };
    for (int i = 0; i < 3; ++i) { // the slots are used again
        f.sim.hold_delivery();
        const Operation receive = f.b->recv(f.slice(100, 8));
        const Operation send = f.a->send(f.slice(0, 8));
        const auto start = std::chrono::steady_clock::now();
        CHECK(first_time() == 0ns);
        std::this_thread::sleep_for(1ms);
        const std::chrono::nanoseconds later = first_time();
        CHECK(later >= 1ms);
        CHECK(later <= std::chrono::steady_clock::now() - start);
        f.sim.release_delivery();
        f.run();
        CHECK(f.router->in_flight().empty());
    }
}
