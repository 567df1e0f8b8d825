// SPDX-License-Identifier: MIT
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

/// Owns a file descriptor.
class FileDescriptor {
public:
    /// Takes the result of the system call `call`; throws std::system_error if it is negative.
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

/// A file descriptor that becomes readable at a point in time.
class TimerFd {
public:
    TimerFd()
        : timer_(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), "timerfd_create") {}

    int get() const noexcept { return timer_.get(); }

    /// Readable from `when` on, not before. Deadline::never disarms it.
    void set(Deadline::Clock::time_point when) noexcept {
        itimerspec setting{}; // zero: disarmed
        if (when != Deadline::never) {
            // steady_clock counts from the epoch of CLOCK_MONOTONIC. A time of zero would disarm.
            using Duration = Deadline::Clock::duration;
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

/// A node of TimerHeap. It lives in the awaiter: a sleep must not allocate.
class Timer {
public:
    Timer() noexcept = default;
    // An awaiter may be moved until it suspends; until then its timer is in no heap.
    Timer(Timer&& other) noexcept : deadline(other.deadline) {}
    Timer& operator=(Timer&& other) noexcept {
        deadline = other.deadline;
        return *this;
    }

    Deadline::Clock::time_point deadline; // does not change while it is in a heap

private:
    friend class TimerHeap;

    std::uint64_t sequence_ = 0; // 0: in no heap
    Timer* child_ = nullptr;     // the first of the later timers below this one
    Timer* sibling_ = nullptr;   // the next child of the same parent
    Timer* back_ = nullptr;      // the previous sibling; of a first child, the parent
};

/// A pairing heap. Insertion is O(1), removal O(log n) amortised. Timers with equal deadlines come
/// out in the order of their insertion.
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

    // The two passes give the amortised bound: pairs from left to right, then all from right to
    // left. Loops instead of recursion: a node may have thousands of children.
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

/// The timers of a loop, and the timerfd that wakes it for the earliest one. The timeout of
/// epoll_wait would not do: it counts whole milliseconds, and a loop that embeds ours cannot see
/// it.
class TimerQueue {
public:
    int fd() const noexcept { return timer_.get(); }

    void insert(Timer& node) noexcept { timers_.insert(node); }
    void remove(Timer& node) noexcept { timers_.remove(node); }

    /// Must be called before the loop sleeps. Sets the timerfd only to an earlier time than before;
    /// a later one is set when the timerfd has fired. So a loop whose timers are mostly cancelled,
    /// as maximum waits are, rarely makes this system call.
    void arm() noexcept {
        const Timer* const first = timers_.first();
        if (first == nullptr || first->deadline >= armed_) return;
        armed_ = first->deadline;
        timer_.set(armed_);
    }

    /// Must be called when fd() was readable. Removes the timers that are due, the earliest first,
    /// and calls `on_due` with each.
    template <class OnDue>
    void expire(OnDue&& on_due) noexcept {
        armed_ = Deadline::never;
        const Deadline::Clock::time_point now = Deadline::Clock::now();
        for (Timer* first = timers_.first(); first != nullptr && first->deadline <= now;
             first = timers_.first()) {
            timers_.remove(*first);
            on_due(*first);
        }
    }

private:
    TimerFd timer_;
    TimerHeap timers_;
    Deadline::Clock::time_point armed_ = Deadline::never; // what timer_ is set to
};

} // namespace asyncverbs::detail
