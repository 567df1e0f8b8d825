// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <cstdint>
#include <memory>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/cq/async_cq_options.hpp>
#include <asyncverbs/rdma/completion.hpp>
#include <asyncverbs/rdma/detail/router_state.hpp>
#include <asyncverbs/rdma/detail/work_queue.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/device.hpp>

namespace asyncverbs {

/// Delivers the completions of one AsyncCq to the operations of any number of queue pairs.
///
///     Router router = Router::create(context, 1024, loop);
///     AsyncQp qp(router, domain);
///
/// It takes the AsyncCq over and polls it in the AsyncCq's wait loop. The wr_id of a completion is
/// an index that leads to its operation: no lookup, no lock, no allocation. A completion of a
/// request that was not posted through the router's objects, or whose queue pair was destroyed,
/// completes no operation (I13): it is dropped, and counted by ignored_completions(). For raw
/// completions, use an AsyncCq without a router.
///
/// Errors: a failure of the AsyncCq fails all operations, pending and later ones.
/// Thread: one, that of the loop, which also resumes the waiters of operations.
/// Lifetime: it may be destroyed at any time, also by a coroutine that it has resumed. A coroutine
/// that still waits for an operation is then never resumed, but may be destroyed; later operations
/// fail with operation_canceled. Queue pairs may outlive it. Move-only; a moved-from Router can
/// only be destroyed or assigned to.
class Router {
public:
    /// Takes the completions of `cq` from now on. Throws std::system_error
    /// (device_or_resource_busy) if a coroutine waits for it.
    explicit Router(AsyncCq cq) : state_(std::make_shared<detail::RouterState>(std::move(cq))) {
        state_->start(state_);
    }

    /// The same with a new CQ of at least `depth` entries, see AsyncCq::create(). Each queue pair
    /// takes max_send_wr + max_recv_wr entries.
    template <class Loop>
    static Router create(const Context& context, int depth, Loop& loop,
                         const AsyncCqOptions& options = {}) {
        return Router(AsyncCq::create(context, depth, loop, options));
    }

    Router(Router&&) noexcept = default;

    /// Closes the previous router, as the destructor does.
    Router& operator=(Router&& other) noexcept {
        Router old(std::move(other));
        old.state_.swap(state_); // and is closed with its state
        return *this;
    }
    ~Router() {
        if (state_) state_->close(state_);
    }

    /// Does what the destructor does, and reports what that cannot: {}, after which this object is
    /// as if moved from, or the error of AsyncCq::close(), device_or_resource_busy while a queue
    /// pair uses the completion queue. The object then still owns the queue, and its operations
    /// fail as after its destruction: destroy the queue pairs and close again. The destructor would
    /// leak the queue and its device instead if a raw queue pair is left.
    [[nodiscard]] std::error_code close() noexcept {
        if (!state_) return {};
        if (const std::error_code error = state_->try_close(state_)) return error;
        state_.reset();
        return {};
    }

    /// The queue that the queue pairs complete into.
    [[nodiscard]] const CompletionQueue& completion_queue() const noexcept {
        return state_->cq()->completion_queue();
    }

    /// The number of completions that belonged to no request of the router's objects.
    [[nodiscard]] std::uint64_t ignored_completions() const noexcept { return state_->ignored(); }

    /// What is stuck? All requests that have not completed, queue by queue: sends in the order of
    /// their posts, receives in none. They need not have an Operation any more. Throws
    /// std::bad_alloc. Only these calls take time and memory: so a request has no time of its post,
    /// but one that is still there at the next call has the time since this one.
    [[nodiscard]] std::vector<RequestInFlight> in_flight() const { return state_->in_flight(); }

    /// Counters of the completion queue.
    [[nodiscard]] const CqStatistics& statistics() const noexcept {
        return state_->cq()->statistics();
    }

private:
    friend class AsyncQp;
    friend class AsyncSrq;

    std::shared_ptr<detail::RouterState> state_;
};

} // namespace asyncverbs
