// SPDX-License-Identifier: MIT
// A file descriptor that is closed with its owner.
// The executor has three of them, and each may fail to open after the others have.
#pragma once

#include <sys/timerfd.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/detail/deadline.hpp>

namespace asyncverbs::detail {

class FileDescriptor {
public:
    /// Takes the result of a system call that opens; a negative one throws and names `call`.
    FileDescriptor(int fd, const char* call) : fd_(fd) {
        if (fd < 0) throw std::system_error(errno, std::system_category(), call);
    }
    FileDescriptor(const FileDescriptor&) = delete;
    FileDescriptor& operator=(const FileDescriptor&) = delete;
    ~FileDescriptor() { ::close(fd_); }

    int get() const noexcept { return fd_; }

private:
    int fd_;
};

// A file descriptor that becomes readable at a point in time.

class TimerFd {
public:
    TimerFd()
        : timer_(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), "timerfd_create") {}

    int get() const noexcept { return timer_.get(); }

    /// Readable from `when` on, and not before; Deadline::never takes that back.
    void set(typename Deadline::Clock::time_point when) noexcept {
        itimerspec setting{}; // zero: never
        if (when != Deadline::never) {
            // steady_clock counts from the epoch of CLOCK_MONOTONIC. A time of zero would disarm.
            using Duration = typename Deadline::Clock::duration;
            Duration time = when.time_since_epoch();
            if (time < Duration(1)) time = Duration(1);
            using Seconds = std::chrono::duration<std::time_t>;
            using Nanoseconds = std::chrono::duration<long, std::nano>;
            const auto seconds = std::chrono::duration_cast<Seconds>(time);
            const auto rest = std::chrono::duration_cast<Nanoseconds>(time - seconds);
            setting.it_value.tv_sec = seconds.count();
            setting.it_value.tv_nsec = rest.count();
        }
        [[maybe_unused]] const int result =
            ::timerfd_settime(get(), TFD_TIMER_ABSTIME, &setting, nullptr);
        assert(result == 0);
    }

private:
    FileDescriptor timer_;
};

// The timers of a loop: a pairing heap whose nodes live in the sleeping awaiters, because a sleep
// must not allocate. Insertion is O(1), removal O(log n) amortised. Equal deadlines keep order.

class Timer {
public:
    Timer() noexcept = default;
    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;

    typename Deadline::Clock::time_point deadline; // set before it is inserted

private:
    friend class TimerHeap;

    // Few awaiters ever start a timer: the rest is set when they do.
    std::uint64_t sequence_ = 0; // 0: in no heap
    Timer* child_;               // the first of the later timers below this one
    Timer* sibling_;             // the next child of the same parent
    Timer* back_;                // the previous sibling; of a first child, the parent
};

class TimerHeap {
public:
    /// The earliest timer, or null.
    Timer* first() const noexcept { return root_; }

    void insert(Timer& node) noexcept {
        node.sequence_ = ++sequence_;
        node.child_ = node.sibling_ = node.back_ = nullptr;
        root_ = root_ == nullptr ? &node : meld(root_, &node);
    }

    /// Does nothing for a node that is not in the heap.
    void remove(Timer& node) noexcept {
        if (node.sequence_ == 0) return;
        Timer* const below = meld_children(node);
        if (&node == root_) {
            root_ = below;
        } else {
            cut(node);
            if (below != nullptr) root_ = meld(root_, below);
        }
        node.sequence_ = 0;
    }

private:
    static bool earlier(const Timer& a, const Timer& b) noexcept {
        return a.deadline != b.deadline ? a.deadline < b.deadline : a.sequence_ < b.sequence_;
    }

    static Timer* meld(Timer* a, Timer* b) noexcept {
        if (earlier(*b, *a)) std::swap(a, b);
        b->sibling_ = a->child_;
        if (b->sibling_ != nullptr) b->sibling_->back_ = b;
        b->back_ = a;
        a->child_ = b;
        return a;
    }

    static void cut(Timer& node) noexcept {
        (node.back_->child_ == &node ? node.back_->child_ : node.back_->sibling_) = node.sibling_;
        if (node.sibling_ != nullptr) node.sibling_->back_ = node.back_;
        node.sibling_ = node.back_ = nullptr;
    }

    // Two passes, which give the amortised bound: pairs from left to right, then all from right to
    // left. Loops, not recursion: a node may have thousands of children.
    static Timer* meld_children(Timer& node) noexcept {
        Timer* pairs = nullptr;
        while (node.child_ != nullptr) {
            Timer* pair = node.child_;
            cut(*pair);
            if (Timer* const second = node.child_) {
                cut(*second);
                pair = meld(pair, second);
            }
            pair->sibling_ = pairs;
            pairs = pair;
        }
        Timer* all = nullptr;
        while (pairs != nullptr) {
            Timer* const pair = pairs;
            pairs = pair->sibling_;
            pair->sibling_ = nullptr;
            all = all == nullptr ? pair : meld(all, pair);
        }
        return all;
    }

    Timer* root_ = nullptr;
    std::uint64_t sequence_ = 0;
};

// The timers of a loop and the timerfd that wakes it for the earliest one. A timerfd, because the
// timeout of epoll_wait counts whole milliseconds and another loop that embeds ours cannot see it.

class TimerQueue {
public:
    int fd() const noexcept { return timer_.get(); }

    void insert(Timer& node) noexcept { timers_.insert(node); }
    void remove(Timer& node) noexcept { timers_.remove(node); }

    /// To be called before the loop sleeps. A deadline later than the one that is set waits until
    /// that has fired: a loop whose timers are mostly cancelled, as maximum waits are, hardly ever
    /// makes this system call.
    void arm() noexcept {
        const Timer* const first = timers_.first();
        if (first == nullptr || first->deadline >= armed_) return;
        armed_ = first->deadline;
        timer_.set(armed_);
    }

    /// To be called when fd() was readable: takes out what is due, the earliest first.
    template <class OnDue>
    void expire(OnDue&& on_due) noexcept {
        armed_ = never;
        const typename Clock::time_point now = Clock::now();
        for (Timer* first = timers_.first(); first != nullptr && first->deadline <= now;
             first = timers_.first()) {
            timers_.remove(*first);
            on_due(*first);
        }
    }

private:
    using Clock = typename Deadline::Clock;
    static constexpr auto never = Deadline::never;

    TimerFd timer_;
    TimerHeap timers_;
    typename Clock::time_point armed_ = never; // what timer_ is set to
};

} // namespace asyncverbs::detail
