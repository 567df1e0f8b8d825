// SPDX-License-Identifier: MIT
// A coroutine that sleeps or waits for a file descriptor on an EpollExecutor. Readiness, the time
// and a stop request, which may come from any thread, compete; the first in the queue wins.
#pragma once

#include <atomic>
#include <cassert>
#include <cerrno>
#include <chrono>
#include <coroutine>
#include <memory>
#include <optional>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/core/detail/epoll_loop.hpp>

namespace asyncverbs::detail {

class EpollWaitAwaiter;

// What to wait for: movable, as long as nobody awaits it.
class EpollWaitOperation {
public:
    using Clock = std::chrono::steady_clock;
    static constexpr auto never = Clock::time_point::max();
    static constexpr auto next_turn = Clock::time_point::min();

    // Without an entry it is a sleep.
    EpollWaitOperation(std::shared_ptr<EpollLoop> loop, EpollEntry* entry,
                       Clock::time_point deadline, std::stop_token stop) noexcept
        : loop_(std::move(loop)), entry_(entry), deadline_(deadline), stop_(std::move(stop)) {}

    EpollWaitAwaiter operator co_await() && noexcept;

    template <class Rep, class Period>
    static Clock::time_point deadline_after(std::chrono::duration<Rep, Period> duration) {
        if (duration <= duration.zero()) return next_turn;
        // In floating point, for the longest durations do not fit into nanoseconds.
        constexpr std::chrono::duration<double> longest = std::chrono::years(100);
        if (std::chrono::duration<double>(duration) > longest) return never;
        return Clock::now() + std::chrono::ceil<Clock::duration>(duration);
    }

    static Clock::time_point deadline_at(Clock::time_point time) noexcept {
        return time <= Clock::now() ? next_turn : time;
    }

private:
    friend EpollWaitAwaiter;

    std::shared_ptr<EpollLoop> loop_;
    EpollEntry* entry_;
    Clock::time_point deadline_;
    std::stop_token stop_;
};

// The awaiter. Pinned: the loop's queues point into it.
class EpollWaitAwaiter : EpollWaiter {
public:
    explicit EpollWaitAwaiter(EpollWaitOperation&& operation) noexcept
        : EpollWaiter(&on_ready, operation.entry_ == nullptr ? 0 : ETIMEDOUT),
          operation_(std::move(operation)), stopped_(*this) {}

    ~EpollWaitAwaiter() {
        if (suspended_) leave();
    }

    bool await_ready() noexcept {
        assert(operation_.loop_ && "asyncverbs: awaited twice");
        if (!operation_.stop_.stop_requested()) return false;
        error = ECANCELED;
        return true;
    }

    bool await_suspend(std::coroutine_handle<> coroutine) noexcept {
        EpollLoop& loop = *operation_.loop_;
        loop.assert_thread();
        if (operation_.entry_ != nullptr) {
            error = operation_.entry_->attach(*this);
            if (error != 0) return false;
        }
        coroutine_ = coroutine;
        suspended_ = true;
        if (operation_.deadline_ == EpollWaitOperation::next_turn) {
            loop.decide(*this, timeout_error);
        } else if (operation_.deadline_ != EpollWaitOperation::never) {
            deadline = operation_.deadline_;
            loop.start_timer(*this);
        }
        // Last. The callback may run before this returns, here or on another thread, but only
        // posts: nothing is resumed before the loop's next turn.
        if (operation_.stop_.stop_possible()) on_stop_.emplace(operation_.stop_, OnStop{*this});
        return true;
    }

    std::error_code await_resume() const noexcept {
        if (error == 0) return {};
        return std::make_error_code(static_cast<std::errc>(error));
    }

private:
    struct StopNode : ReadyNode {
        explicit StopNode(EpollWaitAwaiter& owner) noexcept : ReadyNode(&on_stopped), awaiter(owner) {}
        EpollWaitAwaiter& awaiter;
        std::atomic<bool> posted{false};
    };

    struct OnStop {
        EpollWaitAwaiter& awaiter;
        void operator()() const noexcept {
            awaiter.stopped_.posted.store(true, std::memory_order_relaxed);
            awaiter.operation_.loop_->post(awaiter.stopped_);
        }
    };

    static void on_ready(ReadyNode& node) { static_cast<EpollWaitAwaiter&>(node).resume(); }
    static void on_stopped(ReadyNode& node) {
        EpollWaitAwaiter& self = static_cast<StopNode&>(node).awaiter;
        self.stopped_.posted.store(false, std::memory_order_relaxed);
        self.error = ECANCELED;
        self.resume();
    }

    void resume() {
        leave();
        coroutine_.resume();
    }

    // Nothing refers to the awaiter afterwards. On the loop's thread.
    void leave() noexcept {
        suspended_ = false;
        EpollLoop& loop = *operation_.loop_;
        loop.assert_thread();
        // Waits for a callback that runs on another thread, which blocks on nothing.
        on_stop_.reset();
        if (stopped_.posted.load(std::memory_order_relaxed) && !stopped_.linked()) {
            loop.collect_posted();
        }
        stopped_.unlink();
        unlink();
        loop.stop_timer(*this);
        if (entry != nullptr) entry->detach();
    }

    EpollWaitOperation operation_;
    StopNode stopped_;
    std::optional<std::stop_callback<OnStop>> on_stop_;
    std::coroutine_handle<> coroutine_;
    bool suspended_ = false;
};

inline EpollWaitAwaiter EpollWaitOperation::operator co_await() && noexcept {
    return EpollWaitAwaiter(std::move(*this));
}

} // namespace asyncverbs::detail
