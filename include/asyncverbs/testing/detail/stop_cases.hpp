// SPDX-License-Identifier: MIT
// Conformance cases: a stop ends the wait at any time, but is never what resumes, and loses no
// wake. And waits with a time limit, for notifiers that have them.
#pragma once

#include <chrono>
#include <stop_token>
#include <string_view>
#include <system_error>
#include <thread>

#include <asyncverbs/testing/detail/conformance_fixture.hpp>
#include <asyncverbs/testing/detail/conformance_waiter.hpp>
#include <asyncverbs/testing/detail/readiness_cases.hpp>

namespace asyncverbs::detail::conformance {

template <class Harness>
void add_stop_cases(CaseList<Harness>& cases) {
    using Fixture = conformance::Fixture<Harness>;
    using Waiter = conformance::Waiter<Harness>;
    static constexpr std::errc canceled = std::errc::operation_canceled;

    constexpr std::string_view any_time =
        "A stop may be requested from any thread, also before the call and while it suspends.";
    cases.add("stop: before the call", any_time, [](Fixture& fixture) {
        Waiter w(fixture);
        std::stop_source source;
        fixture.request_stop(source);
        w.begin(source.get_token());
        w.expect_error(canceled);
    });
    cases.add("stop: between await_ready() and await_suspend()", any_time, [](Fixture& fixture) {
        Waiter w(fixture);
        std::stop_source source;
        w.call(source.get_token());
        fixture.request_stop(source);
        w.suspend();
        w.expect_error(canceled);
    });
    cases.add("stop: from another thread while the loop sleeps", any_time, [](Fixture& fixture) {
        Waiter w(fixture);
        OtherThread other;
        for (int round = 0; round < 100; ++round) {
            std::stop_source source;
            other.start([&source] {
                std::this_thread::sleep_for(std::chrono::microseconds(200)); // the loop sleeps
                source.request_stop();
            });
            w.begin(source.get_token());
            w.expect_error(canceled);
            other.wait();
        }
    });

    constexpr std::string_view by_the_loop =
        "The coroutine is never resumed inside request_stop(), but later, by the loop.";
    cases.add("stop: while it waits", by_the_loop, [](Fixture& fixture) {
        Waiter w(fixture);
        std::stop_source source;
        w.begin_suspended(source.get_token());
        fixture.request_stop(source);
        w.expect_error(canceled);
        w.begin_suspended(); // the next wait is not affected
        w.channel.put();
        w.expect_byte();
    });
    cases.add("stop: by another coroutine that the loop resumes", by_the_loop,
              [](Fixture& fixture) {
                  Waiter w(fixture);
                  Waiter other(fixture);
                  std::stop_source source;
                  w.begin_suspended(source.get_token());
                  other.begin_suspended();
                  other.then = [&] { fixture.request_stop(source); };
                  other.channel.put();
                  w.expect_error(canceled);
              });

    cases.add("stop: and readable in one iteration; the next wait learns of it",
              completes_when_readable, [](Fixture& fixture) {
                  for (const bool stop_first : {true, false}) {
                      Waiter w(fixture);
                      std::stop_source source;
                      w.begin_suspended(source.get_token());
                      if (stop_first) fixture.request_stop(source);
                      w.channel.put();
                      if (!stop_first) fixture.request_stop(source);
                      w.expect_canceled_or_byte(w.result(), true);
                  }
              });

    constexpr std::string_view result =
        "It gives {} when the fd is readable, errc::operation_canceled when `st` was stopped "
        "first.";
    cases.add("stop: from another thread, racing with readiness", result, [](Fixture& fixture) {
        Waiter w(fixture);
        OtherThread other;
        for (int round = 0; round < 2'000; ++round) {
            std::stop_source source;
            const bool readable = round % 2 == 0;
            other.start([&w, &source, readable, round] {
                spin_for(round);
                if (readable) w.channel.put();
                source.request_stop();
            });
            spin_for(round / 64);
            w.begin(source.get_token());
            const std::error_code error = w.result("the end of the wait by a stop");
            other.wait();
            w.expect_canceled_or_byte(error, readable);
        }
    });
    cases.add("stop: one token for many waits", result, [](Fixture& fixture) {
        Waiter w(fixture);
        std::stop_source source;
        for (int i = 0; i < 100; ++i) {
            w.channel.put();
            w.begin(source.get_token());
            w.expect_byte();
        }
        w.begin_suspended(source.get_token());
        fixture.request_stop(source);
        for (int i = 0; i < 3; ++i) {
            w.expect_error(canceled);
            w.begin(source.get_token());
        }
    });
    cases.add("stop: the token of an earlier wait", result, [](Fixture& fixture) {
        Waiter w(fixture);
        std::stop_source earlier;
        w.channel.put();
        w.begin(earlier.get_token());
        w.expect_byte();
        std::stop_source source;
        w.begin_suspended(source.get_token());
        fixture.request_stop(earlier);
        w.expect_suspended();
        fixture.request_stop(source);
        w.expect_error(canceled);
    });
    cases.add("stop: while nobody waits", result, [](Fixture& fixture) {
        Waiter w(fixture);
        std::stop_source source;
        w.channel.put();
        w.begin(source.get_token());
        w.expect_byte();
        fixture.request_stop(source);
        fixture.settle();
        w.begin_suspended(std::stop_source().get_token());
        w.channel.put();
        w.expect_byte();
    });
}

// For a TimedCqNotifier.
template <class Harness>
void add_timed_cases(CaseList<Harness>& cases) {
    using Fixture = conformance::Fixture<Harness>;
    using Waiter = conformance::Waiter<Harness>;
    using Clock = std::chrono::steady_clock;
    using Nanoseconds = std::chrono::nanoseconds;
    static constexpr std::errc timed_out = std::errc::timed_out;
    static constexpr Nanoseconds at_once{0};
    static constexpr Nanoseconds soon = std::chrono::milliseconds(10);
    static constexpr Nanoseconds late = std::chrono::hours(1);
    const std::stop_token never;

    constexpr std::string_view bound =
        "`co_await n.readable(st, max_wait)` gives errc::timed_out when `max_wait` has passed.";
    cases.add("bounded: the time passes", bound, [never](Fixture& fixture) {
        Waiter w(fixture);
        const auto start = Clock::now();
        w.begin(never, soon);
        w.expect_error(timed_out);
        expect(Clock::now() - start >= soon, "it timed out before its time");
        w.begin_suspended();
        w.channel.put();
        w.expect_byte();
    });
    cases.add("bounded: readable in time", bound, [never](Fixture& fixture) {
        for (const Nanoseconds limit : {late, Nanoseconds::max()}) {
            Waiter w(fixture);
            w.begin_suspended(never, limit);
            w.channel.put();
            w.expect_byte();
            w.channel.put();
            w.begin(never, limit);
            w.expect_byte();
        }
    });
    cases.add("bounded: the bound of an earlier wait", bound, [never](Fixture& fixture) {
        Waiter w(fixture);
        w.channel.put();
        w.begin(never, soon);
        w.expect_byte();
        w.begin(never, soon);
        w.destroy();
        w.begin_suspended();
        const auto start = Clock::now();
        fixture.run_until([&] { return Clock::now() - start > 3 * soon; }, "the end of a pause",
                          std::chrono::milliseconds(1));
        w.expect_suspended();
        w.channel.put();
        w.expect_byte();
    });
    cases.add("bounded: stopped", bound, [](Fixture& fixture) {
        Waiter w(fixture);
        std::stop_source source;
        w.begin_suspended(source.get_token(), late);
        fixture.request_stop(source);
        w.expect_error(std::errc::operation_canceled);
    });

    constexpr std::string_view zero =
        "Zero resumes after one iteration of the loop, with {} if the fd is readable: a coroutine "
        "that never has to wait lets others run this way.";
    cases.add("bounded: no time", zero, [never](Fixture& fixture) {
        Waiter w(fixture);
        w.begin(never, at_once);
        w.expect_error(timed_out);
        w.channel.put();
        w.begin(never, at_once);
        w.expect_byte();
        w.begin(never, at_once);
        w.destroy();
        w.begin_suspended();
    });
    cases.add("bounded: no time, which lets others run", zero, [never](Fixture& fixture) {
        Waiter busy(fixture);
        Waiter other(fixture);
        int waits = 0;
        busy.then = [&] {
            if (++waits < 1'000) busy.begin(never, at_once);
        };
        busy.channel.put();
        other.channel.put();
        other.begin();
        busy.begin(never, at_once);
        other.expect_byte();
        expect(waits < 1'000, "the other one was resumed only when this one had ended");
    });
}

} // namespace asyncverbs::detail::conformance
