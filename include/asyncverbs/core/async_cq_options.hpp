// SPDX-License-Identifier: MIT
// How an AsyncCq acks and for how long it trusts an arm.
#pragma once

#include <chrono>

namespace asyncverbs {

struct AsyncCqOptions {
    /// Events that are acked together, at least 1. An ack takes a lock; an event that was not
    /// acked only costs a count.
    unsigned ack_batch = 16;

    /// The longest wait before the CQ is armed and polled again although no event came, for
    /// devices and kernels that drop events; zero: no bound. Needs a TimedCqNotifier.
    std::chrono::nanoseconds max_wait{0};
};

} // namespace asyncverbs
