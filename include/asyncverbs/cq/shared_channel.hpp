// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

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
/// One file descriptor and one wait of the event loop serve all of them. A wake reads all events of
/// the channel and credits each to the CQ that it names (invariant I4); the waiters of that CQ are
/// resumed, in the order of the events. CQs may be created and destroyed at any time, also while
/// others are awaited, and by a coroutine that was just resumed. Otherwise an AsyncCq behaves as
/// with its own channel, where a wake costs one system call less (here the last read finds
/// nothing).
///
/// Errors: a failing notifier or ibv_get_cq_event(3) is final, for all CQs of the channel. An
/// exception that escapes from a coroutine ends the waiting for its CQ alone; of several in one
/// iteration of the loop, the first one is rethrown to the caller of the loop.
/// Thread safety: none, except for stop tokens: the channel and its CQs are used on the thread that
/// runs the notifier's loop. Lifetime: move-only; its AsyncCqs may outlive it, and keep the
/// channel.
template <class N>
class SharedChannel {
    using State = detail::SharedChannelState;

public:
    /// `notifier` waits for `channel.fd()`.
    SharedChannel(CompletionChannel channel, N notifier)
        : channel_(std::move(channel)), state_(make_state(channel_, std::move(notifier))) {}

    /// Creates the channel. Loop as in AsyncCq::create(). Throws std::system_error as
    /// CompletionChannel and the notifier do.
    template <class Loop>
    SharedChannel(const Context& context, Loop& loop)
        : channel_(context), state_(make_state(channel_, detail::loop_notifier(loop, channel_))) {}

    /// The channel, for creating completion queues. All of them must be awaited through this
    /// object.
    const CompletionChannel& channel() const noexcept { return channel_; }

    /// A notifier for the events of `cq` alone, for one wait at a time; it makes this class a Loop
    /// for AsyncCq::create().
    /// Throws std::system_error: invalid_argument if `cq` is on another channel,
    /// device_or_resource_busy if it has a notifier already.
    detail::ChannelNotifier<TimedCqNotifier<N>> notifier(const CompletionQueue& cq) {
        const auto& native = detail::checked(cq.shared_handle(), "CompletionQueue");
        if (native->channel != channel_.native_handle()) {
            detail::throw_error(std::errc::invalid_argument,
                                "the completion queue is not on this SharedChannel");
        }
        return {state_, native};
    }

private:
    static std::shared_ptr<State> make_state(const CompletionChannel& channel, N notifier) {
        detail::check_cq_notifier<N>();
        auto state = std::make_shared<State>(channel.shared_handle());
        if constexpr (CqNotifier<N>) { // otherwise report only the error above
            detail::WaitLoop::start(state, std::move(notifier));
        }
        // The wait loop owns the state, too: close it when the last other reference is released.
        return {state.get(), [state](State*) { state->close(); }};
    }

    CompletionChannel channel_;
    std::shared_ptr<State> state_;
};

/// The notifier is the one that `loop` makes.
template <class Loop>
SharedChannel(const Context&, Loop& loop) -> SharedChannel<detail::loop_notifier_t<Loop>>;

} // namespace asyncverbs
