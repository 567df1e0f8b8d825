// SPDX-License-Identifier: MIT
#pragma once

#include <liburing.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/executor/detail/awaiters.hpp>
#include <asyncverbs/executor/detail/run_queue.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

/// Receives the completions of a request.
class IoUringHandler {
public:
    IoUringHandler(const IoUringHandler&) = delete;
    IoUringHandler& operator=(const IoUringHandler&) = delete;

    /// With an errno value, or 0 if it is time to look again. May throw what a coroutine throws.
    virtual void on_event(int error) = 0;

    /// The adapter cannot work any more: fail the wait.
    virtual void on_failure(int error) noexcept = 0;

protected:
    IoUringHandler() = default;
    ~IoUringHandler() = default;
};

enum class IoUringTrigger {
    level,     // readable: one poll each time
    edge,      // something new came: one multishot poll, until it is cancelled
    iteration, // the loop has submitted what was queued before: a no-op
};

/// The adapter's requests on a ring that belongs to the program. Handles a full submission queue,
/// interrupted and refused submissions, late completions and old kernels.
///
/// The kernel is given numbers instead of addresses. So a completion that comes late, or is handled
/// twice, finds no handler, and no object has to live until the kernel is done with it.
///
///     user_data:   tag, 16 bits | number of the request, 24 bits | index of the slot, 24 bits
class IoUringRequests {
public:
    IoUringRequests(io_uring& ring, std::uint16_t tag);
    IoUringRequests(const IoUringRequests&) = delete;
    IoUringRequests& operator=(const IoUringRequests&) = delete;
    ~IoUringRequests() { close(); }

    /// Takes a slot for `handler`, without a request yet. Returns its index.
    std::uint32_t add(IoUringHandler& handler, int fd, IoUringTrigger trigger);

    /// Cancels the request, makes the kernel release the fd, and frees the slot.
    void remove(std::uint32_t index) noexcept;

    /// Makes the request, unless one is under way. Returns 0 or an errno. A queue that the kernel
    /// does not empty at the moment is no error: retry() tries again.
    int arm(std::uint32_t index) noexcept;

    /// Whether a request is under way. If not, the next poll finds what becomes readable meanwhile.
    bool armed(std::uint32_t index) const noexcept { return slots_[index].state != State::idle; }

    /// To be called with each completion: queues what could not be queued before.
    void retry() noexcept {
        if (postponed_ > 0) retry_all();
    }
    bool must_retry() const noexcept { return postponed_ > 0; }

    bool owns(const io_uring_cqe& cqe) const noexcept { return cqe.user_data >> 48 == tag_; }

    /// Returns the handler of a completion that it owns; null if there is none any more.
    IoUringHandler* take(const io_uring_cqe& cqe) noexcept;

    /// Calls on_failure() of all handlers.
    void fail(int error) noexcept {
        for (const Slot& slot : slots_) {
            if (slot.handler != nullptr) slot.handler->on_failure(error);
        }
    }

    /// Cancels everything. From then on the ring is not touched, and arm() returns EBADF.
    void close() noexcept;

private:
    static constexpr unsigned field_bits = 24;
    static constexpr std::uint32_t field_mask = (1U << field_bits) - 1;
    static constexpr std::uint32_t no_slot = field_mask; // of requests whose result is ignored

    enum class State { idle, to_arm, armed, to_cancel };

    struct Slot {
        IoUringHandler* handler = nullptr; // null: free, unless it is to_cancel
        int fd = -1;
        IoUringTrigger trigger = IoUringTrigger::level;
        State state = State::idle;
        std::uint32_t number = 0; // of the last request
        bool multishot = false;   // the last request
    };

    std::uint64_t user_data(std::uint32_t number, std::uint32_t index) const noexcept {
        return std::uint64_t{tag_} << 48 | std::uint64_t{number} << field_bits | index;
    }
    std::uint32_t index_of(const Slot& slot) const noexcept {
        return static_cast<std::uint32_t>(&slot - slots_.data());
    }

    // These return 0 or an errno.
    int submit() noexcept;
    int get_sqe(io_uring_sqe*& sqe) noexcept;
    int queue(Slot& slot) noexcept;
    int queue_cancel(const Slot& slot) noexcept;

    void submit_cancels() noexcept;
    void retry_all() noexcept;

    io_uring* ring_; // null: closed
    const std::uint16_t tag_;
    bool multishot_supported_ = true;
    std::size_t postponed_ = 0; // slots that are to_arm or to_cancel
    std::vector<Slot> slots_;
};

inline IoUringRequests::IoUringRequests(io_uring& ring, std::uint16_t tag)
    : ring_(&ring), tag_(tag) {
    if (tag == 0 || tag == 0xffff) {
        throw_error(std::errc::invalid_argument,
                    "IoUringPoller: the tags 0 and 0xffff are those of other requests");
    }
    // The program did not check the result of io_uring_queue_init.
    if (ring.sq.khead == nullptr || ring.sq.sqes == nullptr) {
        throw_error(std::errc::bad_file_descriptor,
                    "IoUringPoller: there is no ring; io_uring_queue_init must have failed");
    }
    if ((ring.flags & IORING_SETUP_IOPOLL) != 0) {
        throw_error(std::errc::not_supported,
                    "IoUringPoller: a ring with IORING_SETUP_IOPOLL cannot wait for descriptors");
    }
}

inline std::uint32_t IoUringRequests::add(IoUringHandler& handler, int fd, IoUringTrigger trigger) {
    const auto is_free = [](const Slot& slot) {
        return slot.handler == nullptr && slot.state == State::idle;
    };
    auto slot = std::find_if(slots_.begin(), slots_.end(), is_free);
    if (slot == slots_.end()) slot = slots_.emplace(slot);
    slot->handler = &handler;
    slot->fd = fd;
    slot->trigger = trigger;
    return index_of(*slot);
}

inline void IoUringRequests::remove(std::uint32_t index) noexcept {
    Slot& slot = slots_[index];
    slot.handler = nullptr;
    if (slot.state == State::to_arm) {
        slot.state = State::idle;
        --postponed_;
    }
    if (slot.state != State::armed) return;
    if (queue_cancel(slot) == 0) {
        slot.state = State::idle;
        submit_cancels(); // at once: the caller may close the fd next
    } else {
        slot.state = State::to_cancel;
        ++postponed_;
    }
}

inline int IoUringRequests::arm(std::uint32_t index) noexcept {
    if (ring_ == nullptr) return EBADF;
    Slot& slot = slots_[index];
    if (slot.state != State::idle) return 0;
    const int error = queue(slot);
    if (error == 0) {
        slot.state = State::armed;
        return 0;
    }
    if (error != EAGAIN && error != EBUSY) return error;
    slot.state = State::to_arm;
    ++postponed_;
    return 0;
}

inline IoUringHandler* IoUringRequests::take(const io_uring_cqe& cqe) noexcept {
    const auto index = static_cast<std::uint32_t>(cqe.user_data) & field_mask;
    const auto number = static_cast<std::uint32_t>(cqe.user_data >> field_bits) & field_mask;
    if (ring_ == nullptr || index >= slots_.size()) return nullptr;
    Slot& slot = slots_[index];
    const bool is_last = (cqe.flags & IORING_CQE_F_MORE) == 0;
    if (slot.number != number) return nullptr;
    if (slot.state == State::to_cancel && is_last) {
        slot.state = State::idle;
        --postponed_;
    }
    if (slot.state != State::armed) return nullptr;
    if (is_last) slot.state = State::idle;
    if (cqe.res == -EINVAL && slot.multishot) {
        multishot_supported_ = false; // Linux before 5.13
        if (arm(index) == 0) return nullptr;
    }
    return slot.handler;
}

inline void IoUringRequests::close() noexcept {
    if (ring_ == nullptr) return;
    for (Slot& slot : slots_) {
        if (slot.state == State::armed || slot.state == State::to_cancel) queue_cancel(slot);
        slot.state = State::idle;
    }
    submit_cancels();
    postponed_ = 0;
    ring_ = nullptr;
}

inline int IoUringRequests::submit() noexcept {
    for (;;) {
        const int result = io_uring_submit(ring_);
        if (result >= 0) return 0;
        if (result != -EINTR) return -result;
    }
}

inline void IoUringRequests::submit_cancels() noexcept {
    submit();
#ifdef IORING_SETUP_DEFER_TASKRUN // not in liburing 2.2
    // Such a ring releases a descriptor when it does its deferred work.
    if ((ring_->flags & IORING_SETUP_DEFER_TASKRUN) != 0) io_uring_get_events(ring_);
#endif
}

/// Submits the queue if it is full, as the program would do a little later.
inline int IoUringRequests::get_sqe(io_uring_sqe*& sqe) noexcept {
    sqe = io_uring_get_sqe(ring_);
    if (sqe != nullptr) return 0;
    if (const int error = submit()) return error;
    io_uring_sqring_wait(ring_); // with IORING_SETUP_SQPOLL a kernel thread empties it
    sqe = io_uring_get_sqe(ring_);
    return sqe != nullptr ? 0 : EBUSY;
}

inline int IoUringRequests::queue(Slot& slot) noexcept {
    io_uring_sqe* sqe = nullptr;
    if (const int error = get_sqe(sqe)) return error;
    slot.multishot = slot.trigger == IoUringTrigger::edge && multishot_supported_;
    slot.number = (slot.number + 1) & field_mask;
    if (slot.trigger == IoUringTrigger::iteration) {
        io_uring_prep_nop(sqe);
    } else if (slot.multishot) {
        io_uring_prep_poll_multishot(sqe, slot.fd, POLLIN);
    } else {
        io_uring_prep_poll_add(sqe, slot.fd, POLLIN);
    }
    io_uring_sqe_set_data64(sqe, user_data(slot.number, index_of(slot)));
    return 0;
}

inline int IoUringRequests::queue_cancel(const Slot& slot) noexcept {
    io_uring_sqe* sqe = nullptr;
    if (const int error = get_sqe(sqe)) return error;
    // Not poll_remove: it fails with EALREADY on a poll that is about to complete.
    io_uring_prep_cancel64(sqe, user_data(slot.number, index_of(slot)), 0);
    io_uring_sqe_set_data64(sqe, user_data(0, no_slot));
    return 0;
}

inline void IoUringRequests::retry_all() noexcept {
    for (Slot& slot : slots_) {
        if (slot.state == State::to_arm && queue(slot) == 0) {
            slot.state = State::armed;
            --postponed_;
        } else if (slot.state == State::to_cancel && queue_cancel(slot) == 0) {
            slot.state = State::idle;
            --postponed_;
        }
    }
}

/// What an IoUringPoller, its notifiers and their operations share: the requests on the ring, and
/// the work that is not started by a notifier's descriptor: timeouts, stops, cancelled waits. It
/// lives as long as any of them.
class IoUringLoop final : public RunQueue, public std::enable_shared_from_this<IoUringLoop> {
public:
    IoUringLoop(io_uring& ring, std::uint16_t tag)
        : requests(ring, tag), signalled_(*this, event_.get(), IoUringTrigger::edge),
          expired_(*this, timers_.fd(), IoUringTrigger::edge),
          iteration_(*this, -1, IoUringTrigger::iteration) {
        for (const Waker* waker : {&signalled_, &expired_}) {
            if (const int error = requests.arm(waker->index)) {
                throw std::system_error(error, std::system_category(), "io_uring_submit");
            }
        }
    }

    IoUringRequests requests;

    /// Handles a completion of the ring. Returns whether it is the adapter's.
    bool complete(const io_uring_cqe& cqe) {
        requests.retry();
        if (!requests.owns(cqe)) return false;
        if (IoUringHandler* const handler = requests.take(cqe)) {
            // If the program cancelled a request that is not its own, look again.
            handler->on_event(cqe.res >= 0 || cqe.res == -ECANCELED ? 0 : -cqe.res);
        }
        return true;
    }

    /// Starts to poll the descriptor of a registration. Returns 0 or an errno.
    int arm(std::uint32_t index) noexcept {
        if (failure_ != 0) return failure_;
        const int error = requests.arm(index);
        signal_to_retry();
        return error;
    }

    void remove(std::uint32_t index) noexcept {
        requests.remove(index);
        signal_to_retry();
    }

private:
    /// A request that starts an iteration.
    struct Waker final : IoUringHandler {
        Waker(IoUringLoop& owner, int descriptor, IoUringTrigger trigger)
            : loop(owner), fd(descriptor), index(owner.requests.add(*this, descriptor, trigger)) {}
        void on_event(int error) override { loop.iterate(*this, error); }
        void on_failure(int) noexcept override {}

        IoUringLoop& loop;
        const int fd;
        const std::uint32_t index;
    };

    void iterate(const Waker& waker, int error);
    void request_iteration() noexcept override {
        if (requests.arm(iteration_.index) != 0 || requests.must_retry()) signal();
    }
    void signal_to_retry() noexcept {
        if (requests.must_retry()) signal();
    }

    int failure_ = 0; // the errno of a waker that cannot work any more
    Waker signalled_;
    Waker expired_;
    // Not a write to event_: its completion could come within the iteration that requests it, which
    // would then never end.
    Waker iteration_;
};

inline void IoUringLoop::iterate(const Waker& waker, int error) {
    const std::shared_ptr<IoUringLoop> keep_alive = shared_from_this();
    if (waker.fd >= 0) {
        // Edges do not need it, but without multishot polls the fd would stay readable.
        std::uint64_t ignored = 0;
        [[maybe_unused]] const auto size = ::read(waker.fd, &ignored, sizeof ignored);
        if (error == 0) error = requests.arm(waker.index);
        if (error != 0 && failure_ == 0) {
            // Without it, stops and timeouts would be missed: fail all waits.
            failure_ = error;
            requests.fail(error);
        }
    }
    signal_to_retry();
    if (&waker == &expired_) {
        expire_timers();
        timers_.arm();
    }
    run_ready([] { return false; });
}

/// A file descriptor that is polled by the ring.
class IoUringRegistration final : public Registration, IoUringHandler {
public:
    IoUringRegistration(const std::shared_ptr<IoUringLoop>& loop, int fd, IoUringTrigger trigger)
        : Registration(loop, fd, trigger == IoUringTrigger::edge), ring_(*loop),
          index_(ring_.requests.add(*this, fd, trigger)) {}
    ~IoUringRegistration() { ring_.remove(index_); }

    /// The completion of its poll may be behind that of the timer.
    bool is_readable() const noexcept override {
        pollfd fd{fd_, POLLIN, 0};
        return ::poll(&fd, 1, 0) > 0;
    }

private:
    int watch() noexcept override { return ring_.arm(index_); }

    void on_event(int error) override {
        if (waiter_ == nullptr) {
            // If the poll has ended, the next one finds what is readable then.
            if (error == 0) pending_edge_ = ring_.requests.armed(index_);
            return;
        }
        Waiter& waiter = *waiter_;
        waiter.unlink();
        waiter.error = error;
        waiter.run(waiter); // may destroy this
    }
    void on_failure(int error) noexcept override {
        if (waiter_ != nullptr) ring_.RunQueue::complete(*waiter_, error);
    }

    IoUringLoop& ring_; // the base class keeps it alive
    const std::uint32_t index_;
};

} // namespace asyncverbs::detail
