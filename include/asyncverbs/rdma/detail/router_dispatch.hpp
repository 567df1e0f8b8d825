// SPDX-License-Identifier: MIT
// How completions reach their work queues, and those who wait are resumed.
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <cstddef>
#include <span>
#include <system_error>
#include <utility>

#include <asyncverbs/rdma/detail/router_state.hpp>
#include <asyncverbs/rdma/detail/work_queue.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>

namespace asyncverbs::detail {

template <class Use>
inline void RouterState<Use>::deliver(std::size_t count) {
    dispatch(std::span(this->completions).first(count));
    resume_ready();
}

template <class Use>
inline void RouterState<Use>::interrupted() {
    dismiss_stopped();
    resume_ready();
}

template <class Use>
inline void RouterState<Use>::fail(const std::system_error& cause) {
    if (!failure_) {
        failure_ = std::make_shared<std::system_error>(cause);
        for (const Route& route : routes_) {
            if (route.queue != nullptr) route.queue->fail_all(failure_);
        }
    }
    resume_ready();
}

// Settles all of a batch before anybody is resumed.
template <class Use>
inline void RouterState<Use>::dispatch(std::span<const ibv_wc> wcs) {
    for (const ibv_wc& wc : wcs) {
        if (wc.status != IBV_WC_SUCCESS) [[unlikely]]
            note_causes(wcs);
        if (WorkQueue<Use>* const queue = find(wc.wr_id)) queue->complete(wc);
    }
}

// The cause of a flush may be behind it in the batch: the two queues of a pair are flushed each for
// itself.
template <class Use>
inline void RouterState<Use>::note_causes(std::span<const ibv_wc> wcs) const noexcept {
    for (const ibv_wc& wc : wcs) {
        if (wc.status == IBV_WC_SUCCESS || wc.status == IBV_WC_WR_FLUSH_ERR) continue;
        const WorkQueue<Use>* const queue = find(wc.wr_id);
        if (queue == nullptr || queue->cause() == nullptr) continue;
        FlushCause& cause = *queue->cause();
        if (cause.status == IBV_WC_SUCCESS) cause = {wc.status, wc.vendor_err};
    }
}

template <class Use>
inline void RouterState<Use>::dismiss_stopped() noexcept {
    IntrusiveList<Stoppable> stopped;
    stoppable_.move_if(stopped, [](const Stoppable& stoppable) {
        return stoppable.requested.load(std::memory_order_acquire);
    });
    while (!stopped.empty()) make_ready(stopped.take_front().waiter);
}

template <class Use>
inline void RouterState<Use>::resume_ready() {
    struct Resuming {
        explicit Resuming(RouterState& s) noexcept : state(s) { state.resuming_ = true; }
        ~Resuming() {
            state.resuming_ = false;
            if (state.closed_) const auto last = std::move(state.alive_);
        }
        RouterState& state;
    };
    const Resuming resuming(*this);
    while (!ready_.empty() && !closed_) {
        ready_.take_front().coroutine.resume(); // may destroy queue pairs, and the router
    }
}

} // namespace asyncverbs::detail
