// SPDX-License-Identifier: MIT
// For how long an empty CQ is polled now: the whole limit, or what it has paid lately to poll.
#pragma once

#include <asyncverbs/core/busy_poll.hpp>
#include <asyncverbs/verbs/detail/chrono.hpp>

namespace asyncverbs::detail {

class BusyPollWindow {
public:
    using Clock = std::chrono::steady_clock;

    explicit BusyPollWindow(const BusyPoll& options) noexcept
        : limit_(options.limit), adaptive_(options.adaptive),
          length_(adaptive_ ? std::chrono::nanoseconds(0) : limit_) {}

    bool enabled() const noexcept { return limit_.count() > 0; }
    bool adaptive() const noexcept { return adaptive_; }
    std::chrono::nanoseconds length() const noexcept { return length_; }

    /// The CQ was found empty.
    void begin(Clock::time_point now) noexcept { begun_ = now; }

    /// Something was found without a sleep: that says nothing about how long sleeps take.
    void end() noexcept { begun_ = Clock::time_point::min(); }

    /// The sleep that followed is over.
    void woke(Clock::time_point now) noexcept {
        if (!adaptive_ || begun_ == Clock::time_point::min()) return;
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
        if (!adaptive_ || begun_ == Clock::time_point::min()) return;
        shorten();
        end();
    }

private:
    std::chrono::nanoseconds least() const noexcept { return limit_ / 8; }
    void shorten() noexcept {
        length_ /= 2;
        if (length_ < least()) length_ = std::chrono::nanoseconds(0);
    }

    std::chrono::nanoseconds limit_;
    bool adaptive_;
    std::chrono::nanoseconds length_;
    Clock::time_point begun_ = Clock::time_point::min();
};

} // namespace asyncverbs::detail
