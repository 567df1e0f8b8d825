// SPDX-License-Identifier: MIT
// A coroutine that waits for a file descriptor on a ring. Readiness, the time and a stop request
// compete; the first that the loop comes across wins.
#pragma once

#include <poll.h>

#include <atomic>
#include <cerrno>
#include <coroutine>
#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/adapters/detail/io_uring_loop.hpp>
#include <asyncverbs/coro/detail/deadline.hpp>
#include <asyncverbs/executor/detail/run_queue.hpp>

namespace asyncverbs::detail {

class IoUringReadableAwaiter;

// A file descriptor on the ring, and who waits for it.
class IoUringRegistration : IoUringEntry {
public:
    IoUringRegistration(std::shared_ptr<IoUringLoop> loop, int fd, IoUringTrigger trigger)
        : IoUringEntry(&on_event_of), loop_(std::move(loop)), fd_(fd),
          index_(loop_->requests.add(*this, fd, trigger)) {}
    ~IoUringRegistration();

    IoUringLoop& loop() const noexcept { return *loop_; }
    int fd() const noexcept { return fd_; }

    /// Returns 0, or the errno that says why `waiter` cannot wait.
    int attach(IoUringReadableAwaiter& waiter) noexcept {
        if (waiter_ != nullptr) return EBUSY;
        if (const int error = loop_->arm(index_)) return error;
        waiter_ = &waiter;
        return 0;
    }
    void detach() noexcept;

    /// Whether something new came while nobody waited. Asked once.
    bool take_missed() noexcept { return std::exchange(missed_, false); }

private:
    static WorkItem* on_event_of(IoUringEntry& entry, int error);

    std::shared_ptr<IoUringLoop> loop_;
    const int fd_;
    const std::uint32_t index_;
    bool missed_ = false;
    IoUringReadableAwaiter* waiter_ = nullptr;
};

// Movable as long as nobody awaits it.
class IoUringReadableOperation {
public:
    IoUringReadableOperation(IoUringRegistration& registration,
                             Deadline::Clock::time_point deadline, std::stop_token stop) noexcept
        : registration_(&registration), deadline_(deadline), stop_(std::move(stop)) {}

    IoUringReadableAwaiter operator co_await() && noexcept;

private:
    friend IoUringReadableAwaiter;

    IoUringRegistration* registration_;
    Deadline::Clock::time_point deadline_;
    std::stop_token stop_;
};

// Pinned: the registration and the loop's queues point to it. The operation outlives it: both live
// until the end of the expression that awaits.
class IoUringReadableAwaiter : IoUringWaiter {
public:
    explicit IoUringReadableAwaiter(IoUringReadableOperation& operation) noexcept
        : IoUringWaiter(&on_decided), operation_(operation) {}
    ~IoUringReadableAwaiter() { leave(); }

    bool await_ready() noexcept {
        if (!operation_.stop_.stop_requested()) return false;
        error = ECANCELED;
        return true;
    }

    bool await_suspend(std::coroutine_handle<> coroutine) noexcept {
        IoUringRegistration& registration = *operation_.registration_;
        error = registration.attach(*this);
        if (error != 0) return false;
        attached_ = true;
        coroutine_ = coroutine;
        if (!registration.take_missed()) {
            loop().start_timer(*this, operation_.deadline_);
        } else if (operation_.deadline_ == Deadline::next_iteration) {
            loop().decide(*this, 0);
        } else {
            leave();
            return false;
        }
        // Last. The callback may run before this returns, here or on another thread, but only
        // posts: nothing is resumed before the loop's next turn.
        if (operation_.stop_.stop_possible()) stop_.emplace(*this, operation_.stop_);
        return true;
    }

    std::error_code await_resume() const noexcept {
        if (error == 0) return {};
        return std::make_error_code(static_cast<std::errc>(error));
    }

private:
    friend IoUringRegistration;

    // Posted from any thread, at most once.
    struct StopNode : WorkItem {
        explicit StopNode(IoUringReadableAwaiter& owner) noexcept
            : WorkItem(&on_stopped), awaiter(owner) {}
        ~StopNode() {
            if (posted.load(std::memory_order_relaxed) && !linked())
                awaiter.loop().collect_posted();
        }
        void operator()() noexcept {
            posted.store(true, std::memory_order_relaxed);
            awaiter.loop().post(*this);
        }

        IoUringReadableAwaiter& awaiter;
        std::atomic<bool> posted{false};
    };

    // The callback ends before the node: this waits for one that runs on another thread, which
    // itself blocks on nothing.
    struct Stop : StopNode {
        Stop(IoUringReadableAwaiter& owner, const std::stop_token& token) noexcept
            : StopNode(owner), callback(token, *this) {}
        std::stop_callback<StopNode&> callback;
    };

    IoUringLoop& loop() const noexcept { return operation_.registration_->loop(); }

    static void on_decided(WorkItem& node) {
        auto& self = static_cast<IoUringReadableAwaiter&>(node);
        if (self.error == ETIMEDOUT && self.is_readable()) self.error = 0;
        self.resume();
    }
    static void on_stopped(WorkItem& node) {
        auto& stop = static_cast<StopNode&>(node);
        stop.posted.store(false, std::memory_order_relaxed);
        IoUringReadableAwaiter& self = stop.awaiter;
        if (self.linked()) return; // it is decided already
        self.error = ECANCELED;
        self.resume();
    }

    // Its completion may be behind that of the time.
    bool is_readable() const noexcept {
        pollfd fd{operation_.registration_->fd(), POLLIN, 0};
        return ::poll(&fd, 1, 0) > 0;
    }

    void resume() {
        leave();
        coroutine_.resume();
    }

    // Afterwards nothing refers to the awaiter but, if it is destroyed, the queue that it is in,
    // which a node leaves when it ends.
    void leave() noexcept {
        if (!std::exchange(attached_, false)) return;
        stop_.reset();
        loop().stop_timer(*this);
        operation_.registration_->detach();
    }

    IoUringReadableOperation& operation_;
    std::optional<Stop> stop_;
    std::coroutine_handle<> coroutine_;
    bool attached_ = false;
};

inline IoUringReadableAwaiter IoUringReadableOperation::operator co_await() && noexcept {
    return IoUringReadableAwaiter(*this);
}

inline IoUringRegistration::~IoUringRegistration() {
    if (waiter_ != nullptr) {
        IoUringReadableAwaiter& waiter = *waiter_;
        waiter.leave();
        loop_->decide(waiter, ECANCELED);
    }
    loop_->requests.remove(index_);
}

inline void IoUringRegistration::detach() noexcept {
    // What he was to be told of is the next one's.
    if (waiter_->linked() && waiter_->error == 0) missed_ = true;
    waiter_ = nullptr;
}

inline WorkItem* IoUringRegistration::on_event_of(IoUringEntry& entry, int error) {
    auto& self = static_cast<IoUringRegistration&>(entry);
    if (self.waiter_ == nullptr) {
        // A poll that has ended needs no memory: the next one finds what is readable then.
        if (error == 0) self.missed_ = self.loop_->requests.armed(self.index_);
        return nullptr;
    }
    self.waiter_->error = error;
    return self.waiter_;
}

} // namespace asyncverbs::detail
