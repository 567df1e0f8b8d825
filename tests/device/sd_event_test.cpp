// SPDX-License-Identifier: MIT
// AsyncCq on a real device, with the notifier of the sd-event example.
#include <asyncverbs/testing/async_cq_conformance.hpp>

#include "adapters/sd_event_harness.hpp"
#include "device/pair.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using asyncverbs::support::SdEventHarness;

TEST_CASE("device, sd-event: conformance", "[conformance]") {
    for (const ConformanceCase& each : async_cq_cases<SdEventHarness>(device::open_device())) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
}
