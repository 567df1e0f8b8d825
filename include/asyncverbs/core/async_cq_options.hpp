// SPDX-License-Identifier: MIT
// How a CQ is armed, waited for and acked.
#pragma once

#include <asyncverbs/core/busy_poll.hpp>
#include <asyncverbs/verbs/detail/chrono.hpp>

namespace asyncverbs {

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
