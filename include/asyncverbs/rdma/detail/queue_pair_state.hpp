// SPDX-License-Identifier: MIT
// A queue pair and what is posted to it. Its address is what slots and routes refer to.
#pragma once

#include <coroutine>
#include <system_error>
#include <utility>

#include <asyncverbs/core/task.hpp>
#include <asyncverbs/rdma/detail/router_state.hpp>
#include <asyncverbs/rdma/detail/shared_receive_state.hpp>
#include <asyncverbs/rdma/detail/work_queue.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/error.hpp>
#include <asyncverbs/verbs/protection_domain.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>
#include <asyncverbs/verbs/queue_pair_options.hpp>

namespace asyncverbs::detail {

template <class Use>
struct QueuePairState {
    // `shared` may be null.
    QueuePairState(std::shared_ptr<RouterState<Use>> owner,
                   std::shared_ptr<SharedReceiveState<Use>> shared, const ProtectionDomain& domain,
                   const QueuePairOptions& options)
        : router(std::move(owner)), shared_receives(std::move(shared)),
          queue_pair(make(domain, options)),
          sends(*router,
                typename WorkQueue<Use>::SendQueue{queue_pair.native_handle(),
                                                   options.type == IBV_QPT_UD},
                options.max_send_wr, options.max_send_sge, cause),
          receives(*router, typename WorkQueue<Use>::ReceiveQueue{queue_pair.native_handle()},
                   shared_receives ? 0 : options.max_recv_wr, options.max_recv_sge, cause) {}
    QueuePairState(const QueuePairState&) = delete;
    QueuePairState& operator=(const QueuePairState&) = delete;

    // The device lets go of the buffers before the slots do.
    ~QueuePairState() { const QueuePair gone(std::move(queue_pair)); }

    // Awaited: until all that was posted to a queue has completed. Throws what comes in between.
    struct Idle : IdleWaiter {
        explicit Idle(WorkQueue<Use>& q) noexcept : IdleWaiter(q.router().failure()), queue(q) {}
        bool await_ready() const noexcept { return failure || queue.idle(); }
        void await_suspend(std::coroutine_handle<> handle) noexcept {
            coroutine = handle;
            queue.wait_until_idle(*this);
        }
        void await_resume() const {
            if (failure) throw std::system_error(*failure);
        }

        WorkQueue<Use>& queue;
    };

    // The queue pair may be destroyed wherever this waits: it throws then.
    static Task<> drain(QueuePairState& self) {
        if (self.sends.idle() && self.receives.idle()) {
            std::error_code ignored; // in RESET it cannot be, and need not
            self.queue_pair.to_error(ignored);
        } else {
            self.queue_pair.to_error();
            self.sends.post_marker();
        }
        co_await Idle(self.sends);
        co_await Idle(self.receives);
    }

    const std::shared_ptr<RouterState<Use>> router;
    const std::shared_ptr<SharedReceiveState<Use>> shared_receives;
    FlushCause cause;
    QueuePair queue_pair;
    WorkQueue<Use> sends;
    WorkQueue<Use> receives;

private:
    QueuePair make(const ProtectionDomain& domain, QueuePairOptions options) const {
        if (!router->cq()) throw std::system_error(*router->failure());
        const CompletionQueue& cq = router->cq()->completion_queue();
        ++options.max_send_wr; // for the marker
        options.sq_sig_all = false;
        if (!shared_receives) return {domain, cq, cq, options};
        if (shared_receives->router != router) {
            throw_error(std::errc::invalid_argument,
                        "the AsyncSrq belongs to another Router than the queue pair");
        }
        return {domain, cq, cq, shared_receives->queue, options};
    }
};

} // namespace asyncverbs::detail
