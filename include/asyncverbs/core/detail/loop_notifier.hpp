// SPDX-License-Identifier: MIT
// How AsyncCq and SharedChannel get a notifier from an event loop: for a completion channel, if the
// loop knows what that is, else for its file descriptor.
#pragma once

#include <utility>

#include <asyncverbs/verbs/completion_channel.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs::detail {

// A SharedChannel, whose notifiers are for the completion queues on it.
template <class Loop>
concept has_channel = requires(Loop& loop) { loop.channel(); };

template <class Loop>
auto loop_notifier(Loop& loop, const Used<CompletionChannel, Loop>& channel) {
    if constexpr (requires { loop.notifier(channel); }) {
        return loop.notifier(channel);
    } else {
        return loop.notifier(channel.fd());
    }
}

template <class Loop>
using loop_notifier_t =
    decltype(loop_notifier(std::declval<Loop&>(), std::declval<const CompletionChannel&>()));

} // namespace asyncverbs::detail
