// SPDX-License-Identifier: MIT
// Where a case of the conformance suite takes place: one loop of the harness, and what watches it.
// All waiting of the suite is here, and all of it is bounded.
#pragma once

#include <algorithm>
#include <chrono>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include <asyncverbs/testing/conformance_case.hpp>
#include <asyncverbs/testing/detail/conformance_passage.hpp>
#include <asyncverbs/testing/detail/conformance_watchdog.hpp>

namespace asyncverbs::detail::conformance {

[[noreturn]] inline void fail(const std::string& what) { throw ConformanceFailure(what); }

inline void expect(bool holds, const char* otherwise) {
    if (!holds) fail(otherwise);
}

template <class Harness>
class Bench {
    using Clock = std::chrono::steady_clock;

public:
    using Notifier = decltype(std::declval<Harness&>().notifier(0));

    Bench(std::string_view name, std::chrono::milliseconds patience)
        : patience_(patience), watchdog_(name, 2 * patience + std::chrono::seconds(20)) {}

    Notifier notifier(int fd) { return harness_.notifier(fd); }
    Harness& harness() noexcept { return harness_; }

    /// One turn of the loop. Throws what was found wrong.
    void turn(std::chrono::milliseconds at_most = std::chrono::milliseconds(0)) {
        {
            const Witness::At at(witness_, Witness::Place::in_turn);
            harness_.turn(at_most);
        }
        watchdog_.progress();
        witness_.check();
    }

    /// Time enough for what must not happen.
    void settle() {
        for (int i = 0; i < 5; ++i) turn(std::chrono::milliseconds(1));
    }

    /// Turns until `done`. The loop may sleep all the time: what it waits for has to wake it.
    template <class Predicate>
    void run_until(Predicate done, const char* what,
                   std::chrono::milliseconds longest_turn = std::chrono::milliseconds::max()) {
        const Clock::time_point end = Clock::now() + patience_;
        while (!done()) {
            const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now());
            if (left.count() > 0) turn(std::min(left, longest_turn));
            // Also when it is done now: that the loop's sleep has ended is no wake.
            if (Clock::now() >= end) {
                fail("in vain: " + std::string(what) + " has not happened within " +
                     std::to_string(patience_.count()) + " ms, or did not wake the loop");
            }
            std::this_thread::yield(); // a turn may be one that never sleeps
        }
    }

    /// Requests the stop on the thread of the loop.
    void request_stop(std::stop_source& source) {
        const Witness::At at(witness_, Witness::Place::in_request_stop);
        source.request_stop();
    }

    Witness& witness() noexcept { return witness_; }
    Passages& passages() noexcept { return passages_; }

private:
    const std::chrono::milliseconds patience_;
    Watchdog watchdog_;
    Witness witness_;
    Passages passages_; // the loop may still resume them while it ends
    Harness harness_;
};

} // namespace asyncverbs::detail::conformance
