// SPDX-License-Identifier: MIT
// The conformance suite: a stop ends the wait whenever and wherever it is requested, is never the
// one that resumes, and takes no wake with it.
#pragma once

#include <chrono>
#include <stop_token>
#include <string_view>
#include <system_error>
#include <thread>

#include <asyncverbs/testing/detail/conformance_fixture.hpp>
#include <asyncverbs/testing/detail/readiness_cases.hpp>

namespace asyncverbs::detail::conformance {

template <class Harness>
struct StopCases {
    using Bench = conformance::Bench<Harness>;
    using Wait = conformance::Wait<Harness>;
    using Setup = typename ReadinessCases<Harness>::Setup;
    static constexpr std::errc canceled = std::errc::operation_canceled;
    static constexpr int races = 2'000;

    static void before_the_call(Bench& bench) {
        Setup s(bench);
        std::stop_source source;
        bench.request_stop(source);
        s.wait.begin(s.notifier, source.get_token());
        s.wait.expect_error(canceled, s.notifier, source.get_token());
    }

    static void while_it_suspends(Bench& bench) {
        Setup s(bench);
        std::stop_source source;
        s.wait.call(s.notifier, source.get_token());
        bench.request_stop(source);
        s.wait.suspend();
        s.wait.expect_error(canceled, s.notifier, source.get_token());
    }

    static void while_it_waits(Bench& bench) {
        Setup s(bench);
        std::stop_source source;
        s.wait.park(s.notifier, source.get_token());
        bench.request_stop(source);
        s.wait.expect_error(canceled, s.notifier, source.get_token());
        // As if nothing had happened.
        s.wait.park(s.notifier, std::stop_token());
        s.channel.put();
        s.round();
    }

    static void from_another_thread(Bench& bench) {
        Setup s(bench);
        OtherThread other;
        for (int round = 0; round < 100; ++round) {
            std::stop_source source;
            other.start([&source] {
                std::this_thread::sleep_for(std::chrono::microseconds(200)); // the loop sleeps
                source.request_stop();
            });
            s.wait.begin(s.notifier, source.get_token());
            s.wait.expect_error(canceled, s.notifier, source.get_token());
            other.wait();
        }
    }

    static void races_with_readiness(Bench& bench) {
        Setup s(bench);
        OtherThread other;
        for (int round = 0; round < races; ++round) {
            std::stop_source source;
            const bool readable = round % 2 == 0;
            other.start([&s, &source, readable, round] {
                dawdle(round);
                if (readable) s.channel.put();
                source.request_stop();
            });
            dawdle(round / 64);
            s.wait.begin(s.notifier, source.get_token());
            const std::error_code error = s.wait.result("that a stop ends the wait");
            other.wait();
            s.take_after(error, readable);
        }
    }

    static void with_readiness_in_one_turn(Bench& bench) {
        for (const bool stop_first : {true, false}) {
            Setup s(bench);
            std::stop_source source;
            s.wait.park(s.notifier, source.get_token());
            if (stop_first) bench.request_stop(source);
            s.channel.put();
            if (!stop_first) bench.request_stop(source);
            s.take_after(s.wait.result(), true);
        }
    }

    static void token_of_many_waits(Bench& bench) {
        Setup s(bench);
        std::stop_source source;
        for (int i = 0; i < 100; ++i) {
            s.channel.put();
            s.wait.begin(s.notifier, source.get_token());
            s.round();
        }
        s.wait.park(s.notifier, source.get_token());
        bench.request_stop(source);
        for (int i = 0; i < 3; ++i) {
            s.wait.expect_error(canceled, s.notifier, source.get_token());
            s.wait.begin(s.notifier, source.get_token());
        }
    }

    static void token_of_an_earlier_wait(Bench& bench) {
        Setup s(bench);
        std::stop_source earlier;
        s.channel.put();
        s.wait.begin(s.notifier, earlier.get_token());
        s.round();
        std::stop_source source;
        s.wait.park(s.notifier, source.get_token());
        bench.request_stop(earlier);
        s.wait.stay(s.notifier, source.get_token());
        bench.request_stop(source);
        s.wait.expect_error(canceled, s.notifier, source.get_token());
    }

    static void while_nobody_waits(Bench& bench) {
        Setup s(bench);
        std::stop_source source;
        s.channel.put();
        s.wait.begin(s.notifier, source.get_token());
        s.round();
        bench.request_stop(source);
        bench.settle();
        s.wait.park(s.notifier, std::stop_source().get_token());
        s.channel.put();
        s.round();
    }

    static void by_a_coroutine(Bench& bench) {
        Setup s(bench);
        Setup other(bench);
        std::stop_source source;
        s.wait.park(s.notifier, source.get_token());
        other.wait.park(other.notifier, std::stop_token());
        other.wait.then = [&] { bench.request_stop(source); };
        other.channel.put();
        s.wait.expect_error(canceled, s.notifier, source.get_token());
    }

    static void add_to(CaseList<Harness>& cases) {
        constexpr std::string_view any_time =
            "A stop may be requested from any thread, also before the call and while it suspends.";
        constexpr std::string_view by_the_loop =
            "It is never resumed inside request_stop(), but later, by the loop.";
        constexpr std::string_view result =
            "It gives {} when the fd is readable, errc::operation_canceled when `st` was stopped "
            "first.";
        constexpr std::string_view not_lost =
            "It must complete when something can be read, whether that came before or after the "
            "call.";

        cases.add("stop: before the call", any_time, before_the_call);
        cases.add("stop: between await_ready() and await_suspend()", any_time, while_it_suspends);
        cases.add("stop: while it waits", by_the_loop, while_it_waits);
        cases.add("stop: by another coroutine, in a turn of the loop", by_the_loop, by_a_coroutine);
        cases.add("stop: from another thread while the loop sleeps", any_time, from_another_thread);
        cases.add("stop: from another thread, racing with readiness", result, races_with_readiness);
        cases.add("stop: and readable in one turn, of which the next wait is told", not_lost,
                  with_readiness_in_one_turn);
        cases.add("stop: one token for many waits", result, token_of_many_waits);
        cases.add("stop: the token of an earlier wait", result, token_of_an_earlier_wait);
        cases.add("stop: while nobody waits", result, while_nobody_waits);
    }
};

// The conformance suite: bounded waits, for notifiers that have them.

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
