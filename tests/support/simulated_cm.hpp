// SPDX-License-Identifier: MIT
//
// Simulated connection manager: a link-time stand-in for librdmacm over the simulated verbs. Both
// ends of a connection are in the process, and the network between them answers at once unless it
// is held. Its calls are verbs to SimulatedVerbs: counted, hooked, made to fail and audited there.
// What would wait for ever, such as destroying an identifier with events that were read and not
// acknowledged, fails the test instead.
#pragma once

#include "support/simulated_verbs.hpp"

#include <rdma/rdma_cma.h>

#include <string>
#include <string_view>

namespace asyncverbs::simulated {

// Declared after its SimulatedVerbs, whose first device all ways lead over; one at a time. Its
// functions may be called from any thread.
class SimulatedCm {
public:
    SimulatedCm();
    ~SimulatedCm();
    SimulatedCm(const SimulatedCm&) = delete;
    SimulatedCm& operator=(const SimulatedCm&) = delete;

    // From now on such a call succeeds and nothing follows: its event never comes.
    void hold(std::string_view call);
    // The next such call is followed by this event instead of its own.
    void answer(std::string_view call, rdma_cm_event_type type, int status = 0,
                const std::string& data = {});
    // An event out of nowhere.
    void push(const rdma_cm_id* id, rdma_cm_event_type type, int status = 0,
              const std::string& data = {});

    // The identifier that the application got last.
    rdma_cm_id* newest() const;
};

} // namespace asyncverbs::simulated
