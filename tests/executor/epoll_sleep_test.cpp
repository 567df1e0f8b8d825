// SPDX-License-Identifier: MIT
// Sleeping on an EpollExecutor: order, stop requests, extreme times, destruction.
#include <asyncverbs/executor/epoll_executor.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <stop_token>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/coro/scope.hpp>

#include "executor/wait.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using asyncverbs::support::Coroutine;
using asyncverbs::support::ok;
using asyncverbs::support::Wait;
using Clock = std::chrono::steady_clock;

static_assert(
    awaitable_of<decltype(std::declval<EpollExecutor&>().sleep_for(1ms)), std::error_code>);
static_assert(std::movable<decltype(std::declval<EpollExecutor&>().sleep_for(1ms))>);

TEST_CASE("sleep: ends after its time and not before", "[epoll_sleep]") {
    EpollExecutor executor;
    const auto body = [&]() -> Task<> {
        const Clock::time_point start = Clock::now();
        const std::error_code error = co_await executor.sleep_for(3ms);
        CHECK(!error);
        CHECK(Clock::now() - start >= 3ms);
        co_await executor.sleep_until(start + 5ms);
        CHECK(Clock::now() - start >= 5ms);
        co_await executor.sleep_for(1500us);
        co_await executor.sleep_for(std::chrono::duration<double>(0.0001));
        co_await executor.sleep_for(std::chrono::duration<float, std::micro>(0.5f));
        CHECK(Clock::now() - start >= 6600us);
    };
    executor.run(body());
}

TEST_CASE("sleep: no time and past times take one iteration", "[epoll_sleep]") {
    EpollExecutor executor;
    const auto time = GENERATE(Clock::time_point::min(), Clock::time_point(), Clock::now());
    const Wait sleep(executor.sleep_until(time));
    const Wait none(executor.sleep_for(0s));
    const Wait negative(executor.sleep_for(-1h));
    const Wait longest_ago(executor.sleep_for(std::chrono::nanoseconds::min()));
    CHECK(!sleep.result);
    CHECK(executor.run_once());
    for (const Wait* each : {&sleep, &none, &negative, &longest_ago}) CHECK(each->result == ok);
}

TEST_CASE("sleep: the longest times do not overflow", "[epoll_sleep]") {
    EpollExecutor executor;
    std::stop_source stop;
    const auto sleep_for = [&](auto time) { return executor.sleep_for(time, stop.get_token()); };
    const std::array<Wait, 6> sleeps{
        Wait(sleep_for(std::chrono::hours::max())),
        Wait(sleep_for(std::chrono::nanoseconds::max())),
        Wait(sleep_for(std::chrono::seconds::max())),
        Wait(sleep_for(std::chrono::years(99))),
        Wait(sleep_for(std::chrono::duration<double>(std::numeric_limits<double>::infinity()))),
        Wait(executor.sleep_until(Clock::time_point::max(), stop.get_token())),
    };
    const auto body = [&]() -> Task<> { co_await executor.sleep_for(1ms); };
    executor.run(body());
    for (const Wait& sleep : sleeps) CHECK(!sleep.result);
    stop.request_stop();
    executor.run_once();
    for (const Wait& sleep : sleeps) CHECK(sleep.result == std::errc::operation_canceled);
}

TEMPLATE_TEST_CASE("sleep: a time that is not a number is invalid", "[epoll_sleep]", float, double,
                   long double) {
    EpollExecutor executor;
    using Seconds = std::chrono::duration<TestType>;
    const Seconds nan(std::numeric_limits<TestType>::quiet_NaN());
    for (const Seconds time : {nan, -nan}) {
        const auto sleep = [&] { return executor.sleep_for(time); };
        std::error_code error;
        try {
            sleep();
        } catch (const std::system_error& thrown) {
            error = thrown.code();
        }
        CHECK(error == std::errc::invalid_argument);
    }
    const Wait past(executor.sleep_for(-Seconds(std::numeric_limits<TestType>::infinity())));
    CHECK(executor.run_once());
    CHECK(past.result == ok);
}

TEST_CASE("sleep: thousands end in the order of their times", "[epoll_sleep]") {
    EpollExecutor executor;
    std::mt19937 random(1);
    std::vector<std::pair<Clock::time_point, int>> order;
    const auto sleeps = [&](Clock::time_point time, int index) -> Task<> {
        co_await executor.sleep_until(time);
        order.emplace_back(time, index);
    };
    Clock::time_point started;
    const auto body = [&](Clock::time_point first) -> Task<> {
        Scope scope;
        for (int i = 0; i < 5000; ++i) {
            const Clock::time_point time = first + std::chrono::microseconds(random() % 4000);
            scope.spawn(sleeps(time, i));
        }
        started = Clock::now();
        co_await scope.join();
    };
    // A slow machine may not start all before the first one ends: then they get more time.
    for (auto ahead = 300ms;; ahead *= 2) {
        const Clock::time_point first = Clock::now() + ahead;
        order.clear();
        executor.run(body(first));
        REQUIRE(order.size() == 5000);
        if (started < first) break;
    }
    // Equal times in the order of the calls.
    CHECK(std::is_sorted(order.begin(), order.end()));
}

TEST_CASE("sleep: a stop request", "[epoll_sleep]") {
    EpollExecutor executor;
    std::stop_source stop;

    SECTION("before: it does not suspend") {
        stop.request_stop();
        const Wait sleep(executor.sleep_until(Clock::now(), stop.get_token()));
        CHECK(sleep.result == std::errc::operation_canceled);
    }
    SECTION("during the sleep: the executor resumes it, not the request; others sleep on") {
        const Wait sleep(executor.sleep_for(1h, stop.get_token()));
        const Wait other(executor.sleep_for(1h));
        stop.request_stop();
        CHECK(!sleep.result);
        CHECK(executor.run_once());
        CHECK(sleep.result == std::errc::operation_canceled);
        CHECK(!executor.run_once());
        CHECK(!other.result);
    }
    SECTION("by another thread while the executor sleeps") {
        const auto body = [&]() -> Task<> {
            std::thread thread([&] { stop.request_stop(); });
            const std::error_code error = co_await executor.sleep_for(1h, stop.get_token());
            thread.join();
            CHECK(error == std::errc::operation_canceled);
        };
        executor.run(body());
    }
    SECTION("when the time has passed already: one of the two, once") {
        const Wait sleep(executor.sleep_until(Clock::time_point(), stop.get_token()));
        stop.request_stop();
        CHECK(executor.run_once());
        CHECK(sleep.result);
        CHECK(!executor.run_once());
    }
}

TEST_CASE("sleep: a sleeping coroutine can be destroyed at any time", "[epoll_sleep]") {
    auto executor = std::make_unique<EpollExecutor>();
    std::stop_source stop;
    Wait sleep(executor->sleep_for(1h, stop.get_token()));
    const Wait other(executor->sleep_for(1ms));

    SECTION("asleep") {
        sleep.coroutine.destroy();
        stop.request_stop();
    }
    SECTION("stopped, but not resumed yet") {
        if (GENERATE(false, true)) {
            std::thread([&] { stop.request_stop(); }).join();
        } else {
            stop.request_stop();
        }
        sleep.coroutine.destroy();
    }
    SECTION("in the iteration that would resume it") {
        executor->post([&] { sleep.coroutine.destroy(); });
        stop.request_stop();
    }
    SECTION("after the executor") {
        executor.reset();
        stop.request_stop();
        sleep.coroutine.destroy();
        CHECK(!other.result);
    }
    while (executor && !other.result) executor->run_once();
    CHECK(!sleep.result);
}

TEST_CASE("sleep: one that has ended is not resumed again while its awaiter lives",
          "[epoll_sleep]") {
    EpollExecutor executor;
    std::stop_source stop;
    bool resumed = false;
    // The first awaiter lives until the end of the expression, while the second one sleeps.
    const auto body = [&](std::chrono::milliseconds time) -> Coroutine {
        (co_await executor.sleep_for(time, stop.get_token()), co_await executor.sleep_for(1h));
        resumed = true;
    };
    Coroutine coroutine;
    SECTION("its time came before the stop request") {
        coroutine = body(0ms);
        stop.request_stop();
        CHECK(executor.run_once());
    }
    SECTION("the stop request, left over from the iteration before, came before its time") {
        executor.post([] { throw std::runtime_error("posted"); });
        coroutine = body(1ms);
        stop.request_stop();
        CHECK_THROWS(executor.run_once());
        std::this_thread::sleep_for(2ms);
        executor.run_once();
    }
    executor.run_once();
    CHECK(!resumed);
}
