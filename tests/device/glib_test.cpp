// SPDX-License-Identifier: MIT
// AsyncCq on a real device, with the notifier of the GLib example.
#include <asyncverbs/testing/async_cq_conformance.hpp>

#include "adapters/glib_harness.hpp"
#include "device/pair.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using asyncverbs::support::GlibHarness;

TEST_CASE("device, GLib: conformance", "[conformance]") {
    for (const ConformanceCase& each : async_cq_cases<GlibHarness>(device::open_device())) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
}
