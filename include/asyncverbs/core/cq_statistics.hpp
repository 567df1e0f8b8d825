// SPDX-License-Identifier: MIT
// What a completion queue has cost so far, in calls. Plain counters of the thread that owns the
// CQ: reading them costs nothing and synchronises nothing.
#pragma once

#include <cstdint>

namespace asyncverbs {

/// Counts since the CQ was taken over; none of them wraps in practice.
struct CqStatistics {
    std::uint64_t polls = 0;       ///< calls of ibv_poll_cq
    std::uint64_t busy_polls = 0;  ///< so many of them as BusyPoll asked for
    std::uint64_t completions = 0; ///< what they returned
    std::uint64_t arms = 0;        ///< calls of ibv_req_notify_cq
    std::uint64_t wakes = 0;       ///< times that the channel was reported readable
    std::uint64_t events = 0;      ///< events read with ibv_get_cq_event
    std::uint64_t acks = 0;        ///< events acked with ibv_ack_cq_events
};

} // namespace asyncverbs
