// SPDX-License-Identifier: MIT
// Brings completions to the operations that they belong to.
#pragma once

#include <memory>
#include <utility>

#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/cq/async_cq_options.hpp>
#include <asyncverbs/cq/cq_statistics.hpp>
#include <asyncverbs/rdma/detail/router_state.hpp>
#include <asyncverbs/rdma/detail/work_queue.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/device.hpp>

namespace asyncverbs {

/// Drains one AsyncCq, in the coroutine that waits for its channel, on behalf of any number of
/// queue pairs.
///
///     Router router = Router::create(context, 1024, loop);
///     AsyncQp qp(router, domain);
///
/// It takes the AsyncCq over. A completion finds its operation by its wr_id, which is an index: no
/// lookup, no lock, no allocation. (To see raw completions, use an AsyncCq without a router.)
///
/// Errors: what fails the AsyncCq fails all operations, those under way and those to come.
/// Thread: one, that of the loop, on which those who wait for operations are resumed.
/// Lifetime: it may be destroyed at any time, also by whom it has resumed; whoever still waits for
/// an operation is then never resumed, but may be destroyed, and later operations fail with
/// operation_canceled. Queue pairs may outlive it. Move-only; only to be destroyed or assigned to
/// when moved from.
class Router {
public:
    /// Drains `cq` from now on. Throws std::system_error (device_or_resource_busy) if somebody
    /// waits for it.
    explicit Router(AsyncCq cq) : state_(std::make_shared<detail::RouterState>(std::move(cq))) {
        state_->start();
    }

    /// The same with a CQ of at least `depth` entries, as AsyncCq::create() makes it. Each queue
    /// pair takes max_send_wr + 1 and max_recv_wr entries.
    template <class Loop>
    static Router create(const Context& context, int depth, Loop& loop,
                         const AsyncCqOptions& options = {}) {
        return Router(AsyncCq::create(context, depth, loop, options));
    }

    Router(Router&&) noexcept = default;

    /// Closes the router that was here before, as its destructor does.
    Router& operator=(Router&& other) noexcept {
        Router old(std::move(other));
        old.state_.swap(state_); // and is closed with its state
        return *this;
    }
    ~Router() {
        if (state_) state_->close();
    }

    /// What the queue pairs complete into.
    [[nodiscard]] const CompletionQueue& completion_queue() const noexcept {
        return state_->cq()->completion_queue();
    }

    /// What the completion queue has cost so far.
    [[nodiscard]] const CqStatistics& statistics() const noexcept {
        return state_->cq()->statistics();
    }

private:
    friend class AsyncQp;
    friend class AsyncSrq;

    std::shared_ptr<detail::RouterState> state_;
};

} // namespace asyncverbs
