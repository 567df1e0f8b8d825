// SPDX-License-Identifier: MIT
// The timers of a loop and the timerfd that wakes it for the earliest one. A timerfd, because the
// timeout of epoll_wait counts whole milliseconds and another loop that embeds ours cannot see it.
#pragma once

#include <sys/timerfd.h>

#include <algorithm>
#include <cassert>
#include <chrono>
#include <ctime>

#include <asyncverbs/core/detail/file_descriptor.hpp>
#include <asyncverbs/core/detail/timer_heap.hpp>

namespace asyncverbs::detail {

class TimerQueue {
public:
    TimerQueue()
        : timer_(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), "timerfd_create") {}

    int fd() const noexcept { return timer_.get(); }

    void insert(TimerNode& node) noexcept { timers_.insert(node); }
    void remove(TimerNode& node) noexcept { timers_.remove(node); }

    /// To be called before the loop sleeps. A deadline later than the one that is set waits until
    /// that has fired: a loop whose timers are mostly cancelled, as maximum waits are, hardly ever
    /// makes this system call.
    void arm() noexcept {
        const TimerNode* const first = timers_.first();
        if (first == nullptr || first->deadline >= armed_) return;
        armed_ = first->deadline;
        // steady_clock counts from the epoch of CLOCK_MONOTONIC. A time of zero would disarm.
        const auto time = std::max(armed_.time_since_epoch(), Clock::duration(1));
        const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(time);
        const std::chrono::nanoseconds rest = time - seconds;
        itimerspec setting{};
        setting.it_value.tv_sec = static_cast<std::time_t>(seconds.count());
        setting.it_value.tv_nsec = static_cast<long>(rest.count());
        [[maybe_unused]] const int result =
            ::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &setting, nullptr);
        assert(result == 0);
    }

    /// To be called when fd() was readable: takes out what is due, the earliest first.
    template <class OnDue>
    void expire(OnDue&& on_due) noexcept {
        armed_ = never;
        const Clock::time_point now = Clock::now();
        for (TimerNode* first = timers_.first(); first != nullptr && first->deadline <= now;
             first = timers_.first()) {
            timers_.remove(*first);
            on_due(*first);
        }
    }

private:
    using Clock = std::chrono::steady_clock;
    static constexpr auto never = Clock::time_point::max();

    FileDescriptor timer_;
    TimerHeap timers_;
    Clock::time_point armed_ = never; // what timer_ is set to
};

} // namespace asyncverbs::detail
