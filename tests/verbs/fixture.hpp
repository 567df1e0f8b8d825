// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

#include <cstddef>
#include <vector>

namespace asyncverbs::support {

// The parents of a queue pair: declare it after SimulatedVerbs.
struct Parents {
    explicit Parents(int depth = 64)
        : context(Context::open()), domain(context), cq(context, depth) {}

    QueuePair queue_pair(const QueuePairOptions& options = {}) const {
        return QueuePair(domain, cq, cq, options);
    }
    QueuePair queue_pair(const SharedReceiveQueue& receives,
                         const QueuePairOptions& options = {.max_send_wr = 4}) const {
        return QueuePair(domain, cq, cq, receives, options);
    }

    Context context;
    ProtectionDomain domain;
    CompletionQueue cq;
};

inline simulated::PortOptions port_in(ibv_port_state state) {
    simulated::PortOptions port;
    port.attr.state = state;
    return port;
}

// All queued completions.
inline std::vector<ibv_wc> poll(const CompletionQueue& cq) {
    std::vector<ibv_wc> wcs(static_cast<std::size_t>(cq.depth()));
    const int count = ibv_poll_cq(cq.native_handle(), cq.depth(), wcs.data());
    wcs.resize(static_cast<std::size_t>(count));
    return wcs;
}

} // namespace asyncverbs::support
