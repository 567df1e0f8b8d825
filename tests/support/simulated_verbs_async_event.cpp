// SPDX-License-Identifier: MIT
//
// The simulated verbs of asynchronous events. Those about a queue pair or a queue are accounted for
// like completion events: destroying it waits for the acknowledgements.
#include "support/simulated_verbs_state.hpp"

#include <cerrno>

namespace asyncverbs::simulated {

void Simulation::queue_async_event(Context& context, const ibv_async_event& event) {
    context.async_events.push(event);
}

namespace {

// The account of the object that an event is about; null for events of the port or the device.
EventAccount* account_of(Simulation& simulation, Verb verb, const ibv_async_event& event) {
    switch (event.event_type) {
    case IBV_EVENT_CQ_ERR: {
        auto* cq = simulation.check<CompletionQueue>(verb, event.element.cq);
        return cq == nullptr ? nullptr : &cq->async_events;
    }
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
    case IBV_EVENT_COMM_EST:
    case IBV_EVENT_SQ_DRAINED:
    case IBV_EVENT_PATH_MIG:
    case IBV_EVENT_PATH_MIG_ERR:
    case IBV_EVENT_QP_LAST_WQE_REACHED: {
        auto* qp = simulation.check<QueuePair>(verb, event.element.qp);
        return qp == nullptr ? nullptr : &qp->async_events;
    }
    case IBV_EVENT_SRQ_ERR:
    case IBV_EVENT_SRQ_LIMIT_REACHED: {
        auto* srq = simulation.check<SharedReceiveQueue>(verb, event.element.srq);
        return srq == nullptr ? nullptr : &srq->async_events;
    }
    default:
        return nullptr;
    }
}

} // namespace

} // namespace asyncverbs::simulated

using namespace asyncverbs::simulated;
using Lock = Simulation::Lock;

extern "C" int ibv_get_async_event(ibv_context* context, ibv_async_event* event) {
    return run_int(
        Verb::get_async_event, context, [&](Simulation& simulation, Lock& lock) -> Outcome {
            while (true) {
                Context* source = simulation.check<Context>(Verb::get_async_event, context);
                if (source == nullptr) {
                    return {.error = EINVAL};
                }
                if (source->async_events.at_end()) {
                    return {.error = EIO};
                }
                const int fd = source->async_events.fd();
                lock.unlock();
                const int error = read_token(fd);
                lock.lock();
                if (error != 0) {
                    source->async_events.read_failed();
                    return {.error = error};
                }
                if (const auto read = source->async_events.pop()) {
                    *event = *read;
                    if (EventAccount* account =
                            account_of(simulation, Verb::get_async_event, *read)) {
                        ++account->reported;
                    }
                    return {};
                }
            }
        });
}

extern "C" void ibv_ack_async_event(ibv_async_event* event) {
    run(Verb::ack_async_event, event, [&](Simulation& simulation, Lock&) {
        EventAccount* account = account_of(simulation, Verb::ack_async_event, *event);
        if (account == nullptr) {
            return Outcome{};
        }
        if (account->acked == account->reported) {
            simulation.record(Verb::ack_async_event, "an event that was not read, or twice");
            return Outcome{};
        }
        ++account->acked;
        return Outcome{};
    });
}
