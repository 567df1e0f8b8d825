// SPDX-License-Identifier: MIT
// The notifiers of an IoUringPoller conform.
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/testing/async_cq_conformance.hpp>
#include <asyncverbs/testing/notifier_conformance.hpp>

#include "adapters/io_uring_harnesses.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using namespace asyncverbs::support;

TEMPLATE_TEST_CASE("IoUringNotifier: conformance", "[ring][conformance]", LevelHarness<0>,
                   LevelHarness<IORING_SETUP_COOP_TASKRUN>, LevelHarness<deferred>, EdgeHarness<0>,
                   EdgeHarness<deferred>, OldKernelHarness) {
    if (!kernel_has(TestType::flags)) return;
    for (const ConformanceCase& each : notifier_cases<TestType>()) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
    const simulated::SimulatedVerbs sim;
    for (const ConformanceCase& each : async_cq_cases<TestType>(Context::open())) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
}
