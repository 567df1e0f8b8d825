// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <chrono>
#include <concepts>
#include <vector>

#include <asyncverbs/cq/cq_notifier.hpp>
#include <asyncverbs/testing/conformance_case.hpp>
#include <asyncverbs/testing/detail/conformance_fixture.hpp>
#include <asyncverbs/testing/detail/notifier_cases.hpp>

namespace asyncverbs {

/// Gives the suite access to an event loop. Each case default-constructs a harness, makes
/// notifiers, runs the loop, and destroys the notifiers and then the harness, all on one thread.
///
///     struct PollHarness {
///         PollNotifier notifier(int fd) { return PollNotifier(loop, fd); }
///         void run_once(std::chrono::milliseconds at_most) { loop.run_once(at_most); }
///         PollLoop loop;
///     };
///     int main() { return asyncverbs::check_notifier<PollHarness>(); }
///
/// notifier(fd) returns a movable CqNotifier, as AsyncCq takes it. Several notifiers wait on one
/// loop at a time, each for its own descriptor.
///
/// run_once(at_most) runs one iteration of the loop: it resumes what is ready. If nothing is ready,
/// it may sleep for `at_most`, not longer, and must wake as soon as something is ready or another
/// thread requests a stop: the suite lets a loop sleep for seconds, and fails if it is not woken.
/// Zero: do not sleep. It may return early, or after it has resumed only a part of what was ready:
/// the suite calls it again. A loop that can only sleep without a limit needs a timer for this. A
/// loop that never sleeps can be tested as well, except that the suite cannot check that it wakes.
///
/// A harness whose notifiers are edge-triggered (an event that was reported once need not wake the
/// next wait, although the descriptor was not read) declares
/// `static constexpr bool edge_triggered = true;`. The case that requires a second wake is then
/// left out.
template <class H>
concept NotifierHarness =
    std::default_initializable<H> && requires(H& h, int fd, std::chrono::milliseconds at_most) {
        { h.notifier(fd) } -> CqNotifier;
        requires std::move_constructible<decltype(h.notifier(fd))>;
        h.run_once(at_most);
    };

/// The contract of CqNotifier as test cases on pipes and sockets, which need no device and no
/// particular test framework:
///
///     TEST_CASE("MyNotifier") {
///         for (const auto& each : asyncverbs::notifier_cases<MyHarness>()) {
///             DYNAMIC_SECTION(each.name) { each.run(); }
///         }
///     }
///
/// They include the cases of TimedCqNotifier if the notifier is one.
template <NotifierHarness H>
std::vector<ConformanceCase> notifier_cases(const ConformanceOptions& options = {}) {
    detail::conformance::CaseList<H> cases(options);
    detail::conformance::add_notifier_cases(cases);
    return cases.take();
}

/// Runs these cases as run_conformance() does. Returns how many failed, for main() to return.
template <NotifierHarness H>
int check_notifier(const ConformanceOptions& options = {}) {
    return run_conformance(notifier_cases<H>(options));
}

} // namespace asyncverbs
