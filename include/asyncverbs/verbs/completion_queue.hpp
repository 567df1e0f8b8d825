// SPDX-License-Identifier: MIT
// The queue that completions arrive in, together with the channel that announces them.
// It carries its channel, so the two cannot be mismatched, and the account of its capacity, so that
// queue pairs cannot overrun it.
#pragma once

#include <cerrno>
#include <cstdint>
#include <optional>
#include <string>

#include <asyncverbs/verbs/completion_channel.hpp>
#include <asyncverbs/verbs/context.hpp>
#include <asyncverbs/verbs/detail/chrono.hpp>
#include <asyncverbs/verbs/detail/cq_capacity.hpp>
#include <asyncverbs/verbs/detail/extended_poll.hpp>
#include <asyncverbs/verbs/detail/handle.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

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
template <class Use>
class BasicCompletionQueue {
public:
    /// A queue of at least `depth` entries, with a channel of its own. `depth` is from 1 to the
    /// device's max_cqe; anything else throws std::system_error (invalid_argument) that says the
    /// range. `comp_vector` chooses the interrupt, from 0 to the device's num_comp_vectors - 1.
    /// Otherwise throws std::system_error naming the verb that failed.
    BasicCompletionQueue(const BasicContext<Use>& context, int depth, int comp_vector = 0)
        : BasicCompletionQueue(context, depth, BasicCompletionChannel<Use>(context), comp_vector) {}

    /// The same on a channel that several queues share. The channel must be of the same Context.
    BasicCompletionQueue(const BasicContext<Use>& context, int depth,
                         const BasicCompletionChannel<Use>& channel, int comp_vector = 0)
        : BasicCompletionQueue(context, depth, channel, comp_vector, std::nullopt) {}

    /// An extended queue. `wc_flags` says what its completions carry besides what ibv_wc holds:
    /// IBV_WC_EX_WITH_COMPLETION_TIMESTAMP, a count of the device's clock, whose frequency is
    /// hca_core_clock of ibv_query_device_ex(3), or IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK,
    /// nanoseconds of real time; get them by AsyncCq::poll_timestamped(). Throws also
    /// invalid_argument for other flags, and operation_not_supported naming ibv_create_cq_ex where
    /// the device has no such queues. See ibv_create_cq_ex(3).
    static BasicCompletionQueue extended(const BasicContext<Use>& context, int depth,
                                         std::uint64_t wc_flags, int comp_vector = 0) {
        return extended(context, depth, wc_flags, BasicCompletionChannel<Use>(context),
                        comp_vector);
    }

    /// The same on a channel that several queues share, which must be of the same Context.
    static BasicCompletionQueue extended(const BasicContext<Use>& context, int depth,
                                         std::uint64_t wc_flags,
                                         const BasicCompletionChannel<Use>& channel,
                                         int comp_vector = 0) {
        return BasicCompletionQueue(context, depth, channel, comp_vector, wc_flags);
    }

    BasicCompletionQueue(BasicCompletionQueue&&) noexcept = default;
    BasicCompletionQueue& operator=(BasicCompletionQueue&&) noexcept = default;

    /// How many entries the device gave: at least what was asked for.
    [[nodiscard]] int depth() const noexcept { return cq_ ? cq_->cqe : 0; }

    /// How many entries the queue pairs on this queue have reserved; at most depth().
    [[nodiscard]] int reserved() const noexcept {
        return capacity_ ? static_cast<int>(capacity_->reserved()) : 0;
    }

    /// At most one event for `max_count` completions, or for those of `max_period`, up to 65,535
    /// microseconds, whichever comes first: fewer interrupts for more latency. Zeros turn it off.
    /// Throws std::system_error: invalid_argument for a period out of range, or naming
    /// ibv_modify_cq, with operation_not_supported where the device cannot. See ibv_modify_cq(3).
    void moderate(std::uint16_t max_count, std::chrono::microseconds max_period) const {
        detail::check_range("moderation period in microseconds", max_period.count(), 0, 65'535,
                            context_.name());
        ibv_modify_cq_attr attributes{};
        attributes.attr_mask = IBV_CQ_ATTR_MODERATE;
        attributes.moderate.cq_count = max_count;
        attributes.moderate.cq_period = static_cast<std::uint16_t>(max_period.count());
        errno = 0;
        const auto& native = detail::alive(cq_, "CompletionQueue");
        if (const int result = ibv_modify_cq(native.get(), &attributes)) {
            throw_verb_error("ibv_modify_cq", detail::verb_errno(result));
        }
    }

    /// The channel that announces this queue's completions.
    [[nodiscard]] const BasicCompletionChannel<Use>& channel() const noexcept { return channel_; }

    /// The device that the queue belongs to.
    [[nodiscard]] const BasicContext<Use>& context() const noexcept { return context_; }

    /// The account of the queue's entries, which the queue pairs on it share; nullptr when moved
    /// from.
    [[nodiscard]] const std::shared_ptr<detail::CqCapacity<Use>>& capacity() const noexcept {
        return capacity_;
    }

    /// The native object, for verbs that this library does not cover; nullptr when moved from.
    [[nodiscard]] ibv_cq* native_handle() const noexcept { return cq_.get(); }

    /// nullptr unless the queue is an extended one.
    [[nodiscard]] ibv_cq_ex* extended_handle() const noexcept {
        // What ibv_cq_ex_to_cq() does, backwards.
        return wc_flags_ ? reinterpret_cast<ibv_cq_ex*>(cq_.get()) : nullptr;
    }

    /// What was asked for when the extended queue was made; else 0.
    [[nodiscard]] std::uint64_t wc_flags() const noexcept { return wc_flags_.value_or(0); }

    /// Shares ownership: the queue and its parents live as long as the pointer, or a copy, exists.
    [[nodiscard]] const std::shared_ptr<ibv_cq>& shared_handle() const noexcept { return cq_; }

private:
    BasicCompletionQueue(const BasicContext<Use>& context, int depth,
                         const BasicCompletionChannel<Use>& channel, int comp_vector,
                         detail::Used<std::optional<std::uint64_t>, Use> wc_flags);

    ibv_cq* create(int depth, int comp_vector) const;

    BasicContext<Use> context_;
    BasicCompletionChannel<Use> channel_;
    detail::Handle<ibv_cq, Use> cq_;
    detail::Used<std::optional<std::uint64_t>, Use> wc_flags_; // of an extended queue
    std::shared_ptr<detail::CqCapacity<Use>> capacity_;
};

/// The CompletionQueue of programs: compiled only where it is used, but otherwise as a class.
using CompletionQueue = BasicCompletionQueue<OnUse>;

template <class Use>
inline BasicCompletionQueue<Use>::BasicCompletionQueue(
    const BasicContext<Use>& context, int depth, const BasicCompletionChannel<Use>& channel,
    int comp_vector, detail::Used<std::optional<std::uint64_t>, Use> wc_flags)
    : context_(detail::alive(context.shared_handle(), "Context")),
      channel_(detail::alive(channel.shared_handle(), "CompletionChannel")), wc_flags_(wc_flags) {
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
    if ((this->wc_flags() & ~detail::timestamp_flags) != 0) {
        detail::throw_error(std::errc::invalid_argument,
                            "wc_flags of an extended completion queue that are no timestamps");
    }
    cq_ = detail::own<ibv_destroy_cq, Use>(create(depth, comp_vector), channel_.shared_handle(),
                                           context_.shared_handle());
    capacity_ = std::make_shared<detail::CqCapacity<Use>>(static_cast<std::uint64_t>(cq_->cqe));
}

template <class Use>
inline ibv_cq* BasicCompletionQueue<Use>::create(int depth, int comp_vector) const {
    ibv_context* const context = context_.native_handle();
    errno = 0;
    if (!wc_flags_) {
        ibv_cq* native =
            ibv_create_cq(context, depth, nullptr, channel_.native_handle(), comp_vector);
        if (native == nullptr) throw_verb_error("ibv_create_cq", detail::verb_errno());
        return native;
    }
    ibv_cq_init_attr_ex attributes{};
    attributes.cqe = static_cast<std::uint32_t>(depth);
    attributes.channel = channel_.native_handle();
    attributes.comp_vector = static_cast<std::uint32_t>(comp_vector);
    attributes.wc_flags = IBV_WC_STANDARD_FLAGS | *wc_flags_;
    ibv_cq_ex* native = ibv_create_cq_ex(context, &attributes);
    if (native == nullptr) throw_verb_error("ibv_create_cq_ex", detail::verb_errno());
    return ibv_cq_ex_to_cq(native);
}

} // namespace asyncverbs
