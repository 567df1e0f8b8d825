// SPDX-License-Identifier: MIT
// The library's notifiers and the example's notifier meet the contract on a real device and kernel.
#include <asyncverbs/testing/async_cq_conformance.hpp>
#include <asyncverbs/testing/notifier_conformance.hpp>

#include "device/pair.hpp"
#include "support/catch.hpp"
#include "testing/harnesses.hpp"

using namespace asyncverbs;
using namespace asyncverbs::support;

TEMPLATE_TEST_CASE("device: conformance", "[conformance]", PollHarness, EpollHarness, BusyHarness,
                   EdgeHarness) {
    for (const ConformanceCase& each : notifier_cases<TestType>()) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
    for (const ConformanceCase& each : async_cq_cases<TestType>(device::open_device())) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
}
