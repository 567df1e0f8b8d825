// SPDX-License-Identifier: MIT
// AsyncCq on simulated verbs under real epoll: on EpollExecutor, and edge-triggered.
#include <asyncverbs/cq/async_cq.hpp>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/coro/when_all.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/verbs/device.hpp>

#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <random>
#include <system_error>
#include <vector>

#include "cq/fixture.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"
#include "support/epoll.hpp"
#include "support/simulated_verbs.hpp"

using namespace asyncverbs;
using namespace asyncverbs::simulated;
using namespace asyncverbs::support;

namespace {

Task<> consume(AsyncCq& cq, std::vector<std::uint64_t>& got, std::size_t count) {
    std::array<ibv_wc, 3> wcs{};
    while (got.size() < count) {
        for (const ibv_wc& wc : co_await cq.poll(wcs)) got.push_back(wc.wr_id);
    }
}

struct Fixture {
    explicit Fixture(int depth) : cq(AsyncCq::create(context, depth, executor)) {}

    SimulatedVerbs sim;
    Context context = Context::open();
    EpollExecutor executor;
    AsyncCq cq;
    ibv_cq* native = cq.native_handle();
};

} // namespace

TEST_CASE("AsyncCq on EpollExecutor: a ready poll costs no system call and no allocation") {
    Fixture f(1024);
    for (std::uint64_t id = 0; id < 1000; ++id) f.sim.complete(f.native, id);
    struct Local {
        static Task<Counters> run(AsyncCq& queue) {
            std::array<ibv_wc, 1> wcs{};
            const Counters before = counters();
            for (int i = 0; i < 1000; ++i) co_await queue.poll(wcs);
            co_return counters() - before;
        }
    };
    const Counters cost = f.executor.run(Local::run(f.cq));
    CHECK(cost.system_calls() == 0);
    CHECK(cost.allocations == 0);
    CHECK(f.cq.statistics().polls == 1000);
    CHECK(f.cq.statistics().arms == 0);
}

TEST_CASE("AsyncCq on EpollExecutor: a sleeping poll costs one epoll_wait and no allocation") {
    // What the verbs cost on a real device is counted on one: tests/device.
    Fixture f(16);
    std::vector<std::uint64_t> got;
    got.reserve(200);
    bool posted = false;
    std::vector<Counters> at_arm;
    at_arm.reserve(200);
    // Each arm is followed by a completion: the consumer always sleeps, and never for long.
    f.sim.on_call([&](const Call& call) {
        if (call.verb != "ibv_poll_cq" || call.moment != Call::Moment::after) return;
        if (!f.sim.armed(f.native)) {
            posted = false;
        } else if (!posted && f.cq.statistics().polls % 3 != 0) {
            posted = true;
            at_arm.push_back(counters());
            f.sim.complete(f.native, 1);
        }
    });
    f.executor.run(consume(f.cq, got, 100));
    f.sim.on_call(nullptr);
    CHECK(f.cq.statistics().wakes == 100);
    CHECK(f.cq.statistics().arms == 100);
    const Counters total = at_arm.back() - at_arm.front();
    CHECK(total.epoll_wait == at_arm.size() - 1);
    CHECK(total.epoll_ctl == 0);
}

TEST_CASE("AsyncCq: nothing is lost under level- and edge-triggered epoll (I3)", "[field-13][I3]") {
    const auto model = GENERATE(ArmModel::flag, ArmModel::index);
    const auto stale = GENERATE(0, 1, 3);
    const bool duplicates = GENERATE(false, true);
    const std::uint32_t trigger = GENERATE(std::uint32_t{0}, std::uint32_t{EPOLLET});
    CqFixture<> f(ProviderModel{.arm_model = model});
    Epoll epoll(f.cq->completion_queue().channel().fd(), trigger);
    const auto run_once = [&] {
        if (epoll.events() != 0) f.notifier.notify();
        f.notifier.run();
    };
    std::minstd_rand random(17);
    WrIds got;
    const std::size_t count = 500;
    const Coroutine consumer = poll_until<2>(*f.cq, got, count);
    std::uint64_t next = 0;
    while (next < count) {
        if (stale > 0 && random() % 4 == 0) f.sim.push_events(f.native, stale);
        if (duplicates && random() % 4 == 0) f.sim.duplicate_events(f.native);
        // Not more than the CQ holds.
        for (auto burst = random() % 5; burst > 0 && next < std::min(count, got.size() + 60);
             --burst) {
            f.complete({next++});
        }
        run_once();
    }
    for (int i = 0; i < 2000 && !consumer.done(); ++i) run_once();
    REQUIRE(consumer.done());
    for (std::size_t i = 0; i < count; ++i) REQUIRE(got[i] == i);
}

TEST_CASE(
    "AsyncCq on EpollExecutor: a removed device fails every waiter, and the loop does not spin",
    "[field-20][I5]") {
    Fixture f(16);
    struct Local {
        static Task<std::error_code> wait(AsyncCq& queue) {
            std::array<ibv_wc, 1> wcs{};
            std::error_code error;
            co_await queue.poll(wcs, error);
            co_return error;
        }
    };
    f.executor.post([&] { f.sim.disassociate(f.context.native_handle()); });
    const auto [first, second] = f.executor.run(when_all(Local::wait(f.cq), Local::wait(f.cq)));
    CHECK(first == std::errc::io_error);
    CHECK(second == std::errc::io_error);
    while (f.executor.run_once()) {
    }
    const Counters before = counters();
    CHECK_FALSE(f.executor.run_once());
    CHECK((counters() - before).system_calls() == 1);
}
