// SPDX-License-Identifier: MIT
// The conformance suite: bounded waits, for notifiers that have them.
#pragma once

#include <chrono>
#include <stop_token>
#include <string_view>
#include <system_error>

#include <asyncverbs/testing/detail/conformance_bench.hpp>
#include <asyncverbs/testing/detail/conformance_cases.hpp>
#include <asyncverbs/testing/detail/readiness_cases.hpp>

namespace asyncverbs::detail::conformance {

template <class Harness>
struct TimedCases {
    using Bench = conformance::Bench<Harness>;
    using Wait = conformance::Wait<Harness>;
    using Setup = typename ReadinessCases<Harness>::Setup;
    using Nanoseconds = std::chrono::nanoseconds;
    static constexpr std::errc timed_out = std::errc::timed_out;
    static constexpr Nanoseconds at_once{0};
    static constexpr Nanoseconds soon = std::chrono::milliseconds(10);
    static constexpr Nanoseconds late = std::chrono::hours(1);

    static void time_passes(Bench& bench) {
        Setup s(bench);
        const auto start = std::chrono::steady_clock::now();
        s.wait.begin(s.notifier, std::stop_token(), soon);
        s.wait.expect_error(timed_out, s.notifier, std::stop_token(), soon);
        expect(std::chrono::steady_clock::now() - start >= soon, "it timed out before its time");
        s.wait.park(s.notifier, std::stop_token());
        s.channel.put();
        s.round();
    }

    static void readable_in_time(Bench& bench) {
        for (const Nanoseconds bound : {late, Nanoseconds::max()}) {
            Setup s(bench);
            s.wait.park(s.notifier, std::stop_token(), bound);
            s.channel.put();
            s.round();
            s.channel.put();
            s.wait.begin(s.notifier, std::stop_token(), bound);
            s.round();
        }
    }

    static void bound_of_an_earlier_wait(Bench& bench) {
        Setup s(bench);
        s.channel.put();
        s.wait.begin(s.notifier, std::stop_token(), soon);
        s.round();
        s.wait.begin(s.notifier, std::stop_token(), soon);
        s.wait.destroy();
        s.wait.park(s.notifier, std::stop_token());
        const auto start = std::chrono::steady_clock::now();
        bench.run_until([&] { return std::chrono::steady_clock::now() - start > 3 * soon; },
                        "that time passes", std::chrono::milliseconds(1));
        s.wait.stay(s.notifier, std::stop_token());
        s.channel.put();
        s.round();
    }

    static void stopped(Bench& bench) {
        Setup s(bench);
        std::stop_source source;
        s.wait.park(s.notifier, source.get_token(), late);
        bench.request_stop(source);
        s.wait.expect_error(std::errc::operation_canceled, s.notifier, source.get_token(), late);
    }

    static void no_time(Bench& bench) {
        Setup s(bench);
        s.wait.begin(s.notifier, std::stop_token(), at_once);
        s.wait.expect_error(timed_out, s.notifier, std::stop_token(), at_once);
        s.channel.put();
        s.wait.begin(s.notifier, std::stop_token(), at_once);
        s.round();
        s.wait.begin(s.notifier, std::stop_token(), at_once);
        s.wait.destroy();
        s.wait.park(s.notifier, std::stop_token());
    }

    static void no_time_lets_others_run(Bench& bench) {
        Setup busy(bench);
        Setup other(bench);
        int turns = 0;
        busy.wait.then = [&] {
            if (++turns < 1'000) busy.wait.begin(busy.notifier, std::stop_token(), at_once);
        };
        busy.channel.put();
        other.channel.put();
        other.wait.begin(other.notifier, std::stop_token());
        busy.wait.begin(busy.notifier, std::stop_token(), at_once);
        other.round();
        expect(turns < 1'000, "the other one was resumed only when this one had ended");
    }

    static void add_to(CaseList<Harness>& cases) {
        constexpr std::string_view bound =
            "`co_await n.readable(st, max_wait)` gives errc::timed_out when `max_wait` has passed.";
        constexpr std::string_view zero =
            "Zero comes back after one turn of the loop, with {} if the fd is readable: a "
            "coroutine that never has to wait uses it to let others run.";

        cases.add("bounded: the time passes", bound, time_passes);
        cases.add("bounded: readable in time", bound, readable_in_time);
        cases.add("bounded: the bound of an earlier wait", bound, bound_of_an_earlier_wait);
        cases.add("bounded: stopped", bound, stopped);
        cases.add("bounded: no time", zero, no_time);
        cases.add("bounded: no time, which lets others run", zero, no_time_lets_others_run);
    }
};

} // namespace asyncverbs::detail::conformance
