// SPDX-License-Identifier: MIT
// The AsyncCqs that exist. A device reports the failure of a completion queue not on the queue's
// own channel but on its channel for asynchronous events; from there it has to find the waiters.
#pragma once

#include <infiniband/verbs.h>

#include <mutex>

#include <asyncverbs/core/detail/cq_reaper.hpp>
#include <asyncverbs/core/detail/intrusive_list.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs::detail {

// Thread-safe: an event may be read on another thread than the one that runs the AsyncCq.
template <class Use>
class CqRegistry {
public:
    static CqRegistry& instance() {
        static CqRegistry registry;
        return registry;
    }

    void add(CqReaper<Use>& reaper) {
        const std::lock_guard lock(mutex_);
        reapers_.push_back(reaper);
    }

    void remove(CqReaper<Use>& reaper) {
        const std::lock_guard lock(mutex_);
        reaper.unlink();
    }

    /// Fails those that `event` of `device` leaves without a future.
    void report(ibv_context* device, const ibv_async_event& event) {
        while (const std::shared_ptr<CqReaper<Use>> reaper = next_failing(device, event)) {
            reaper->interrupt(); // calls its notifier, hence with no lock held
        }
    }

private:
    // One that has not heard of it.
    std::shared_ptr<CqReaper<Use>> next_failing(ibv_context* device, const ibv_async_event& event) {
        const std::lock_guard lock(mutex_);
        const auto fails = [&](CqReaper<Use>& reaper) {
            const ibv_cq* const cq = reaper.poller().completion_queue().native_handle();
            const bool concerned =
                event.event_type == IBV_EVENT_CQ_ERR
                    ? event.element.cq == cq
                    : event.event_type == IBV_EVENT_DEVICE_FATAL && cq->context == device;
            return concerned && reaper.report(event.event_type);
        };
        CqReaper<Use>* const reaper = reapers_.find_if(fails);
        return reaper == nullptr ? nullptr : reaper->shared_from_this();
    }

    Used<std::mutex, Use> mutex_;
    IntrusiveList<CqReaper<Use>> reapers_;
};

} // namespace asyncverbs::detail
