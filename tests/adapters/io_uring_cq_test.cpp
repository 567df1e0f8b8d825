// SPDX-License-Identifier: MIT
// AsyncCq on a ring, with the simulated verbs: what the conformance suite for AsyncCq, which
// io_uring_conformance_test.cpp runs, does not assert.
#include <asyncverbs/adapters/io_uring.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <system_error>
#include <vector>

#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/verbs/device.hpp>

#include "adapters/ring.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"

using namespace asyncverbs;
using namespace asyncverbs::simulated;
using namespace std::chrono_literals;
using asyncverbs::support::Coroutine;
using asyncverbs::support::counters;
using asyncverbs::support::Counters;
using asyncverbs::support::Ring;

namespace {

struct Fixture {
    explicit Fixture(const ProviderModel& provider = rxe) : sim(provider) {}

    AsyncCq create(int depth, const AsyncCqOptions& options = {}) {
        return AsyncCq::create(context, depth, poller, options);
    }
    void run_once(std::chrono::milliseconds at_most = 0ms) { ring.run_once(poller, at_most); }
    void run(const Coroutine& until) {
        for (int i = 0; i < 10'000 && !until.done(); ++i) run_once(10ms);
        REQUIRE(until.done());
        until.get();
    }

    SimulatedVerbs sim;
    Context context = Context::open();
    Ring ring;
    IoUringPoller poller{ring.get()};
};

Coroutine consume(AsyncCq& cq, std::vector<std::uint64_t>& got, std::size_t count) {
    std::array<ibv_wc, 2> wcs{};
    while (got.size() < count) {
        for (const ibv_wc& wc : co_await cq.poll(wcs)) got.push_back(wc.wr_id);
    }
}

} // namespace

TEST_CASE("AsyncCq on a ring: nothing is lost (I3)", "[ring][I3]") {
    const auto model = GENERATE(ArmModel::flag, ArmModel::index);
    const auto stale = GENERATE(0, 1, 3);
    const bool duplicates = GENERATE(false, true);
    const bool by_descriptor = GENERATE(false, true);
    Fixture f(ProviderModel{.arm_model = model});
    CompletionQueue queue(f.context, 1024);
    IoUringNotifier notifier = by_descriptor ? f.poller.notifier(queue.channel().fd())
                                             : f.poller.notifier(queue.channel());
    AsyncCq cq(std::move(queue), std::move(notifier));
    std::minstd_rand random(17);
    std::vector<std::uint64_t> got;
    const std::size_t count = 500;
    const Coroutine consumer = consume(cq, got, count);
    std::uint64_t next = 0;
    while (next < count) {
        if (stale > 0 && random() % 4 == 0) f.sim.push_events(cq.native_handle(), stale);
        if (duplicates && random() % 4 == 0) f.sim.duplicate_events(cq.native_handle());
        for (auto burst = random() % 5; burst > 0 && next < count; --burst) {
            f.sim.complete(cq.native_handle(), next++);
        }
        f.run_once();
    }
    f.run(consumer);
    for (std::size_t i = 0; i < count; ++i) REQUIRE(got[i] == i);
}

TEST_CASE("AsyncCq on a ring: a device that vanishes fails every waiter", "[ring][field-20][I5]") {
    Fixture f;
    AsyncCq cq = f.create(16);
    struct Local {
        static Coroutine wait(AsyncCq& queue, std::error_code& error) {
            std::array<ibv_wc, 1> wcs{};
            co_await queue.poll(wcs, error);
        }
    };
    std::error_code first;
    std::error_code second;
    const Coroutine a = Local::wait(cq, first);
    const Coroutine b = Local::wait(cq, second);
    f.run_once();
    f.sim.disassociate(f.context.native_handle());
    f.run(a);
    f.run(b);
    CHECK(first == std::errc::io_error);
    CHECK(second == std::errc::io_error);
    // And nothing spins.
    for (int i = 0; i < 5; ++i) f.run_once();
    CHECK(f.ring.run_once(f.poller) == 0);
}

TEST_CASE("AsyncCq on a ring: a sleep costs one completion, no request and no allocation",
          "[ring]") {
    Fixture f;
    AsyncCq cq = f.create(16);
    std::vector<std::uint64_t> got;
    got.reserve(101);
    const Coroutine consumer = consume(cq, got, 101);
    f.run_once();
    f.sim.complete(cq.native_handle(), 0);
    f.run_once();
    REQUIRE(got.size() == 1);
    const unsigned requests = f.ring.get().sq.sqe_tail;
    Counters cost;
    int completions = 0;
    for (std::uint64_t i = 1; i <= 100; ++i) {
        f.sim.complete(cq.native_handle(), i);
        const Counters before = counters();
        completions += f.ring.run_once(f.poller);
        const Counters iteration = counters() - before;
        cost.allocations += iteration.allocations;
        cost.write += iteration.write;
        cost.timerfd_settime += iteration.timerfd_settime;
        REQUIRE(got.size() == i + 1);
    }
    CHECK(completions == 100);
    CHECK(f.ring.get().sq.sqe_tail == requests);
    CHECK(cost.allocations == 0);
    CHECK(cost.write == 0);
    CHECK(cost.timerfd_settime == 0);
}
