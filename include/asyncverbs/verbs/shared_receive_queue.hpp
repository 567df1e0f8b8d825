// SPDX-License-Identifier: MIT
// Receives that serve many queue pairs: whichever of them a message comes to takes the next one.
// So the memory for receives follows the traffic, not the number of connections.
#pragma once

#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>
#include <system_error>

#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/detail/cq_capacity.hpp>
#include <asyncverbs/verbs/detail/handle.hpp>
#include <asyncverbs/verbs/memory.hpp>

namespace asyncverbs {

/// What a shared receive queue is made with.
struct SharedReceiveQueueOptions {
    std::uint32_t max_wr = 16; ///< receives that may be outstanding
    std::uint32_t max_sge = 1; ///< scatter/gather elements of one receive
};

/// Owns a shared receive queue (ibv_srq); keeps its protection domain alive, its queue pairs keep
/// it. They are made with it, see QueuePair, and have no receives of their own.
///
/// A receive completes into the `recv_cq` of the queue pair that took it, which the completion
/// names in `qp_num`. A queue pair in the error state flushes what it has taken and no more:
/// IBV_EVENT_QP_LAST_WQE_REACHED, which DeviceEvents reports, says when that is all in its queue.
/// Receives that nobody takes do not complete; they end with this queue.
///
/// Capacity (invariant I10): the first queue pair that completes into a completion queue reserves
/// max_wr entries there, all others of the same two queues share them, and the last one that is
/// destroyed releases them. The application's part is to have no more receives outstanding than
/// max_wr: posted, and not polled yet.
///
/// Thread safety: none, but for queue pairs on several threads that are made with it.
/// Move-only. A moved-from SharedReceiveQueue owns nothing: native_handle() is nullptr, whatever
/// needs the native object fails with invalid_argument. See ibv_create_srq(3).
class SharedReceiveQueue {
public:
    /// Throws std::system_error: invalid_argument for options beyond the device's limits (saying
    /// them), else naming ibv_create_srq.
    explicit SharedReceiveQueue(const ProtectionDomain& domain,
                                const SharedReceiveQueueOptions& options = {})
        : options_(options) {
        const auto& pd = detail::checked(domain.shared_handle(), "ProtectionDomain");
        const std::string device = domain.context().name();
        const ibv_device_attr limits = domain.context().query_device();
        detail::check_range("max_wr", options.max_wr, 1, limits.max_srq_wr, device);
        detail::check_range("max_sge", options.max_sge, 0, limits.max_srq_sge, device);
        reservations_ = std::make_unique<detail::SharedReservations>(options.max_wr);
        ibv_srq_init_attr attr{};
        attr.attr.max_wr = options.max_wr;
        attr.attr.max_sge = options.max_sge;
        errno = 0;
        ibv_srq* native = ibv_create_srq(pd.get(), &attr);
        if (native == nullptr) {
            throw_verb_error("ibv_create_srq", detail::verb_errno());
        }
        srq_ = detail::own<ibv_destroy_srq>(native, pd);
    }

    SharedReceiveQueue(SharedReceiveQueue&&) noexcept = default;
    SharedReceiveQueue& operator=(SharedReceiveQueue&&) noexcept = default;

    /// Posts receives, a chain by `next`, whatever the states of the queue pairs. Throws
    /// std::system_error naming ibv_post_srq_recv: ENOMEM where the queue is full. Those before
    /// the failing one are posted all the same. Memory stays valid until the completion. See
    /// ibv_post_srq_recv(3).
    void post_recv(ibv_recv_wr& requests) {
        detail::post(ibv_post_srq_recv, "ibv_post_srq_recv", get(), requests);
    }

    /// The same for a request that is written where it is posted: post_recv({.wr_id = 1, …}).
    void post_recv(ibv_recv_wr&& request) { post_recv(request); }

    /// The form that does not throw: the first request that was not posted, nullptr on success.
    ibv_recv_wr* post_recv(ibv_recv_wr& requests, std::error_code& error) noexcept {
        return detail::post(ibv_post_srq_recv, srq_.get(), requests, error);
    }

    /// Asks for one IBV_EVENT_SRQ_LIMIT_REACHED as soon as fewer than `limit` receives are left.
    /// Throws std::system_error naming ibv_modify_srq.
    void arm_limit(std::uint32_t limit) {
        ibv_srq_attr attr{};
        attr.srq_limit = limit;
        errno = 0;
        if (const int result = ibv_modify_srq(get(), &attr, IBV_SRQ_LIMIT)) {
            throw_verb_error("ibv_modify_srq", detail::verb_errno(result));
        }
    }

    /// What the queue was made with; completion queues reserve max_wr entries.
    [[nodiscard]] const SharedReceiveQueueOptions& options() const noexcept { return options_; }

    /// For making queue pairs: the entries of `recv_cq` that the receives need.
    [[nodiscard]] std::shared_ptr<detail::CqReservation>
    reserve(const CompletionQueue& recv_cq) const {
        static_cast<void>(get());
        static_cast<void>(detail::checked(recv_cq.capacity(), "CompletionQueue"));
        return reservations_->reserve(recv_cq.capacity());
    }

    /// The native object, for verbs that this library does not cover; nullptr when moved from.
    [[nodiscard]] ibv_srq* native_handle() const noexcept { return srq_.get(); }

    /// Shares ownership: the queue and its domain live as long as the pointer, or a copy, exists.
    [[nodiscard]] const std::shared_ptr<ibv_srq>& shared_handle() const noexcept { return srq_; }

private:
    [[nodiscard]] ibv_srq* get() const { return detail::checked(srq_, "SharedReceiveQueue").get(); }

    SharedReceiveQueueOptions options_;
    std::unique_ptr<detail::SharedReservations> reservations_;
    detail::Handle<ibv_srq> srq_;
};

} // namespace asyncverbs
