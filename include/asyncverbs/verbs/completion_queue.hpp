// SPDX-License-Identifier: MIT
// The queue that completions arrive in, together with the channel that announces them.
// It carries its channel, so the two cannot be mismatched, and the account of its capacity, so that
// queue pairs cannot overrun it.
#pragma once

#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>

#include <asyncverbs/verbs/completion_channel.hpp>
#include <asyncverbs/verbs/context.hpp>
#include <asyncverbs/verbs/detail/cq_capacity.hpp>
#include <asyncverbs/verbs/detail/handle.hpp>

namespace asyncverbs {

/// Owns a completion queue (ibv_cq); keeps its channel and device alive, its queue pairs keep it.
/// Whoever reads events of the queue from the channel acknowledges each (ibv_ack_cq_events(3))
/// before the last owner goes, for ibv_destroy_cq waits for that. AsyncCq does so by itself.
///
/// Capacity (invariant I10): every queue pair made on the queue reserves an entry for each work
/// request that it may have outstanding, and cannot be made where they do not fit. See QueuePair.
///
/// Move-only. A moved-from CompletionQueue owns nothing: native_handle() is nullptr, depth() is 0,
/// making a queue pair on it throws invalid_argument. See ibv_create_cq(3).
class CompletionQueue {
public:
    /// A queue of at least `depth` entries, with a channel of its own. `depth` is from 1 to the
    /// device's max_cqe; anything else throws std::system_error (invalid_argument) that says the
    /// range. `comp_vector` chooses the interrupt, from 0 to the device's num_comp_vectors - 1.
    /// Otherwise throws std::system_error naming the verb that failed.
    CompletionQueue(const Context& context, int depth, int comp_vector = 0)
        : CompletionQueue(context, depth, CompletionChannel(context), comp_vector) {}

    /// The same on a channel that several queues share. The channel must be of the same Context.
    CompletionQueue(const Context& context, int depth, const CompletionChannel& channel,
                    int comp_vector = 0)
        : context_(detail::alive(context.shared_handle(), "Context")),
          channel_(detail::alive(channel.shared_handle(), "CompletionChannel")) {
        if (channel_.native_handle()->context != context_.native_handle()) {
            detail::throw_error(std::errc::invalid_argument,
                                "the completion channel belongs to another Context");
        }
        const std::string device = context_.name();
        detail::check_range("completion queue depth", depth, 1, context_.query_device().max_cqe,
                            device);
        // 0 is valid everywhere, also on a device that reports no vectors at all.
        if (comp_vector != 0) {
            detail::check_range("completion vector", comp_vector, 0,
                                context_.native_handle()->num_comp_vectors - 1, device);
        }
        errno = 0;
        ibv_cq* native = ibv_create_cq(context_.native_handle(), depth, nullptr,
                                       channel_.native_handle(), comp_vector);
        if (native == nullptr) {
            throw_verb_error("ibv_create_cq", detail::verb_errno());
        }
        cq_ =
            detail::own(native, ibv_destroy_cq, channel_.shared_handle(), context_.shared_handle());
        capacity_ = std::make_shared<detail::CqCapacity>(static_cast<std::uint64_t>(cq_->cqe));
    }

    CompletionQueue(CompletionQueue&&) noexcept = default;
    CompletionQueue& operator=(CompletionQueue&&) noexcept = default;

    /// How many entries the device gave: at least what was asked for.
    [[nodiscard]] int depth() const noexcept { return cq_ ? cq_->cqe : 0; }

    /// How many entries the queue pairs on this queue have reserved; at most depth().
    [[nodiscard]] int reserved() const noexcept {
        return capacity_ ? static_cast<int>(capacity_->reserved()) : 0;
    }

    /// The channel that announces this queue's completions.
    [[nodiscard]] const CompletionChannel& channel() const noexcept { return channel_; }

    /// The device that the queue belongs to.
    [[nodiscard]] const Context& context() const noexcept { return context_; }

    /// The account of the queue's entries, which the queue pairs on it share; nullptr when moved
    /// from.
    [[nodiscard]] const std::shared_ptr<detail::CqCapacity>& capacity() const noexcept {
        return capacity_;
    }

    /// The native object, for verbs that this library does not cover; nullptr when moved from.
    [[nodiscard]] ibv_cq* native_handle() const noexcept { return cq_.get(); }

    /// Shares ownership: the queue and its parents live as long as the pointer, or a copy, exists.
    [[nodiscard]] const std::shared_ptr<ibv_cq>& shared_handle() const noexcept { return cq_; }

private:
    Context context_;
    CompletionChannel channel_;
    std::shared_ptr<ibv_cq> cq_;
    std::shared_ptr<detail::CqCapacity> capacity_;
};

} // namespace asyncverbs
