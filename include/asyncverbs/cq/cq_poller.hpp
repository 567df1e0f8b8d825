// SPDX-License-Identifier: MIT
// Reads completion events from a channel: the one place that does. Each that was read is to be
// acked, to the CQ that it names.
#pragma once

#include <infiniband/verbs.h>

#include <cerrno>
#include <chrono>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <span>
#include <system_error>
#include <utility>

#include <asyncverbs/cq/async_cq_options.hpp>
#include <asyncverbs/cq/cq_statistics.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/detail/handle.hpp>
#include <asyncverbs/verbs/detail/verb_call.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

/// The CQ of the next event; null if there is none. Throws std::system_error naming
/// ibv_get_cq_event.
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

// For how long an empty CQ is polled now: the whole limit, or what it has paid lately to poll.

class AdaptiveSpin {
public:
    using Clock = std::chrono::steady_clock;
    using Duration = std::chrono::nanoseconds;
    using Time = Clock::time_point;

    explicit AdaptiveSpin(const BusyPoll& options) noexcept
        : limit_(options.limit), adaptive_(options.adaptive),
          length_(adaptive_ ? Duration(0) : limit_) {}

    bool enabled() const noexcept { return limit_.count() > 0; }
    bool adaptive() const noexcept { return adaptive_; }
    Duration length() const noexcept { return length_; }

    /// The CQ was found empty.
    void begin(Time now) noexcept { begun_ = now; }

    /// Something was found without a sleep: that says nothing about how long sleeps take.
    void end() noexcept { begun_ = Time::min(); }

    /// The sleep that followed is over.
    void woke(Time now) noexcept {
        if (!adaptive_ || begun_ == Time::min()) return;
        const auto idle = now - begun_;
        if (idle <= limit_) {
            length_ *= 2;
            if (length_ < least()) length_ = least();
            if (length_ > limit_) length_ = limit_;
        } else {
            shorten();
        }
        end();
    }

    /// It was given up before an event came: it counts as longer than the limit.
    void gave_up() noexcept {
        if (!adaptive_ || begun_ == Time::min()) return;
        shorten();
        end();
    }

private:
    Duration least() const noexcept { return limit_ / 8; }
    void shorten() noexcept {
        length_ /= 2;
        if (length_ < least()) length_ = Duration(0);
    }

    Duration limit_;
    bool adaptive_;
    Duration length_;
    Time begun_ = Time::min();
};

} // namespace asyncverbs::detail

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
    explicit CqPoller(CompletionQueue cq, unsigned ack_batch = 16)
        : CqPoller(std::move(cq), AsyncCqOptions{ack_batch, {}, {}, false}) {}

    /// With all options but max_wait, which is the caller's: see forget_arm(). Throws also for a
    /// negative busy_poll.limit.
    CqPoller(CompletionQueue cq, const AsyncCqOptions& options);
    CqPoller(const CqPoller&) = delete;
    CqPoller& operator=(const CqPoller&) = delete;
    ~CqPoller() { flush_acks(); }

    /// Step 1: moves completions to the front of `wcs` and returns how many, 0 if there are none.
    /// An empty `wcs` is an invalid_argument. Of a CQ with timestamps, those of the completions go
    /// to `timestamps`, unless it is null; it has as many elements as `wcs`. See ibv_poll_cq(3).
    std::size_t poll(std::span<ibv_wc> wcs, std::uint64_t* timestamps = nullptr);

    /// Steps 1 and 2: as poll(), but 0 means that the CQ is armed and was empty after that:
    /// waiting for fd() cannot miss a completion. See ibv_req_notify_cq(3).
    std::size_t poll_or_arm(std::span<ibv_wc> wcs, std::uint64_t* timestamps = nullptr);

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
    void forget_arm() noexcept {
        armed_ = may_wait_ = false;
        busy_poll_.gave_up();
    }

    /// The completion channel's file descriptor, to wait for; owned by the channel.
    int fd() const noexcept { return channel_->fd; }

    /// The CQ, for creating queue pairs.
    const CompletionQueue& completion_queue() const noexcept { return cq_; }

    /// What it has cost so far.
    const CqStatistics& statistics() const noexcept { return statistics_; }

private:
    // Apart from what is common, which is small enough to be inlined.
    [[gnu::cold]] std::size_t poll_extended(std::span<ibv_wc> wcs, std::uint64_t* timestamps);
    std::size_t arm_and_poll(std::span<ibv_wc> wcs, std::uint64_t* timestamps);
    [[gnu::cold]] std::size_t poll_busily(std::span<ibv_wc> wcs, std::uint64_t* timestamps);
    void arm();
    void count_events(unsigned count) noexcept;
    void flush_acks() noexcept;

    CompletionQueue cq_;
    ibv_cq* const native_;
    ibv_cq_ex* const extended_;
    ibv_comp_channel* const channel_;
    const unsigned ack_batch_;
    const bool solicited_only_;
    detail::AdaptiveSpin busy_poll_;
    unsigned unacked_ = 0;
    bool armed_ = false;
    bool may_wait_ = false;
    CqStatistics statistics_;
};

inline CqPoller::CqPoller(CompletionQueue cq, const AsyncCqOptions& options)
    : cq_(std::move(cq)), native_(detail::checked(cq_.shared_handle(), "CompletionQueue").get()),
      extended_(cq_.extended_handle()), channel_(native_->channel), ack_batch_(options.ack_batch),
      solicited_only_(options.solicited_only), busy_poll_(options.busy_poll) {
    if (options.ack_batch == 0) {
        detail::throw_error(std::errc::invalid_argument,
                            "an ack batch of 0 events: at least 1 is needed");
    }
    if (options.busy_poll.limit.count() < 0) {
        detail::throw_error(std::errc::invalid_argument, "BusyPoll: the limit is negative");
    }
    detail::set_non_blocking(channel_->fd); // somebody may have made it blocking
}

[[gnu::always_inline]] inline std::size_t CqPoller::poll(std::span<ibv_wc> wcs,
                                                         std::uint64_t* timestamps) {
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

[[gnu::always_inline]] inline std::size_t CqPoller::poll_or_arm(std::span<ibv_wc> wcs,
                                                                std::uint64_t* timestamps) {
    if (const std::size_t polled = poll(wcs, timestamps)) return polled;
    return arm_and_poll(wcs, timestamps);
}

[[gnu::always_inline]] inline std::size_t CqPoller::arm_and_poll(std::span<ibv_wc> wcs,
                                                                 std::uint64_t* timestamps) {
    if (!armed_) {
        if (busy_poll_.enabled()) {
            if (const std::size_t polled = poll_busily(wcs, timestamps)) return polled;
        }
        arm();
        // A completion may have landed between the poll and the arm (I1).
        if (const std::size_t polled = poll(wcs, timestamps)) {
            busy_poll_.end();
            return polled;
        }
    }
    may_wait_ = true;
    return 0;
}

inline std::size_t CqPoller::poll_busily(std::span<ibv_wc> wcs, std::uint64_t* timestamps) {
    using Clock = typename detail::AdaptiveSpin::Clock;
    const auto begin = Clock::now();
    while (Clock::now() - begin < busy_poll_.length()) {
        ++statistics_.busy_polls;
        if (const std::size_t polled = poll(wcs, timestamps)) return polled;
    }
    busy_poll_.begin(begin);
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
    if (busy_poll_.adaptive()) busy_poll_.woke(detail::AdaptiveSpin::Clock::now());
    statistics_.events += count;
    if ((unacked_ += count) >= ack_batch_) flush_acks();
}

[[gnu::always_inline]] inline void CqPoller::arm() {
    ++statistics_.arms;
    errno = 0;
    if (const int result = ibv_req_notify_cq(native_, solicited_only_ ? 1 : 0)) {
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
