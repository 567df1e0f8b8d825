// SPDX-License-Identifier: MIT
// The notifier of the example for libuv conforms.
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/testing/async_cq_conformance.hpp>
#include <asyncverbs/testing/notifier_conformance.hpp>

#include "adapters/uv_harness.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using asyncverbs::support::UvHarness;

TEST_CASE("UvNotifier: conformance", "[conformance]") {
    for (const ConformanceCase& each : notifier_cases<UvHarness>()) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
    const simulated::SimulatedVerbs sim;
    for (const ConformanceCase& each : async_cq_cases<UvHarness>(Context::open())) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
}
