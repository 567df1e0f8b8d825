// SPDX-License-Identifier: MIT
// The timers of a loop and the timerfd that wakes it for the earliest one. A timerfd, because the
// timeout of epoll_wait counts whole milliseconds and another loop that embeds ours cannot see it.
#pragma once

#include <asyncverbs/core/detail/deadline.hpp>
#include <asyncverbs/core/detail/timer_fd.hpp>
#include <asyncverbs/core/detail/timer_heap.hpp>

namespace asyncverbs::detail {

template <class Use>
class TimerQueue {
public:
    int fd() const noexcept { return timer_.get(); }

    void insert(TimerNode<Use>& node) noexcept { timers_.insert(node); }
    void remove(TimerNode<Use>& node) noexcept { timers_.remove(node); }

    /// To be called before the loop sleeps. A deadline later than the one that is set waits until
    /// that has fired: a loop whose timers are mostly cancelled, as maximum waits are, hardly ever
    /// makes this system call.
    void arm() noexcept {
        const TimerNode<Use>* const first = timers_.first();
        if (first == nullptr || first->deadline >= armed_) return;
        armed_ = first->deadline;
        timer_.set(armed_);
    }

    /// To be called when fd() was readable: takes out what is due, the earliest first.
    template <class OnDue>
    void expire(OnDue&& on_due) noexcept {
        armed_ = never;
        const typename Clock::time_point now = Clock::now();
        for (TimerNode<Use>* first = timers_.first(); first != nullptr && first->deadline <= now;
             first = timers_.first()) {
            timers_.remove(*first);
            on_due(*first);
        }
    }

private:
    using Clock = typename Deadline<Use>::Clock;
    static constexpr auto never = Deadline<Use>::never;

    TimerFd<Use> timer_;
    TimerHeap<Use> timers_;
    typename Clock::time_point armed_ = never; // what timer_ is set to
};

} // namespace asyncverbs::detail
