// SPDX-License-Identifier: MIT
// What the executor costs: system calls, clock readings and allocations, where the documentation
// promises a number.
#include <asyncverbs/executor/epoll_executor.hpp>

#include <array>
#include <chrono>
#include <stop_token>
#include <thread>

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

namespace {

constexpr std::size_t rounds = 100;

} // namespace

TEST_CASE("cost: a wait and a wake are one epoll_wait", "[epoll_costs]") {
    EpollExecutor executor;
    const Pipe pipe;
    EpollNotifier notifier = executor.notifier(pipe.reader());
    std::stop_source stop;
    std::stop_token token;
    SECTION("without a stop token") {}
    SECTION("with a stop token") { token = stop.get_token(); }
    Counters cost;
    const auto body = [&]() -> Task<> {
        pipe.put(); // never read: it is readable at every wait
        co_await notifier.readable(token);
        const Counters before = counters();
        for (std::size_t i = 0; i < rounds; ++i) co_await notifier.readable(token);
        cost = counters() - before;
    };
    executor.run(body());
    CHECK(cost.epoll_wait == rounds);
    CHECK(cost.system_calls() == rounds);
    CHECK(cost.steady_clock_now == 0);
    CHECK(cost.allocations == 0);
}

TEST_CASE("cost: a wake by another coroutine's write, read in between", "[epoll_costs]") {
    EpollExecutor executor;
    std::array<Pipe, 2> pipes;
    const auto echo = [&](const Pipe& in, const Pipe& out, Counters& cost) -> Task<> {
        EpollNotifier notifier = executor.notifier(in.reader());
        Counters before;
        for (std::size_t i = 0; i <= rounds; ++i) {
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
    CHECK(a.epoll_wait == 2 * rounds); // one per wake, of which each side has one per round
    CHECK(a.read == 2 * rounds);
    CHECK(a.write == 2 * rounds);
    CHECK(a.epoll_ctl == 0);
    CHECK(a.timerfd_settime == 0);
    CHECK(a.steady_clock_now == 0);
    CHECK(a.allocations == 0);
}

TEST_CASE("cost: bounded waits that are not used up set the timer once", "[epoll_costs]") {
    EpollExecutor executor;
    const Pipe pipe;
    EpollNotifier notifier = executor.notifier(pipe.reader());
    Counters cost;
    const auto body = [&]() -> Task<> {
        pipe.put();
        const Counters before = counters();
        for (std::size_t i = 0; i < rounds; ++i) co_await notifier.readable({}, 1h);
        cost = counters() - before;
    };
    executor.run(body());
    CHECK(cost.epoll_wait == rounds);
    CHECK(cost.timerfd_settime == 1);
    CHECK(cost.system_calls() == rounds + 1);
    CHECK(cost.steady_clock_now == rounds);
    CHECK(cost.allocations == 0);
}

TEST_CASE("cost: a yield by a wait of no time is one epoll_wait", "[epoll_costs]") {
    EpollExecutor executor;
    const Pipe pipe;
    EpollNotifier notifier = executor.notifier(pipe.reader());
    Counters cost;
    const auto body = [&]() -> Task<> {
        const Counters before = counters();
        for (std::size_t i = 0; i < rounds; ++i) co_await notifier.readable({}, 0ns);
        cost = counters() - before;
    };
    executor.run(body());
    CHECK(cost.epoll_wait == rounds);
    CHECK(cost.system_calls() == rounds);
    CHECK(cost.steady_clock_now == 0);
    CHECK(cost.allocations == 0);
}

TEST_CASE("cost: a stop request on the running thread is no system call", "[epoll_costs]") {
    EpollExecutor executor;
    const Pipe pipe;
    EpollNotifier notifier = executor.notifier(pipe.reader());
    std::array<std::stop_source, rounds> stops;
    std::size_t canceled = 0;
    const auto waits = [&](std::stop_token stop) -> Coroutine {
        const std::error_code error = co_await notifier.readable(stop);
        if (error == std::errc::operation_canceled) ++canceled;
    };
    const auto body = [&]() -> Task<> {
        co_await executor.schedule();
        for (std::stop_source& stop : stops) {
            const Coroutine waiter = waits(stop.get_token());
            const Counters before = counters();
            stop.request_stop();
            co_await executor.schedule();
            const Counters round = counters() - before;
            CHECK(round.epoll_wait == 1);
            CHECK(round.system_calls() == 1);
            CHECK(round.allocations == 0);
        }
    };
    executor.run(body());
    CHECK(canceled == rounds);
}

TEST_CASE("cost: schedule is one epoll_wait a turn, whoever shares it", "[epoll_costs]") {
    EpollExecutor executor;
    Counters cost;
    const auto yields = [&](std::size_t count) -> Coroutine {
        for (std::size_t i = 0; i < count; ++i) co_await executor.schedule();
    };
    const auto body = [&]() -> Task<> {
        co_await executor.schedule();
        const Coroutine other = yields(rounds);
        const Counters before = counters();
        for (std::size_t i = 0; i < rounds; ++i) co_await executor.schedule();
        cost = counters() - before;
    };
    executor.run(body());
    CHECK(cost.epoll_wait == rounds);
    CHECK(cost.system_calls() == rounds);
    CHECK(cost.steady_clock_now == 0);
    CHECK(cost.allocations == 0);
}

TEST_CASE("cost: a sleep allocates nothing", "[epoll_costs]") {
    EpollExecutor executor;
    Counters cost;
    const auto body = [&]() -> Task<> {
        const Counters before = counters();
        for (std::size_t i = 0; i < rounds; ++i) co_await executor.sleep_for(1us);
        cost = counters() - before;
    };
    executor.run(body());
    CHECK(cost.allocations == 0);
    CHECK(cost.epoll_wait == rounds);
    CHECK(cost.timerfd_settime == rounds);
    CHECK(cost.system_calls() == 2 * rounds);
}

TEST_CASE("cost: a sleep until a time that has passed sets no timer", "[epoll_costs]") {
    EpollExecutor executor;
    Counters cost;
    const auto body = [&]() -> Task<> {
        const auto past = std::chrono::steady_clock::now();
        const Counters before = counters();
        for (std::size_t i = 0; i < rounds; ++i) co_await executor.sleep_until(past);
        cost = counters() - before;
    };
    executor.run(body());
    CHECK(cost.epoll_wait == rounds);
    CHECK(cost.system_calls() == rounds);
}

TEST_CASE("cost: a post is one allocation, and one write for all until the turn", "[epoll_costs]") {
    EpollExecutor executor;
    std::size_t calls = 0;
    std::size_t writes_while_awake = 0;
    const Counters before = counters();
    for (std::size_t i = 0; i < rounds; ++i) executor.post([&calls] { ++calls; });
    const Counters posts = counters() - before;
    CHECK(posts.allocations == rounds);
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
    CHECK(calls == rounds + 2);
}
