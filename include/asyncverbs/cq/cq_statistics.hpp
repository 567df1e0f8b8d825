// SPDX-License-Identifier: MIT
// What a completion queue has cost so far, in calls. Plain counters of the thread that owns the
// CQ: reading them costs nothing and synchronises nothing.
#pragma once

#include <cstdint>
#include <system_error>

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

/// Told by an AsyncCq, on its loop's thread, when it begins to wait for its channel and when that
/// wait ends. What happened in between is the difference of the counts; how long it took is the
/// tracer's to measure: from before_wait() to after_wait() the CQ was idle, from there to the next
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
///         Counter& completions; // of whatever metrics library
///         Histogram& idle_time;
///         std::chrono::steady_clock::time_point asleep{};
///     };
///     auto cq = AsyncCq::create(context, 64, executor, {}, Metrics{completions, idle_time});
///
/// `result` is what the notifier gave: {} for a wake, whose event is not counted yet,
/// errc::timed_out, also after a turn of the loop that a busy CQ has left to others,
/// errc::operation_canceled, or a fatal error. An AsyncCq that is destroyed while it waits destroys
/// the tracer, with no after_wait(). A tracer must not touch the AsyncCq.
template <class T>
concept CqTracer = requires(T& tracer, const CqStatistics& statistics, std::error_code result) {
    { tracer.before_wait(statistics) } noexcept;
    { tracer.after_wait(statistics, result) } noexcept;
};

/// The one that an AsyncCq has unless it is given another.
struct NoTracer {
    /// Does nothing.
    static void before_wait(const CqStatistics&) noexcept {}

    /// Does nothing.
    static void after_wait(const CqStatistics&, std::error_code) noexcept {}
};

} // namespace asyncverbs
