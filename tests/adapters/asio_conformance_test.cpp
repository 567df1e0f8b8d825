// SPDX-License-Identifier: MIT
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/testing/async_cq_conformance.hpp>
#include <asyncverbs/testing/notifier_conformance.hpp>

#include "adapters/asio_harness.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using namespace asyncverbs::adapters;

TEMPLATE_TEST_CASE("AsioNotifier conforms", "[conformance]", OnContext, OnStrand, OnAny) {
    for (const auto& each : notifier_cases<AsioHarness<TestType>>()) {
        DYNAMIC_SECTION(each.name) { CHECK_NOTHROW(each.run()); }
    }
}

TEMPLATE_TEST_CASE("AsioNotifier conforms: AsyncCq", "[conformance]", OnContext, OnStrand, OnAny) {
    const simulated::SimulatedVerbs sim;
    for (const auto& each : async_cq_cases<AsioHarness<TestType>>(Context::open())) {
        DYNAMIC_SECTION(each.name) { CHECK_NOTHROW(each.run()); }
    }
}
