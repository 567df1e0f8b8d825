// SPDX-License-Identifier: MIT
// Until when a coroutine waits on an EpollExecutor, as a point in time with two special values.
// A duration is added to the clock in one place, which no duration overflows.
#pragma once

#include <asyncverbs/verbs/detail/chrono.hpp>

namespace asyncverbs::detail {

struct Deadline {
    using Clock = std::chrono::steady_clock;

    static constexpr auto never = Clock::time_point::max();
    static constexpr auto next_turn = Clock::time_point::min();

    static Clock::time_point after(Clock::duration duration) {
        if (duration <= Clock::duration::zero()) return next_turn;
        const Clock::time_point now = Clock::now();
        return duration < never - now ? now + duration : never;
    }
    template <class Rep, class Period>
    static Clock::time_point after(std::chrono::duration<Rep, Period> duration) {
        if (duration <= std::chrono::duration<Rep, Period>::zero()) return next_turn;
        // In floating point, for the longest durations do not fit into nanoseconds.
        constexpr std::chrono::duration<double> longest = std::chrono::years(100);
        if (std::chrono::duration<double>(duration) > longest) return never;
        return after(std::chrono::ceil<Clock::duration>(duration));
    }

    static Clock::time_point at(Clock::time_point time) noexcept {
        return time <= Clock::now() ? next_turn : time;
    }
};

} // namespace asyncverbs::detail
