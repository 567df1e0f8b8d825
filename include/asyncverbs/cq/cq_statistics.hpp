// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <cstdint>
#include <system_error>

namespace asyncverbs {

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
