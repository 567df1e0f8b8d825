// SPDX-License-Identifier: MIT
// The costs that the documentation promises: system calls, clock readings and allocations.
#include <asyncverbs/executor/epoll_executor.hpp>

#include <array>
#include <chrono>
#include <stop_token>
#include <thread>
#include <utility>

#include "executor/wait.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"
#include "support/pipe.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using asyncverbs::support::Coroutine;
using asyncverbs::support::Counters;
using asyncverbs::support::counters;
using asyncverbs::support::Pipe;
using asyncverbs::support::Wait;

namespace {

constexpr std::size_t measured_rounds = 100;

struct EpollCostsFixture {
    /// What it costs to await `operation()` as many times as there are measured_rounds.
    template <class Operation>
    Counters cost_of(Operation operation) {
        Counters cost;
        const auto body = [&]() -> Task<> {
            const Counters before = counters();
            for (std::size_t i = 0; i < measured_rounds; ++i) co_await operation();
            cost = counters() - before;
        };
        executor.run(body());
        return cost;
    }

    EpollExecutor executor;
    Pipe pipe;
    EpollNotifier notifier = executor.notifier(pipe.reader());
    std::stop_source stop;
};

// One epoll_wait per round, no allocation, and `settings` of the timer.
void check(const Counters& cost, std::size_t settings = 0) {
    CHECK(cost.epoll_wait == measured_rounds);
    CHECK(cost.timerfd_settime == settings);
    CHECK(cost.system_calls() == measured_rounds + settings);
    CHECK(cost.allocations == 0);
}

} // namespace

TEST_CASE("cost: a wait and a wake are one epoll_wait", "[epoll_costs]") {
    EpollCostsFixture f;
    f.pipe.put(); // never read: it is readable in every wait
    const std::stop_token token = GENERATE(false, true) ? f.stop.get_token() : std::stop_token();
    f.cost_of([&] { return f.notifier.readable(token); }); // the first wait sets the stop callback
    const Counters cost = f.cost_of([&] { return f.notifier.readable(token); });
    check(cost);
    CHECK(cost.steady_clock_now == 0);
}

TEST_CASE("cost: bounded waits that do not time out set the timer once", "[epoll_costs]") {
    EpollCostsFixture f;
    f.pipe.put();
    const Counters cost = f.cost_of([&] { return f.notifier.readable({}, 1h); });
    check(cost, 1);
    CHECK(cost.steady_clock_now == measured_rounds);
}

TEST_CASE("cost: a wait of no time is one epoll_wait", "[epoll_costs]") {
    EpollCostsFixture f;
    const Counters cost = f.cost_of([&] { return f.notifier.readable({}, 0ns); });
    check(cost);
    CHECK(cost.steady_clock_now == 0);
}

TEST_CASE("cost: coroutines that schedule share one epoll_wait an iteration", "[epoll_costs]") {
    EpollCostsFixture f;
    const auto yields = [&]() -> Coroutine {
        for (std::size_t i = 0; i < measured_rounds; ++i) co_await f.executor.schedule();
    };
    const Coroutine other = yields();
    const Counters cost = f.cost_of([&] { return f.executor.schedule(); });
    check(cost);
    CHECK(cost.steady_clock_now == 0);
}

TEST_CASE("cost: a sleep sets the timer and allocates nothing", "[epoll_costs]") {
    EpollCostsFixture f;
    check(f.cost_of([&] { return f.executor.sleep_for(1us); }), measured_rounds);
}

TEST_CASE("cost: a sleep until a time that has passed sets no timer", "[epoll_costs]") {
    EpollCostsFixture f;
    const auto past = std::chrono::steady_clock::now();
    check(f.cost_of([&] { return f.executor.sleep_until(past); }));
}

TEST_CASE("cost: a wake by another coroutine's write, read in between", "[epoll_costs]") {
    EpollExecutor executor;
    std::array<Pipe, 2> pipes;
    const auto echo = [&](const Pipe& in, const Pipe& out, Counters& cost) -> Task<> {
        EpollNotifier notifier = executor.notifier(in.reader());
        Counters before;
        for (std::size_t i = 0; i <= measured_rounds; ++i) {
            if (i == 1) before = counters();
            co_await notifier.readable();
            in.take();
            out.put();
        }
        cost = counters() - before;
    };
    const auto drive = [](Task<> task) -> Coroutine { co_await std::move(task); };
    Counters a;
    Counters b;
    Task<> other = echo(pipes[1], pipes[0], b);
    const Coroutine other_side = drive(std::move(other));
    pipes[0].put();
    executor.run(echo(pipes[0], pipes[1], a));
    CHECK(a.epoll_wait == 2 * measured_rounds); // one per wake; each side has one wake per round
    CHECK(a.read == 2 * measured_rounds);
    CHECK(a.write == 2 * measured_rounds);
    CHECK(a.system_calls() == 6 * measured_rounds);
    CHECK(a.steady_clock_now == 0);
    CHECK(a.allocations == 0);
}

TEST_CASE("cost: a stop request on the running thread is no system call", "[epoll_costs]") {
    EpollCostsFixture f;
    std::array<std::stop_source, measured_rounds> stops;
    const auto body = [&]() -> Task<> {
        co_await f.executor.schedule();
        for (std::stop_source& stop : stops) {
            const Wait wait(f.notifier.readable(stop.get_token()));
            const Counters before = counters();
            stop.request_stop();
            co_await f.executor.schedule();
            const Counters round = counters() - before;
            CHECK(wait.result == std::errc::operation_canceled);
            CHECK(round.epoll_wait == 1);
            CHECK(round.system_calls() == 1);
            CHECK(round.allocations == 0);
        }
    };
    f.executor.run(body());
}

TEST_CASE("cost: a post is one allocation, and one write for all until the next iteration",
          "[epoll_costs]") {
    EpollExecutor executor;
    std::size_t calls = 0;
    std::size_t writes_while_awake = 0;
    const Counters before = counters();
    for (std::size_t i = 0; i < measured_rounds; ++i) executor.post([&calls] { ++calls; });
    const Counters posts = counters() - before;
    CHECK(posts.allocations == measured_rounds);
    CHECK(posts.write == 1);
    CHECK(posts.system_calls() == 1);

    executor.post([&] {
        const Counters start = counters();
        executor.post([&calls] { ++calls; });
        std::thread([&] {
            const Counters there = counters();
            executor.post([&calls] { ++calls; });
            writes_while_awake += (counters() - there).write;
        }).join();
        writes_while_awake += (counters() - start).write;
        executor.post([&executor] { executor.stop(); });
    });
    executor.run();
    CHECK(writes_while_awake == 0);
    CHECK(calls == measured_rounds + 2);
}
