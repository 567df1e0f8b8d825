// SPDX-License-Identifier: MIT
// The conformance cases of a notifier: it reports readiness and loses no wake; a stop ends a wait;
// and what is destroyed is not resumed.
#pragma once

#include <fcntl.h>

#include <chrono>
#include <optional>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include <asyncverbs/cq/cq_notifier.hpp>
#include <asyncverbs/testing/detail/conformance_fixture.hpp>

namespace asyncverbs::detail::conformance {

inline constexpr const char* completes_when_readable =
    "It must complete if there is something to read, which may have arrived before or after the "
    "call: an edge-triggered notifier remembers an edge that arrived without a waiter.";
inline constexpr const char* stopped_at_any_time =
    "A stop may be requested from any thread, also before the call and while it suspends.";
inline constexpr const char* resumed_by_the_loop =
    "The coroutine is never resumed inside request_stop(), but later, by the loop.";
inline constexpr const char* gives_what_came_first =
    "It gives {} when the fd is readable, errc::operation_canceled when `st` was stopped first.";

// With an edge-triggered notifier, what was reported once need not wake again.
template <class Harness>
constexpr bool is_edge_triggered() {
    if constexpr (requires { Harness::edge_triggered; }) {
        return Harness::edge_triggered;
    } else {
        return false;
    }
}

// Each event that ends a wait, at each point of the wait.
template <class Harness>
void add_moment_cases(CaseList<Harness>& cases) {
    using Waiter = conformance::Waiter<Harness>;
    using Fixture = conformance::Fixture<Harness>;

    const auto add = [&](const std::string& when, Moment moment) {
        cases.add("readable: " + when, completes_when_readable, [moment](Waiter& w) {
            for (int i = 0; i < 3; ++i) {
                w.begin_with([&] { w.channel.put(); }, moment);
                w.expect_byte();
            }
        });
        cases.add("stop: " + when,
                  moment == Moment::while_it_waits ? resumed_by_the_loop : stopped_at_any_time,
                  [moment](Waiter& w) {
                      std::stop_source source;
                      w.begin_with([&] { w.loop.request_stop(source); }, moment,
                                   source.get_token());
                      w.expect_error(std::errc::operation_canceled);
                      w.begin_suspended(); // the next wait is not affected
                      w.channel.put();
                      w.expect_byte();
                  });
        constexpr const char* errors = "EPOLLERR and EPOLLHUP count as readable.";
        cases.add("hang-up: " + when, errors, [moment](Fixture& fixture) {
            for (const auto kind : {Channel::Kind::pipe, Channel::Kind::socket}) {
                Waiter w(fixture, kind);
                w.begin_with([&] { w.channel.close_writer(); }, moment);
                w.expect_readable("the end of the wait by a hang-up");
            }
        });
        cases.add("error: " + when, errors, [moment](Waiter& w) {
            w.watch(w.channel.writer()); // EPOLLERR, and nothing to read
            w.begin_with([&] { w.channel.close_reader(); }, moment);
            w.expect_readable("the end of the wait by EPOLLERR");
        });
    };
    add("before the call", Moment::before_the_call);
    add("while nobody waits", Moment::while_nobody_waits);
    add("between await_ready() and await_suspend()", Moment::while_it_suspends);
    add("while it waits", Moment::while_it_waits);
}

template <class Harness>
void add_readiness_cases(CaseList<Harness>& cases) {
    using Waiter = conformance::Waiter<Harness>;
    constexpr const char* readable = completes_when_readable;

    cases.add("readable: bursts, all of which is read", readable, [](Waiter& w) {
        for (int burst = 1; burst <= 5; ++burst) {
            for (int i = 0; i < burst; ++i) w.channel.put();
            w.begin();
            w.expect_byte();
            for (int i = 1; i < burst; ++i) expect(w.channel.take(), "a byte is gone");
        }
        w.begin_suspended();
        w.channel.put();
        w.expect_byte();
    });
    if (!is_edge_triggered<Harness>()) {
        cases.add("readable: as long as it is not read", readable, [](Waiter& w) {
            w.channel.put();
            w.channel.put();
            for (int i = 0; i < 3; ++i) {
                w.begin();
                w.expect_readable("the end of the next wait by what was not read");
                if (i == 1) expect(w.channel.take(), "a byte is gone");
            }
        });
    }
    cases.add("readable: while nobody waits, but read before the call", readable, [](Waiter& w) {
        w.channel.put();
        w.loop.settle();
        expect(w.channel.take(), "the byte is gone, though nobody waited");
        w.begin_suspended();
        w.channel.put();
        w.expect_byte();
    });
    cases.add("two notifiers: each its own descriptor", readable, [](Waiter& a) {
        Waiter b(a.loop);
        for (Waiter* ready : {&b, &a, &b}) {
            a.begin_suspended();
            b.begin_suspended();
            ready->channel.put();
            ready->expect_byte();
        }
        a.begin_suspended();
        b.begin_suspended();
        a.channel.put();
        b.channel.put();
        a.expect_byte();
        b.expect_byte();
    });
}

template <class Harness>
void add_repeated_cases(CaseList<Harness>& cases) {
    using Waiter = conformance::Waiter<Harness>;
    constexpr const char* readable = completes_when_readable;

    cases.add("many rounds: 10,000 without a lost wake", readable, [](Waiter& w) {
        for (int round = 0; round < 10'000; ++round) {
            const bool before = round % 2 == 0;
            if (before) w.channel.put();
            w.begin();
            if (!before) w.channel.put();
            w.expect_byte();
        }
    });
    cases.add("many rounds: readable from another thread", readable, [](Waiter& w) {
        for (int round = 0; round < 1'000; ++round) {
            const std::jthread other([&w, round] {
                spin_for(round);
                w.channel.put();
            });
            spin_for(round / 64);
            do { // a spurious wake may come first
                w.begin();
                w.expect_readable("the end of the wait by a byte of another thread");
            } while (!w.channel.take());
        }
    });
    cases.add("many rounds: each begins within the resume of the last",
              "The resumed coroutine may wait again at once.", [](Waiter& w) {
                  int rounds = 0;
                  int depth = 0;
                  w.then = [&] {
                      if (w.channel.take()) ++rounds;
                      expect(++depth < 100, "it completes at once, although nothing can be read");
                      w.begin();
                      --depth;
                  };
                  w.begin();
                  for (int expected = 1; expected <= 100; ++expected) {
                      w.channel.put();
                      w.loop.run_until([&] { return rounds == expected; },
                                       "the end of a wait that began within the last resume");
                  }
              });
}

template <class Harness>
void add_idle_cases(CaseList<Harness>& cases) {
    using Waiter = conformance::Waiter<Harness>;

    cases.add("idle: the wait does not end with nothing to read",
              "A wake is a hint: the wait may complete with {} although there is nothing to read, "
              "but not every time.",
              [](Waiter& w) { w.begin_suspended(); });
    cases.add("idle: a readable fd that nobody awaits does not keep the loop busy",
              "While no readable() is outstanding, a readable fd does not keep the loop busy.",
              [](Waiter& w) {
                  if (!w.loop.sleeps()) return; // a loop that never sleeps
                  const auto expect_idle = [&](const char* otherwise) {
                      w.loop.settle();
                      expect(w.loop.sleeps(), otherwise);
                  };
                  w.begin_suspended();
                  w.destroy();
                  w.channel.put();
                  expect_idle("the loop spins after the awaiter was destroyed");
                  std::stop_source source;
                  w.begin(source.get_token());
                  w.expect_byte();
                  w.channel.put();
                  expect_idle("the loop spins after the wait has ended");
                  w.channel.close_writer();
                  expect_idle("the loop spins after a hang-up");
              });
}

template <class Harness>
void add_stop_cases(CaseList<Harness>& cases) {
    using Waiter = conformance::Waiter<Harness>;
    static constexpr std::errc canceled = std::errc::operation_canceled;

    cases.add("stop: from another thread while the loop sleeps", stopped_at_any_time,
              [](Waiter& w) {
                  for (int round = 0; round < 100; ++round) {
                      std::stop_source source;
                      const std::jthread other([&source] {
                          // The loop sleeps by then.
                          std::this_thread::sleep_for(std::chrono::microseconds(200));
                          source.request_stop();
                      });
                      w.begin(source.get_token());
                      w.expect_error(canceled);
                  }
              });
    cases.add("stop: by another coroutine that the loop resumes", resumed_by_the_loop,
              [](Waiter& w) {
                  Waiter other(w.loop);
                  std::stop_source source;
                  w.begin_suspended(source.get_token());
                  other.begin_suspended();
                  other.then = [&] { w.loop.request_stop(source); };
                  other.channel.put();
                  w.expect_error(canceled);
              });
    for (const bool stop_first : {true, false}) {
        cases.add(stop_first ? "stop: then readable, in one iteration"
                             : "stop: after readable, in one iteration",
                  completes_when_readable, [stop_first](Waiter& w) {
                      std::stop_source source;
                      w.begin_suspended(source.get_token());
                      if (stop_first) w.loop.request_stop(source);
                      w.channel.put();
                      if (!stop_first) w.loop.request_stop(source);
                      w.expect_canceled_or_byte(w.result(), true);
                  });
    }
    cases.add("stop: from another thread, racing with readiness", gives_what_came_first,
              [](Waiter& w) {
                  for (int round = 0; round < 2'000; ++round) {
                      std::stop_source source;
                      const bool readable = round % 2 == 0;
                      std::jthread other([&w, &source, readable, round] {
                          spin_for(round);
                          if (readable) w.channel.put();
                          source.request_stop();
                      });
                      spin_for(round / 64);
                      w.begin(source.get_token());
                      const std::error_code error = w.result("the end of the wait by a stop");
                      other.join();
                      w.expect_canceled_or_byte(error, readable);
                  }
              });
    cases.add("stop: one token for many waits", gives_what_came_first, [](Waiter& w) {
        std::stop_source source;
        for (int i = 0; i < 100; ++i) {
            w.channel.put();
            w.begin(source.get_token());
            w.expect_byte();
        }
        w.begin_suspended(source.get_token());
        w.loop.request_stop(source);
        for (int i = 0; i < 3; ++i) {
            w.expect_error(canceled);
            w.begin(source.get_token());
        }
    });
    cases.add("stop: the token of an earlier wait", gives_what_came_first, [](Waiter& w) {
        std::stop_source earlier;
        w.channel.put();
        w.begin(earlier.get_token());
        w.expect_byte();
        std::stop_source source;
        w.begin_suspended(source.get_token());
        w.loop.request_stop(earlier);
        w.expect_suspended();
        w.loop.request_stop(source);
        w.expect_error(canceled);
    });
    cases.add("stop: after the wait has ended", gives_what_came_first, [](Waiter& w) {
        std::stop_source source;
        w.channel.put();
        w.begin(source.get_token());
        w.expect_byte();
        w.loop.request_stop(source);
        w.loop.settle();
        w.begin_suspended(std::stop_source().get_token());
        w.channel.put();
        w.expect_byte();
    });
}

// What is destroyed while a wake is on its way to it, and the waits that follow. The probe
// coroutines record a late resume in any case.
template <class Harness>
// NOLINTNEXTLINE(readability-function-cognitive-complexity): a list of independent cases
void add_lifetime_cases(CaseList<Harness>& cases) {
    using Fixture = conformance::Fixture<Harness>;
    using Waiter = conformance::Waiter<Harness>;
    using Notifier = typename Fixture::Notifier;

    constexpr const char* destroyed =
        "Destroying the suspended awaiter cancels the wait: its coroutine is not resumed "
        "afterwards, and a wake that was on the way belongs to the next wait.";
    cases.add("destroyed: while it waits", destroyed, [](Waiter& w) {
        std::stop_source source;
        w.begin_suspended(source.get_token());
        w.destroy();
        w.channel.put();
        w.loop.settle();
        w.loop.request_stop(source);
        w.loop.settle();
        w.begin();
        w.expect_byte();
    });
    cases.add("destroyed: when it is readable; the next wait learns of it", destroyed,
              [](Waiter& w) {
                  for (int i = 0; i < 3; ++i) {
                      w.begin_suspended();
                      w.channel.put();
                      w.destroy();
                      if (i == 1) w.loop.settle();
                      w.begin();
                      w.expect_byte();
                  }
              });
    cases.add("destroyed: when its stop was requested", destroyed, [](Waiter& w) {
        std::stop_source source;
        w.begin_suspended(source.get_token());
        w.loop.request_stop(source);
        w.destroy();
        w.loop.settle();
        w.begin_suspended();
        w.channel.put();
        w.expect_byte();
    });
    for (const bool stopped : {false, true}) {
        cases.add(std::string("destroyed: by a coroutine that is resumed in the same iteration, ") +
                      (stopped ? "by a stop" : "by readiness"),
                  destroyed, [stopped](Waiter& a) {
                      Waiter b(a.loop);
                      std::stop_source source;
                      a.begin_suspended(source.get_token());
                      b.begin_suspended(source.get_token());
                      // Both are ready: the first to be resumed destroys the other.
                      a.then = [&] { b.destroy(); };
                      b.then = [&] { a.destroy(); };
                      if (stopped) {
                          a.loop.request_stop(source);
                      } else {
                          a.channel.put();
                          b.channel.put();
                      }
                      a.loop.run_until([&] { return a.done() || b.done(); }, "the end of a wait");
                      a.loop.settle();
                      expect(a.done() != b.done(), "the destroyed one ended as well");
                      a.then = b.then = nullptr;
                      if (stopped) return;
                      Waiter& other = a.done() ? b : a;
                      other.begin();
                      other.expect_byte();
                  });
        cases.add(std::string("notifier: destroyed by the coroutine that it has resumed, ") +
                      (stopped ? "by a stop" : "by readiness"),
                  "The resumed coroutine may wait again, or destroy the notifier, at once.",
                  [stopped](Waiter& w) {
                      std::stop_source source;
                      w.begin_suspended(source.get_token());
                      w.then = [&] { w.notifier.reset(); };
                      if (stopped) {
                          w.loop.request_stop(source);
                      } else {
                          w.channel.put();
                      }
                      w.result();
                      w.loop.settle();
                  });
    }
    cases.add("destroyed: while another thread requests the stop", destroyed, [](Waiter& w) {
        for (int round = 0; round < 1'000; ++round) {
            std::stop_source source;
            const std::jthread other([&source, round] {
                spin_for(round);
                source.request_stop();
            });
            w.begin(source.get_token());
            spin_for(round / 16);
            w.destroy();
            if (round % 4 == 0) w.loop.run_once();
        }
        w.loop.settle();
        w.begin_suspended();
        w.channel.put();
        w.expect_byte();
    });

    cases.add("notifier: moved", "A notifier may be moved while no readable() is outstanding.",
              [](Waiter& w) {
                  std::stop_source source;
                  w.begin_suspended(source.get_token());
                  w.channel.put();
                  w.expect_byte();
                  for (int i = 0; i < 2; ++i) {
                      w.channel.put();
                      w.loop.settle(); // a wake without a waiter moves with the notifier
                      Notifier moved = std::move(*w.notifier);
                      w.notifier.emplace(std::move(moved));
                      w.begin(source.get_token());
                      w.expect_byte();
                  }
                  w.begin_suspended(source.get_token());
                  w.loop.request_stop(source);
                  w.expect_error(std::errc::operation_canceled);
              });
    constexpr const char* descriptor = "The fd stays open until the notifier is destroyed. The "
                                       "notifier must not read or close it.";
    cases.add("notifier: destroyed; its descriptor is unchanged", descriptor, [](Waiter& w) {
        for (int i = 0; i < 100; ++i) {
            if (i % 2 == 0) w.channel.put();
            w.begin();
            if (i % 2 == 0) w.expect_byte();
            // Readable when the notifier is destroyed, with or without a wait.
            w.channel.put();
            if (i % 4 == 0) w.loop.run_once();
            w.destroy();
            w.notifier.reset();
            if (i % 8 == 0) w.loop.run_once();
            expect(::fcntl(w.channel.reader(), F_GETFD) != -1, "the descriptor was closed");
            expect(w.channel.take(), "the byte is gone");
            w.watch(w.channel.reader());
        }
    });
    cases.add("notifier: destroyed; the number of its descriptor is used again", descriptor,
              [](Fixture& fixture) {
                  // As an AsyncCq is destroyed while a coroutine waits: with its descriptor.
                  std::optional<Waiter> w(std::in_place, fixture);
                  for (int i = 0; i < 10; ++i) {
                      std::stop_source source;
                      w->begin_suspended(source.get_token());
                      if (i % 3 == 1) w->channel.put();
                      if (i % 3 == 2) fixture.request_stop(source);
                      w.reset();
                      if (i % 2 == 0) fixture.run_once();
                      w.emplace(fixture); // gets the lowest free number, which is the same
                      w->begin_suspended();
                      w->channel.put();
                      w->expect_byte();
                  }
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

    constexpr const char* bound =
        "`co_await n.readable(st, max_wait)` gives errc::timed_out when `max_wait` has passed.";
    cases.add("bounded: the time passes", bound, [never](Waiter& w) {
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
    cases.add("bounded: the bound of an earlier wait", bound, [never](Waiter& w) {
        w.channel.put();
        w.begin(never, soon);
        w.expect_byte();
        w.begin(never, soon);
        w.destroy();
        w.begin_suspended();
        const auto start = Clock::now();
        w.loop.run_until([&] { return Clock::now() - start > 3 * soon; }, "the end of a pause",
                         std::chrono::milliseconds(1));
        w.expect_suspended();
        w.channel.put();
        w.expect_byte();
    });
    cases.add("bounded: stopped", bound, [](Waiter& w) {
        std::stop_source source;
        w.begin_suspended(source.get_token(), late);
        w.loop.request_stop(source);
        w.expect_error(std::errc::operation_canceled);
    });

    constexpr const char* zero =
        "Zero resumes after one iteration of the loop, with {} if the fd is readable: a coroutine "
        "that never has to wait lets others run this way.";
    cases.add("bounded: no time", zero, [never](Waiter& w) {
        w.begin(never, at_once);
        w.expect_error(timed_out);
        w.channel.put();
        w.begin(never, at_once);
        w.expect_byte();
        w.begin(never, at_once);
        w.destroy();
        w.begin_suspended();
    });
    cases.add("bounded: no time, which lets others run", zero, [never](Waiter& busy) {
        Waiter other(busy.loop);
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

template <class Harness>
void add_notifier_cases(CaseList<Harness>& cases) {
    add_moment_cases(cases);
    add_readiness_cases(cases);
    add_repeated_cases(cases);
    add_idle_cases(cases);
    add_stop_cases(cases);
    add_lifetime_cases(cases);
    if constexpr (TimedCqNotifier<typename Fixture<Harness>::Notifier>) add_timed_cases(cases);
}

} // namespace asyncverbs::detail::conformance
