// SPDX-License-Identifier: MIT
#pragma once

#include <infiniband/verbs.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/cq/detail/cq_state.hpp>
#include <asyncverbs/rdma/detail/router_core.hpp>
#include <asyncverbs/rdma/detail/work_queue.hpp>

namespace asyncverbs::detail {

// State of a Router, shared with its work queues.
//
//     poll: a batch of completions ──► wr_id ──► route ──► work queue ──► slot ──► operation
//     then: the waiters of these operations are resumed, in order
//
// A resumed coroutine may destroy any of these objects, so all operations of a batch are completed
// before the first waiter is resumed.
class RouterState final : public RouterCore,
                          public CompletionHandler,
                          public std::enable_shared_from_this<RouterState> {
public:
    explicit RouterState(AsyncCq cq)
        : RouterCore(AsyncCqAccess::state(cq)),
          closed_failure_(std::make_shared<std::system_error>(
              std::make_error_code(std::errc::operation_canceled), "the Router was destroyed")) {
        cq_.emplace(std::move(cq));
    }

    /// Takes the completions from now on.
    void start() { cq_state_->set_handler(shared_from_this()); }

    /// The last call. Waiters are never resumed afterwards.
    void close() noexcept {
        closed_ = true;
        if (!failure_) failure_ = closed_failure_;
        if (resuming_) alive_ = shared_from_this();
        cq_.reset();
    }

    const std::optional<AsyncCq>& cq() const noexcept { return cq_; }

    void on_completions(std::size_t count) override {
        dispatch(std::span(completions).first(count));
        resume_ready();
    }

    void on_wake() override {
        collect_stopped();
        resume_ready();
    }

    void on_error(const std::system_error& cause) override {
        if (!failure_) {
            failure_ = std::make_shared<std::system_error>(cause);
            for (const Route& route : routes_) {
                if (route.queue != nullptr) route.queue->fail_all(failure_);
            }
        }
        resume_ready();
    }

private:
    void dispatch(std::span<const ibv_wc> wcs) {
        for (const ibv_wc& wc : wcs) {
            if (wc.status != IBV_WC_SUCCESS) [[unlikely]]
                note_causes(wcs);
            if (WorkQueue* const queue = find(wc.wr_id)) queue->complete(wc);
        }
    }

    // The two queues of a pair are flushed independently, so the cause of a flush may come after it
    // in the batch.
    void note_causes(std::span<const ibv_wc> wcs) const noexcept {
        for (const ibv_wc& wc : wcs) {
            if (wc.status == IBV_WC_SUCCESS || wc.status == IBV_WC_WR_FLUSH_ERR) continue;
            if (const WorkQueue* const queue = find(wc.wr_id)) queue->note_cause(wc);
        }
    }

    void collect_stopped() noexcept {
        IntrusiveList<WaiterStop> stopped;
        stops_.move_if(stopped, [](const WaiterStop& stop) { return stop.requested(); });
        while (!stopped.empty()) make_ready(stopped.take_front().waiter());
    }

    void resume_ready() {
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
            ready_.take_front().resume(); // may destroy queue pairs and the router
        }
    }

    std::optional<AsyncCq> cq_;
    bool closed_ = false;
    std::shared_ptr<RouterState> alive_; // if a resumed coroutine closed it: until that returns
    const Failure closed_failure_;
};

} // namespace asyncverbs::detail
