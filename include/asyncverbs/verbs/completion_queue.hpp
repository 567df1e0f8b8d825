// SPDX-License-Identifier: MIT
// Completion queues, and the channels on which they report completion events.
#pragma once

#include <asyncverbs/requirements.hpp>

#include <infiniband/verbs.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#include <asyncverbs/verbs/detail/cq_capacity.hpp>
#include <asyncverbs/verbs/detail/native.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs {

/// Owns a completion event channel (ibv_comp_channel): the file descriptor on which completion
/// queues report events. It is non-blocking: reading an event that is not there must not block an
/// event loop. Keeps its device open.
/// Move-only. A moved-from CompletionChannel owns nothing: native_handle() is nullptr, fd() is -1.
/// See ibv_create_comp_channel(3).
class CompletionChannel {
public:
    /// Throws std::system_error naming ibv_create_comp_channel or fcntl.
    explicit CompletionChannel(const Context& context) {
        const auto& device = detail::checked(context.shared_handle(), "Context");
        channel_ = detail::own<ibv_destroy_comp_channel>(
            detail::create("ibv_create_comp_channel",
                           [&] { return ibv_create_comp_channel(device.get()); }),
            device);
        detail::set_non_blocking(fd());
    }

    /// A channel that the program has already, see borrow(). Makes it non-blocking. Throws
    /// std::system_error: invalid_argument for nullptr, else naming fcntl.
    explicit CompletionChannel(const std::shared_ptr<ibv_comp_channel>& handle)
        : channel_(detail::adopted(handle, "ibv_comp_channel")) {
        detail::set_non_blocking(fd());
    }

    CompletionChannel(CompletionChannel&&) noexcept = default;
    CompletionChannel& operator=(CompletionChannel&&) noexcept = default;

    /// Destroys the channel, and reports as Context::close() does: device_or_resource_busy while a
    /// queue is on it.
    [[nodiscard]] std::error_code close() noexcept { return detail::close(channel_); }

    /// Readable while an event is queued; in non-blocking mode. Only ibv_get_cq_event(3) may read
    /// from it. It is closed with the channel: deregister it from the event loop before.
    [[nodiscard]] int fd() const noexcept { return channel_ ? channel_->fd : -1; }

    /// The native object, for verbs that this library does not cover; nullptr when moved from.
    [[nodiscard]] ibv_comp_channel* native_handle() const noexcept { return channel_.get(); }

    /// Shares ownership: the channel and its device live as long as the pointer, or a copy, exists.
    [[nodiscard]] const std::shared_ptr<ibv_comp_channel>& shared_handle() const noexcept {
        return channel_;
    }

private:
    friend class CompletionQueue;
    CompletionChannel() noexcept = default;

    // Another owner of the same channel.
    [[nodiscard]] CompletionChannel share() const {
        CompletionChannel other;
        other.channel_ = detail::checked(channel_, "CompletionChannel");
        return other;
    }

    detail::Handle<ibv_comp_channel> channel_;
};

/// Owns a completion queue (ibv_cq). Keeps its channel and device alive; its queue pairs keep it
/// alive. Code that reads events of the queue from the channel must acknowledge each of them
/// (ibv_ack_cq_events(3)) before the last owner is destroyed, because ibv_destroy_cq waits for the
/// acknowledgements. AsyncCq does both.
///
/// Capacity (invariant I10): every queue pair on the queue reserves an entry for each work request
/// that it may have outstanding; it cannot be created if they do not fit. See QueuePair.
///
/// Move-only. A moved-from CompletionQueue owns nothing: native_handle() is nullptr, depth() is 0,
/// creating a queue pair on it throws invalid_argument. See ibv_create_cq(3).
class CompletionQueue {
public:
    /// A queue of at least `depth` entries, with its own channel. `depth` is from 1 to max_cqe of
    /// the device. `comp_vector` selects the interrupt, from 0 to num_comp_vectors - 1 of the
    /// device. Throws std::system_error: invalid_argument, with the range, for a value out of
    /// range; else naming the verb that failed.
    CompletionQueue(const Context& context, int depth, int comp_vector = 0)
        : CompletionQueue(context, depth, CompletionChannel(context), comp_vector) {}

    /// The same on a channel that several queues share, which must be of the same Context.
    CompletionQueue(const Context& context, int depth, const CompletionChannel& channel,
                    int comp_vector = 0)
        : CompletionQueue(context, depth, channel, comp_vector, std::nullopt) {}

    /// An extended queue, whose completions carry more than ibv_wc holds. `wc_flags` is
    /// IBV_WC_EX_WITH_COMPLETION_TIMESTAMP, ticks of the device's clock, whose frequency is
    /// hca_core_clock of ibv_query_device_ex(3), or IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK,
    /// nanoseconds of real time; AsyncCq::poll_timestamped() returns them. Throws as the
    /// constructor, and also invalid_argument for other flags, and operation_not_supported naming
    /// ibv_create_cq_ex if the device has no such queues. See ibv_create_cq_ex(3).
    static CompletionQueue extended(const Context& context, int depth, std::uint64_t wc_flags,
                                    int comp_vector = 0) {
        return extended(context, depth, wc_flags, CompletionChannel(context), comp_vector);
    }

    /// The same on a channel that several queues share, which must be of the same Context.
    static CompletionQueue extended(const Context& context, int depth, std::uint64_t wc_flags,
                                    const CompletionChannel& channel, int comp_vector = 0) {
        return CompletionQueue(context, depth, channel, comp_vector, wc_flags);
    }

    /// A queue that the program has already, made by ibv_create_cq(3), see borrow(). Its channel
    /// and device are borrowed in any case. The program must have acknowledged the events that it
    /// has read, and reads no more. An event that is queued, or for which the queue is armed,
    /// disturbs nothing; the same may be so after an owner was destroyed, so the program then polls
    /// before it waits. `reserved` entries are kept for the work requests of queue pairs that the
    /// program has on the queue, except those of which a QueuePair is made, too. Throws
    /// std::system_error: invalid_argument for nullptr, for a queue without a channel, and for more
    /// reserved entries than there are; else naming fcntl.
    explicit CompletionQueue(std::shared_ptr<ibv_cq> handle, int reserved = 0)
        : context_(borrow(detail::adopted(handle, "ibv_cq")->context)),
          channel_(borrow(channel_of(*handle))), cq_(std::move(handle)),
          capacity_(std::make_shared<detail::CqCapacity>(static_cast<std::uint64_t>(cq_->cqe))) {
        detail::check_range("number of reserved entries", reserved, 0, cq_->cqe,
                            "the completion queue");
        static_cast<void>(capacity_->try_reserve(static_cast<std::uint64_t>(reserved)));
    }

    CompletionQueue(CompletionQueue&&) noexcept = default;
    CompletionQueue& operator=(CompletionQueue&&) noexcept = default;

    /// Destroys the queue, and its channel unless that has another owner, and reports as
    /// Context::close() does: device_or_resource_busy while a queue pair uses the queue, or another
    /// queue its channel. All events that were read must have been acked, see above.
    [[nodiscard]] std::error_code close() noexcept;

    /// The number of entries, at least what was requested.
    [[nodiscard]] int depth() const noexcept { return cq_ ? cq_->cqe : 0; }

    /// The number of entries that the queue pairs on this queue have reserved; at most depth().
    [[nodiscard]] int reserved() const noexcept {
        return capacity_ ? static_cast<int>(capacity_->reserved()) : 0;
    }

    /// Fewer interrupts, at the cost of latency: an event is reported only after `max_count`
    /// completions or after `max_period`, 0 to 65,535 microseconds, whichever comes first. Zeros
    /// turn it off. Throws std::system_error: invalid_argument for a period out of range, or naming
    /// ibv_modify_cq, with operation_not_supported if the device cannot do it. See
    /// ibv_modify_cq(3).
    void moderate(std::uint16_t max_count, std::chrono::microseconds max_period) const {
        detail::check_range("moderation period in microseconds", max_period.count(), 0, 65'535,
                            context_.name());
        ibv_modify_cq_attr attributes{};
        attributes.attr_mask = IBV_CQ_ATTR_MODERATE;
        attributes.moderate.cq_count = max_count;
        attributes.moderate.cq_period = static_cast<std::uint16_t>(max_period.count());
        const auto& native = detail::checked(cq_, "CompletionQueue");
        detail::call("ibv_modify_cq", [&] { return ibv_modify_cq(native.get(), &attributes); });
    }

    /// The channel on which the queue reports events.
    [[nodiscard]] const CompletionChannel& channel() const noexcept { return channel_; }

    /// The device that the queue belongs to.
    [[nodiscard]] const Context& context() const noexcept { return context_; }

    /// For constructors of queue pairs: the count of reserved entries. nullptr when moved from.
    [[nodiscard]] const std::shared_ptr<detail::CqCapacity>& capacity() const noexcept {
        return capacity_;
    }

    /// The native object, for verbs that this library does not cover; nullptr when moved from.
    [[nodiscard]] ibv_cq* native_handle() const noexcept { return cq_.get(); }

    /// nullptr unless the queue is an extended one.
    [[nodiscard]] ibv_cq_ex* extended_handle() const noexcept {
        // The reverse of ibv_cq_ex_to_cq().
        return wc_flags_ ? reinterpret_cast<ibv_cq_ex*>(cq_.get()) : nullptr;
    }

    /// The `wc_flags` of an extended queue; else 0.
    [[nodiscard]] std::uint64_t wc_flags() const noexcept { return wc_flags_.value_or(0); }

    /// Shares ownership: the queue and its parents live as long as the pointer, or a copy, exists.
    [[nodiscard]] const std::shared_ptr<ibv_cq>& shared_handle() const noexcept { return cq_; }

private:
    CompletionQueue(const Context& context, int depth, const CompletionChannel& channel,
                    int comp_vector, std::optional<std::uint64_t> wc_flags);

    ibv_cq* create(int depth, int comp_vector) const;

    static ibv_comp_channel* channel_of(const ibv_cq& cq) {
        if (cq.channel == nullptr) {
            detail::throw_error(std::errc::invalid_argument,
                                "the completion queue has no channel, so nothing can wait for it: "
                                "create it with one");
        }
        return cq.channel;
    }

    Context context_;
    CompletionChannel channel_;
    detail::Handle<ibv_cq> cq_;
    std::optional<std::uint64_t> wc_flags_; // of an extended queue
    std::shared_ptr<detail::CqCapacity> capacity_;
};

namespace detail {

inline constexpr std::uint64_t timestamp_flags =
    IBV_WC_EX_WITH_COMPLETION_TIMESTAMP | IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK;

// The current completion of the iteration. Fields that are not valid in an error completion are
// zero (I11).
inline ibv_wc read_wc(ibv_cq_ex* cq) {
    ibv_wc wc{};
    wc.wr_id = cq->wr_id;
    wc.status = cq->status;
    wc.qp_num = ibv_wc_read_qp_num(cq);
    if (wc.status != IBV_WC_SUCCESS) {
        wc.vendor_err = ibv_wc_read_vendor_err(cq);
        return wc;
    }
    wc.opcode = ibv_wc_read_opcode(cq);
    wc.wc_flags = ibv_wc_read_wc_flags(cq);
    wc.byte_len = ibv_wc_read_byte_len(cq);
    if (wc.wc_flags & (IBV_WC_WITH_IMM | IBV_WC_WITH_INV)) wc.imm_data = ibv_wc_read_imm_data(cq);
    wc.src_qp = ibv_wc_read_src_qp(cq);
    wc.slid = static_cast<std::uint16_t>(ibv_wc_read_slid(cq));
    wc.sl = ibv_wc_read_sl(cq);
    wc.dlid_path_bits = ibv_wc_read_dlid_path_bits(cq);
    return wc;
}

inline std::uint64_t read_timestamp(ibv_cq_ex* cq, std::uint64_t wc_flags) {
    if (cq->status != IBV_WC_SUCCESS) return 0;
    if (wc_flags & IBV_WC_EX_WITH_COMPLETION_TIMESTAMP) return ibv_wc_read_completion_ts(cq);
    return ibv_wc_read_completion_wallclock_ns(cq);
}

// ibv_poll_cq for a CQ that was created by ibv_create_cq_ex(3); also reads the timestamps, if the
// CQ has them and `timestamps` is not null. Returns the number of completions. Throws
// std::system_error naming ibv_start_poll.
inline std::size_t poll_extended(ibv_cq_ex* cq, std::uint64_t wc_flags, std::span<ibv_wc> wcs,
                                 std::uint64_t* timestamps) {
    ibv_poll_cq_attr attributes{};
    errno = 0;
    if (const int result = ibv_start_poll(cq, &attributes)) {
        const int error = verb_errno(result);
        if (error == ENOENT) return 0;
        throw_verb_error("ibv_start_poll", error);
    }
    std::size_t count = 0;
    do {
        if (timestamps && (wc_flags & timestamp_flags)) {
            timestamps[count] = read_timestamp(cq, wc_flags);
        }
        wcs[count++] = read_wc(cq);
        // Ignore an error of ibv_next_poll: the completions that were polled must be delivered
        // (I7), and the next ibv_start_poll reports it again.
    } while (count < wcs.size() && ibv_next_poll(cq) == 0);
    ibv_end_poll(cq);
    return count;
}

} // namespace detail

inline CompletionQueue::CompletionQueue(const Context& context, int depth,
                                        const CompletionChannel& channel, int comp_vector,
                                        std::optional<std::uint64_t> wc_flags)
    : context_(detail::checked(context.shared_handle(), "Context")), channel_(channel.share()),
      wc_flags_(wc_flags) {
    if (channel_.native_handle()->context != context_.native_handle()) {
        detail::throw_error(std::errc::invalid_argument,
                            "the completion channel belongs to another Context");
    }
    const std::string device = context_.name();
    detail::check_range("completion queue depth", depth, 1, context_.query_device().max_cqe,
                        device);
    // 0 is valid on every device, even on one that reports no vectors.
    if (comp_vector != 0) {
        detail::check_range("completion vector", comp_vector, 0,
                            context_.native_handle()->num_comp_vectors - 1, device);
    }
    if ((this->wc_flags() & ~detail::timestamp_flags) != 0) {
        detail::throw_error(std::errc::invalid_argument,
                            "wc_flags of an extended completion queue that are no timestamps");
    }
    cq_ = detail::own<ibv_destroy_cq>(create(depth, comp_vector), channel_.shared_handle(),
                                      context_.shared_handle());
    capacity_ = std::make_shared<detail::CqCapacity>(static_cast<std::uint64_t>(cq_->cqe));
}

inline std::error_code CompletionQueue::close() noexcept {
    if (const std::error_code error = detail::close(cq_)) return error;
    if (channel_.shared_handle().use_count() == 1) {
        if (const std::error_code error = channel_.close()) return error;
    }
    const CompletionQueue released(std::move(*this));
    return {};
}

inline ibv_cq* CompletionQueue::create(int depth, int comp_vector) const {
    ibv_context* const context = context_.native_handle();
    if (!wc_flags_) {
        return detail::create("ibv_create_cq", [&] {
            return ibv_create_cq(context, depth, nullptr, channel_.native_handle(), comp_vector);
        });
    }
    ibv_cq_init_attr_ex attributes{};
    attributes.cqe = static_cast<std::uint32_t>(depth);
    attributes.channel = channel_.native_handle();
    attributes.comp_vector = static_cast<std::uint32_t>(comp_vector);
    attributes.wc_flags = IBV_WC_STANDARD_FLAGS | *wc_flags_;
    return ibv_cq_ex_to_cq(
        detail::create("ibv_create_cq_ex", [&] { return ibv_create_cq_ex(context, &attributes); }));
}

} // namespace asyncverbs
