// SPDX-License-Identifier: MIT
// Time limits: every order of the operation's end, the time, stops and destruction.
#include <asyncverbs/executor/with_timeout.hpp>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include <chrono>
#include <coroutine>
#include <limits>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using support::contains;
using support::Coroutine;

namespace {

// Ends when its token is stopped, with operation_canceled; resumed by the stop itself, which no
// awaitable of this library does, or by finish().
struct Foreign {
    struct OnStop {
        Foreign& foreign;
        void operator()() const noexcept { foreign.finish(); }
    };
    struct Awaiter {
        Foreign& foreign;
        std::stop_token stop;
        std::optional<std::stop_callback<OnStop>> on_stop{};

        bool await_ready() const noexcept { return stop.stop_requested(); }
        void await_suspend(std::coroutine_handle<> coroutine) {
            foreign.waiting = coroutine;
            on_stop.emplace(stop, OnStop{foreign});
        }
        int await_resume() const {
            if (!foreign.completes && stop.stop_requested()) {
                throw std::system_error(std::make_error_code(std::errc::operation_canceled));
            }
            return 42;
        }
    };

    Awaiter wait(std::stop_token stop) { return {*this, std::move(stop)}; }
    void finish() const noexcept { std::exchange(waiting, {}).resume(); }

    bool completes = false; // none the less
    mutable std::coroutine_handle<> waiting;
};

// An event loop that can only wait for descriptors.
struct FdLoop {
    EpollNotifier notifier(int fd) { return executor.notifier(fd); }
    EpollExecutor& executor;
};

// How co_await with_timeout(...) ended.
struct Outcome {
    bool operator==(const std::errc& error) const { return code == error; }

    std::optional<int> value;
    std::error_code code;
    std::string what;
};

struct Fixture {
    template <class Loop, class Duration>
    Coroutine start(Loop& loop, Duration time, std::stop_token stop = {}) {
        const auto operation = [this](std::stop_token token) {
            ++calls;
            return foreign.wait(std::move(token));
        };
        try {
            const int value = co_await with_timeout(loop, time, operation, stop);
            outcome.value = value;
        } catch (const std::system_error& error) {
            outcome.code = error.code();
            outcome.what = error.what();
        }
    }

    void run_until(const Coroutine& coroutine) {
        while (!coroutine.done()) executor.run_once();
    }

    EpollExecutor executor;
    FdLoop fd_loop{executor};
    Foreign foreign;
    Outcome outcome;
    int calls = 0;
};

} // namespace

TEST_CASE("with_timeout: the operation ends in time", "[with_timeout]") {
    Fixture f;
    const bool by_fd = GENERATE(false, true);
    const Coroutine coroutine = by_fd ? f.start(f.fd_loop, 1h) : f.start(f.executor, 1h);
    f.executor.run_once();
    CHECK(!coroutine.done());
    f.foreign.finish();
    CHECK(coroutine.done());
    CHECK(f.outcome.value == 42);
    CHECK(!f.executor.run_once()); // nothing is left behind
}

TEST_CASE("with_timeout: the time passes", "[with_timeout]") {
    Fixture f;
    const bool by_fd = GENERATE(false, true);
    const Coroutine coroutine = by_fd ? f.start(f.fd_loop, 1ms) : f.start(f.executor, 1ms);
    f.run_until(coroutine);
    CHECK(f.outcome == std::errc::timed_out);
    CHECK(!f.outcome.value);
    CHECK(f.calls == 1);
}

TEST_CASE("with_timeout: an operation that completes none the less has completed",
          "[with_timeout]") {
    Fixture f;
    f.foreign.completes = true;
    const Coroutine coroutine = f.start(f.executor, 1ms);
    f.run_until(coroutine);
    CHECK(f.outcome.value == 42);
}

TEST_CASE("with_timeout: no time is left", "[with_timeout]") {
    Fixture f;
    const auto time = GENERATE(0ns, -1ns, std::chrono::nanoseconds::min());
    const Coroutine coroutine = f.start(f.executor, time);
    CHECK(coroutine.done());
    CHECK(f.outcome == std::errc::timed_out);
    CHECK(f.calls == 0);
}

TEST_CASE("with_timeout: times that are not a number, or have no end", "[with_timeout]") {
    Fixture f;
    SECTION("not a number") {
        const std::chrono::duration<double> nan(std::numeric_limits<double>::quiet_NaN());
        const Coroutine coroutine = f.start(f.executor, nan);
        CHECK(coroutine.done());
        CHECK(f.outcome == std::errc::invalid_argument);
        CHECK(f.calls == 0);
    }
    SECTION("no end") {
        const bool by_fd = GENERATE(false, true);
        const auto longest = std::chrono::hours::max();
        const Coroutine coroutine =
            by_fd ? f.start(f.fd_loop, longest) : f.start(f.executor, longest);
        f.executor.run_once();
        REQUIRE(!coroutine.done());
        f.foreign.finish();
        CHECK(f.outcome.value == 42);
    }
}

TEST_CASE("with_timeout: a stop is not a timeout", "[with_timeout]") {
    Fixture f;
    std::stop_source stop;
    SECTION("before") { stop.request_stop(); }
    const Coroutine coroutine = f.start(f.executor, 1h, stop.get_token());
    SECTION("while it waits") { stop.request_stop(); }
    SECTION("on another thread") {
        std::thread([&] { stop.request_stop(); }).join();
    }
    CHECK(coroutine.done());
    CHECK(f.outcome == std::errc::operation_canceled);
}

TEST_CASE("with_timeout: errors of the operation are its own", "[with_timeout]") {
    Fixture f;
    const auto fails = [](auto error) {
        return [error](std::stop_token) -> Task<> {
            throw error;
            co_return;
        };
    };
    CHECK_THROWS_AS(f.executor.run(with_timeout(f.executor, 1h, fails(std::logic_error("")))),
                    std::logic_error);
    const std::system_error canceled(std::make_error_code(std::errc::operation_canceled), "mine");
    CHECK_THROWS_WITH(f.executor.run(with_timeout(f.executor, 1h, fails(canceled))),
                      contains("mine"));
    const auto fails_late = [&](std::stop_token stop) -> Task<> {
        co_await f.executor.sleep_for(1h, stop);
        throw std::system_error(std::make_error_code(std::errc::io_error), "mine");
    };
    CHECK_THROWS_WITH(f.executor.run(with_timeout(f.executor, 1ms, fails_late)),
                      contains("mine: Input/output error"));
}

TEST_CASE("with_timeout: an error code is translated, too", "[with_timeout]") {
    EpollExecutor executor;
    const auto sleep = [&](auto time) {
        return [&executor, time](std::stop_token stop) { return executor.sleep_for(time, stop); };
    };
    std::stop_source stopped;
    stopped.request_stop();
    const auto run = [&](auto limit, auto time, std::stop_token stop = {}) {
        return executor.run(with_timeout(executor, limit, sleep(time), std::move(stop)));
    };
    CHECK(run(1h, 1ms) == std::error_code());
    CHECK(run(1ms, 1h) == std::errc::timed_out);
    CHECK(run(0s, 1h) == std::errc::timed_out);
    CHECK(run(1h, 1h, stopped.get_token()) == std::errc::operation_canceled);
}

TEST_CASE("with_timeout: one limit for several steps", "[with_timeout]") {
    EpollExecutor executor;
    int steps = 0;
    const auto all = [&](std::stop_token stop) -> Task<> {
        for (; steps < 3; ++steps) co_await executor.schedule();
        const std::error_code error = co_await executor.sleep_for(1h, stop);
        if (error) throw std::system_error(error);
    };
    CHECK_THROWS_WITH(executor.run(with_timeout(executor, 5ms, all)),
                      contains("with_timeout: Connection timed out"));
    CHECK(steps == 3);
}

TEST_CASE("with_timeout: what the stop resumes may destroy it", "[with_timeout]") {
    Fixture f;
    std::optional<Coroutine> coroutine;
    bool destroyed = false;
    struct Destroys {
        std::optional<Coroutine>& coroutine;
        bool& destroyed;
        void operator()() const noexcept {
            bool& flag = destroyed; // this object is destroyed, too
            coroutine.reset();
            flag = true;
        }
    };
    const auto operation = [&](std::stop_token stop) -> Task<> {
        const std::stop_callback destroys(stop, Destroys{coroutine, destroyed});
        co_await f.executor.sleep_for(1h);
    };
    const auto start = [&]() -> Coroutine { co_await with_timeout(f.executor, 1ms, operation); };
    coroutine.emplace(start());
    while (!destroyed) f.executor.run_once();
    CHECK(!f.executor.run_once());
}

TEST_CASE("with_timeout: destroyed while it waits", "[with_timeout]") {
    Fixture f;
    const bool by_fd = GENERATE(false, true);
    {
        const Coroutine coroutine = by_fd ? f.start(f.fd_loop, 1ms) : f.start(f.executor, 1ms);
        CHECK(!coroutine.done());
    }
    std::this_thread::sleep_for(2ms);
    CHECK(!f.executor.run_once());
    CHECK(!f.outcome.value);
    CHECK(!f.outcome.code);
}

TEST_CASE("with_timeout: a loop that cannot wait", "[with_timeout]") {
    Fixture f;
    SECTION("from the start") {
        support::fail_system_call(0);
        const Coroutine coroutine = f.start(f.fd_loop, 1h);
        CHECK(support::stop_failing());
        CHECK(coroutine.done());
        CHECK(f.outcome == std::errc::io_error);
        CHECK(f.calls == 0);
    }
    SECTION("later") {
        struct FailsLater {
            struct Notifier {
                auto readable(std::stop_token stop) const {
                    struct Fails : decltype(loop.sleep_for(1ms)){std::error_code await_resume(){
                                       return std::make_error_code(std::errc::io_error);
                }
            };
            return Fails{loop.sleep_for(1ms, std::move(stop))};
        } EpollExecutor& loop;
    };
    Notifier notifier(int) { return {loop}; }
    EpollExecutor& loop;
}
loop{f.executor};
const Coroutine coroutine = f.start(loop, 1h);
f.run_until(coroutine);
CHECK(f.outcome == std::errc::io_error);
CHECK_THAT(f.outcome.what, contains("time limit"));
CHECK(f.calls == 1);
}
}

TEST_CASE("with_timeout: there is no memory", "[with_timeout]") {
    Fixture f;
    std::size_t allocations = 0;
    for (;; ++allocations) {
        f.foreign = {};
        f.outcome = {};
        const auto operation = [&](std::stop_token stop) {
            return f.foreign.wait(std::move(stop));
        };
        bool failed = false;
        const auto await = [&]() -> Coroutine {
            try {
                support::fail_allocation(allocations);
                co_await with_timeout(f.executor, 1h, operation);
            } catch (const std::bad_alloc&) {
                failed = true;
            }
        };
        const Coroutine coroutine = await();
        const bool stopped_failing = support::stop_failing();
        CHECK(failed == stopped_failing);
        if (!failed) {
            f.foreign.finish();
            CHECK(coroutine.done());
            break;
        }
    }
    CHECK(allocations > 0);
    CHECK(!f.executor.run_once());
}
