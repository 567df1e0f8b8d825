// SPDX-License-Identifier: MIT
// One CQ of a SharedChannel: the events that were read for it, and the coroutine, the pump of its
// AsyncCq, that waits for one.
#pragma once

#include <infiniband/verbs.h>

#include <coroutine>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/core/detail/channel_hub.hpp>
#include <asyncverbs/core/detail/deadline.hpp>
#include <asyncverbs/core/detail/maybe.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs::detail {

template <bool timed, class Use>
class ChannelMember : public ChannelNode<Use> {
    using Node = ChannelNode<Use>;
    using Node::deadline, Node::events, Node::stop, Node::waiting;

public:
    ChannelMember(std::shared_ptr<ChannelHub<timed, Use>> hub, Handle<ibv_cq, Use> owned)
        : Node(owned.get()), hub_(std::move(hub)), cq_(std::move(owned)) {
        hub_->add(*this);
    }
    ~ChannelMember() {
        on_stop_.reset();
        hub_->remove(*this);
        // What nobody took over is acked here, before the CQ goes (I4).
        if (const unsigned unclaimed = take_events()) ibv_ack_cq_events(cq_.get(), unclaimed);
    }

    unsigned take_events() noexcept { return std::exchange(events, 0u); }

    /// Whether there is no need to wait.
    bool ready(const std::stop_token& stop_token) const noexcept {
        return events > 0 || stop_token.stop_requested() || hub_->failure();
    }

    /// Lets `coroutine` wait, and returns what runs next.
    std::coroutine_handle<> wait(std::coroutine_handle<> coroutine, std::stop_token stop_token,
                                 typename Deadline<Use>::Clock::time_point until) {
        waiting = coroutine;
        deadline = until;
        // Registering a callback costs more than the rest of a wait. It stays, for the next wait
        // with the same token, and says nothing while nobody waits.
        if (stop_token != stop) {
            on_stop_.reset();
            stop = std::move(stop_token);
            if (stop.stop_possible()) on_stop_.emplace(stop, OnStop{*hub_});
        }
        return hub_->wait(*this);
    }

    /// Whoever waits does so no more.
    void leave() noexcept {
        this->unlink();
        waiting = nullptr;
    }

    /// How the wait has ended. Throws the failure of the channel.
    std::error_code result(const std::stop_token& stop_token) const {
        if (events > 0) return {};
        if (hub_->failure()) throw *hub_->failure();
        if (stop_token.stop_requested()) return std::make_error_code(std::errc::operation_canceled);
        return std::make_error_code(std::errc::timed_out);
    }

private:
    struct OnStop {
        ChannelHub<timed, Use>& hub;
        void operator()() const noexcept { hub.interrupt(); }
    };

    std::shared_ptr<ChannelHub<timed, Use>> hub_;
    Handle<ibv_cq, Use> cq_;
    Maybe<std::stop_callback<OnStop>> on_stop_;
};

} // namespace asyncverbs::detail
