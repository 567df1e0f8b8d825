// SPDX-License-Identifier: MIT
// The notifier of the example for GLib conforms.
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/testing/async_cq_conformance.hpp>
#include <asyncverbs/testing/notifier_conformance.hpp>

#include "adapters/glib_harness.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using asyncverbs::support::GlibHarness;

TEST_CASE("GlibNotifier: conformance", "[conformance]") {
    for (const ConformanceCase& each : notifier_cases<GlibHarness>()) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
    const simulated::SimulatedVerbs sim;
    for (const ConformanceCase& each : async_cq_cases<GlibHarness>(Context::open())) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
}
