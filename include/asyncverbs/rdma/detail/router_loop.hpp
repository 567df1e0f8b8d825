// SPDX-License-Identifier: MIT
// The coroutine that drains the completion queue of a router.
#pragma once

#include <infiniband/verbs.h>

#include <coroutine>
#include <exception>
#include <memory>
#include <span>
#include <system_error>
#include <utility>

#include <asyncverbs/rdma/detail/router_state.hpp>
#include <asyncverbs/rdma/detail/work_queue.hpp>

namespace asyncverbs::detail {

struct RouterLoop {
    struct promise_type {
        RouterLoop get_return_object() noexcept {
            return {std::coroutine_handle<promise_type>::from_promise(*this)};
        }
        std::suspend_always initial_suspend() const noexcept { return {}; }
        std::suspend_never final_suspend() const noexcept { return {}; }
        void return_void() const noexcept {}
        [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); } // nothing does
    };

    static RouterLoop run(std::shared_ptr<RouterState> state) {
        while (!state->failure()) {
            co_await RouterState::Next(*state);
            state->running = true;
            state->turn();
            state->running = false;
        }
        state->loop = nullptr;
    }

    std::coroutine_handle<promise_type> handle;
};

inline void RouterState::turn() noexcept {
    try {
        if (request_.outcome == CqRequest::Outcome::delivered) {
            dispatch(request_.completions.first(request_.delivered));
        } else if (request_.outcome == CqRequest::Outcome::failed) {
            fail(std::make_shared<std::system_error>(reaper_->failure()));
        }
        if (waiter_.stop_requested.load(std::memory_order_acquire)) dismiss_stopped();
        resume_ready();
    } catch (...) {
        escape();
    }
}

// Called in a catch block. What a resumed coroutine lets escape belongs to whoever runs the loop:
// the pump of the completion queue, which has resumed the router, takes it there. It ends both.
inline void RouterState::escape() noexcept {
    reaper_->pump.escaped = std::current_exception();
    reaper_->fail();
    if (!failure_) fail(std::make_shared<std::system_error>(reaper_->failure()));
    while (!ready_.empty() && !closed_) {
        try {
            resume_ready();
        } catch (...) { // not the first
        }
    }
}

// Settles all of a batch before anybody is resumed.
inline void RouterState::dispatch(std::span<const ibv_wc> wcs) {
    for (const ibv_wc& wc : wcs) {
        if (wc.status != IBV_WC_SUCCESS) [[unlikely]] {
            note_causes(wcs);
            break;
        }
    }
    for (const ibv_wc& wc : wcs) {
        if (WorkQueue* const queue = find(wc.wr_id)) queue->complete(wc);
    }
}

// The cause of a flush may be behind it in the batch: the two queues of a pair are flushed each for
// itself.
inline void RouterState::note_causes(std::span<const ibv_wc> wcs) const noexcept {
    for (const ibv_wc& wc : wcs) {
        if (wc.status == IBV_WC_SUCCESS || wc.status == IBV_WC_WR_FLUSH_ERR) continue;
        const WorkQueue* const queue = find(wc.wr_id);
        if (queue == nullptr || queue->cause() == nullptr) continue;
        FlushCause& cause = *queue->cause();
        if (cause.status == IBV_WC_SUCCESS) cause = {wc.status, wc.vendor_err};
    }
}

inline void RouterState::dismiss_stopped() noexcept {
    waiter_.stop_requested.store(false, std::memory_order_relaxed);
    IntrusiveList<Stoppable> stopped;
    stoppable_.move_if(stopped, [](const Stoppable& stoppable) {
        return stoppable.requested.load(std::memory_order_acquire);
    });
    while (!stopped.empty()) {
        Stoppable& stoppable = stopped.front();
        stoppable.unlink();
        stoppable.stopped = true;
        make_ready(stoppable.waiter);
    }
}

inline void RouterState::fail(Failure failure) noexcept {
    failure_ = std::move(failure);
    for (const Route& route : routes_) {
        if (route.queue != nullptr) route.queue->fail_all(failure_);
    }
}

inline void RouterState::resume_ready() {
    while (!ready_.empty() && !closed_) {
        Resumable& waiter = ready_.front();
        waiter.unlink();
        waiter.coroutine.resume(); // may destroy queue pairs, and the router
    }
}

} // namespace asyncverbs::detail
