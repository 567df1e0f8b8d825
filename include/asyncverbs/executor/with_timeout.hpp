// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <chrono>
#include <coroutine>
#include <exception>
#include <functional>
#include <stop_token>
#include <system_error>
#include <type_traits>
#include <utility>

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/coro/detail/coroutine.hpp>
#include <asyncverbs/coro/detail/deadline.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/detail/timers.hpp>

namespace asyncverbs {

namespace detail {

template <class Function>
using timed_result_t = typename ResultStorage<
    await_result_t<std::invoke_result_t<Function&, std::stop_token>>>::Result;

} // namespace detail

/// Awaits what `operation(stop_token)` returns, for at most `duration` from the start of the await.
/// Then the token is stopped, and an end with errc::operation_canceled becomes errc::timed_out:
///
///     co_await with_timeout(executor, 2s, [&](std::stop_token stop) {
///         return qp.read(slice, remote, {}, stop);
///     });
///
/// Returns what the operation returns; a std::error_code is translated as an exception is. An
/// operation that completes none the less has completed, whatever the time. One that timed out is
/// stopped as with any other stop token: its request, its slices and a buffer of a BufferPool stay
/// with the device until the completion. A limit for several steps: `operation` may be a coroutine
/// that passes `stop` on to each.
///
/// Throws std::system_error (timed_out) when the time has passed, without a call of `operation` if
/// `duration` is zero or less; invalid_argument if it is not a number; what the operation throws,
/// and what the loop throws when it starts to wait. `stop` is passed on, and may be requested from
/// any thread.
///
/// Loop: with a member sleep_until(time, stop), as EpollExecutor has, or else with notifier(fd), as
/// all loops for connections have; the wait then takes a timerfd. Thread: that of the loop.
/// Lifetime: the loop and what `operation` refers to must outlive the await; `operation` is kept.
/// Destroying the suspended task destroys the operation. Two allocations, or
/// three with a timerfd.
template <class Loop, class Rep, class Period, class Function>
    requires awaitable<std::invoke_result_t<Function&, std::stop_token>>
[[nodiscard]] Task<detail::timed_result_t<Function>>
with_timeout(Loop& loop, std::chrono::duration<Rep, Period> duration, Function operation,
             std::stop_token stop = {});

namespace detail {

// Requests a stop at its end, which is that of its time. Its owner may be destroyed at any moment,
// also by what the stop resumes.
class TimeLimit {
public:
    class promise_type {
    public:
        // The parameters of the coroutine.
        template <class Loop>
        promise_type(Loop&, Deadline::Clock::time_point, std::stop_source stop)
            : stop_(std::move(stop)) {}

        TimeLimit get_return_object() noexcept { return TimeLimit(*this); }
        std::suspend_never initial_suspend() const noexcept { return {}; }
        auto final_suspend() const noexcept {
            struct Final {
                bool await_ready() const noexcept { return abandoned; }
                void await_suspend(std::coroutine_handle<>) const noexcept {}
                void await_resume() const noexcept {}
                bool abandoned; // then this destroys the coroutine
            };
            return Final{abandoned_};
        }
        void return_void() noexcept {
            ended_ = true;
            running_ = true;
            stop_.request_stop();
            running_ = false;
        }
        void unhandled_exception() noexcept {
            failure_ = std::current_exception();
            return_void();
        }

    private:
        friend class TimeLimit;

        std::stop_source stop_;
        std::exception_ptr failure_; // of the loop: it cannot wait
        bool ended_ = false;
        bool running_ = false; // what the stop resumes
        bool abandoned_ = false;
    };

    TimeLimit(const TimeLimit&) = delete;
    TimeLimit& operator=(const TimeLimit&) = delete;
    ~TimeLimit() {
        promise_.abandoned_ = promise_.running_;
        if (!promise_.abandoned_) {
            std::coroutine_handle<promise_type>::from_promise(promise_).destroy();
        }
    }

    bool has_passed() const noexcept { return promise_.ended_; }
    void rethrow_failure() const {
        if (promise_.failure_) std::rethrow_exception(promise_.failure_);
    }

private:
    explicit TimeLimit(promise_type& promise) noexcept : promise_(promise) {}

    promise_type& promise_;
};

template <class Loop>
Task<std::error_code> sleep_on_timer_fd(Loop& loop, Deadline::Clock::time_point time,
                                        std::stop_token stop) {
    TimerFd timer;
    timer.set(time);
    auto notifier = loop.notifier(timer.get());
    std::error_code error;
    while (!error && Deadline::Clock::now() < time) error = co_await notifier.readable(stop);
    co_return error;
}

// Sleeps on any loop. Gives operation_canceled if it was stopped, or the error of the loop.
template <class Loop>
auto sleep_until(Loop& loop, Deadline::Clock::time_point time, std::stop_token stop = {}) {
    if constexpr (requires { loop.sleep_until(time, stop); }) {
        return loop.sleep_until(time, std::move(stop));
    } else {
        return sleep_on_timer_fd(loop, time, std::move(stop));
    }
}

template <class Loop>
TimeLimit limit_time(Loop& loop, Deadline::Clock::time_point deadline, std::stop_source) {
    const std::error_code error = co_await sleep_until(loop, deadline);
    if (error) throw std::system_error(error, "waiting for a time limit");
}

} // namespace detail

template <class Loop, class Rep, class Period, class Function>
    requires awaitable<std::invoke_result_t<Function&, std::stop_token>>
Task<detail::timed_result_t<Function>> with_timeout(Loop& loop,
                                                    std::chrono::duration<Rep, Period> duration,
                                                    Function operation, std::stop_token stop) {
    using Result = detail::timed_result_t<Function>;
    const auto deadline = detail::Deadline::after(duration);
    if (duration > duration.zero()) {
        std::stop_source source;
        const std::stop_callback forward(stop, [&source] { source.request_stop(); });
        const detail::TimeLimit limit = detail::limit_time(loop, deadline, source);
        limit.rethrow_failure();
        const auto timed_out = [&limit](std::error_code error) {
            return limit.has_passed() && error == std::errc::operation_canceled;
        };
        try {
            if constexpr (std::is_same_v<Result, std::error_code>) {
                const std::error_code error = co_await std::invoke(operation, source.get_token());
                if (!timed_out(error)) co_return error;
            } else {
                co_return co_await std::invoke(operation, source.get_token());
            }
        } catch (const std::system_error& error) {
            if (!timed_out(error.code())) throw;
        }
        limit.rethrow_failure();
    }
    const std::error_code error = std::make_error_code(std::errc::timed_out);
    if constexpr (std::is_same_v<Result, std::error_code>) {
        co_return error;
    } else {
        throw std::system_error(error, "with_timeout");
    }
}

} // namespace asyncverbs
