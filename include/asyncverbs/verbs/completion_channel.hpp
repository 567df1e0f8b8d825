// SPDX-License-Identifier: MIT
// The file descriptor through which completion queues say that they have something.
// Non-blocking from the start, so that reading an event that is not there cannot stop a loop.
#pragma once

#include <cerrno>
#include <memory>
#include <utility>

#include <asyncverbs/verbs/context.hpp>
#include <asyncverbs/verbs/detail/handle.hpp>
#include <asyncverbs/verbs/detail/non_blocking.hpp>

namespace asyncverbs {

/// Owns a completion event channel (ibv_comp_channel); keeps its device open.
/// Move-only. A moved-from CompletionChannel owns nothing: native_handle() is nullptr, fd() is -1.
/// See ibv_create_comp_channel(3).
class CompletionChannel {
public:
    /// Throws std::system_error naming ibv_create_comp_channel or fcntl.
    explicit CompletionChannel(const Context& context) {
        const std::shared_ptr<ibv_context>& device =
            detail::alive(context.shared_handle(), "Context");
        errno = 0;
        ibv_comp_channel* native = ibv_create_comp_channel(device.get());
        if (native == nullptr) {
            throw_verb_error("ibv_create_comp_channel", detail::verb_errno());
        }
        channel_ = detail::own<ibv_destroy_comp_channel>(native, device);
        detail::set_non_blocking(fd());
    }

    CompletionChannel(CompletionChannel&&) noexcept = default;
    CompletionChannel& operator=(CompletionChannel&&) noexcept = default;

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
    friend class CompletionQueue;
    explicit CompletionChannel(std::shared_ptr<ibv_comp_channel> handle) noexcept
        : channel_(std::move(handle)) {}

    std::shared_ptr<ibv_comp_channel> channel_;
};

} // namespace asyncverbs
