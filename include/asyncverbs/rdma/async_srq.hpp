// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

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

/// A shared receive queue on the completion queue of a Router: receives for several queue pairs of
/// the same router, see AsyncQp. The qp_num() of a Completion says which of them took the receive.
///
/// Thread: that of the router. Lifetime: its queue pairs keep the queue and the posted receives,
/// which end with operation_canceled when the last of this and the queue pairs is destroyed.
/// Move-only; a moved-from AsyncSrq can only be destroyed or assigned to.
class AsyncSrq {
public:
    /// Throws as SharedReceiveQueue does.
    AsyncSrq(Router& router, const ProtectionDomain& domain,
             const SharedReceiveQueueOptions& options = {})
        : state_(std::make_shared<detail::SharedReceiveState>(router.state_, domain, options)) {}

    AsyncSrq(AsyncSrq&&) noexcept = default;
    AsyncSrq& operator=(AsyncSrq&&) noexcept = default;

    /// As AsyncQp::recv().
    Operation recv(Slices slices, std::stop_token stop = {}) {
        Operation operation(std::move(stop));
        state_->receives.submit(operation, slices);
        return operation;
    }
    /// The same, a better name in code that awaits it later.
    Operation post_recv(Slices slices, std::stop_token stop = {}) {
        return recv(slices, std::move(stop));
    }

    /// For its limit and its native handle. Posts what was gathered before, see AsyncQp. Do not
    /// post to it or destroy it.
    [[nodiscard]] SharedReceiveQueue& shared_receive_queue() noexcept {
        state_->receives.flush();
        return state_->queue;
    }

private:
    friend class AsyncQp;

    std::shared_ptr<detail::SharedReceiveState> state_;
};

} // namespace asyncverbs
