// SPDX-License-Identifier: MIT
// The GLib example's notifier also meets the contract on a real device.
#include <asyncverbs/testing/async_cq_conformance.hpp>
#include <asyncverbs/testing/notifier_conformance.hpp>

#include "adapters/glib_harness.hpp"
#include "device/pair.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using asyncverbs::support::GlibHarness;

TEST_CASE("device, GLib: conformance", "[conformance]") {
    for (const ConformanceCase& each : notifier_cases<GlibHarness>()) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
    for (const ConformanceCase& each : async_cq_cases<GlibHarness>(device::open_device())) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
}
