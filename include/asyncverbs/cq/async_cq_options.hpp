// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <chrono>

namespace asyncverbs {

/// Spin, then sleep: trades CPU time of the loop's thread for the latency of a sleep and a wake.
/// During a busy poll nothing else runs on that thread: no other coroutine, no other CQ, no stop.
struct BusyPoll {
    /// The longest time for which an empty CQ is polled before it is armed; zero: none.
    std::chrono::nanoseconds limit{0};

    /// Adapts the time to the recent sleeps, between zero and `limit`: a sleep that ended within
    /// the limit doubles it, a sleep that took longer, or that max_wait has ended, halves it. For
    /// loads that vary: an idle CQ costs nothing, and a busy one hardly ever sleeps.
    bool adaptive = false;
};

/// Options of an AsyncCq.
struct AsyncCqOptions {
    /// Number of events that are acked together, at least 1. An ack takes a lock; an event that is
    /// not acked yet only costs a count.
    unsigned ack_batch = 16;

    /// The longest wait before the CQ is armed and polled again although no event came, for
    /// devices and kernels that drop events; zero: no limit. Needs a TimedCqNotifier.
    std::chrono::nanoseconds max_wait{0};

    /// Polls for a while before the CQ is armed. Off by default.
    BusyPoll busy_poll{};

    /// Only completions of sends with IBV_SEND_SOLICITED at the peer, and errors, end a wait. Other
    /// completions are delivered together with the next one of these, or to a poll while there are
    /// no waiters. Meant for a CQ of receives: soft-RoCE does not wake for an error of a *send*,
    /// which is then found by max_wait, if at all. See ibv_req_notify_cq(3).
    bool solicited_only = false;
};

} // namespace asyncverbs
