// SPDX-License-Identifier: MIT
// What a coroutine awaits on a loop: a readable file descriptor, a point in time, or the loop's
// thread. Each operation is its own awaiter: it can be moved until it suspends; from then on the
// loop's queues refer to it, until it is resumed or destroyed.
#pragma once

#include <atomic>
#include <cerrno>
#include <coroutine>
#include <memory>
#include <stop_token>
#include <utility>

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/coro/detail/deadline.hpp>
#include <asyncverbs/coro/detail/stop_callback.hpp>
#include <asyncverbs/executor/detail/run_queue.hpp>

namespace asyncverbs::detail {

class ReadableOperation;

/// Calls `owner.on_stop()` in an iteration of the loop after a stop was requested on any thread.
/// The owner must call reset() before it is destroyed.
template <class Owner>
class StopRelay : WorkItem {
public:
    StopRelay() noexcept : WorkItem(&on_posted) {}
    StopRelay(StopRelay&&) noexcept : StopRelay() {} // of an owner that does not wait yet
    StopRelay& operator=(StopRelay&&) noexcept { return *this; }

    void set(const std::stop_token& token, Owner& owner, RunQueue& loop) noexcept {
        owner_ = &owner;
        loop_ = &loop;
        // It may call back before this returns, here or on another thread, but that only posts.
        callback_.set(token, *this);
    }

    /// Afterwards the loop does not refer to it, and no thread is inside it.
    void reset() noexcept {
        callback_.reset();
        if (!posted_.load()) return;
        if (!linked()) loop_->collect_posted();
        unlink();
        posted_.store(false);
    }

private:
    friend class StopCallback<StopRelay>;

    void on_stop() noexcept {
        if (!posted_.exchange(true)) loop_->post(*this);
    }
    static void on_posted(WorkItem& item) {
        auto& self = static_cast<StopRelay&>(item);
        self.posted_.store(false);
        self.owner_->on_stop();
    }

    Owner* owner_ = nullptr;
    RunQueue* loop_ = nullptr;
    std::atomic<bool> posted_{false}; // it is in a queue, or about to be
    StopCallback<StopRelay> callback_;
};

/// A file descriptor that a loop watches, and the coroutine that waits for it. It stays registered
/// while there is no waiter, so that a wait is cheap. The derived class talks to the kernel.
class Registration {
public:
    Registration(const Registration&) = delete;
    Registration& operator=(const Registration&) = delete;

    int fd() const noexcept { return fd_; }
    const std::shared_ptr<RunQueue>& shared_loop() const noexcept { return loop_; }

    /// Starts a wait. Returns false, with the reason in waiter.error, if that is not possible.
    bool attach(ReadableOperation& waiter) noexcept;

    /// Ends the wait. Afterwards nothing refers to the waiter but the ready queue, which it leaves
    /// when it is destroyed.
    void detach() noexcept;

    /// Called when the deadline has passed: whether the fd is readable, but not reported yet.
    virtual bool is_readable() const noexcept { return false; }

    /// Called by relay_.
    void on_stop();

protected:
    /// With `edge`, an edge that arrived while there was no waiter completes the next wait.
    Registration(std::shared_ptr<RunQueue> loop, int fd, bool edge) noexcept
        : fd_(fd), edge_(edge), loop_(std::move(loop)) {}

    /// Cancels the wait.
    ~Registration();

    /// Called at the start of a wait: makes the kernel report readiness, unless it does already.
    /// Returns 0 or an errno.
    virtual int watch() noexcept = 0;

    RunQueue& loop() const noexcept { return *loop_; }

    const int fd_;
    const bool edge_;
    bool pending_edge_ = false; // came while there was no waiter
    ReadableOperation* waiter_ = nullptr;

private:
    bool consume_pending_edge() noexcept { return std::exchange(pending_edge_, false); }

    const std::shared_ptr<RunQueue> loop_;
    std::stop_token stop_; // the one that relay_ is set to
    StopRelay<Registration> relay_;
};

/// Waits until the descriptor of a registration is readable. The hot path of AsyncCq.
class ReadableOperation : public Waiter, AwaitedByReference {
public:
    ReadableOperation(Registration& registration, Deadline::Clock::time_point time,
                      std::stop_token token) noexcept
        : Waiter(&on_complete, time, std::move(token)), registration_(&registration) {}
    ReadableOperation(ReadableOperation&&) noexcept = default;
    ReadableOperation& operator=(ReadableOperation&&) noexcept = default;
    ~ReadableOperation() {
        if (attached_) registration_->detach();
    }

    bool await_suspend(std::coroutine_handle<> handle) noexcept {
        coroutine = handle;
        return registration_->attach(*this);
    }

private:
    friend class Registration;

    static void on_complete(WorkItem& item) {
        auto& self = static_cast<ReadableOperation&>(item);
        if (self.attached_) { // if not, the registration was destroyed
            if (self.error == ETIMEDOUT && self.registration_->is_readable()) self.error = 0;
            self.registration_->detach();
        }
        self.coroutine.resume();
    }

    Registration* registration_;
    bool attached_ = false;
};

/// Sleeps until its deadline.
class SleepOperation : public Waiter, AwaitedByReference {
public:
    SleepOperation(std::shared_ptr<RunQueue> loop, Deadline::Clock::time_point time,
                   std::stop_token token) noexcept
        : Waiter(&on_complete, time, std::move(token)), loop_(std::move(loop)) {}
    SleepOperation(SleepOperation&&) noexcept = default;
    SleepOperation& operator=(SleepOperation&&) noexcept = default;
    ~SleepOperation() {
        if (asleep_) wake_up();
    }

    void await_suspend(std::coroutine_handle<> handle) noexcept {
        loop_->assert_thread();
        coroutine = handle;
        error = 0;
        asleep_ = true;
        loop_->start_timer(*this);
        relay_.set(stop, *this, *loop_);
    }

private:
    friend class StopRelay<SleepOperation>;

    static void on_complete(WorkItem& item) {
        auto& self = static_cast<SleepOperation&>(item);
        self.wake_up();
        self.coroutine.resume();
    }
    void on_stop() {
        unlink();
        error = ECANCELED;
        on_complete(*this);
    }

    void wake_up() noexcept {
        loop_->assert_thread();
        asleep_ = false;
        relay_.reset();
        loop_->stop_timer(*this);
    }

    std::shared_ptr<RunQueue> loop_;
    bool asleep_ = false;
    StopRelay<SleepOperation> relay_;
};

/// Continues on the loop's thread.
class ScheduleOperation : WorkItem, AwaitedByReference {
public:
    explicit ScheduleOperation(std::shared_ptr<RunQueue> loop) noexcept
        : WorkItem(&on_run), loop_(std::move(loop)) {}
    ScheduleOperation(ScheduleOperation&&) noexcept = default;
    ScheduleOperation& operator=(ScheduleOperation&&) noexcept = default;
    ~ScheduleOperation() {
        if (!queued_) return;
        loop_->assert_thread();
        if (!linked()) loop_->collect_posted();
    }

    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> coroutine) noexcept {
        coroutine_ = coroutine;
        queued_ = true;
        // Once posted, the coroutine may end on the loop's thread, and destroy this object and the
        // executor, while this thread still wakes the loop.
        const std::shared_ptr<RunQueue> loop = loop_;
        loop->post(*this);
    }
    void await_resume() const noexcept {}

private:
    static void on_run(WorkItem& item) {
        auto& self = static_cast<ScheduleOperation&>(item);
        self.queued_ = false;
        self.coroutine_.resume();
    }

    std::shared_ptr<RunQueue> loop_;
    std::coroutine_handle<> coroutine_;
    bool queued_ = false;
};

inline Registration::~Registration() {
    loop_->assert_thread();
    relay_.reset();
    if (waiter_ == nullptr) return;
    Waiter& waiter = *waiter_;
    detach();
    loop_->complete(waiter, ECANCELED);
}

inline bool Registration::attach(ReadableOperation& waiter) noexcept {
    loop_->assert_thread();
    waiter.error = waiter_ != nullptr ? EBUSY : watch();
    if (waiter.error != 0) return false;
    waiter_ = &waiter;
    waiter.attached_ = true;
    if (consume_pending_edge()) {
        loop_->complete(waiter, 0);
    } else {
        waiter.error = ETIMEDOUT;
        loop_->start_timer(waiter);
    }
    // Setting the relay costs more than the rest of a wait. So it stays set for the next wait with
    // the same token, and does nothing while there is no waiter.
    if (waiter.stop != stop_) {
        relay_.reset();
        stop_ = waiter.stop;
        relay_.set(stop_, *this, *loop_);
    }
    return true;
}

inline void Registration::detach() noexcept {
    loop_->assert_thread();
    loop_->stop_timer(*waiter_);
    // Readiness that was about to be reported completes the next wait.
    if (waiter_->linked() && waiter_->error == 0) pending_edge_ = edge_;
    std::exchange(waiter_, nullptr)->attached_ = false;
}

inline void Registration::on_stop() {
    // The wait that was stopped may have ended. A wait with another token has reset the relay.
    if (waiter_ == nullptr || waiter_->linked()) return;
    waiter_->error = ECANCELED;
    waiter_->run(*waiter_);
}

} // namespace asyncverbs::detail
