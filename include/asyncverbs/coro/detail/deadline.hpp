// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <system_error>

namespace asyncverbs::detail {

// The point in time until which a coroutine waits. Two values are special: `never`, and
// `next_iteration` for one non-blocking iteration of the loop. Conversions from a duration do not
// overflow; they throw std::system_error (errc::invalid_argument) if it is not a number.
struct Deadline {
    using Clock = std::chrono::steady_clock;

    static constexpr auto never = Clock::time_point::max();
    static constexpr auto next_iteration = Clock::time_point::min();

    static Clock::time_point after(Clock::duration duration) {
        if (duration <= Clock::duration::zero()) return next_iteration;
        const Clock::time_point now = Clock::now();
        return duration < never - now ? now + duration : never;
    }
    template <class Rep, class Period>
    static Clock::time_point after(std::chrono::duration<Rep, Period> duration) {
        if (duration <= std::chrono::duration<Rep, Period>::zero()) return next_iteration;
        if (!(duration > std::chrono::duration<Rep, Period>::zero())) {
            throw std::system_error(std::make_error_code(std::errc::invalid_argument),
                                    "asyncverbs: a duration that is not a number");
        }
        // Compare in floating point: the longest durations do not fit into nanoseconds.
        using Seconds = std::chrono::duration<double>;
        constexpr Seconds longest = std::chrono::years(100);
        if (Seconds(duration) > longest) return never;
        return after(std::chrono::ceil<Clock::duration>(duration));
    }

    static Clock::time_point at(Clock::time_point time) noexcept {
        return time <= Clock::now() ? next_iteration : time;
    }
};

} // namespace asyncverbs::detail
