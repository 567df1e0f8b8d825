// SPDX-License-Identifier: MIT
// Many completion queues on one completion channel: one file descriptor and one wait of the event
// loop for all of them.
#pragma once

#include <memory>
#include <system_error>
#include <utility>

#include <asyncverbs/cq/cq_notifier.hpp>
#include <asyncverbs/cq/detail/shared_channel_state.hpp>
#include <asyncverbs/cq/detail/wait_loop.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/device.hpp>

namespace asyncverbs {

/// A completion channel for any number of AsyncCqs.
///
///     SharedChannel channel(context, executor);
///     AsyncCq requests = AsyncCq::create(context, 256, channel);
///     AsyncCq replies = AsyncCq::create(context, 256, channel);
///
/// A wake reads all events of the channel and credits each to the CQ that it names (invariant I4);
/// who waits for that CQ is resumed, in the order of the events. CQs may come and go at any time,
/// also while others wait, and in a coroutine that was just resumed. All else is as with a channel
/// of one's own, whose wake costs one system call less (reading until nothing is left).
///
/// Errors: a failing notifier or ibv_get_cq_event(3) is final, for all CQs of the channel. An
/// exception that escapes from a coroutine ends the waiting for its CQ alone; of several in one
/// turn the first one leaves the loop.
/// Thread safety: none, but for stop tokens: the channel and its CQs live on the thread that runs
/// the notifier's loop. Lifetime: move-only; its AsyncCqs may outlive it and keep what they need.
template <class N>
class SharedChannel {
    using Hub = detail::SharedChannelState<TimedCqNotifier<N>>;

public:
    /// `notifier` waits for `channel.fd()`.
    SharedChannel(CompletionChannel channel, N notifier)
        : channel_(std::move(channel)), hub_(start_hub(channel_, std::move(notifier))) {}

    /// Creates the channel. Loop as in AsyncCq::create(). Throws std::system_error as
    /// CompletionChannel and the notifier do.
    template <class Loop>
    SharedChannel(const Context& context, Loop& loop)
        : channel_(context), hub_(start_hub(channel_, detail::loop_notifier(loop, channel_))) {}

    /// The channel, for creating completion queues: all of them are to be awaited through this.
    const CompletionChannel& channel() const noexcept { return channel_; }

    /// Waits for events of `cq` alone, once at a time; makes this a Loop for AsyncCq::create().
    /// Throws std::system_error: invalid_argument if `cq` is on another channel,
    /// device_or_resource_busy if it has a notifier already.
    detail::ChannelNotifier<TimedCqNotifier<N>> notifier(const CompletionQueue& cq) {
        const auto& native = detail::checked(cq.shared_handle(), "CompletionQueue");
        if (native->channel != channel_.native_handle()) {
            detail::throw_error(std::errc::invalid_argument,
                                "the completion queue is not on this SharedChannel");
        }
        return {hub_, native};
    }

private:
    static std::shared_ptr<Hub> start_hub(const CompletionChannel& channel, N notifier) {
        detail::check_cq_notifier<N>();
        auto hub = std::make_shared<Hub>(channel.shared_handle());
        if constexpr (CqNotifier<N>) { // else the error above is the only one
            detail::start_wait_loop(hub, std::move(notifier));
        }
        // Its pump refers to the hub as well, so what counts is who else does.
        return {hub.get(), [hub](Hub*) { hub->close(); }};
    }

    CompletionChannel channel_;
    std::shared_ptr<Hub> hub_;
};

/// The notifier is the one that `loop` makes.
template <class Loop>
SharedChannel(const Context&, Loop& loop) -> SharedChannel<detail::loop_notifier_t<Loop>>;

} // namespace asyncverbs
