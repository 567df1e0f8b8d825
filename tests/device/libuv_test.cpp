// SPDX-License-Identifier: MIT
// AsyncCq on a real device, with the notifier of the libuv example.
#include <asyncverbs/testing/async_cq_conformance.hpp>

#include "adapters/uv_harness.hpp"
#include "device/pair.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using asyncverbs::support::UvHarness;

TEST_CASE("device, libuv: conformance", "[conformance]") {
    for (const ConformanceCase& each : async_cq_cases<UvHarness>(device::open_device())) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
}
