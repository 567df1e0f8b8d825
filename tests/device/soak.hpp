// SPDX-License-Identifier: MIT
// Sends and receives a given number of messages over one connection, with bursts, idle gaps and
// cancelled waits at random moments, and checks every completion.
#pragma once

#include <asyncverbs/cq/async_cq_options.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>

namespace asyncverbs::device {

struct SoakOptions {
    std::uint64_t completions = 100'000;         // of sends and receives together
    std::uint32_t seed = 1;                      // repeats the random choices, but not the timing
    std::function<void(std::uint64_t)> progress; // called periodically with the count so far
};

struct SoakResult {
    std::uint64_t completions = 0;
    std::uint64_t cancelled = 0; // waits
    std::uint64_t selected = 0;  // completions that were waited for by their wr_id
    CqStatistics sends;
    CqStatistics receives;
    std::ptrdiff_t heap_growth = 0;     // bytes in use, since the first tenth
    std::ptrdiff_t resident_growth = 0; // resident bytes of the process, likewise
};

/// Throws std::runtime_error, with the seed, when a completion is lost, wrong or out of order, when
/// events and acks do not add up, and when nothing has completed for 30 s.
SoakResult soak(const SoakOptions& options);

} // namespace asyncverbs::device
