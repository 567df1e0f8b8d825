// SPDX-License-Identifier: MIT
// The notifier of the example for sd-event conforms.
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/testing/async_cq_conformance.hpp>
#include <asyncverbs/testing/notifier_conformance.hpp>

#include "adapters/sd_event_harness.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using asyncverbs::support::SdEventHarness;

TEST_CASE("SdEventNotifier: conformance", "[conformance]") {
    for (const ConformanceCase& each : notifier_cases<SdEventHarness>()) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
    const simulated::SimulatedVerbs sim;
    for (const ConformanceCase& each : async_cq_cases<SdEventHarness>(Context::open())) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
}
