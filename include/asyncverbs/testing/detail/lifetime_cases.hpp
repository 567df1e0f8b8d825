// SPDX-License-Identifier: MIT
// The conformance suite: coroutines, notifiers and descriptors that go while something is under way
// to them, and what comes after them.
#pragma once

#include <fcntl.h>

#include <optional>
#include <stop_token>
#include <string_view>
#include <utility>

#include <asyncverbs/testing/detail/conformance_fixture.hpp>
#include <asyncverbs/testing/detail/readiness_cases.hpp>

namespace asyncverbs::detail::conformance {

template <class Harness>
struct LifetimeCases {
    using Bench = conformance::Bench<Harness>;
    using Wait = conformance::Wait<Harness>;
    using Setup = typename ReadinessCases<Harness>::Setup;
    using Notifier = typename Bench::Notifier;

    // That a destroyed coroutine is not resumed is seen by its passage, in whatever turn follows.

    static void destroyed_while_it_waits(Bench& bench) {
        Setup s(bench);
        std::stop_source source;
        s.wait.park(s.notifier, source.get_token());
        s.wait.destroy();
        s.channel.put();
        bench.settle();
        bench.request_stop(source);
        bench.settle();
        s.wait.begin(s.notifier, std::stop_token());
        s.round();
    }

    static void destroyed_when_readable(Bench& bench) {
        Setup s(bench);
        for (int i = 0; i < 3; ++i) {
            s.wait.park(s.notifier, std::stop_token());
            s.channel.put();
            s.wait.destroy();
            if (i == 1) bench.settle();
            s.wait.begin(s.notifier, std::stop_token());
            s.round();
        }
    }

    static void destroyed_when_stopped(Bench& bench) {
        Setup s(bench);
        std::stop_source source;
        s.wait.park(s.notifier, source.get_token());
        bench.request_stop(source);
        s.wait.destroy();
        bench.settle();
        s.wait.park(s.notifier, std::stop_token());
        s.channel.put();
        s.round();
    }

    // Both are ready in one turn: whoever is resumed first destroys the other.
    static void destroyed_by_a_coroutine(Bench& bench) {
        for (const bool stopped : {false, true}) {
            Setup a(bench);
            Setup b(bench);
            std::stop_source source;
            bool armed = false;
            a.wait.then = [&] {
                if (armed) b.wait.destroy();
            };
            b.wait.then = [&] {
                if (armed) a.wait.destroy();
            };
            a.wait.park(a.notifier, source.get_token());
            b.wait.park(b.notifier, source.get_token());
            armed = true;
            if (stopped) {
                bench.request_stop(source);
            } else {
                a.channel.put();
                b.channel.put();
            }
            bench.run_until([&] { return a.wait.done() || b.wait.done(); }, "the end of a wait");
            bench.settle();
            expect(a.wait.done() != b.wait.done(), "the one that was destroyed ended as well");
            armed = false;
            if (stopped) continue;
            Setup& destroyed = a.wait.done() ? b : a;
            destroyed.wait.begin(destroyed.notifier, std::stop_token());
            destroyed.round();
        }
    }

    static void destroyed_while_a_thread_stops(Bench& bench) {
        Setup s(bench);
        OtherThread other;
        for (int round = 0; round < 1'000; ++round) {
            std::stop_source source;
            other.start([&source, round] {
                dawdle(round);
                source.request_stop();
            });
            s.wait.begin(s.notifier, source.get_token());
            dawdle(round / 16);
            s.wait.destroy();
            if (round % 4 == 0) bench.run_once();
            other.wait();
        }
        bench.settle();
        s.wait.park(s.notifier, std::stop_token());
        s.channel.put();
        s.round();
    }

    static void moved(Bench& bench) {
        Channel channel;
        Notifier first = bench.notifier(channel.reader());
        std::optional<Notifier> notifier(std::move(first));
        std::stop_source source;
        for (int i = 0; i < 3; ++i) {
            Wait wait(bench);
            if (i == 0) wait.park(*notifier, source.get_token());
            channel.put();
            if (i != 0) { // what nobody has waited for moves along
                bench.settle();
                Notifier moved = std::move(*notifier);
                notifier.emplace(std::move(moved));
                wait.begin(*notifier, source.get_token());
            }
            wait.expect_readable();
            expect(channel.take(), "the byte has gone");
        }
        Wait wait(bench);
        wait.park(*notifier, source.get_token());
        bench.request_stop(source);
        wait.expect_error(std::errc::operation_canceled, *notifier, source.get_token());
    }

    static void leaves_the_descriptor(Bench& bench) {
        Channel channel;
        for (int i = 0; i < 100; ++i) {
            Notifier notifier = bench.notifier(channel.reader());
            Wait wait(bench);
            if (i % 2 == 0) channel.put();
            wait.begin(notifier, std::stop_token());
            if (i % 2 == 0) {
                wait.expect_readable();
                expect(channel.take(), "the byte has gone");
            }
            // Readable when the notifier goes, with or without a wait.
            channel.put();
            if (i % 4 == 0) bench.run_once();
            wait.destroy();
            std::optional<Notifier> gone(std::move(notifier));
            gone.reset();
            if (i % 8 == 0) bench.run_once();
            expect(::fcntl(channel.reader(), F_GETFD) != -1, "the descriptor was closed");
            expect(channel.take(), "the byte has gone");
        }
    }

    // As an AsyncCq goes while a coroutine waits: at once, with its descriptor, whose number then
    // belongs to somebody else.
    static void number_of_a_closed_descriptor(Bench& bench) {
        std::optional<Setup> s(std::in_place, bench);
        for (int i = 0; i < 10; ++i) {
            std::stop_source source;
            s->wait.park(s->notifier, source.get_token());
            if (i % 3 == 1) s->channel.put();
            if (i % 3 == 2) bench.request_stop(source);
            s.reset();
            if (i % 2 == 0) bench.run_once();
            s.emplace(bench); // gets the lowest number that is free: the same
            s->wait.park(s->notifier, std::stop_token());
            s->channel.put();
            s->round();
        }
    }

    static void notifier_destroyed_by_its_coroutine(Bench& bench) {
        for (const bool stopped : {false, true}) {
            Channel channel;
            std::optional<Notifier> notifier(bench.notifier(channel.reader()));
            std::stop_source source;
            Wait wait(bench);
            wait.park(*notifier, source.get_token());
            wait.then = [&] { notifier.reset(); };
            if (stopped) {
                bench.request_stop(source);
            } else {
                channel.put();
            }
            wait.result();
            bench.settle();
            expect(!notifier, "the notifier is still there"); // never
        }
    }

    static void add_to(CaseList<Harness>& cases) {
        constexpr std::string_view destroyed =
            "Destroying the suspended awaiter cancels it: its coroutine is not resumed afterwards, "
            "and a wake that was on the way is the next one's.";
        constexpr std::string_view moves =
            "Moving a notifier is allowed while no readable() is outstanding.";
        constexpr std::string_view descriptor =
            "The fd stays open until the notifier is destroyed, and is not the notifier's to read "
            "or to close.";
        constexpr std::string_view at_once =
            "A coroutine that it resumes may wait again, or destroy the notifier, at once.";

        cases.add("destroyed: while it waits", destroyed, destroyed_while_it_waits);
        cases.add("destroyed: when it is readable, of which the next wait is told", destroyed,
                  destroyed_when_readable);
        cases.add("destroyed: when its stop was requested", destroyed, destroyed_when_stopped);
        cases.add("destroyed: by a coroutine that is resumed in the same turn", destroyed,
                  destroyed_by_a_coroutine);
        cases.add("destroyed: while another thread requests the stop", destroyed,
                  destroyed_while_a_thread_stops);
        cases.add("notifier: moved", moves, moved);
        cases.add("notifier: destroyed, and its descriptor left as it was", descriptor,
                  leaves_the_descriptor);
        cases.add("notifier: destroyed, and the number of its descriptor used again", descriptor,
                  number_of_a_closed_descriptor);
        cases.add("notifier: destroyed by the coroutine that it has resumed", at_once,
                  notifier_destroyed_by_its_coroutine);
    }
};

} // namespace asyncverbs::detail::conformance
