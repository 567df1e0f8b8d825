// SPDX-License-Identifier: MIT
// A coroutine that waits for the file descriptor of a registration. Readiness, the time and a stop
// request compete; the first in the queue wins. The hot path of AsyncCq.
#pragma once

#include <atomic>
#include <cerrno>
#include <chrono>
#include <coroutine>
#include <memory>
#include <optional>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/detail/deadline.hpp>
#include <asyncverbs/executor/detail/epoll_loop.hpp>

namespace asyncverbs::detail {

class EpollReadableAwaiter;

// Movable as long as nobody awaits it.
class EpollReadableOperation {
public:
    EpollReadableOperation(EpollRegistration& registration,
                           typename Deadline::Clock::time_point deadline,
                           std::stop_token stop) noexcept
        : registration_(&registration), deadline_(deadline), stop_(std::move(stop)) {}

    EpollReadableAwaiter operator co_await() && noexcept;

private:
    friend EpollReadableAwaiter;

    EpollRegistration* registration_;
    typename Deadline::Clock::time_point deadline_;
    std::stop_token stop_;
};

// Pinned: the entry and the loop's queues point to it. The operation outlives it: both live until
// the end of the expression that awaits.
class EpollReadableAwaiter : EpollWaiter {
public:
    explicit EpollReadableAwaiter(EpollReadableOperation& operation) noexcept
        : EpollWaiter(&on_decided, ETIMEDOUT), operation_(operation) {}
    ~EpollReadableAwaiter() { leave(); }

    bool await_ready() noexcept {
        if (!operation_.stop_.stop_requested()) return false;
        this->error = ECANCELED;
        return true;
    }

    [[gnu::always_inline]] bool await_suspend(std::coroutine_handle<> coroutine) noexcept {
        EpollRegistration& registration = *operation_.registration_;
        coroutine_ = coroutine;
        this->error = registration.attach(*this, operation_.stop_);
        if (this->error != 0) return false;
        if (operation_.deadline_ != Deadline::never && !this->linked()) {
            registration.loop().start_timer(*this, operation_.deadline_);
        }
        return true;
    }

    std::error_code await_resume() const noexcept { return this->result(); }

private:
    static void on_decided(WorkItem& node) {
        auto& self = static_cast<EpollReadableAwaiter&>(node);
        self.leave();
        self.coroutine_.resume();
    }

    // Afterwards nothing refers to the awaiter but, if it is destroyed, the queue that it is in,
    // which a node leaves when it ends. A registration that was destroyed has let go of it.
    void leave() noexcept {
        if (this->entry != nullptr) operation_.registration_->detach(*this);
    }

    EpollReadableOperation& operation_;
    std::coroutine_handle<> coroutine_;
};

inline EpollReadableAwaiter EpollReadableOperation::operator co_await() && noexcept {
    return EpollReadableAwaiter(*this);
}

// A coroutine that sleeps on an EpollExecutor. The time and a stop request, which may come from any
// thread, compete; the first in the queue wins.

class EpollSleepAwaiter;

// Movable as long as nobody awaits it.
class EpollSleepOperation {
public:
    EpollSleepOperation(std::shared_ptr<EpollLoop> loop,
                        typename Deadline::Clock::time_point deadline,
                        std::stop_token stop) noexcept
        : loop_(std::move(loop)), deadline_(deadline), stop_(std::move(stop)) {}

    EpollSleepAwaiter operator co_await() && noexcept;

private:
    friend EpollSleepAwaiter;

    std::shared_ptr<EpollLoop> loop_;
    typename Deadline::Clock::time_point deadline_;
    std::stop_token stop_;
};

// Pinned: the loop's queues point to it. The operation outlives it: both live until the end of the
// expression that awaits.
class EpollSleepAwaiter : EpollWaiter {
public:
    explicit EpollSleepAwaiter(EpollSleepOperation& operation) noexcept
        : EpollWaiter(&on_due, 0), operation_(operation) {}
    ~EpollSleepAwaiter() {
        if (asleep_) leave();
    }

    bool await_ready() noexcept {
        if (!operation_.stop_.stop_requested()) return false;
        this->error = ECANCELED;
        return true;
    }

    void await_suspend(std::coroutine_handle<> coroutine) noexcept {
        EpollLoop& loop = *operation_.loop_;
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
    struct StopNode : WorkItem {
        explicit StopNode(EpollSleepAwaiter& owner) noexcept
            : WorkItem(&on_stopped), awaiter(owner) {}
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

    static void on_due(WorkItem& node) { static_cast<EpollSleepAwaiter&>(node).resume(); }
    static void on_stopped(WorkItem& node) {
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

    EpollSleepOperation& operation_;
    std::optional<Stop> stop_;
    std::coroutine_handle<> coroutine_;
    bool asleep_ = false;
};

inline EpollSleepAwaiter EpollSleepOperation::operator co_await() && noexcept {
    return EpollSleepAwaiter(*this);
}

// A coroutine on its way to an executor's thread. Its node is in its awaiter: nothing is allocated,
// and a coroutine that is destroyed on the way has left the queue.

class ScheduleAwaiter : WorkItem {
public:
    explicit ScheduleAwaiter(std::shared_ptr<EpollLoop>&& loop) noexcept
        : WorkItem(&on_run), loop_(std::move(loop)) {}

    ~ScheduleAwaiter() {
        if (!queued_) return;
        loop_->assert_thread();
        if (!this->linked()) loop_->collect_posted();
    }

    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> coroutine) noexcept {
        coroutine_ = coroutine;
        queued_ = true;
        // Once posted, the coroutine may run on the other thread, and end, and with it this object
        // and the executor, while this thread still wakes the loop.
        const std::shared_ptr<EpollLoop> loop = loop_;
        loop->post(*this);
    }
    void await_resume() const noexcept {}

private:
    static void on_run(WorkItem& node) {
        auto& self = static_cast<ScheduleAwaiter&>(node);
        self.queued_ = false;
        self.coroutine_.resume();
    }

    std::shared_ptr<EpollLoop> loop_;
    std::coroutine_handle<> coroutine_;
    bool queued_ = false;
};

class ScheduleOperation {
public:
    explicit ScheduleOperation(std::shared_ptr<EpollLoop> loop) noexcept : loop_(std::move(loop)) {}

    ScheduleAwaiter operator co_await() && noexcept { return ScheduleAwaiter(std::move(loop_)); }

private:
    std::shared_ptr<EpollLoop> loop_;
};

} // namespace asyncverbs::detail
