// SPDX-License-Identifier: MIT
// Receives that any of several queue pairs may take, awaited.
#pragma once

#include <stop_token>
#include <utility>

#include <asyncverbs/rdma/detail/shared_receive_state.hpp>
#include <asyncverbs/rdma/operation.hpp>
#include <asyncverbs/rdma/router.hpp>
#include <asyncverbs/rdma/slices.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>
#include <asyncverbs/verbs/protection_domain.hpp>
#include <asyncverbs/verbs/shared_receive_queue.hpp>

namespace asyncverbs {

/// A shared receive queue on the completion queue of a Router. Queue pairs of the same router are
/// made with it, see AsyncQp; the Completion of a receive says by qp_num() which of them took it.
///
/// Thread: that of the router. Lifetime: its queue pairs keep the queue, and with it the receives
/// that are posted; they end with operation_canceled when the last of them all is destroyed.
/// Move-only; only to be destroyed or assigned to when moved from.
template <class Use>
class BasicAsyncSrq {
public:
    /// Throws as SharedReceiveQueue does.
    BasicAsyncSrq(BasicRouter<Use>& router, const ProtectionDomain& domain,
                  const SharedReceiveQueueOptions& options = {})
        : state_(
              std::make_shared<detail::SharedReceiveState<Use>>(router.state_, domain, options)) {}

    BasicAsyncSrq(BasicAsyncSrq&&) noexcept = default;
    BasicAsyncSrq& operator=(BasicAsyncSrq&&) noexcept = default;

    /// As AsyncQp::recv(): posted by the call, or as soon as there is room.
    BasicOperation<Use> recv(Slices slices, std::stop_token stop = {}) {
        return BasicOperation<Use>(state_->receives, std::move(stop), slices);
    }
    /// The same; for code that awaits it later, to read better.
    BasicOperation<Use> post_recv(Slices slices, std::stop_token stop = {}) {
        return recv(slices, std::move(stop));
    }

    /// For its limit and its native handle; posting and destroying are this object's.
    [[nodiscard]] SharedReceiveQueue& shared_receive_queue() noexcept { return state_->queue; }

private:
    template <class>
    friend class BasicAsyncQp;

    std::shared_ptr<detail::SharedReceiveState<Use>> state_;
};

/// The AsyncSrq of programs: compiled only where it is used, but otherwise as a class.
using AsyncSrq = BasicAsyncSrq<OnUse>;

} // namespace asyncverbs
