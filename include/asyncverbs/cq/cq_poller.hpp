// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <infiniband/verbs.h>

#include <sched.h>

#include <cerrno>
#include <chrono>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <span>
#include <system_error>
#include <utility>

#include <asyncverbs/cq/async_cq_options.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/detail/native.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs {
namespace detail {

// For how long an empty CQ is polled before it is armed: BusyPoll::limit, or, if adaptive, a length
// that follows the recent sleeps. A sleep is the time from when the CQ was found empty until an
// event is read.
class AdaptiveSpin {
public:
    using Clock = std::chrono::steady_clock;
    using Duration = std::chrono::nanoseconds;
    using Time = Clock::time_point;

    explicit AdaptiveSpin(const BusyPoll& options) noexcept
        : limit_(options.limit), adaptive_(options.adaptive), yields_(options.yield),
          length_(adaptive_ ? Duration(0) : limit_) {}

    bool enabled() const noexcept { return limit_.count() > 0; }
    bool adaptive() const noexcept { return adaptive_; }
    bool yields() const noexcept { return yields_; }
    Duration length() const noexcept { return length_; }

    void sleep_begins(Time empty_since) noexcept { empty_since_ = empty_since; }

    /// A completion was found before the sleep: this says nothing about how long sleeps take.
    void sleep_avoided() noexcept { empty_since_ = Time::min(); }

    void sleep_ended(Time now) noexcept {
        if (!sleeping()) return;
        if (now - empty_since_ > limit_) return sleep_timed_out();
        length_ *= 2;
        if (length_ < least()) length_ = least();
        if (length_ > limit_) length_ = limit_;
        sleep_avoided();
    }

    /// No event came: the sleep counts as longer than the limit.
    void sleep_timed_out() noexcept {
        if (!sleeping()) return;
        length_ /= 2;
        if (length_ < least()) length_ = Duration(0);
        sleep_avoided();
    }

private:
    Duration least() const noexcept { return limit_ / 8; }
    bool sleeping() const noexcept { return adaptive_ && empty_since_ != Time::min(); }

    Duration limit_;
    bool adaptive_;
    bool yields_;
    Duration length_;
    Time empty_since_ = Time::min(); // min(): no sleep in progress
};

} // namespace detail

/// The completion protocol, as plain calls.
///
///   1. **Poll** the CQ. Completions: deliver them. The hot path ends here, in user space.
///   2. Empty and not armed: **arm**, then poll again: a completion may have arrived between the
///      poll and the arm, and the arm reports only later ones.
///   3. Still empty: **wait** until fd() is readable. This step is the caller's.
///   4. Readable: **consume** the event. The CQ is now unarmed; the event is counted for a later
///      **ack**, many at a time, because an ack takes a lock.
///   5. Back to 1. A wake is a hint to look again, never a promise of a completion.
///
/// An outstanding arm is not repeated, so at most one event is pending at a time.
///
///     for (;;) {
///         while (std::size_t n = poller.poll_or_arm(wcs)) handle(wcs.first(n));
///         wait_until_readable(poller.fd());
///         poller.consume();
///     }
///
/// A thread that does nothing else makes fd() blocking, with fcntl(2), after the construction. Then
/// consume() waits, and the step before it, with its system call, is left out.
///
/// Takes the CQ over: no other code may poll it, arm it or read events of its channel. An event of
/// another CQ on the same channel is acked to that CQ, but does not wake its waiters; for that, see
/// SharedChannel.
/// Errors: a failing verb throws a std::system_error that names it. The CQ then stays unusable.
/// Thread safety: none; one thread at a time. Lifetime: neither copied nor moved. The destructor
/// acks the consumed events and releases the CQ, which is destroyed with the last queue pair that
/// uses it.
class CqPoller {
public:
    /// `ack_batch`: number of events that are acked together, at least 1. Sets O_NONBLOCK on the
    /// channel. Throws std::system_error (invalid_argument) for a batch of 0.
    explicit CqPoller(CompletionQueue cq, unsigned ack_batch = 16)
        : CqPoller(std::move(cq), AsyncCqOptions{ack_batch, {}, {}, false}) {}

    /// With all options but max_wait, which is the caller's: see forget_arm(). Throws
    /// std::system_error (invalid_argument) also for a negative duration.
    CqPoller(CompletionQueue cq, const AsyncCqOptions& options);
    CqPoller(const CqPoller&) = delete;
    CqPoller& operator=(const CqPoller&) = delete;
    ~CqPoller() { flush_acks(); }

    /// Step 1: moves completions to the front of `wcs` and returns their number, 0 if there are
    /// none. Throws invalid_argument if `wcs` is empty. If the CQ has timestamps, and `timestamps`
    /// is not null, it receives those of the completions, and must have as many elements as `wcs`.
    /// See ibv_poll_cq(3).
    std::size_t poll(std::span<ibv_wc> wcs, std::uint64_t* timestamps = nullptr);

    /// Steps 1 and 2: as poll(), but 0 means that the CQ is armed and was empty after that, so
    /// waiting for fd() cannot miss a completion. See ibv_req_notify_cq(3).
    std::size_t poll_or_arm(std::span<ibv_wc> wcs, std::uint64_t* timestamps = nullptr);

    /// True after poll_or_arm() has returned 0, until the next poll or event (invariant I1).
    bool may_wait() const noexcept { return may_wait_; }

    /// True if no completion was polled between the last two arms, as after a spurious wake. Some
    /// devices (mana) lose such an arm: bound the wait for fd(), and call forget_arm() after it.
    bool arm_may_be_lost() const noexcept { return arm_may_be_lost_; }

    /// Step 4: reads an event of this CQ, without blocking unless fd() was made blocking. False:
    /// there was none, the wake was spurious. See ibv_get_cq_event(3).
    bool consume();

    /// Step 4 for `events` of this CQ, at least one, that were read from the channel by other code
    /// and not acked.
    void credit(unsigned events);

    /// Makes the next poll_or_arm() arm again although an arm is outstanding: for a caller that
    /// has waited so long that the kernel may have dropped the event.
    void forget_arm() noexcept {
        armed_ = may_wait_ = false;
        spin_.sleep_timed_out();
    }

    /// Acks the consumed events, and destroys the CQ as CompletionQueue::close() does. After
    /// success this object may only be destroyed.
    [[nodiscard]] std::error_code close() noexcept {
        flush_acks();
        return cq_.close();
    }

    /// The completion channel's file descriptor, to wait for; owned by the channel.
    int fd() const noexcept { return channel_->fd; }

    /// The CQ, for creating queue pairs.
    const CompletionQueue& completion_queue() const noexcept { return cq_; }

    /// The number of calls so far.
    const CqStatistics& statistics() const noexcept { return statistics_; }

private:
    // Apart from poll(), which stays small enough to be inlined.
    [[gnu::cold]] std::size_t poll_extended(std::span<ibv_wc> wcs, std::uint64_t* timestamps);
    [[gnu::cold]] std::size_t spin(std::span<ibv_wc> wcs, std::uint64_t* timestamps);
    void arm();
    void count_events(unsigned count) noexcept;
    void flush_acks() noexcept;

    CompletionQueue cq_;
    ibv_cq* const native_;
    ibv_cq_ex* const extended_;
    ibv_comp_channel* const channel_;
    const unsigned ack_batch_;
    const bool solicited_only_;
    detail::AdaptiveSpin spin_;
    unsigned unacked_ = 0;
    bool armed_ = false;
    bool may_wait_ = false;
    bool arm_may_be_lost_ = false;
    std::uint64_t completions_at_arm_ = UINT64_MAX; // at the last arm
    CqStatistics statistics_;
};

inline CqPoller::CqPoller(CompletionQueue cq, const AsyncCqOptions& options)
    : cq_(std::move(cq)), native_(detail::checked(cq_.shared_handle(), "CompletionQueue").get()),
      extended_(cq_.extended_handle()), channel_(native_->channel), ack_batch_(options.ack_batch),
      solicited_only_(options.solicited_only), spin_(options.busy_poll) {
    if (options.ack_batch == 0 || options.max_wait.count() < 0 ||
        options.busy_poll.limit.count() < 0) {
        detail::throw_error(std::errc::invalid_argument,
                            "AsyncCqOptions: ack_batch must be at least 1, max_wait and "
                            "busy_poll.limit at least 0");
    }
    detail::set_non_blocking(channel_->fd); // the program may have made it blocking
}

inline std::size_t CqPoller::poll(std::span<ibv_wc> wcs, std::uint64_t* timestamps) {
    if (wcs.empty()) {
        detail::throw_error(std::errc::invalid_argument, "the span for completions is empty");
    }
    may_wait_ = false;
    ++statistics_.polls;
    if (extended_ != nullptr) return poll_extended(wcs, timestamps);
    const auto capacity = wcs.size() < INT_MAX ? static_cast<int>(wcs.size()) : INT_MAX;
    const int polled = ibv_poll_cq(native_, capacity, wcs.data());
    // A negative result is not an errno, and errno is not set (I5).
    if (polled < 0) throw_verb_error("ibv_poll_cq", EIO);
    if (polled == 0) return 0;
    statistics_.completions += static_cast<unsigned>(polled);
    return static_cast<std::size_t>(polled);
}

inline std::size_t CqPoller::poll_extended(std::span<ibv_wc> wcs, std::uint64_t* timestamps) {
    const std::size_t polled = detail::poll_extended(extended_, cq_.wc_flags(), wcs, timestamps);
    statistics_.completions += polled;
    return polled;
}

inline std::size_t CqPoller::poll_or_arm(std::span<ibv_wc> wcs, std::uint64_t* timestamps) {
    if (const std::size_t polled = poll(wcs, timestamps)) return polled;
    if (!armed_) {
        if (spin_.enabled()) {
            if (const std::size_t polled = spin(wcs, timestamps)) return polled;
        }
        arm();
        // Poll again: a completion may have arrived between the poll and the arm (I1).
        if (const std::size_t polled = poll(wcs, timestamps)) {
            spin_.sleep_avoided();
            return polled;
        }
    }
    may_wait_ = true;
    return 0;
}

inline std::size_t CqPoller::spin(std::span<ibv_wc> wcs, std::uint64_t* timestamps) {
    using Clock = detail::AdaptiveSpin::Clock;
    const auto begin = Clock::now();
    while (Clock::now() - begin < spin_.length()) {
        if (spin_.yields()) ::sched_yield();
        ++statistics_.busy_polls;
        if (const std::size_t polled = poll(wcs, timestamps)) return polled;
    }
    spin_.sleep_begins(begin);
    return 0;
}

inline void CqPoller::arm() {
    ++statistics_.arms;
    errno = 0;
    if (const int result = ibv_req_notify_cq(native_, solicited_only_ ? 1 : 0)) {
        throw_verb_error("ibv_req_notify_cq", detail::verb_errno(result));
    }
    armed_ = true;
    const std::uint64_t before = std::exchange(completions_at_arm_, statistics_.completions);
    arm_may_be_lost_ = before == completions_at_arm_;
}

namespace detail {

/// Reads an event and returns the CQ that it names; null if there is none. The caller acks it.
/// Throws std::system_error naming ibv_get_cq_event.
inline ibv_cq* get_cq_event(ibv_comp_channel* channel) {
    for (;;) {
        ibv_cq* source = nullptr;
        void* context = nullptr;
        errno = 0;
        const int result = ibv_get_cq_event(channel, &source, &context);
        if (result == 0) return source;
        const int error = verb_errno(result);
        if (error == EINTR) continue;
        if (error == EAGAIN) return nullptr;
        throw_verb_error("ibv_get_cq_event", error);
    }
}

} // namespace detail

inline bool CqPoller::consume() {
    may_wait_ = false;
    ++statistics_.wakes;
    while (ibv_cq* const source = detail::get_cq_event(channel_)) {
        if (source == native_) {
            count_events(1);
            return true;
        }
        // Credit the event to its own CQ (I4), and read on: an event of this CQ may be behind it,
        // for which an edge-triggered notifier will not fire again (I3).
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
    if (spin_.adaptive()) spin_.sleep_ended(detail::AdaptiveSpin::Clock::now());
    statistics_.events += count;
    if ((unacked_ += count) >= ack_batch_) flush_acks();
}

inline void CqPoller::flush_acks() noexcept {
    if (unacked_ == 0) return;
    statistics_.acks += unacked_;
    // The last touch of the CQ (I4): once acked, it may be destroyed.
    ibv_ack_cq_events(native_, std::exchange(unacked_, 0));
}

} // namespace asyncverbs
