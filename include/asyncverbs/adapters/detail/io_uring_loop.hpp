// SPDX-License-Identifier: MIT
// What an IoUringPoller, its notifiers and their awaiters share: the requests on the ring, and what
// else wakes its loop, time and other threads. It lives as long as any of them.
#pragma once

#include <liburing.h>

#include <sys/eventfd.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <system_error>

#include <asyncverbs/adapters/detail/io_uring_requests.hpp>
#include <asyncverbs/core/detail/deadline.hpp>
#include <asyncverbs/core/detail/file_descriptor.hpp>
#include <asyncverbs/core/detail/intrusive_list.hpp>
#include <asyncverbs/core/detail/post_queue.hpp>
#include <asyncverbs/core/detail/ready_node.hpp>
#include <asyncverbs/core/detail/timer_queue.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs::detail {

// Whom an answer of the ring is for: an errno value, or 0, which says to look again. Returns who
// runs then, or null.
struct IoUringEntry {
    using Action = ReadyNode<OnUse>* (*)(IoUringEntry&, int error);

    explicit IoUringEntry(Action action) noexcept : on_event(action) {}
    IoUringEntry(const IoUringEntry&) = delete;
    IoUringEntry& operator=(const IoUringEntry&) = delete;

    Action on_event;
};

// A coroutine that waits for a file descriptor.
struct IoUringWaiter : ReadyNode<OnUse>, TimerNode<OnUse> {
    using ReadyNode<OnUse>::ReadyNode;

    int error = 0; // an errno value; may change as long as the node is queued
};

class IoUringLoop : public std::enable_shared_from_this<IoUringLoop> {
public:
    IoUringLoop(io_uring& ring, std::uint16_t tag);
    IoUringLoop(const IoUringLoop&) = delete;
    IoUringLoop& operator=(const IoUringLoop&) = delete;

    IoUringRequests requests;

    // From any thread.
    void post(ReadyNode<OnUse>& node) noexcept {
        if (posted_.push(node)) signal();
    }

    // From the thread that runs the loop, or from one thread at a time while none does.
    bool complete(const io_uring_cqe& cqe);
    int arm(std::uint32_t index) noexcept;
    void decide(IoUringWaiter& waiter, int error) noexcept; // it runs in the next turn
    void start_timer(IoUringWaiter& waiter, Deadline<OnUse>::Clock::time_point deadline) noexcept;
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

    static ReadyNode<OnUse>* on_awake(IoUringEntry& entry, int error);
    void expire() noexcept;
    void run_ready();
    void fail(int error) noexcept;
    void ask_for_turn() noexcept {
        if (requests.arm(turned_.index) != 0) signal();
    }
    void signal() noexcept;

    FileDescriptor event_; // written to wake the loop
    TimerQueue<OnUse> timers_;
    PostQueue<OnUse> posted_;
    IntrusiveList<ReadyNode<OnUse>> ready_;
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
    if (ReadyNode<OnUse>* const node = entry->on_event(*entry, error)) {
        node->unlink();
        node->run(*node); // the last touch: it may destroy anything
    }
    return true;
}

inline ReadyNode<OnUse>* IoUringLoop::on_awake(IoUringEntry& entry, int error) {
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
    timers_.expire([this](TimerNode<OnUse>& timer) {
        auto& waiter = static_cast<IoUringWaiter&>(timer);
        if (waiter.linked()) return;
        waiter.error = ETIMEDOUT;
        ready_.push_back(waiter);
    });
    timers_.arm();
}

/// Resumes what is ready by now, and no more: what becomes so meanwhile is the next turn's.
inline void IoUringLoop::run_ready() {
    struct Batch : IntrusiveList<ReadyNode<OnUse>> {
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
        ReadyNode<OnUse>& node = batch.take_front();
        node.run(node);
    }
}

/// Without what wakes the loop, stops and time would go unnoticed: an error that reaches all.
inline void IoUringLoop::fail(int error) noexcept {
    if (failure_ != 0) return;
    failure_ = error;
    requests.for_each([this, error](IoUringEntry& entry) {
        if (entry.on_event == &on_awake) return;
        ReadyNode<OnUse>* const node = entry.on_event(entry, error);
        if (node != nullptr && !node->linked()) ready_.push_back(*node);
    });
}

inline void IoUringLoop::decide(IoUringWaiter& waiter, int error) noexcept {
    waiter.error = error;
    if (!waiter.linked()) ready_.push_back(waiter);
    ask_for_turn();
}

inline void IoUringLoop::start_timer(IoUringWaiter& waiter,
                                     Deadline<OnUse>::Clock::time_point deadline) noexcept {
    if (deadline == Deadline<OnUse>::never) return;
    if (deadline == Deadline<OnUse>::next_turn) return decide(waiter, ETIMEDOUT);
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
