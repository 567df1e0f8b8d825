// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>

#include <asyncverbs/cq/async_cq_options.hpp>

namespace asyncverbs::detail {

// For how long an empty CQ is polled before it is armed: BusyPoll::limit, or, if adaptive, a length
// that follows the recent sleeps. A sleep is the time from when the CQ was found empty until an
// event is read.
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
    Duration length_;
    Time empty_since_ = Time::min(); // min(): no sleep in progress
};

} // namespace asyncverbs::detail
