// SPDX-License-Identifier: MIT
// Brings completions to the operations that they belong to.
#pragma once

#include <utility>

#include <asyncverbs/core/async_cq.hpp>
#include <asyncverbs/core/async_cq_options.hpp>
#include <asyncverbs/core/cq_statistics.hpp>
#include <asyncverbs/rdma/detail/router_dispatch.hpp>
#include <asyncverbs/rdma/detail/router_state.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/context.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

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
template <class Use>
class BasicRouter {
public:
    /// Drains `cq` from now on. Throws std::system_error (device_or_resource_busy) if somebody
    /// waits for it.
    explicit BasicRouter(BasicAsyncCq<Use> cq)
        : state_(std::make_shared<detail::RouterState<Use>>(std::move(cq))) {
        state_->start();
    }

    /// The same with a CQ of at least `depth` entries, as AsyncCq::create() makes it. Each queue
    /// pair takes max_send_wr + 1 and max_recv_wr entries.
    template <class Loop>
    static BasicRouter create(const Context& context, int depth, Loop& loop,
                              const AsyncCqOptions& options = {}) {
        return BasicRouter(BasicAsyncCq<Use>::create(context, depth, loop, options));
    }

    BasicRouter(BasicRouter&&) noexcept = default;

    /// Closes the router that was here before, as its destructor does.
    BasicRouter& operator=(BasicRouter&& other) noexcept {
        BasicRouter(std::move(other)).state_.swap(state_); // the temporary closes the old one
        return *this;
    }
    ~BasicRouter() {
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
    template <class>
    friend class BasicAsyncQp;
    template <class>
    friend class BasicAsyncSrq;

    std::shared_ptr<detail::RouterState<Use>> state_;
};

/// The Router of programs: compiled only where it is used, but otherwise as a class.
using Router = BasicRouter<OnUse>;

} // namespace asyncverbs
