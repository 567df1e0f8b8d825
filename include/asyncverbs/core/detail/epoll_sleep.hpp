// SPDX-License-Identifier: MIT
// A coroutine that sleeps on an EpollExecutor. The time and a stop request, which may come from any
// thread, compete; the first in the queue wins.
#pragma once

#include <atomic>
#include <cerrno>
#include <coroutine>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/core/detail/deadline.hpp>
#include <asyncverbs/core/detail/epoll_loop.hpp>
#include <asyncverbs/core/detail/maybe.hpp>
#include <asyncverbs/verbs/detail/chrono.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>

namespace asyncverbs::detail {

template <class Use>
class EpollSleepAwaiter;

// Movable as long as nobody awaits it.
template <class Use>
class EpollSleepOperation {
public:
    EpollSleepOperation(std::shared_ptr<EpollLoop<Use>> loop,
                        typename Deadline<Use>::Clock::time_point deadline,
                        std::stop_token stop) noexcept
        : loop_(std::move(loop)), deadline_(deadline), stop_(std::move(stop)) {}

    EpollSleepAwaiter<Use> operator co_await() && noexcept;

private:
    friend EpollSleepAwaiter<Use>;

    std::shared_ptr<EpollLoop<Use>> loop_;
    typename Deadline<Use>::Clock::time_point deadline_;
    std::stop_token stop_;
};

// Pinned: the loop's queues point to it. The operation outlives it: both live until the end of the
// expression that awaits.
template <class Use>
class EpollSleepAwaiter : EpollWaiter<Use> {
public:
    explicit EpollSleepAwaiter(EpollSleepOperation<Use>& operation) noexcept
        : EpollWaiter<Use>(&on_due, 0), operation_(operation) {}
    ~EpollSleepAwaiter() {
        if (asleep_) leave();
    }

    bool await_ready() noexcept {
        if (!operation_.stop_.stop_requested()) return false;
        this->error = ECANCELED;
        return true;
    }

    void await_suspend(std::coroutine_handle<> coroutine) noexcept {
        EpollLoop<Use>& loop = *operation_.loop_;
        loop.assert_thread();
        coroutine_ = coroutine;
        asleep_ = true;
        loop.start_timer(*this, operation_.deadline_);
        // Last. The callback may run before this returns, here or on another thread, but only
        // posts: nothing is resumed before the loop's next turn.
        if (operation_.stop_.stop_possible()) stop_.emplace(*this, operation_.stop_);
    }

    std::error_code await_resume() const noexcept { return this->result(); }

private:
    // Posted from any thread, at most once.
    struct StopNode : ReadyNode<Use> {
        explicit StopNode(EpollSleepAwaiter& owner) noexcept
            : ReadyNode<Use>(&on_stopped), awaiter(owner) {}
        ~StopNode() {
            if (posted.load(std::memory_order_relaxed) && !this->linked()) {
                awaiter.operation_.loop_->collect_posted();
            }
        }
        void operator()() noexcept {
            posted.store(true, std::memory_order_relaxed);
            awaiter.operation_.loop_->post(*this);
        }

        EpollSleepAwaiter& awaiter;
        std::atomic<bool> posted{false};
    };

    // The callback ends before the node: this waits for one that runs on another thread, which
    // itself blocks on nothing.
    struct Stop : StopNode {
        Stop(EpollSleepAwaiter& owner, const std::stop_token& token) noexcept
            : StopNode(owner), callback(token, *this) {}
        std::stop_callback<StopNode&> callback;
    };

    static void on_due(ReadyNode<Use>& node) { static_cast<EpollSleepAwaiter&>(node).resume(); }
    static void on_stopped(ReadyNode<Use>& node) {
        auto& stop = static_cast<StopNode&>(node);
        stop.posted.store(false, std::memory_order_relaxed);
        EpollSleepAwaiter& self = stop.awaiter;
        self.unlink();
        self.error = ECANCELED;
        self.resume();
    }

    void resume() {
        leave();
        coroutine_.resume();
    }

    // Afterwards nothing refers to the awaiter but, if it is destroyed, the queue that it is in,
    // which a node leaves when it ends. On the loop's thread.
    void leave() noexcept {
        asleep_ = false;
        operation_.loop_->assert_thread();
        stop_.reset();
        operation_.loop_->stop_timer(*this);
    }

    EpollSleepOperation<Use>& operation_;
    Maybe<Stop> stop_;
    std::coroutine_handle<> coroutine_;
    bool asleep_ = false;
};

template <class Use>
inline EpollSleepAwaiter<Use> EpollSleepOperation<Use>::operator co_await() && noexcept {
    return EpollSleepAwaiter<Use>(*this);
}

} // namespace asyncverbs::detail
