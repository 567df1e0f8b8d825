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
#include <stop_token>
#include <system_error>
#include <thread>
#include <vector>

#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/verbs/device.hpp>

#include "adapters/ring.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"
#include "support/simulated_verbs.hpp"

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

Coroutine consume_until_stopped(AsyncCq& cq, std::stop_token stop, std::size_t& delivered) {
    std::array<ibv_wc, 1> wcs{};
    std::error_code error;
    while (!error) delivered += (co_await cq.poll(wcs, error, stop)).size();
    CHECK(error == std::errc::operation_canceled);
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

TEST_CASE("AsyncCq on a ring: a stop from another thread loses no completion", "[ring][I7]") {
    Fixture f;
    AsyncCq cq = f.create(1024);
    for (int round = 0; round < 200; ++round) {
        std::stop_source stop;
        std::size_t delivered = 0;
        const Coroutine first = consume_until_stopped(cq, stop.get_token(), delivered);
        const Coroutine second = consume_until_stopped(cq, stop.get_token(), delivered);
        std::thread other([&f, &stop, queue = cq.native_handle()] {
            for (int i = 0; i < 4; ++i) f.sim.complete(queue, 1);
            stop.request_stop();
        });
        f.run(first);
        f.run(second);
        other.join();
        std::array<ibv_wc, 8> wcs{};
        delivered += cq.try_poll(wcs).size();
        REQUIRE(delivered == 4);
    }
}

TEST_CASE("AsyncCq on a ring: a busy CQ does not starve its neighbour (I9)", "[ring][I9]") {
    Fixture f;
    AsyncCq busy = f.create(1024);
    AsyncCq quiet = f.create(16);
    std::vector<std::uint64_t> got;
    const Coroutine neighbour = consume(quiet, got, 1);
    f.sim.complete(quiet.native_handle(), 1);
    struct Local {
        static Coroutine keep_busy(SimulatedVerbs& sim, AsyncCq& cq, const Coroutine& other) {
            std::array<ibv_wc, 1> wcs{};
            while (!other.done()) { // does not end if the neighbour starves
                sim.complete(cq.native_handle(), 1);
                co_await cq.poll(wcs);
            }
        }
    };
    const Coroutine other = Local::keep_busy(f.sim, busy, neighbour);
    f.run(other);
    CHECK(neighbour.done());
}

TEST_CASE("AsyncCq on a ring: max_wait finds what a dropped event announced", "[ring][I3]") {
    Fixture f;
    AsyncCqOptions options;
    options.max_wait = 2ms;
    AsyncCq cq = f.create(16, options);
    std::vector<std::uint64_t> got;
    const Coroutine consumer = consume(cq, got, 1);
    f.sim.drop_events(cq.native_handle());
    f.sim.complete(cq.native_handle(), 5);
    f.run(consumer);
    CHECK(cq.statistics().events == 0);
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
