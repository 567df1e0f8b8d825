// SPDX-License-Identifier: MIT
// The notifier of one CQ of a SharedChannel: "readable" is an event that names this CQ.
#pragma once

#include <coroutine>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/core/detail/channel_hub.hpp>
#include <asyncverbs/core/detail/channel_member.hpp>
#include <asyncverbs/core/detail/deadline.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/detail/chrono.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs::detail {

template <bool timed, class Use>
class ChannelReadable {
public:
    ChannelReadable(ChannelMember<timed, Use>& member, std::stop_token stop,
                    typename Deadline<Use>::Clock::time_point deadline) noexcept
        : member_(member), stop_(std::move(stop)), deadline_(deadline) {}
    ChannelReadable(const ChannelReadable&) = delete;
    ChannelReadable& operator=(const ChannelReadable&) = delete;
    ~ChannelReadable() { member_.leave(); }

    bool await_ready() const noexcept { return member_.ready(stop_); }
    std::coroutine_handle<> await_suspend(std::coroutine_handle<> coroutine) {
        return member_.wait(coroutine, stop_, deadline_);
    }
    std::error_code await_resume() const { return member_.result(stop_); }

private:
    ChannelMember<timed, Use>& member_;
    std::stop_token stop_;
    typename Deadline<Use>::Clock::time_point deadline_;
};

/// Models CqNotifier, and if `timed` TimedCqNotifier. Reads the events itself: see take_events().
template <bool timed, class Use>
class ChannelNotifier {
public:
    ChannelNotifier(std::shared_ptr<ChannelHub<timed, Use>> hub, Handle<ibv_cq, Use> cq)
        : member_(std::make_unique<ChannelMember<timed, Use>>(std::move(hub), std::move(cq))) {}

    ChannelReadable<timed, Use> readable(std::stop_token stop) {
        return {*member_, std::move(stop), Deadline<Use>::never};
    }
    ChannelReadable<timed, Use> readable(std::stop_token stop, std::chrono::nanoseconds max_wait)
        requires timed
    {
        return {*member_, std::move(stop), Deadline<Use>::after(max_wait)};
    }

    bool is_of(const BasicCompletionQueue<Use>& cq) const noexcept {
        return member_->cq == cq.native_handle();
    }

    /// How many events of the CQ were read since the last call. The caller acks them.
    unsigned take_events() noexcept { return member_->take_events(); }

private:
    std::unique_ptr<ChannelMember<timed, Use>> member_; // the hub refers to it by address
};

} // namespace asyncverbs::detail
