// SPDX-License-Identifier: MIT
// Conformance cases: a wait ends when the descriptor is readable, and no wake is lost.
#pragma once

#include <string_view>

#include <asyncverbs/testing/detail/conformance_fixture.hpp>
#include <asyncverbs/testing/detail/conformance_waiter.hpp>

namespace asyncverbs::detail::conformance {

inline constexpr std::string_view completes_when_readable =
    "It must complete if there is something to read, which may have arrived before or after the "
    "call.";

// With an edge-triggered notifier, what was reported once need not wake again.
template <class Harness>
constexpr bool is_edge_triggered() {
    if constexpr (requires { Harness::edge_triggered; }) {
        return Harness::edge_triggered;
    } else {
        return false;
    }
}

template <class Harness>
// NOLINTNEXTLINE(readability-function-cognitive-complexity): a list of independent cases
void add_readiness_cases(CaseList<Harness>& cases) {
    using Fixture = conformance::Fixture<Harness>;
    using Waiter = conformance::Waiter<Harness>;
    constexpr std::string_view readable = completes_when_readable;

    cases.add("readable: before the call", readable, [](Fixture& fixture) {
        Waiter w(fixture);
        w.channel.put();
        w.begin();
        w.expect_byte();
    });
    cases.add("readable: after the call", readable, [](Fixture& fixture) {
        Waiter w(fixture);
        w.begin_suspended();
        w.channel.put();
        w.expect_byte();
    });
    cases.add("readable: between await_ready() and await_suspend()", readable,
              [](Fixture& fixture) {
                  Waiter w(fixture);
                  w.call();
                  w.channel.put();
                  w.suspend();
                  w.expect_byte();
              });
    cases.add("readable: bursts, all of which is read", readable, [](Fixture& fixture) {
        Waiter w(fixture);
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
        cases.add("readable: as long as it is not read", readable, [](Fixture& fixture) {
            Waiter w(fixture);
            w.channel.put();
            w.channel.put();
            for (int i = 0; i < 3; ++i) {
                w.begin();
                w.expect_readable("the end of the next wait by what was not read");
                if (i == 1) expect(w.channel.take(), "a byte is gone");
            }
        });
    }
    cases.add("two notifiers: each its own descriptor", readable, [](Fixture& fixture) {
        Waiter a(fixture);
        Waiter b(fixture);
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
    cases.add("many rounds: 10,000 without a lost wake", readable, [](Fixture& fixture) {
        Waiter w(fixture);
        for (int round = 0; round < 10'000; ++round) {
            const bool before = round % 2 == 0;
            if (before) w.channel.put();
            w.begin();
            if (!before) w.channel.put();
            w.expect_byte();
        }
    });
    cases.add("many rounds: readable from another thread", readable, [](Fixture& fixture) {
        Waiter w(fixture);
        OtherThread other;
        for (int round = 0; round < 1'000; ++round) {
            other.start([&w, round] {
                spin_for(round);
                w.channel.put();
            });
            spin_for(round / 64);
            do { // a spurious wake may come first
                w.begin();
                w.expect_readable("the end of the wait by a byte of another thread");
            } while (!w.channel.take());
            other.wait();
        }
    });

    constexpr std::string_view edge =
        "An edge-triggered notifier remembers an edge that arrived without a waiter.";
    cases.add("readable: while nobody waits", edge, [](Fixture& fixture) {
        Waiter w(fixture);
        for (int i = 0; i < 3; ++i) {
            w.channel.put();
            fixture.settle();
            w.begin();
            w.expect_byte();
        }
    });
    cases.add("readable: while nobody waits, but read before the call", edge, [](Fixture& fixture) {
        Waiter w(fixture);
        w.channel.put();
        fixture.settle();
        expect(w.channel.take(), "the byte is gone, though nobody waited");
        w.begin_suspended();
        w.channel.put();
        w.expect_byte();
    });

    cases.add("spurious: does not spin with nothing to read",
              "A wake is a hint: the wait may complete with {} although there is nothing to read, "
              "but not every time.",
              [](Fixture& fixture) { Waiter(fixture).begin_suspended(); });

    constexpr std::string_view errors = "EPOLLERR and EPOLLHUP count as readable.";
    cases.add("error: a hang-up", errors, [](Fixture& fixture) {
        for (const auto kind : {Channel::Kind::pipe, Channel::Kind::socket}) {
            for (const bool before : {true, false}) {
                Waiter w(fixture, kind);
                if (!before) w.begin_suspended();
                w.channel.close_writer();
                if (before) {
                    fixture.settle();
                    w.begin();
                }
                w.expect_readable("the end of the wait by a hang-up");
            }
        }
    });
    cases.add("error: without anything to read", errors, [](Fixture& fixture) {
        for (const bool before : {true, false}) {
            Waiter w(fixture);
            w.watch(w.channel.writer());
            if (!before) w.begin_suspended();
            w.channel.close_reader();
            if (before) {
                fixture.settle();
                w.begin();
            }
            w.expect_readable("the end of the wait by EPOLLERR");
        }
    });

    cases.add("many rounds: each begins within the resume of the last",
              "The resumed coroutine may wait again at once.", [](Fixture& fixture) {
                  Waiter w(fixture);
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
                      fixture.run_until([&] { return rounds == expected; },
                                        "the end of a wait that began within the last resume");
                  }
              });
}

} // namespace asyncverbs::detail::conformance
