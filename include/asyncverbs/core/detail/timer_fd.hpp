// SPDX-License-Identifier: MIT
// A file descriptor that becomes readable at a point in time.
#pragma once

#include <sys/timerfd.h>

#include <cassert>
#include <ctime>

#include <asyncverbs/core/detail/deadline.hpp>
#include <asyncverbs/core/detail/file_descriptor.hpp>
#include <asyncverbs/verbs/detail/chrono.hpp>

namespace asyncverbs::detail {

template <class Use>
class TimerFd {
public:
    TimerFd()
        : timer_(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), "timerfd_create") {}

    int get() const noexcept { return timer_.get(); }

    /// Readable from `when` on, and not before; Deadline::never takes that back.
    void set(typename Deadline<Use>::Clock::time_point when) noexcept {
        itimerspec setting{}; // zero: never
        if (when != Deadline<Use>::never) {
            // steady_clock counts from the epoch of CLOCK_MONOTONIC. A time of zero would disarm.
            using Duration = typename Deadline<Use>::Clock::duration;
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

} // namespace asyncverbs::detail
