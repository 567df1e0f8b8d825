// SPDX-License-Identifier: MIT
// Receives that any of several queue pairs may take, awaited.
#pragma once

#include <memory>
#include <stop_token>
#include <utility>

#include <asyncverbs/rdma/detail/queue_pair_state.hpp>
#include <asyncverbs/rdma/operation.hpp>
#include <asyncverbs/rdma/router.hpp>
#include <asyncverbs/rdma/send_request.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/shared_receive_queue.hpp>

namespace asyncverbs {

/// A shared receive queue on the completion queue of a Router. Queue pairs of the same router are
/// made with it, see AsyncQp; the Completion of a receive says by qp_num() which of them took it.
///
/// Thread: that of the router. Lifetime: its queue pairs keep the queue, and with it the receives
/// that are posted; they end with operation_canceled when the last of them all is destroyed.
/// Move-only; only to be destroyed or assigned to when moved from.
class AsyncSrq {
public:
    /// Throws as SharedReceiveQueue does.
    AsyncSrq(Router& router, const ProtectionDomain& domain,
             const SharedReceiveQueueOptions& options = {})
        : state_(std::make_shared<detail::SharedReceiveState>(router.state_, domain, options)) {}

    AsyncSrq(AsyncSrq&&) noexcept = default;
    AsyncSrq& operator=(AsyncSrq&&) noexcept = default;

    /// As AsyncQp::recv(): posted by the call, or as soon as there is room.
    Operation recv(Slices slices, std::stop_token stop = {}) {
        return Operation(state_->receives, std::move(stop), slices);
    }
    /// The same; for code that awaits it later, to read better.
    Operation post_recv(Slices slices, std::stop_token stop = {}) {
        return recv(slices, std::move(stop));
    }

    /// For its limit and its native handle; posting and destroying are this object's.
    [[nodiscard]] SharedReceiveQueue& shared_receive_queue() noexcept { return state_->queue; }

private:
    friend class AsyncQp;

    std::shared_ptr<detail::SharedReceiveState> state_;
};

} // namespace asyncverbs
