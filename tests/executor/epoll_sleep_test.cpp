// SPDX-License-Identifier: MIT
// Sleeping on an EpollExecutor: order, stop requests, extreme times, destruction.
#include <asyncverbs/executor/epoll_executor.hpp>

#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <stop_token>
#include <system_error>
#include <thread>
#include <vector>

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/coro/scope.hpp>

#include "support/catch.hpp"
#include "support/coroutine.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using asyncverbs::support::Coroutine;
using Clock = std::chrono::steady_clock;

static_assert(
    awaitable_of<decltype(std::declval<EpollExecutor&>().sleep_for(1ms)), std::error_code>);
static_assert(std::movable<decltype(std::declval<EpollExecutor&>().sleep_for(1ms))>);

namespace {

Coroutine sleep_until(EpollExecutor& executor, Clock::time_point time, std::stop_token stop,
                      std::optional<std::error_code>& result) {
    result = co_await executor.sleep_until(time, stop);
}

} // namespace

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

TEST_CASE("sleep: no time and past times take one turn", "[epoll_sleep]") {
    EpollExecutor executor;
    std::optional<std::error_code> result;
    Clock::time_point time;
    SECTION("long ago") { time = Clock::time_point(); }
    SECTION("longest ago") { time = Clock::time_point::min(); }
    SECTION("now") { time = Clock::now(); }
    const Coroutine sleeper = sleep_until(executor, time, {}, result);
    CHECK(!result);
    CHECK(executor.run_once());
    CHECK(result == std::error_code());

    const auto body = [&]() -> Task<> {
        co_await executor.sleep_for(0s);
        co_await executor.sleep_for(-1h);
        co_await executor.sleep_for(std::chrono::nanoseconds::min());
    };
    executor.run(body());
}

TEST_CASE("sleep: the longest times are no time at all to the clock", "[epoll_sleep]") {
    EpollExecutor executor;
    std::stop_source stop;
    Scope scope;
    const auto sleeps = [&](auto duration) -> Task<> {
        const std::error_code error = co_await executor.sleep_for(duration, stop.get_token());
        CHECK(error == std::errc::operation_canceled);
    };
    scope.spawn(sleeps(std::chrono::hours::max()));
    scope.spawn(sleeps(std::chrono::nanoseconds::max()));
    scope.spawn(sleeps(std::chrono::seconds::max()));
    scope.spawn(sleeps(std::chrono::years(99)));
    scope.spawn(sleeps(std::chrono::duration<double>(std::numeric_limits<double>::infinity())));
    std::optional<std::error_code> result;
    const Coroutine never =
        sleep_until(executor, Clock::time_point::max(), stop.get_token(), result);
    const auto body = [&]() -> Task<> {
        co_await executor.sleep_for(1ms);
        CHECK(!result);
        stop.request_stop();
        co_await scope.join();
        CHECK(result == std::errc::operation_canceled);
    };
    executor.run(body());
}

TEST_CASE("sleep: thousands end in the order of their times", "[epoll_sleep]") {
    EpollExecutor executor;
    const Clock::time_point start = Clock::now() + 300ms;
    std::mt19937 random(1);
    std::vector<std::pair<Clock::time_point, int>> order;
    const auto sleeps = [&](Clock::time_point time, int index) -> Task<> {
        co_await executor.sleep_until(time);
        order.emplace_back(time, index);
    };
    const auto body = [&]() -> Task<> {
        Scope scope;
        for (int i = 0; i < 5000; ++i) {
            const Clock::time_point time = start + std::chrono::microseconds(random() % 4000);
            scope.spawn(sleeps(time, i));
        }
        co_await scope.join();
    };
    executor.run(body());
    REQUIRE(order.size() == 5000);
    // Equal times in the order of the calls.
    CHECK(std::is_sorted(order.begin(), order.end()));
}

TEST_CASE("sleep: stop", "[epoll_sleep]") {
    EpollExecutor executor;
    std::stop_source stop;
    std::optional<std::error_code> result;

    SECTION("requested before: it does not suspend") {
        stop.request_stop();
        const Coroutine sleeper = sleep_until(executor, Clock::now(), stop.get_token(), result);
        CHECK(result == std::errc::operation_canceled);
    }
    SECTION("requested meanwhile: resumed by the executor, not by the request") {
        const Coroutine sleeper =
            sleep_until(executor, Clock::now() + 1h, stop.get_token(), result);
        stop.request_stop();
        CHECK(!result);
        CHECK(executor.run_once());
        CHECK(result == std::errc::operation_canceled);
        CHECK(!executor.run_once());
    }
    SECTION("requested by another thread while the executor sleeps") {
        const auto body = [&]() -> Task<> {
            std::thread thread([&] { stop.request_stop(); });
            const std::error_code error = co_await executor.sleep_for(1h, stop.get_token());
            thread.join();
            CHECK(error == std::errc::operation_canceled);
        };
        executor.run(body());
    }
    SECTION("requested when the time has passed already: one of the two, once") {
        const Coroutine sleeper =
            sleep_until(executor, Clock::time_point(), stop.get_token(), result);
        stop.request_stop();
        CHECK(executor.run_once());
        CHECK(result);
        CHECK(!executor.run_once());
    }
    SECTION("a request for one sleeper leaves the others asleep") {
        std::optional<std::error_code> other;
        const Coroutine a = sleep_until(executor, Clock::now() + 1h, stop.get_token(), result);
        Coroutine b = sleep_until(executor, Clock::now() + 1h, {}, other);
        stop.request_stop();
        executor.run_once();
        CHECK(result);
        CHECK(!other);
    }
}

TEST_CASE("sleep: a sleeping coroutine can be destroyed at any time", "[epoll_sleep]") {
    auto executor = std::make_unique<EpollExecutor>();
    std::stop_source stop;
    std::optional<std::error_code> result;
    std::optional<std::error_code> other;
    Coroutine sleeper = sleep_until(*executor, Clock::now() + 1h, stop.get_token(), result);
    const Coroutine second = sleep_until(*executor, Clock::now() + 1ms, {}, other);

    SECTION("asleep") {
        sleeper.destroy();
        stop.request_stop();
    }
    SECTION("stopped, on the way to the executor") {
        stop.request_stop();
        sleeper.destroy();
    }
    SECTION("stopped by another thread") {
        std::thread([&] { stop.request_stop(); }).join();
        sleeper.destroy();
    }
    SECTION("in the turn that would resume it") {
        executor->post([&] { sleeper.destroy(); });
        stop.request_stop();
    }
    SECTION("after the executor") {
        executor.reset();
        stop.request_stop();
        sleeper.destroy();
        CHECK(!other);
        return;
    }
    while (!other) executor->run_once();
    CHECK(!result);
}

TEST_CASE("sleep: one that has ended is not resumed again, however long it lives",
          "[epoll_sleep]") {
    EpollExecutor executor;
    std::stop_source stop;
    bool resumed = false;
    // The first awaiter lives until the end of the expression, while the second one sleeps.
    const auto body = [&]() -> Coroutine {
        (co_await executor.sleep_for(0s, stop.get_token()), co_await executor.sleep_for(1h));
        resumed = true;
    };
    SECTION("its time came before the stop request") {
        const Coroutine coroutine = body();
        stop.request_stop();
        CHECK(executor.run_once());
        executor.run_once();
        CHECK(!resumed);
    }
    SECTION("the stop request, left over from the turn before, came before its time") {
        executor.post([] { throw std::runtime_error("posted"); });
        const auto late = [&]() -> Coroutine {
            (co_await executor.sleep_for(1ms, stop.get_token()), co_await executor.sleep_for(1h));
            resumed = true;
        };
        const Coroutine coroutine = late();
        stop.request_stop();
        CHECK_THROWS(executor.run_once());
        std::this_thread::sleep_for(2ms);
        executor.run_once();
        executor.run_once();
        CHECK(!resumed);
    }
}
