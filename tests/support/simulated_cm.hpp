// SPDX-License-Identifier: MIT
// Simulated connection manager: a link-time replacement for librdmacm on the simulated verbs. Both
// ends of a connection are in this process, and the network between them answers at once unless it
// is held. SimulatedVerbs treats its calls like verbs: it counts, hooks, fails and audits them. A
// call that would hang, such as destroying an identifier with events that were read and not
// acknowledged, fails the test instead.
#pragma once

#include "support/simulated_verbs.hpp"

#include <rdma/rdma_cma.h>

#include <string>
#include <string_view>

namespace asyncverbs::simulated {

// Declared after its SimulatedVerbs; all connections use the first device. One at a time. Its
// functions may be called from any thread.
class SimulatedCm {
public:
    SimulatedCm();
    ~SimulatedCm();
    SimulatedCm(const SimulatedCm&) = delete;
    SimulatedCm& operator=(const SimulatedCm&) = delete;

    // From now on this call succeeds, but its event never arrives.
    void hold(std::string_view call);
    // This event replaces the event of the next such call.
    void answer(std::string_view call, rdma_cm_event_type type, int status = 0,
                const std::string& data = {});
    // Queues an event that no call caused.
    void push(const rdma_cm_id* id, rdma_cm_event_type type, int status = 0,
              const std::string& data = {});

    // What the application passed to rdma_connect or rdma_accept.
    rdma_conn_param parameters(const rdma_cm_id* id) const;
    // The identifier that was created last.
    rdma_cm_id* newest() const;
};

} // namespace asyncverbs::simulated
