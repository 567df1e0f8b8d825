// SPDX-License-Identifier: MIT
// A shared receive queue and what is posted to it. Its queue pairs keep it: as long as one exists,
// the device may write to the buffers.
#pragma once

#include <utility>

#include <asyncverbs/rdma/detail/router_state.hpp>
#include <asyncverbs/rdma/detail/work_queue.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/protection_domain.hpp>
#include <asyncverbs/verbs/shared_receive_queue.hpp>

namespace asyncverbs::detail {

template <class Use>
struct SharedReceiveState {
    SharedReceiveState(std::shared_ptr<RouterState<Use>> owner, const ProtectionDomain& domain,
                       const SharedReceiveQueueOptions& options)
        : router(std::move(owner)), queue(domain, options),
          receives(*router, queue.native_handle(), options.max_wr, options.max_sge) {}
    SharedReceiveState(const SharedReceiveState&) = delete;
    SharedReceiveState& operator=(const SharedReceiveState&) = delete;

    // The device lets go of the buffers before the slots do.
    ~SharedReceiveState() { const SharedReceiveQueue gone(std::move(queue)); }

    const std::shared_ptr<RouterState<Use>> router;
    SharedReceiveQueue queue;
    WorkQueue<Use> receives;
};

} // namespace asyncverbs::detail
