// SPDX-License-Identifier: MIT
// What a program sets for an AsyncCq, and what it can observe of one.
#pragma once

#include <asyncverbs/requirements.hpp>

#include <chrono>
#include <cstdint>
#include <system_error>

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

    /// Yields the CPU before each poll (sched_yield(2)): for a peer, or soft-RoCE, that needs the
    /// same CPU. Where the thread has the CPU for itself, this only costs time.
    bool yield = false;
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

/// Counts since the CQ was taken over; none of them wraps in practice. Plain counters of the CQ's
/// thread: to be read on that thread, and free of synchronisation.
struct CqStatistics {
    std::uint64_t polls = 0;       ///< calls of ibv_poll_cq
    std::uint64_t busy_polls = 0;  ///< those of them that BusyPoll added
    std::uint64_t completions = 0; ///< returned by them
    std::uint64_t arms = 0;        ///< calls of ibv_req_notify_cq
    std::uint64_t wakes = 0;       ///< times that the channel was reported readable
    std::uint64_t events = 0;      ///< events read with ibv_get_cq_event
    std::uint64_t acks = 0;        ///< events acked with ibv_ack_cq_events
};

/// Called by an AsyncCq, on its loop's thread, when it begins to wait for its channel and when that
/// wait ends. The difference of the counts shows what happened in between; a tracer that wants the
/// time reads a clock. From before_wait() to after_wait() the CQ was idle, from there to the next
/// before_wait() the completions in `statistics.completions` were polled and their coroutines ran.
///
///     struct Metrics {
///         void before_wait(const CqStatistics& statistics) noexcept {
///             completions.set(statistics.completions);
///             asleep = std::chrono::steady_clock::now();
///         }
///         void after_wait(const CqStatistics&, std::error_code) noexcept {
///             idle_time.observe(std::chrono::steady_clock::now() - asleep);
///         }
///         Counter& completions; // of a metrics library
///         Histogram& idle_time;
///         std::chrono::steady_clock::time_point asleep{};
///     };
///     auto cq = AsyncCq::create(context, 64, executor, {}, Metrics{completions, idle_time});
///
/// `result` is the notifier's: {} for a wake, whose event is not counted yet; errc::timed_out, also
/// after an iteration of the loop that a busy CQ let pass; errc::operation_canceled; or a fatal
/// error. An AsyncCq that is destroyed while it waits destroys the tracer without a call of
/// after_wait(). A tracer must not use the AsyncCq.
template <class T>
concept CqTracer = requires(T& tracer, const CqStatistics& statistics, std::error_code result) {
    { tracer.before_wait(statistics) } noexcept;
    { tracer.after_wait(statistics, result) } noexcept;
};

/// The default: no tracing.
struct NoTracer {
    /// Does nothing.
    static void before_wait(const CqStatistics&) noexcept {}

    /// Does nothing.
    static void after_wait(const CqStatistics&, std::error_code) noexcept {}
};

} // namespace asyncverbs
