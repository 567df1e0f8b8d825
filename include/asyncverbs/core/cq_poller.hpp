// SPDX-License-Identifier: MIT
// The completion protocol as plain calls: poll, arm, consume, ack. No coroutine, no event loop:
// AsyncCq is built on it, and so is an adapter for a loop that cannot await. The state of the
// protocol is an object that the caller owns.
#pragma once

#include <infiniband/verbs.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <span>
#include <system_error>
#include <utility>

#include <asyncverbs/core/cq_statistics.hpp>
#include <asyncverbs/core/detail/cq_event.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/detail/non_blocking.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs {

/// The completion protocol.
///
///   1. **Poll** the CQ. Completions: deliver them. The hot path ends here, in user space.
///   2. Empty and not armed: **arm**, then poll again, for a completion may have landed between
///      the poll and the arm, and no event would tell of it.
///   3. Still empty: **wait** until fd() is readable. This step is the caller's.
///   4. Readable: **consume** the event. The CQ is now unarmed; the event is counted for a later
///      **ack**, many at a time, because an ack takes a lock.
///   5. Back to 1. A wake is a hint to look again, never a promise of a completion.
///
/// An arm that is outstanding is not repeated, so at most one event is pending at a time.
///
///     for (;;) {
///         while (std::size_t n = poller.poll_or_arm(wcs)) handle(wcs.first(n));
///         wait_until_readable(poller.fd());
///         poller.consume();
///     }
///
/// Takes the CQ over: nobody else may poll it, arm it or read events of its channel. An event of
/// another CQ on the same channel is acked to that CQ, but wakes nobody there (SharedChannel does).
/// Every failing verb throws std::system_error that names it; a CQ that failed stays unusable.
/// Thread safety: none; one thread at a time. Lifetime: pinned; the destructor acks what was
/// consumed and lets go of the CQ, which is destroyed with the last queue pair that uses it.
class CqPoller {
public:
    /// `ack_batch`: events that are acked together, at least 1. Sets O_NONBLOCK on the channel.
    /// Throws std::system_error (invalid_argument) for a batch of 0.
    explicit CqPoller(CompletionQueue cq, unsigned ack_batch = 16);
    CqPoller(const CqPoller&) = delete;
    CqPoller& operator=(const CqPoller&) = delete;
    ~CqPoller() { flush_acks(); }

    /// Step 1: moves completions to the front of `wcs` and returns how many, 0 if there are none.
    /// An empty `wcs` is an invalid_argument. See ibv_poll_cq(3).
    std::size_t poll(std::span<ibv_wc> wcs);

    /// Steps 1 and 2: as poll(), but 0 means that the CQ is armed and was empty after that:
    /// waiting for fd() cannot miss a completion. See ibv_req_notify_cq(3).
    std::size_t poll_or_arm(std::span<ibv_wc> wcs);

    /// Whether nothing was consumed or polled since poll_or_arm() returned 0 (invariant I1).
    bool may_wait() const noexcept { return may_wait_; }

    /// Step 4: reads an event of this CQ without blocking. False: there was none, the wake was
    /// spurious. See ibv_get_cq_event(3).
    bool consume();

    /// The same for `events` of this CQ, at least one, that somebody else has read from the
    /// channel, and not acked.
    void credit(unsigned events);

    /// Makes the next poll_or_arm() arm again although an arm is outstanding: for a caller that
    /// has waited long enough to suspect that the kernel dropped the event.
    void forget_arm() noexcept { armed_ = may_wait_ = false; }

    /// The completion channel's file descriptor, to wait for; owned by the channel.
    int fd() const noexcept { return channel_->fd; }

    const CompletionQueue& completion_queue() const noexcept { return cq_; }
    const CqStatistics& statistics() const noexcept { return statistics_; }

private:
    std::size_t arm_and_poll(std::span<ibv_wc> wcs);
    void arm();
    void count_events(unsigned count) noexcept;
    void flush_acks() noexcept;

    CompletionQueue cq_;
    ibv_cq* const native_;
    ibv_comp_channel* const channel_;
    const unsigned ack_batch_;
    unsigned unacked_ = 0;
    bool armed_ = false;
    bool may_wait_ = false;
    CqStatistics statistics_;
};

inline CqPoller::CqPoller(CompletionQueue cq, unsigned ack_batch)
    : cq_(std::move(cq)), native_(detail::alive(cq_.shared_handle(), "CompletionQueue").get()),
      channel_(native_->channel), ack_batch_(ack_batch) {
    if (ack_batch == 0) {
        detail::throw_error(std::errc::invalid_argument,
                            "an ack batch of 0 events: at least 1 is needed");
    }
    detail::set_non_blocking(channel_->fd); // somebody may have made it blocking
}

inline std::size_t CqPoller::poll(std::span<ibv_wc> wcs) {
    if (wcs.empty()) {
        detail::throw_error(std::errc::invalid_argument, "the span for completions is empty");
    }
    may_wait_ = false;
    ++statistics_.polls;
    const auto capacity = static_cast<int>(std::min<std::size_t>(wcs.size(), INT_MAX));
    const int polled = ibv_poll_cq(native_, capacity, wcs.data());
    // A negative result is not an errno, and errno is not set (I5).
    if (polled < 0) throw_verb_error("ibv_poll_cq", EIO);
    return static_cast<std::size_t>(polled);
}

inline std::size_t CqPoller::poll_or_arm(std::span<ibv_wc> wcs) {
    if (const std::size_t polled = poll(wcs)) return polled;
    return arm_and_poll(wcs);
}

// Apart from the step before it, which is small enough to be inlined.
inline std::size_t CqPoller::arm_and_poll(std::span<ibv_wc> wcs) {
    if (!armed_) {
        arm();
        // A completion may have landed between the poll and the arm (I1).
        if (const std::size_t polled = poll(wcs)) return polled;
    }
    may_wait_ = true;
    return 0;
}

inline bool CqPoller::consume() {
    may_wait_ = false;
    ++statistics_.wakes;
    while (ibv_cq* const source = detail::get_cq_event(channel_)) {
        if (source == native_) {
            count_events(1);
            return true;
        }
        // Credit the event to its own CQ (I4), and read on: behind it may be one of ours, for
        // which an edge-triggered notifier will not fire again (I3).
        ibv_ack_cq_events(source, 1);
    }
    return false;
}

inline void CqPoller::credit(unsigned events) {
    may_wait_ = false;
    ++statistics_.wakes;
    count_events(events);
}

inline void CqPoller::count_events(unsigned count) noexcept {
    armed_ = false;
    statistics_.events += count;
    if ((unacked_ += count) >= ack_batch_) flush_acks();
}

inline void CqPoller::arm() {
    ++statistics_.arms;
    errno = 0;
    if (const int result = ibv_req_notify_cq(native_, 0)) {
        throw_verb_error("ibv_req_notify_cq", detail::verb_errno(result));
    }
    armed_ = true;
}

inline void CqPoller::flush_acks() noexcept {
    if (unacked_ == 0) return;
    statistics_.acks += unacked_;
    // The last touch of the CQ (I4): once acked, it may be destroyed.
    ibv_ack_cq_events(native_, std::exchange(unacked_, 0));
}

} // namespace asyncverbs
