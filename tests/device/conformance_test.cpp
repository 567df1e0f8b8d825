// SPDX-License-Identifier: MIT
// AsyncCq on a real device, with the library's notifiers and the example's. The cases of the
// notifier alone need no device: conformance_tests has them.
#include <asyncverbs/testing/async_cq_conformance.hpp>

#include "device/pair.hpp"
#include "support/catch.hpp"
#include "testing/harnesses.hpp"

using namespace asyncverbs;
using namespace asyncverbs::support;

TEMPLATE_TEST_CASE("device: conformance", "[conformance]", PollHarness, EpollHarness, BusyHarness,
                   EdgeHarness) {
    for (const ConformanceCase& each : async_cq_cases<TestType>(device::open_device())) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
}
