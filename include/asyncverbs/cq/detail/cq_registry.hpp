// SPDX-License-Identifier: MIT
#pragma once

#include <infiniband/verbs.h>

#include <mutex>
#include <optional>
#include <stop_token>

#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/cq/detail/cq_state.hpp>

namespace asyncverbs::detail {

// All AsyncCqs of the process. A device reports the failure of a CQ on its channel for asynchronous
// events, not on the completion channel: DeviceEvents finds the waiters here (I10). Thread-safe,
// since the event may be read by another thread than the AsyncCq's.
class CqRegistry {
public:
    static CqRegistry& instance() {
        static CqRegistry registry;
        return registry;
    }

    void add(CqState& state) {
        const std::lock_guard lock(mutex_);
        states_.push_back(state);
    }

    void remove(CqState& state) {
        const std::lock_guard lock(mutex_);
        state.unlink();
    }

    /// Fails the CQs that will get no completions after `event` of `device`.
    void report(ibv_context* device, const ibv_async_event& event) {
        while (std::optional<std::stop_source> wake = next_failing(device, event)) {
            wake->request_stop(); // calls the notifier, hence with no lock held (I8)
        }
    }

private:
    // What wakes one to which this was not reported before. Not a reference to the CqState: if it
    // became the last one, ibv_destroy_cq would run on this thread, and wait for this thread to ack
    // the event (I8).
    std::optional<std::stop_source> next_failing(ibv_context* device,
                                                 const ibv_async_event& event) {
        const std::lock_guard lock(mutex_);
        const auto fails = [&](CqState& state) {
            const ibv_cq* const cq = state.poller().completion_queue().native_handle();
            const bool concerned =
                event.event_type == IBV_EVENT_CQ_ERR
                    ? event.element.cq == cq
                    : event.event_type == IBV_EVENT_DEVICE_FATAL && cq->context == device;
            return concerned && state.report_failure(event.event_type);
        };
        CqState* const state = states_.find_if(fails);
        if (state == nullptr) return std::nullopt;
        return state->prepare_wake();
    }

    std::mutex mutex_;
    IntrusiveList<CqState> states_;
};

} // namespace asyncverbs::detail
