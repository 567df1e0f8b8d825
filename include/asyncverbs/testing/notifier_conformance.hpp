// SPDX-License-Identifier: MIT
// The contract of CqNotifier as a test that the author of a notifier runs: on pipes and sockets,
// without a device, in whatever test framework or none.
#pragma once

#include <chrono>
#include <concepts>
#include <vector>

#include <asyncverbs/cq/cq_notifier.hpp>
#include <asyncverbs/testing/conformance_case.hpp>
#include <asyncverbs/testing/detail/conformance_fixture.hpp>
#include <asyncverbs/testing/detail/lifetime_cases.hpp>
#include <asyncverbs/testing/detail/readiness_cases.hpp>
#include <asyncverbs/testing/detail/stop_cases.hpp>

namespace asyncverbs {

/// How the suite gets at a loop. Each case default-constructs a harness, makes notifiers, takes
/// turns, and destroys the notifiers and then the harness, all on one thread.
///
///     struct PollHarness {
///         PollNotifier notifier(int fd) { return PollNotifier(loop, fd); }
///         void turn(std::chrono::milliseconds at_most) { loop.run_once(at_most); }
///         PollLoop loop;
///     };
///     int main() { return asyncverbs::check_notifier<PollHarness>(); }
///
/// notifier(fd) gives a CqNotifier; several at a time wait on one loop, each for a descriptor of
/// its own. A movable one, for so AsyncCq takes it.
///
/// turn(at_most) resumes what is ready. If nothing is, it may sleep for `at_most`, not longer, and
/// has to wake as soon as something is ready or another thread requests a stop: the suite lets a
/// loop sleep for seconds, and notices when it does. Zero is a look without sleep. It may come
/// back early, or having resumed only some of what was ready: the suite calls it again. A loop
/// that can only sleep for ever needs a timer for this. A loop that never sleeps is tested as
/// well, but for that it wakes.
///
/// A harness whose notifiers are edge-triggered, so that what was told of once need not wake again
/// though it is not read, says so: `static constexpr bool edge_triggered = true;`. The case that
/// looks for that is then left out.
template <class H>
concept NotifierHarness =
    std::default_initializable<H> && requires(H& h, int fd, std::chrono::milliseconds at_most) {
        { h.notifier(fd) } -> CqNotifier;
        requires std::move_constructible<decltype(h.notifier(fd))>;
        h.turn(at_most);
    };

/// The cases, for a test framework:
///
///     TEST_CASE("MyNotifier") {
///         for (const auto& each : asyncverbs::notifier_cases<MyHarness>()) {
///             DYNAMIC_SECTION(each.name) { each.run(); }
///         }
///     }
///
/// Those of TimedCqNotifier are among them if the notifier is one. `patience` is how long something
/// may take before it is held to have failed; nothing else depends on time.
template <NotifierHarness H>
std::vector<ConformanceCase>
notifier_cases(std::chrono::milliseconds patience = std::chrono::seconds(10)) {
    namespace suite = detail::conformance;
    suite::CaseList<H> cases(patience);
    suite::ReadinessCases<H>::add_to(cases);
    suite::StopCases<H>::add_to(cases);
    suite::LifetimeCases<H>::add_to(cases);
    if constexpr (TimedCqNotifier<typename suite::Bench<H>::Notifier>) {
        suite::TimedCases<H>::add_to(cases);
    }
    return cases.take();
}

/// Runs all cases and prints their outcomes. Returns how many failed, for main() to return.
template <NotifierHarness H>
int check_notifier() {
    return run_conformance(notifier_cases<H>());
}

} // namespace asyncverbs
