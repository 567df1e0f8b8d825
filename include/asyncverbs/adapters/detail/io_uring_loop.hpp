// SPDX-License-Identifier: MIT
// The requests of an adapter on a ring that belongs to somebody else. What is full, interrupted,
// late, not supported or gone is dealt with here.
#pragma once

#include <liburing.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <system_error>
#include <vector>

#include <asyncverbs/coro/detail/deadline.hpp>
#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/executor/detail/run_queue.hpp>
#include <asyncverbs/executor/detail/timers.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

struct IoUringEntry;

/// What is asked for.
enum class IoUringTrigger {
    level, // that something can be read: one poll each time
    edge,  // that something new came: one multishot poll, until it is cancelled
    turn,  // that the loop has submitted what was queued before
};

// The kernel is given numbers, no addresses. So a completion that comes late, or is handled twice,
// finds nobody, and nothing has to be kept until the kernel has let go of it.
//
//     user_data:   tag, 16 bits | number of the request, 24 bits | index of the slot, 24 bits
class IoUringRequests {
public:
    IoUringRequests(io_uring& ring, std::uint16_t tag);
    IoUringRequests(const IoUringRequests&) = delete;
    IoUringRequests& operator=(const IoUringRequests&) = delete;
    ~IoUringRequests() { close(); }

    /// Takes a slot for `entry`, for which nothing is asked yet.
    std::uint32_t add(IoUringEntry& entry, int fd, IoUringTrigger trigger);

    /// Cancels what was asked for, and makes the kernel let go of the fd.
    void remove(std::uint32_t index) noexcept;

    /// Asks, unless it has and waits for the answer. Returns 0, or the errno that says why it
    /// cannot. A queue that the kernel will not empty just now is no such reason: settle() tries
    /// again.
    int arm(std::uint32_t index) noexcept;

    /// Whether it waits for an answer. If not, the next poll finds what became readable meanwhile.
    bool armed(std::uint32_t index) const noexcept { return slots_[index].state != State::idle; }

    /// To be called with each completion: does what could not be done before.
    void settle() noexcept {
        if (unsettled_ > 0) settle_all();
    }
    bool unsettled() const noexcept { return unsettled_ > 0; }

    bool owns(const io_uring_cqe& cqe) const noexcept { return cqe.user_data >> 48 == tag_; }

    /// Whom a completion that it owns is for; null: nobody, or nobody any more.
    IoUringEntry* take(const io_uring_cqe& cqe) noexcept;

    template <class Function>
    void for_each(Function function) {
        for (const Slot& slot : slots_) {
            if (slot.entry != nullptr) function(*slot.entry);
        }
    }

    /// Cancels everything. From then on the ring is not touched, and arm() gives EBADF.
    void close() noexcept;

private:
    static constexpr unsigned field_bits = 24;
    static constexpr std::uint32_t field_mask = (1U << field_bits) - 1;
    static constexpr std::uint32_t no_slot = field_mask; // of requests whose outcome is of no use

    enum class State { idle, to_arm, armed, to_cancel };

    struct Slot {
        IoUringEntry* entry = nullptr; // null: free, unless it is to_cancel
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

    int submit() noexcept;
    void submit_cancels() noexcept;
    int get_sqe(io_uring_sqe*& sqe) noexcept;
    int queue(Slot& slot) noexcept;
    int queue_cancel(const Slot& slot) noexcept;
    void settle_all() noexcept;

    io_uring* ring_; // null: closed
    const std::uint16_t tag_;
    bool multishot_supported_ = true;
    std::size_t unsettled_ = 0; // slots that are to_arm or to_cancel
    std::vector<Slot> slots_;
};

inline IoUringRequests::IoUringRequests(io_uring& ring, std::uint16_t tag)
    : ring_(&ring), tag_(tag) {
    if (tag == 0 || tag == 0xffff) {
        throw_error(std::errc::invalid_argument,
                    "IoUringPoller: the tags 0 and 0xffff are those of other requests");
    }
    // In a program that did not look at what io_uring_queue_init returned.
    if (ring.sq.khead == nullptr || ring.sq.sqes == nullptr) {
        throw_error(std::errc::bad_file_descriptor,
                    "IoUringPoller: there is no ring; io_uring_queue_init must have failed");
    }
    if ((ring.flags & IORING_SETUP_IOPOLL) != 0) {
        throw_error(std::errc::not_supported,
                    "IoUringPoller: a ring with IORING_SETUP_IOPOLL cannot wait for descriptors");
    }
}

inline std::uint32_t IoUringRequests::add(IoUringEntry& entry, int fd, IoUringTrigger trigger) {
    const auto is_free = [](const Slot& slot) {
        return slot.entry == nullptr && slot.state == State::idle;
    };
    auto slot = std::find_if(slots_.begin(), slots_.end(), is_free);
    if (slot == slots_.end()) slot = slots_.emplace(slot);
    slot->entry = &entry;
    slot->fd = fd;
    slot->trigger = trigger;
    return index_of(*slot);
}

inline void IoUringRequests::remove(std::uint32_t index) noexcept {
    Slot& slot = slots_[index];
    slot.entry = nullptr;
    if (slot.state == State::to_arm) {
        slot.state = State::idle;
        --unsettled_;
    }
    if (slot.state != State::armed) return;
    if (queue_cancel(slot) == 0) {
        slot.state = State::idle;
        // Not left to the loop: whoever removes it is about to close the fd.
        submit_cancels();
    } else {
        slot.state = State::to_cancel;
        ++unsettled_;
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
    ++unsettled_;
    return 0;
}

inline IoUringEntry* IoUringRequests::take(const io_uring_cqe& cqe) noexcept {
    const auto index = static_cast<std::uint32_t>(cqe.user_data) & field_mask;
    const auto number = static_cast<std::uint32_t>(cqe.user_data >> field_bits) & field_mask;
    if (ring_ == nullptr || index >= slots_.size()) return nullptr;
    Slot& slot = slots_[index];
    const bool is_last = (cqe.flags & IORING_CQE_F_MORE) == 0;
    if (slot.number != number) return nullptr;
    if (slot.state == State::to_cancel && is_last) {
        slot.state = State::idle;
        --unsettled_;
    }
    if (slot.state != State::armed) return nullptr;
    if (is_last) slot.state = State::idle;
    if (cqe.res == -EINVAL && slot.multishot) {
        multishot_supported_ = false; // Linux before 5.13
        if (arm(index) == 0) return nullptr;
    }
    return slot.entry;
}

inline void IoUringRequests::close() noexcept {
    if (ring_ == nullptr) return;
    for (Slot& slot : slots_) {
        if (slot.state == State::armed || slot.state == State::to_cancel) queue_cancel(slot);
        slot.state = State::idle;
    }
    submit_cancels();
    unsettled_ = 0;
    ring_ = nullptr;
}

/// Returns 0 or an errno.
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
    // Such a ring lets go of a descriptor when it does its deferred work.
    if ((ring_->flags & IORING_SETUP_DEFER_TASKRUN) != 0) io_uring_get_events(ring_);
#endif
}

/// Returns 0 or an errno. A queue that is full is submitted, as its owner would do a little later.
inline int IoUringRequests::get_sqe(io_uring_sqe*& sqe) noexcept {
    sqe = io_uring_get_sqe(ring_);
    if (sqe != nullptr) return 0;
    if (const int error = submit()) return error;
    io_uring_sqring_wait(ring_); // with IORING_SETUP_SQPOLL a thread of the kernel empties it
    sqe = io_uring_get_sqe(ring_);
    return sqe != nullptr ? 0 : EBUSY;
}

inline int IoUringRequests::queue(Slot& slot) noexcept {
    io_uring_sqe* sqe = nullptr;
    if (const int error = get_sqe(sqe)) return error;
    slot.multishot = slot.trigger == IoUringTrigger::edge && multishot_supported_;
    slot.number = (slot.number + 1) & field_mask;
    if (slot.trigger == IoUringTrigger::turn) {
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
    // Not poll_remove, which gives up, with EALREADY, on a poll that is about to complete.
    io_uring_prep_cancel64(sqe, user_data(slot.number, index_of(slot)), 0);
    io_uring_sqe_set_data64(sqe, user_data(0, no_slot));
    return 0;
}

inline void IoUringRequests::settle_all() noexcept {
    for (Slot& slot : slots_) {
        if (slot.state == State::to_arm && queue(slot) == 0) {
            slot.state = State::armed;
            --unsettled_;
        } else if (slot.state == State::to_cancel && queue_cancel(slot) == 0) {
            slot.state = State::idle;
            --unsettled_;
        }
    }
}

// What an IoUringPoller, its notifiers and their awaiters share: the requests on the ring, and what
// else wakes its loop, time and other threads. It lives as long as any of them.

// Whom an answer of the ring is for: an errno value, or 0, which says to look again. Returns who
// runs then, or null.
struct IoUringEntry {
    using Action = WorkItem* (*)(IoUringEntry&, int error);

    explicit IoUringEntry(Action action) noexcept : on_event(action) {}
    IoUringEntry(const IoUringEntry&) = delete;
    IoUringEntry& operator=(const IoUringEntry&) = delete;

    Action on_event;
};

// A coroutine that waits for a file descriptor.
struct IoUringWaiter : WorkItem, Timer {
    using WorkItem::WorkItem;

    int error = 0; // an errno value; may change as long as the node is queued
};

class IoUringLoop : public std::enable_shared_from_this<IoUringLoop> {
public:
    IoUringLoop(io_uring& ring, std::uint16_t tag);
    IoUringLoop(const IoUringLoop&) = delete;
    IoUringLoop& operator=(const IoUringLoop&) = delete;

    IoUringRequests requests;

    // From any thread.
    void post(WorkItem& node) noexcept {
        if (posted_.push(node)) signal();
    }

    // From the thread that runs the loop, or from one thread at a time while none does.
    bool complete(const io_uring_cqe& cqe);
    int arm(std::uint32_t index) noexcept;
    void decide(IoUringWaiter& waiter, int error) noexcept; // it runs in the next turn
    void start_timer(IoUringWaiter& waiter, Deadline::Clock::time_point deadline) noexcept;
    void stop_timer(IoUringWaiter& waiter) noexcept { timers_.remove(waiter); }
    void collect_posted() noexcept { posted_.take_asleep(ready_); } // all of it is linked then

private:
    // What wakes the loop besides the descriptors that somebody waits for.
    struct Waker : IoUringEntry {
        Waker(IoUringLoop& owner, int watched, IoUringTrigger trigger)
            : IoUringEntry(&on_awake), loop(owner), fd(watched),
              index(owner.requests.add(*this, watched, trigger)) {}
        IoUringLoop& loop;
        const int fd;
        const std::uint32_t index;
    };

    static WorkItem* on_awake(IoUringEntry& entry, int error);
    void expire() noexcept;
    void run_ready();
    void fail(int error) noexcept;
    void ask_for_turn() noexcept {
        if (requests.arm(turned_.index) != 0) signal();
    }
    void signal() noexcept;

    FileDescriptor event_; // written to wake the loop
    TimerQueue timers_;
    RemoteQueue posted_;
    IntrusiveList<WorkItem> ready_;
    int failure_ = 0; // the errno because of which nobody can wait any more
    Waker signalled_;
    Waker expired_;
    Waker turned_; // Not a write to event_: its answer may come to a turn that never ends.
};

inline IoUringLoop::IoUringLoop(io_uring& ring, std::uint16_t tag)
    : requests(ring, tag), event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd"),
      signalled_(*this, event_.get(), IoUringTrigger::edge),
      expired_(*this, timers_.fd(), IoUringTrigger::edge),
      turned_(*this, -1, IoUringTrigger::turn) {
    for (const Waker* waker : {&signalled_, &expired_}) {
        if (const int error = requests.arm(waker->index)) {
            throw std::system_error(error, std::system_category(), "io_uring_submit");
        }
    }
}

/// Returns 0, or the errno that says why nobody can wait.
inline int IoUringLoop::arm(std::uint32_t index) noexcept {
    if (failure_ != 0) return failure_;
    const int error = requests.arm(index);
    if (requests.unsettled()) signal(); // to try again
    return error;
}

inline bool IoUringLoop::complete(const io_uring_cqe& cqe) {
    requests.settle();
    if (!requests.owns(cqe)) return false;
    IoUringEntry* const entry = requests.take(cqe);
    if (entry == nullptr) return true;
    // Who cancels requests that are not his makes them look again, and no more.
    const int error = cqe.res >= 0 || cqe.res == -ECANCELED ? 0 : -cqe.res;
    if (WorkItem* const node = entry->on_event(*entry, error)) {
        node->unlink();
        node->run(*node); // the last touch: it may destroy anything
    }
    return true;
}

inline WorkItem* IoUringLoop::on_awake(IoUringEntry& entry, int error) {
    auto& waker = static_cast<Waker&>(entry);
    const std::shared_ptr<IoUringLoop> self = waker.loop.shared_from_this();
    if (waker.fd >= 0) {
        // Not for the edges, but where there are none it would be found readable for ever.
        std::uint64_t ignored = 0;
        [[maybe_unused]] const auto size = ::read(waker.fd, &ignored, sizeof ignored);
        if (error == 0) error = self->requests.arm(waker.index);
        if (error != 0) self->fail(error);
    }
    if (&waker == &self->expired_) self->expire();
    self->run_ready();
    return nullptr;
}

inline void IoUringLoop::expire() noexcept {
    timers_.expire([this](Timer& timer) {
        auto& waiter = static_cast<IoUringWaiter&>(timer);
        if (waiter.linked()) return;
        waiter.error = ETIMEDOUT;
        ready_.push_back(waiter);
    });
    timers_.arm();
}

/// Resumes what is ready by now, and no more: what becomes so meanwhile is the next turn's.
inline void IoUringLoop::run_ready() {
    struct Batch : IntrusiveList<WorkItem> {
        explicit Batch(IoUringLoop& owner) noexcept : loop(owner) {
            loop.collect_posted();
            append(loop.ready_);
        }
        ~Batch() {
            if (!empty()) loop.ask_for_turn(); // an exception has left them
            loop.ready_.prepend(*this);
            if (loop.requests.unsettled()) loop.signal();
        }
        IoUringLoop& loop;
    };
    for (Batch batch(*this); !batch.empty();) {
        WorkItem& node = batch.take_front();
        node.run(node);
    }
}

/// Without what wakes the loop, stops and time would go unnoticed: an error that reaches all.
inline void IoUringLoop::fail(int error) noexcept {
    if (failure_ != 0) return;
    failure_ = error;
    requests.for_each([this, error](IoUringEntry& entry) {
        if (entry.on_event == &on_awake) return;
        WorkItem* const node = entry.on_event(entry, error);
        if (node != nullptr && !node->linked()) ready_.push_back(*node);
    });
}

inline void IoUringLoop::decide(IoUringWaiter& waiter, int error) noexcept {
    waiter.error = error;
    if (!waiter.linked()) ready_.push_back(waiter);
    ask_for_turn();
}

inline void IoUringLoop::start_timer(IoUringWaiter& waiter,
                                     Deadline::Clock::time_point deadline) noexcept {
    if (deadline == Deadline::never) return;
    if (deadline == Deadline::next_iteration) return decide(waiter, ETIMEDOUT);
    waiter.deadline = deadline;
    timers_.insert(waiter);
    timers_.arm();
}

inline void IoUringLoop::signal() noexcept {
    constexpr std::uint64_t one = 1;
    // Would block only after 2^64 - 2 writes.
    [[maybe_unused]] const auto written = ::write(event_.get(), &one, sizeof one);
    assert(written == sizeof one);
}

} // namespace asyncverbs::detail
