// SPDX-License-Identifier: MIT
// For how long an empty CQ is polled now: the whole limit, or what it has paid lately to poll.
#pragma once

#include <asyncverbs/core/busy_poll.hpp>
#include <asyncverbs/verbs/detail/chrono.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs::detail {

template <class Use>
class BusyPollWindow {
public:
    using Clock = std::chrono::steady_clock;
    using Duration = Used<std::chrono::nanoseconds, Use>;
    using Time = Used<Clock::time_point, Use>;

    explicit BusyPollWindow(const BusyPoll& options) noexcept
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
