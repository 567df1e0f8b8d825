// SPDX-License-Identifier: MIT
// The file descriptor through which completion queues say that they have something.
// Non-blocking from the start, so that reading an event that is not there cannot stop a loop.
#pragma once

#include <cerrno>
#include <utility>

#include <asyncverbs/verbs/context.hpp>
#include <asyncverbs/verbs/detail/handle.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/non_blocking.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs {

/// Owns a completion event channel (ibv_comp_channel); keeps its device open.
/// Move-only. A moved-from CompletionChannel owns nothing: native_handle() is nullptr, fd() is -1.
/// See ibv_create_comp_channel(3).
template <class Use>
class BasicCompletionChannel {
public:
    /// Throws std::system_error naming ibv_create_comp_channel or fcntl.
    explicit BasicCompletionChannel(const BasicContext<Use>& context) {
        const auto& device = detail::alive(context.shared_handle(), "Context");
        errno = 0;
        ibv_comp_channel* native = ibv_create_comp_channel(device.get());
        if (native == nullptr) {
            throw_verb_error("ibv_create_comp_channel", detail::verb_errno());
        }
        channel_ = detail::own<ibv_destroy_comp_channel, Use>(native, device);
        detail::set_non_blocking(fd());
    }

    BasicCompletionChannel(BasicCompletionChannel&&) noexcept = default;
    BasicCompletionChannel& operator=(BasicCompletionChannel&&) noexcept = default;

    /// Readable while an event is queued; in non-blocking mode. Only ibv_get_cq_event(3) may read
    /// from it. Closed with the channel: an event loop must have let go of it by then.
    [[nodiscard]] int fd() const noexcept { return channel_ ? channel_->fd : -1; }

    /// The native object, for verbs that this library does not cover; nullptr when moved from.
    [[nodiscard]] ibv_comp_channel* native_handle() const noexcept { return channel_.get(); }

    /// Shares ownership: the channel and its device live as long as the pointer, or a copy, exists.
    [[nodiscard]] const std::shared_ptr<ibv_comp_channel>& shared_handle() const noexcept {
        return channel_;
    }

private:
    template <class>
    friend class BasicCompletionQueue;
    explicit BasicCompletionChannel(detail::Handle<ibv_comp_channel, Use> handle) noexcept
        : channel_(std::move(handle)) {}

    detail::Handle<ibv_comp_channel, Use> channel_;
};

/// The CompletionChannel of programs: compiled only where it is used, but otherwise as a class.
using CompletionChannel = BasicCompletionChannel<OnUse>;

} // namespace asyncverbs
