// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <cstdint>
#include <memory>
#include <string>
#include <system_error>

#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/detail/cq_capacity.hpp>
#include <asyncverbs/verbs/detail/native.hpp>
#include <asyncverbs/verbs/memory.hpp>

namespace asyncverbs {

/// The capacities of a SharedReceiveQueue.
struct SharedReceiveQueueOptions {
    std::uint32_t max_wr = 16; ///< receives that may be outstanding
    std::uint32_t max_sge = 1; ///< scatter/gather elements of one receive
};

/// Owns a shared receive queue (ibv_srq): receives that serve many queue pairs, each message taking
/// the next one, so that the memory for receives depends on the traffic and not on the number of
/// connections. A queue pair is constructed with it, see QueuePair, keeps it alive, and has no
/// receives of its own. Keeps its protection domain alive.
///
/// A receive completes into the `recv_cq` of the queue pair that took it; `qp_num` of the
/// completion names that queue pair. A queue pair in the error state flushes only the receives that
/// it has taken. IBV_EVENT_QP_LAST_WQE_REACHED, which DeviceEvents reports, says that all of them
/// are in its completion queue. Receives that no queue pair takes never complete; they are dropped
/// when this queue is destroyed.
///
/// Capacity (invariant I10): the first queue pair that completes into a completion queue reserves
/// max_wr entries there. The other queue pairs with the same two queues share them; the last one
/// that is destroyed releases them. The application must not have more than max_wr receives
/// outstanding: posted, and their completions not polled yet.
///
/// Thread safety: none, except that queue pairs may be constructed with it on several threads.
/// Move-only. A moved-from SharedReceiveQueue owns nothing: native_handle() is nullptr, functions
/// that need the native object fail with invalid_argument. See ibv_create_srq(3).
class SharedReceiveQueue {
public:
    /// Throws std::system_error: invalid_argument, with the limits, for options beyond those of the
    /// device, else naming ibv_create_srq.
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
        srq_ = detail::own<ibv_destroy_srq>(
            detail::create("ibv_create_srq", [&] { return ibv_create_srq(pd.get(), &attr); }), pd);
    }

    /// A queue that the program has already, see borrow(), with the capacities that the device
    /// reports. Throws std::system_error: invalid_argument for nullptr, else naming ibv_query_srq.
    explicit SharedReceiveQueue(const std::shared_ptr<ibv_srq>& handle)
        : srq_(detail::adopted(handle, "ibv_srq")) {
        ibv_srq_attr attr{};
        detail::call("ibv_query_srq", [&] { return ibv_query_srq(srq_.get(), &attr); });
        options_ = {.max_wr = attr.max_wr, .max_sge = attr.max_sge};
        reservations_ = std::make_unique<detail::SharedReservations>(options_.max_wr);
    }

    SharedReceiveQueue(SharedReceiveQueue&&) noexcept = default;
    SharedReceiveQueue& operator=(SharedReceiveQueue&&) noexcept = default;

    /// Destroys the queue, and reports as Context::close() does: device_or_resource_busy while a
    /// queue pair uses it.
    [[nodiscard]] std::error_code close() noexcept { return detail::close(srq_); }

    /// Posts `requests`, a chain linked by `next`, in any state of the queue pairs. Throws
    /// std::system_error naming ibv_post_srq_recv: ENOMEM if the queue is full. Requests before
    /// the failing one are posted. Their memory must stay valid until they complete. See
    /// ibv_post_srq_recv(3).
    void post_recv(ibv_recv_wr& requests) {
        detail::post(ibv_post_srq_recv, "ibv_post_srq_recv", get(), requests);
    }

    /// The same for a temporary: post_recv({.wr_id = 1, …}).
    void post_recv(ibv_recv_wr&& request) { post_recv(request); }

    /// Posts one receive into `slice`. Throws as above, and as Slice::sge() does.
    void post_recv(std::uint64_t wr_id, const Slice& slice) {
        ibv_sge sge = slice.sge();
        post_recv({.wr_id = wr_id, .next = nullptr, .sg_list = &sge, .num_sge = 1});
    }

    /// The form that does not throw: returns the first request that was not posted, nullptr on
    /// success.
    ibv_recv_wr* post_recv(ibv_recv_wr& requests, std::error_code& error) noexcept {
        return detail::post(ibv_post_srq_recv, srq_.get(), requests, error);
    }

    /// Requests one IBV_EVENT_SRQ_LIMIT_REACHED, when fewer than `limit` receives are left.
    /// Throws std::system_error naming ibv_modify_srq.
    void arm_limit(std::uint32_t limit) {
        ibv_srq_attr attr{};
        attr.srq_limit = limit;
        detail::call("ibv_modify_srq", [&] { return ibv_modify_srq(get(), &attr, IBV_SRQ_LIMIT); });
    }

    /// The options of the constructor; completion queues reserve max_wr entries.
    [[nodiscard]] const SharedReceiveQueueOptions& options() const noexcept { return options_; }

    /// For the constructor of QueuePair: reserves the entries of `recv_cq` that the receives need.
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
