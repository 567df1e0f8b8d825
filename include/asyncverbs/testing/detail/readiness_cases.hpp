// SPDX-License-Identifier: MIT
// The conformance suite: a wait ends when the descriptor is readable, whenever that happened, and
// no wake is lost in however many rounds.
#pragma once

#include <stop_token>
#include <string_view>
#include <system_error>

#include <asyncverbs/testing/detail/conformance_bench.hpp>
#include <asyncverbs/testing/detail/conformance_cases.hpp>
#include <asyncverbs/testing/detail/conformance_channel.hpp>
#include <asyncverbs/testing/detail/conformance_thread.hpp>
#include <asyncverbs/testing/detail/conformance_wait.hpp>

namespace asyncverbs::detail::conformance {

// A harness of edge-triggered notifiers says so: what was told of once need not wake again.
template <class Harness>
constexpr bool is_edge_triggered() {
    if constexpr (requires { Harness::edge_triggered; }) {
        return Harness::edge_triggered;
    } else {
        return false;
    }
}

template <class Harness>
struct ReadinessCases {
    using Bench = conformance::Bench<Harness>;
    using Wait = conformance::Wait<Harness>;
    using Notifier = typename Bench::Notifier;
    static constexpr int many = 10'000;

    // What most cases begin with.
    struct Setup {
        explicit Setup(Bench& bench, Channel::Kind kind = Channel::Kind::pipe)
            : channel(kind), notifier(bench.notifier(channel.reader())), wait(bench) {}

        // One byte, one wake, and the byte is still there.
        void round() {
            wait.expect_readable();
            expect(channel.take(), "it ended with {}, but the byte has gone: who waits reads");
        }

        // After a wait that a stop and a byte have both ended: its result is that of the one or the
        // other. What it was not told of is told to the next.
        void take_after(std::error_code result, bool readable) {
            if (result && result != std::errc::operation_canceled) {
                fail("expected {} or operation_canceled, got " + result.message());
            }
            if (!readable) return;
            if (result) {
                wait.begin(notifier, std::stop_token());
                wait.expect_readable("that a byte ends the wait after the one that was stopped");
            }
            expect(channel.take(), "the byte has gone: who waits reads");
        }

        Channel channel;
        Notifier notifier;
        Wait wait;
    };

    static void nothing_to_read(Bench& bench) {
        Setup s(bench);
        s.wait.park(s.notifier, std::stop_token());
    }

    static void before_the_call(Bench& bench) {
        Setup s(bench);
        s.channel.put();
        s.wait.begin(s.notifier, std::stop_token());
        s.round();
    }

    static void after_the_call(Bench& bench) {
        Setup s(bench);
        s.wait.park(s.notifier, std::stop_token());
        s.channel.put();
        s.round();
    }

    static void while_it_suspends(Bench& bench) {
        Setup s(bench);
        s.wait.call(s.notifier, std::stop_token());
        s.channel.put();
        s.wait.suspend();
        s.round();
    }

    static void while_nobody_waits(Bench& bench) {
        Setup s(bench);
        for (int i = 0; i < 3; ++i) {
            s.channel.put();
            bench.settle();
            s.wait.begin(s.notifier, std::stop_token());
            s.round();
        }
    }

    static void taken_before_the_call(Bench& bench) {
        Setup s(bench);
        s.channel.put();
        bench.settle();
        expect(s.channel.take(), "the byte has gone, though nobody waited");
        s.wait.park(s.notifier, std::stop_token());
        s.channel.put();
        s.round();
    }

    static void bursts(Bench& bench) {
        Setup s(bench);
        for (int burst = 1; burst <= 5; ++burst) {
            for (int i = 0; i < burst; ++i) s.channel.put();
            s.wait.begin(s.notifier, std::stop_token());
            s.wait.expect_readable();
            for (int i = 0; i < burst; ++i) expect(s.channel.take(), "a byte has gone");
        }
        s.wait.park(s.notifier, std::stop_token());
        s.channel.put();
        s.round();
    }

    static void left_unread(Bench& bench) {
        Setup s(bench);
        s.channel.put();
        s.channel.put();
        for (int i = 0; i < 3; ++i) {
            s.wait.begin(s.notifier, std::stop_token());
            s.wait.expect_readable("that what was not read ends the next wait");
            if (i == 1) expect(s.channel.take(), "a byte has gone");
        }
    }

    static void hung_up(Bench& bench) {
        for (const auto kind : {Channel::Kind::pipe, Channel::Kind::socket}) {
            for (const bool before : {true, false}) {
                Setup s(bench, kind);
                if (before) {
                    s.channel.close_writer();
                    bench.settle();
                    s.wait.begin(s.notifier, std::stop_token());
                } else {
                    s.wait.park(s.notifier, std::stop_token());
                    s.channel.close_writer();
                }
                s.wait.expect_readable("that a hang-up ends the wait");
            }
        }
    }

    static void error(Bench& bench) {
        for (const bool before : {true, false}) {
            Channel channel;
            Notifier notifier = bench.notifier(channel.writer());
            Wait wait(bench);
            if (before) {
                channel.close_reader();
                bench.settle();
                wait.begin(notifier, std::stop_token());
            } else {
                wait.park(notifier, std::stop_token());
                channel.close_reader();
            }
            wait.expect_readable("that EPOLLERR ends the wait");
        }
    }

    static void two_notifiers(Bench& bench) {
        Setup a(bench);
        Setup b(bench);
        for (Setup* readable : {&b, &a, &b}) {
            a.wait.park(a.notifier, std::stop_token());
            b.wait.park(b.notifier, std::stop_token());
            readable->channel.put();
            readable->round();
        }
        a.wait.park(a.notifier, std::stop_token());
        b.wait.park(b.notifier, std::stop_token());
        a.channel.put();
        b.channel.put();
        a.round();
        b.round();
    }

    static void within_the_resume(Bench& bench) {
        Setup s(bench);
        int rounds = 0;
        int depth = 0;
        s.wait.then = [&] {
            if (s.channel.take()) ++rounds;
            expect(++depth < 100, "it completes at once, although nothing can be read");
            s.wait.begin(s.notifier, std::stop_token());
            --depth;
        };
        s.wait.begin(s.notifier, std::stop_token());
        for (int expected = 1; expected <= 100; ++expected) {
            s.channel.put();
            bench.run_until([&] { return rounds == expected; },
                            "the end of a wait that began inside the resume of the last one");
        }
    }

    static void many_rounds(Bench& bench) {
        Setup s(bench);
        for (int round = 0; round < many; ++round) {
            const bool before = round % 2 == 0;
            if (before) s.channel.put();
            s.wait.begin(s.notifier, std::stop_token());
            if (!before) s.channel.put();
            s.round();
        }
    }

    static void from_another_thread(Bench& bench) {
        Setup s(bench);
        OtherThread other;
        for (int round = 0; round < many / 10; ++round) {
            other.start([&s, round] {
                dawdle(round);
                s.channel.put();
            });
            dawdle(round / 64);
            do { // a spurious wake may come first
                s.wait.begin(s.notifier, std::stop_token());
                s.wait.expect_readable("that a byte of another thread ends the wait");
            } while (!s.channel.take());
            other.wait();
        }
    }

    static void add_to(CaseList<Harness>& cases) {
        constexpr std::string_view readable =
            "It must complete when something can be read, whether that came before or after the "
            "call.";
        constexpr std::string_view edge =
            "An edge-triggered notifier remembers an edge that nobody waited for.";
        constexpr std::string_view hint =
            "A wake is a hint: it may complete with {} although nothing can be read, but not "
            "every time.";
        constexpr std::string_view error_counts = "EPOLLERR and EPOLLHUP count as readable.";
        constexpr std::string_view again = "A coroutine that it resumes may wait again at once.";

        cases.add("readable: before the call", readable, before_the_call);
        cases.add("readable: after the call", readable, after_the_call);
        cases.add("readable: between await_ready() and await_suspend()", readable,
                  while_it_suspends);
        cases.add("readable: while nobody waits", edge, while_nobody_waits);
        cases.add("readable: while nobody waits, but read before the call", edge,
                  taken_before_the_call);
        cases.add("readable: bursts, of which all is read", readable, bursts);
        if (!is_edge_triggered<Harness>()) {
            cases.add("readable: as long as it is not read", readable, left_unread);
        }
        cases.add("spurious: does not spin with nothing to read", hint, nothing_to_read);
        cases.add("error: a hang-up", error_counts, hung_up);
        cases.add("error: without anything to read", error_counts, error);
        cases.add("two notifiers: each its own descriptor", readable, two_notifiers);
        cases.add("many rounds: each begins within the resume of the last", again,
                  within_the_resume);
        cases.add("many rounds: 10,000 without a lost wake", readable, many_rounds);
        cases.add("many rounds: readable from another thread", readable, from_another_thread);
    }
};

} // namespace asyncverbs::detail::conformance
