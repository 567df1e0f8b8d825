// SPDX-License-Identifier: MIT
// Spin, then sleep: how long a CQ that is empty is polled before it is armed and waited for.
#pragma once

#include <chrono>

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

/// What an AsyncCq is made with.
struct AsyncCqOptions {
    /// Events that are acked together, at least 1. An ack takes a lock; an event that was not
    /// acked only costs a count.
    unsigned ack_batch = 16;

    /// The longest wait before the CQ is armed and polled again although no event came, for
    /// devices and kernels that drop events; zero: no bound. Needs a TimedCqNotifier.
    std::chrono::nanoseconds max_wait{0};

    /// Polls for a while before the CQ is armed. Off.
    BusyPoll busy_poll{};

    /// Only completions of sends with IBV_SEND_SOLICITED at the peer, and errors, end a wait; what
    /// else has come by then is delivered with them, or when somebody polls while nobody waits.
    /// Meant for a CQ of receives: soft-RoCE does not wake for an error of a *send*, which is then
    /// found by max_wait, if at all. See ibv_req_notify_cq(3).
    bool solicited_only = false;
};

} // namespace asyncverbs
