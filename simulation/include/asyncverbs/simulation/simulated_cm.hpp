// SPDX-License-Identifier: MIT
#pragma once

#include <rdma/rdma_cma.h>

#include <string>
#include <string_view>

#include <asyncverbs/simulation/simulated_verbs.hpp>

namespace asyncverbs::simulated {

/// The simulated connection manager. Both ends of a connection are in this process, and the network
/// between them answers at once unless it is held. SimulatedVerbs treats its calls as verbs: it
/// counts, hooks, fails and audits them.
///
/// Declared after its SimulatedVerbs; all connections use the first device. One at a time. Thread:
/// all functions may be called from any thread.
class SimulatedCm {
public:
    SimulatedCm();
    ~SimulatedCm();
    SimulatedCm(const SimulatedCm&) = delete;
    SimulatedCm& operator=(const SimulatedCm&) = delete;

    /// From now on this call, as "rdma_connect", succeeds, but its event never arrives.
    void hold(std::string_view call);
    /// This event replaces the event of the next such call.
    void answer(std::string_view call, rdma_cm_event_type type, int status = 0,
                const std::string& data = {});
    /// Queues an event that no call has caused.
    void push(const rdma_cm_id* id, rdma_cm_event_type type, int status = 0,
              const std::string& data = {});

    /// What the program has passed to rdma_connect or rdma_accept.
    rdma_conn_param parameters(const rdma_cm_id* id) const;
    /// The identifier that was created last.
    rdma_cm_id* newest() const;
};

} // namespace asyncverbs::simulated
