// SPDX-License-Identifier: MIT
// The soak, short enough for CI; the program asyncverbs_soak runs it for longer.
#include "device/soak.hpp"
#include "support/catch.hpp"

#include <random>

using asyncverbs::device::soak;
using asyncverbs::device::SoakOptions;
using asyncverbs::device::SoakResult;

TEST_CASE("device: a soak with bursts, idle gaps and cancellations loses no completion",
          "[threads]") {
    SoakOptions options;
    options.seed = std::random_device()();
    const SoakResult result = soak(options);
    CHECK(result.completions == options.completions);
    CHECK(result.cancelled > 0);
    CHECK(result.selected > 0);
    CHECK(result.receives.events > 0);
    // A list that grows may take new capacity; 90,000 leaks of any size would take more.
    CHECK(result.heap_growth < 16 * 1024);
}
