// SPDX-License-Identifier: MIT
// Sequences that lost completions in other projects, as far as the tests of the classes do not
// replay them. tests/README.md lists all cases.
#include <asyncverbs/asyncverbs.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "cq/fixture.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"

using namespace asyncverbs;
using simulated::ArmModel;
using simulated::Call;
using simulated::mlx5;
using simulated::ProviderModel;
using simulated::rxe;
using simulated::SimulatedVerbs;
using simulated::siw;
using support::contains;
using support::Coroutine;
using support::poll_once;
using support::WrIds;
using Fixture = support::CqFixture<>;

namespace {

Coroutine poll_status(AsyncCq& cq, std::uint64_t wr_id, std::vector<ibv_wc_status>& got) {
    const ibv_wc wc = co_await cq.poll_wr_id(wr_id);
    got.push_back(wc.status);
}

// A queue pair that is its own peer, and memory that it sends from and receives into.
struct ConnectedPair {
    explicit ConnectedPair(const AsyncCq& cq)
        : domain(cq.completion_queue().context()), region(std::in_place, domain, memory),
          qp(std::in_place, domain, cq.completion_queue(), cq.completion_queue()) {
        qp->connect(qp->local_address());
    }

    void receive(std::uint64_t wr_id) {
        ibv_sge sge = region->slice().sge();
        ibv_recv_wr wr{};
        wr.wr_id = wr_id;
        wr.sg_list = &sge;
        wr.num_sge = 1;
        qp->post_recv(wr);
    }
    void send(std::uint64_t wr_id) {
        ibv_send_wr wr{};
        wr.wr_id = wr_id;
        wr.opcode = IBV_WR_SEND;
        wr.send_flags = IBV_SEND_SIGNALED;
        qp->post_send(wr);
    }

    std::array<std::byte, 64> memory{};
    ProtectionDomain domain;
    std::optional<MemoryRegion> region;
    std::optional<QueuePair> qp;
};

} // namespace

// --- arm and poll ---

TEST_CASE("field: two CQs wait; the one that arms first gets a completion while the other arms",
          "[proof][field-3][I1]") {
    const auto model = GENERATE(ArmModel::flag, ArmModel::index);
    SimulatedVerbs sim(ProviderModel{.arm_model = model});
    const Context context = Context::open();
    EpollExecutor executor;
    AsyncCq send = AsyncCq::create(context, 8, executor);
    AsyncCq receive = AsyncCq::create(context, 8, executor);
    WrIds sent;
    WrIds received;
    const Coroutine sender = poll_once(send, sent);
    bool once = true;
    sim.on_call([&](const Call& call) {
        if (call.verb != "ibv_req_notify_cq" || call.object != receive.native_handle()) return;
        if (std::exchange(once, false)) sim.complete(send.native_handle(), 1);
    });
    const Coroutine receiver = poll_once(receive, received);
    sim.on_call(nullptr);
    sim.complete(receive.native_handle(), 2);
    executor.run_once();
    CHECK(sent == WrIds{1});
    CHECK(received == WrIds{2});
}

TEST_CASE("field: a second AsyncCq on one channel is rejected", "[proof][field-3][field-18][I6]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    EpollExecutor executor;
    const CompletionChannel channel(context);
    const AsyncCq first(CompletionQueue(context, 8, channel), executor.notifier(channel.fd()));
    CHECK_THROWS_WITH(
        AsyncCq(CompletionQueue(context, 8, channel), executor.notifier(channel.fd())),
        contains("epoll_ctl(EPOLL_CTL_ADD)"));
}

TEST_CASE("field: no arm is downgraded to solicited completions", "[proof][field-8][field-9][I1]") {
    const ProviderModel provider = GENERATE(rxe, siw, mlx5);
    Fixture f(provider);
    const bool fails = GENERATE(false, true);
    for (std::uint64_t id = 1; id <= 3; ++id) { // each one re-arms
        WrIds got;
        const Coroutine consumer = poll_once(*f.cq, got);
        ibv_wc wc{};
        wc.wr_id = id;
        wc.status = fails ? IBV_WC_RETRY_EXC_ERR : IBV_WC_SUCCESS;
        f.sim.push(f.native, wc, /*solicited=*/false);
        REQUIRE(f.sim.queued_events(f.native->channel) == 1);
        f.wake();
        CHECK(got == WrIds{id});
    }
}

// --- accounting ---

TEST_CASE("field: the ack is the last touch of a CQ", "[proof][field-29][I4]") {
    Fixture f;
    WrIds got;
    const Coroutine consumer = poll_once(*f.cq, got);
    f.sim.complete(f.native, 1);
    f.wake();
    std::vector<std::string> calls;
    f.sim.on_call([&](const Call& call) {
        if (call.object == f.native && call.moment == Call::Moment::before) {
            calls.emplace_back(call.verb);
        }
    });
    f.cq.reset();
    f.sim.on_call(nullptr);
    CHECK(calls == std::vector<std::string>{"ibv_ack_cq_events", "ibv_destroy_cq"});
}

// --- waiters and coroutines ---

TEST_CASE("field: the first of two waiters is cancelled with its wake; the second gets the wake",
          "[proof][field-36][field-37][I6][I7]") {
    const auto model = GENERATE(ArmModel::flag, ArmModel::index);
    const bool stop_first = GENERATE(true, false);
    Fixture f(ProviderModel{.arm_model = model});
    std::stop_source stop;
    WrIds first_got;
    WrIds second_got;
    const Coroutine first = poll_once(*f.cq, first_got, stop.get_token());
    const Coroutine second = poll_once(*f.cq, second_got);
    if (stop_first) stop.request_stop();
    f.sim.complete(f.native, 1);
    if (!stop_first) stop.request_stop();
    f.wake(); // one wake for both
    CHECK(first.done());
    CHECK_THROWS_AS(first.get(), std::system_error);
    CHECK(second_got == WrIds{1});
}

namespace {

// Readable at once, after the device has completed something.
struct ReadyNotifier {
    struct Readable {
        SimulatedVerbs& sim;
        ibv_cq* const& cq;
        bool await_ready() const {
            sim.complete(cq, 1);
            return true;
        }
        void await_suspend(std::coroutine_handle<>) const noexcept {}
        std::error_code await_resume() const noexcept { return {}; }
    };
    Readable readable(std::stop_token) const { return {sim, cq}; }
    SimulatedVerbs& sim;
    ibv_cq* const& cq;
};

} // namespace

TEST_CASE("field: delivered before await_suspend returns, a coroutine is resumed once",
          "[proof][field-40][I8]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    ibv_cq* native = nullptr;
    AsyncCq cq(CompletionQueue(context, 8), ReadyNotifier{sim, native});
    native = cq.native_handle();
    struct Local {
        static Coroutine run(AsyncCq& queue, int& resumed) {
            std::array<ibv_wc, 1> wcs{};
            for (int i = 0; i < 3; ++i) {
                const std::span<ibv_wc> done = co_await queue.poll(wcs);
                resumed += static_cast<int>(done.size());
            }
        }
    };
    int resumed = 0;
    const Coroutine consumer = Local::run(cq, resumed);
    CHECK(consumer.done());
    CHECK(resumed == 3);
}

TEST_CASE("field: a waiter is destroyed while its resume is queued", "[proof][field-42][I7][I8]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    EpollExecutor executor;
    AsyncCq earlier = AsyncCq::create(context, 8, executor);
    AsyncCq cq = AsyncCq::create(context, 8, executor);
    struct Local {
        static Coroutine destroy(AsyncCq& queue, Coroutine& victim) {
            std::array<ibv_wc, 1> wcs{};
            co_await queue.poll(wcs);
            victim.destroy();
        }
    };
    WrIds got;
    Coroutine victim = poll_once(cq, got);
    const Coroutine destroyer = Local::destroy(earlier, victim);
    sim.complete(earlier.native_handle(), 1);
    sim.complete(cq.native_handle(), 2);
    executor.run_once(); // both are ready; the destroyer is resumed first
    REQUIRE(destroyer.done());
    CHECK(got.empty());
    std::array<ibv_wc, 1> wcs{};
    REQUIRE(cq.try_poll(wcs).size() == 1); // the completion stayed
    CHECK(wcs[0].wr_id == 2);
}

TEST_CASE("field: the executor stops while a coroutine waits; its completion stays in the CQ",
          "[proof][field-43][I7][I8]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    EpollExecutor executor;
    AsyncCq cq = AsyncCq::create(context, 8, executor);
    struct Local {
        static Task<> wait(AsyncCq& queue) {
            std::array<ibv_wc, 1> wcs{};
            co_await queue.poll(wcs);
        }
    };
    executor.post([&] {
        executor.stop();
        sim.complete(cq.native_handle(), 1);
    });
    CHECK_THROWS_AS(executor.run(Local::wait(cq)), std::system_error);
    WrIds got;
    const Coroutine next = poll_once(cq, got);
    CHECK(got == WrIds{1});
}

// --- content and state ---

TEST_CASE("field: an error completion is matched by its valid fields only",
          "[proof][field-51][I11]") {
    Fixture f;
    std::vector<ibv_wc_status> got;
    const Coroutine waiting = poll_status(*f.cq, 2, got);
    f.sim.complete(f.native, 1, IBV_WC_WR_FLUSH_ERR, 17); // its other fields are garbage
    f.sim.complete(f.native, 2, IBV_WC_WR_FLUSH_ERR, 17);
    f.wake();
    CHECK(got == std::vector<ibv_wc_status>{IBV_WC_WR_FLUSH_ERR});
    const Coroutine kept = poll_status(*f.cq, 1, got);
    CHECK(got.size() == 2);
}

TEST_CASE("field: a wait for completions that were purged with their queue pair can be stopped",
          "[proof][field-55][I7]") {
    Fixture f(mlx5);
    ConnectedPair connection(*f.cq);
    connection.receive(1);
    connection.qp->to_error();
    connection.qp.reset(); // not drained
    REQUIRE(f.sim.counters(f.native).completions_lost == 1);
    std::stop_source stop;
    WrIds got;
    const Coroutine waiting = poll_once(*f.cq, got, stop.get_token());
    f.wake();
    REQUIRE_FALSE(waiting.done());
    stop.request_stop();
    f.notifier.run();
    CHECK(waiting.done());
    CHECK(got.empty());
}

TEST_CASE("field: in the documented order of teardown nothing is purged",
          "[proof][field-55][field-57][I12]") {
    const ProviderModel provider = GENERATE(rxe, siw, mlx5);
    Fixture f(provider);
    ConnectedPair connection(*f.cq);
    constexpr std::size_t posted = 6;
    for (std::uint64_t id = 0; id < posted; ++id) connection.receive(id);
    WrIds got;
    const Coroutine waiting = poll_once(*f.cq, got);
    connection.qp->to_error();
    f.wake();
    REQUIRE(waiting.done());
    while (got.size() < posted) {
        const std::size_t before = got.size();
        const Coroutine next = poll_once(*f.cq, got);
        REQUIRE(got.size() > before); // without waiting: all have arrived
    }
    connection.region.reset(); // no request uses it, or the simulation reports it
    connection.qp.reset();
    CHECK(got == WrIds{0, 1, 2, 3, 4, 5});
    CHECK(f.sim.counters(f.native).completions_lost == 0);
}

TEST_CASE("field: a queue pair number is reused: after a drain by count no old completion is left",
          "[proof][field-56][I12]") {
    Fixture f;
    WrIds got;
    std::uint32_t number = 0;
    {
        ConnectedPair old(*f.cq);
        number = old.qp->qp_num();
        old.receive(1);
        old.receive(2);
        old.qp->to_error();
        const Coroutine drain = poll_once(*f.cq, got);
        REQUIRE(got == WrIds{1, 2});
    }
    f.sim.set_next_qp_num(number);
    ConnectedPair reused(*f.cq);
    REQUIRE(reused.qp->qp_num() == number);
    got.clear();
    const Coroutine waiting = poll_once(*f.cq, got);
    reused.receive(3);
    reused.send(4);
    f.wake();
    CHECK(got == WrIds{3, 4});
}

TEST_CASE("field: a stale completion of a destroyed queue pair is identified by its wr_id",
          "[proof][field-56][I6]") {
    Fixture f; // rxe keeps what was not polled
    std::uint32_t number = 0;
    {
        ConnectedPair old(*f.cq);
        number = old.qp->qp_num();
        old.receive(1);
        old.qp->to_error();
    }
    f.sim.set_next_qp_num(number);
    ConnectedPair reused(*f.cq);
    reused.receive(3);
    reused.send(4);
    std::vector<ibv_wc_status> own;
    const Coroutine mine = poll_status(*f.cq, 3, own);
    CHECK(own == std::vector<ibv_wc_status>{IBV_WC_SUCCESS});
    WrIds rest;
    const Coroutine others = poll_once(*f.cq, rest);
    CHECK(rest == WrIds{1, 4});
}
