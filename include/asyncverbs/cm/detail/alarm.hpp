// SPDX-License-Identifier: MIT
// A file descriptor that is readable from a point in time on, or earlier if somebody rings. So a
// wait that has a bound and can be ended by another coroutine needs no more of an event loop than
// that it waits for file descriptors.
#pragma once

#include <asyncverbs/core/detail/deadline.hpp>
#include <asyncverbs/core/detail/intrusive_list.hpp>
#include <asyncverbs/core/detail/timer_fd.hpp>

namespace asyncverbs::detail {

template <class Use>
class Alarm : public ListNode {
public:
    explicit Alarm(typename Deadline<Use>::Clock::time_point deadline) : deadline_(deadline) {
        reset();
    }

    int fd() const noexcept { return timer_.get(); }
    bool expired() const noexcept { return Deadline<Use>::Clock::now() >= deadline_; }

    void ring() noexcept { timer_.set(Deadline<Use>::next_turn); }
    void reset() noexcept { timer_.set(deadline_); } // after it was readable

private:
    TimerFd<Use> timer_;
    typename Deadline<Use>::Clock::time_point deadline_;
};

} // namespace asyncverbs::detail
