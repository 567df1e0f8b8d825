// SPDX-License-Identifier: MIT
// Until when a coroutine waits on an EpollExecutor, as a point in time with two special values.
// A duration is added to the clock in one place, which no duration overflows.
#pragma once

#include <chrono>

namespace asyncverbs::detail {

struct Deadline {
    using Clock = std::chrono::steady_clock;

    static constexpr auto never = Clock::time_point::max();
    static constexpr auto next_iteration = Clock::time_point::min();

    static typename Clock::time_point after(typename Clock::duration duration) {
        if (duration <= Clock::duration::zero()) return next_iteration;
        const typename Clock::time_point now = Clock::now();
        return duration < never - now ? now + duration : never;
    }
    template <class Rep, class Period>
    static typename Clock::time_point after(std::chrono::duration<Rep, Period> duration) {
        if (duration <= std::chrono::duration<Rep, Period>::zero()) return next_iteration;
        // In floating point, for the longest durations do not fit into nanoseconds.
        using Seconds = std::chrono::duration<double>;
        constexpr Seconds longest = std::chrono::years(100);
        if (Seconds(duration) > longest) return never;
        return after(std::chrono::ceil<typename Clock::duration>(duration));
    }

    static typename Clock::time_point at(typename Clock::time_point time) noexcept {
        return time <= Clock::now() ? next_iteration : time;
    }
};

} // namespace asyncverbs::detail
