// SPDX-License-Identifier: MIT
// Spin, then sleep: how long a CQ that is empty is polled before it is armed and waited for.
#pragma once

#include <asyncverbs/verbs/detail/chrono.hpp>

namespace asyncverbs {

/// Trades the CPU time of the loop's thread for the latency of a sleep and a wake. While a CQ is
/// polled so, nothing else runs on that thread: no other coroutine, no other CQ, no stop.
struct BusyPoll {
    /// The longest time that an empty CQ is polled before it is armed; zero: not at all.
    std::chrono::nanoseconds limit{0};

    /// Polls only for as long as it has paid lately, up to `limit`: each sleep that ended within
    /// the limit makes the time longer, each that took longer, or that max_wait has ended, halves
    /// it, down to zero. For loads that come and go: an idle CQ costs nothing, and a busy one
    /// hardly ever sleeps.
    bool adaptive = false;
};

} // namespace asyncverbs
