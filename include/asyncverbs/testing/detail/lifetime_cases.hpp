// SPDX-License-Identifier: MIT
// Conformance cases: a coroutine, notifier or descriptor that is destroyed while a wake is on its
// way to it, and the waits that follow. The probe coroutines record a late resume in any case.
#pragma once

#include <fcntl.h>

#include <optional>
#include <stop_token>
#include <string_view>
#include <system_error>
#include <utility>

#include <asyncverbs/testing/detail/conformance_fixture.hpp>
#include <asyncverbs/testing/detail/conformance_waiter.hpp>

namespace asyncverbs::detail::conformance {

template <class Harness>
// NOLINTNEXTLINE(readability-function-cognitive-complexity): a list of independent cases
void add_lifetime_cases(CaseList<Harness>& cases) {
    using Fixture = conformance::Fixture<Harness>;
    using Waiter = conformance::Waiter<Harness>;
    using Notifier = typename Fixture::Notifier;

    constexpr std::string_view destroyed =
        "Destroying the suspended awaiter cancels the wait: its coroutine is not resumed "
        "afterwards, and a wake that was on the way belongs to the next wait.";
    cases.add("destroyed: while it waits", destroyed, [](Fixture& fixture) {
        Waiter w(fixture);
        std::stop_source source;
        w.begin_suspended(source.get_token());
        w.destroy();
        w.channel.put();
        fixture.settle();
        fixture.request_stop(source);
        fixture.settle();
        w.begin();
        w.expect_byte();
    });
    cases.add("destroyed: when it is readable; the next wait learns of it", destroyed,
              [](Fixture& fixture) {
                  Waiter w(fixture);
                  for (int i = 0; i < 3; ++i) {
                      w.begin_suspended();
                      w.channel.put();
                      w.destroy();
                      if (i == 1) fixture.settle();
                      w.begin();
                      w.expect_byte();
                  }
              });
    cases.add("destroyed: when its stop was requested", destroyed, [](Fixture& fixture) {
        Waiter w(fixture);
        std::stop_source source;
        w.begin_suspended(source.get_token());
        fixture.request_stop(source);
        w.destroy();
        fixture.settle();
        w.begin_suspended();
        w.channel.put();
        w.expect_byte();
    });
    cases.add("destroyed: by a coroutine that is resumed in the same iteration", destroyed,
              [](Fixture& fixture) {
                  for (const bool stopped : {false, true}) {
                      Waiter a(fixture);
                      Waiter b(fixture);
                      std::stop_source source;
                      a.begin_suspended(source.get_token());
                      b.begin_suspended(source.get_token());
                      // Both are ready: the first to be resumed destroys the other.
                      a.then = [&] { b.destroy(); };
                      b.then = [&] { a.destroy(); };
                      if (stopped) {
                          fixture.request_stop(source);
                      } else {
                          a.channel.put();
                          b.channel.put();
                      }
                      fixture.run_until([&] { return a.done() || b.done(); }, "the end of a wait");
                      fixture.settle();
                      expect(a.done() != b.done(), "the destroyed one ended as well");
                      a.then = b.then = nullptr;
                      if (stopped) continue;
                      Waiter& other = a.done() ? b : a;
                      other.begin();
                      other.expect_byte();
                  }
              });
    cases.add("destroyed: while another thread requests the stop", destroyed, [](Fixture& fixture) {
        Waiter w(fixture);
        OtherThread other;
        for (int round = 0; round < 1'000; ++round) {
            std::stop_source source;
            other.start([&source, round] {
                spin_for(round);
                source.request_stop();
            });
            w.begin(source.get_token());
            spin_for(round / 16);
            w.destroy();
            if (round % 4 == 0) fixture.run_once();
            other.wait();
        }
        fixture.settle();
        w.begin_suspended();
        w.channel.put();
        w.expect_byte();
    });

    cases.add("notifier: moved", "A notifier may be moved while no readable() is outstanding.",
              [](Fixture& fixture) {
                  Waiter w(fixture);
                  std::stop_source source;
                  w.begin_suspended(source.get_token());
                  w.channel.put();
                  w.expect_byte();
                  for (int i = 0; i < 2; ++i) {
                      w.channel.put();
                      fixture.settle(); // a wake without a waiter moves with the notifier
                      Notifier moved = std::move(*w.notifier);
                      w.notifier.emplace(std::move(moved));
                      w.begin(source.get_token());
                      w.expect_byte();
                  }
                  w.begin_suspended(source.get_token());
                  fixture.request_stop(source);
                  w.expect_error(std::errc::operation_canceled);
              });

    constexpr std::string_view descriptor = "The fd stays open until the notifier is destroyed. "
                                            "The notifier must not read or close it.";
    cases.add("notifier: destroyed; its descriptor is unchanged", descriptor, [](Fixture& fixture) {
        Waiter w(fixture);
        for (int i = 0; i < 100; ++i) {
            if (i % 2 == 0) w.channel.put();
            w.begin();
            if (i % 2 == 0) w.expect_byte();
            // Readable when the notifier is destroyed, with or without a wait.
            w.channel.put();
            if (i % 4 == 0) fixture.run_once();
            w.destroy();
            w.notifier.reset();
            if (i % 8 == 0) fixture.run_once();
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

    cases.add("notifier: destroyed by the coroutine that it has resumed",
              "The resumed coroutine may wait again, or destroy the notifier, at once.",
              [](Fixture& fixture) {
                  for (const bool stopped : {false, true}) {
                      Waiter w(fixture);
                      std::stop_source source;
                      w.begin_suspended(source.get_token());
                      w.then = [&] { w.notifier.reset(); };
                      if (stopped) {
                          fixture.request_stop(source);
                      } else {
                          w.channel.put();
                      }
                      w.result();
                      fixture.settle();
                      expect(!w.notifier, "the notifier still exists"); // never
                  }
              });
}

} // namespace asyncverbs::detail::conformance
