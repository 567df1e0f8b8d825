// SPDX-License-Identifier: MIT
// A shared receive queue and what is posted to it. Its queue pairs keep it: as long as one exists,
// the device may write to the buffers.
#pragma once

#include <coroutine>
#include <memory>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/rdma/detail/router_state.hpp>
#include <asyncverbs/rdma/detail/work_queue.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/error.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>
#include <asyncverbs/verbs/queue_pair_options.hpp>
#include <asyncverbs/verbs/shared_receive_queue.hpp>

namespace asyncverbs::detail {

struct SharedReceiveState {
    SharedReceiveState(std::shared_ptr<RouterState> owner, const ProtectionDomain& domain,
                       const SharedReceiveQueueOptions& options)
        : router(std::move(owner)), queue(domain, options),
          receives(*router, queue.native_handle(), options.max_wr, options.max_sge) {}
    SharedReceiveState(const SharedReceiveState&) = delete;
    SharedReceiveState& operator=(const SharedReceiveState&) = delete;

    // The device lets go of the buffers before the slots do.
    ~SharedReceiveState() { const SharedReceiveQueue gone(std::move(queue)); }

    const std::shared_ptr<RouterState> router;
    SharedReceiveQueue queue;
    WorkQueue receives;
};

// A queue pair and what is posted to it. Its address is what slots and routes refer to.

struct QueuePairState {
    // `shared` may be null.
    QueuePairState(std::shared_ptr<RouterState> owner, std::shared_ptr<SharedReceiveState> shared,
                   const ProtectionDomain& domain, const QueuePairOptions& options)
        : router(std::move(owner)), shared_receives(std::move(shared)),
          queue_pair(make(domain, options)),
          sends(
              *router,
              typename WorkQueue::SendQueue{queue_pair.native_handle(), options.type == IBV_QPT_UD},
              options.max_send_wr, options.max_send_sge, cause),
          receives(*router, typename WorkQueue::ReceiveQueue{queue_pair.native_handle()},
                   shared_receives ? 0 : options.max_recv_wr, options.max_recv_sge, cause) {}
    QueuePairState(const QueuePairState&) = delete;
    QueuePairState& operator=(const QueuePairState&) = delete;

    // The device lets go of the buffers before the slots do.
    ~QueuePairState() { const QueuePair gone(std::move(queue_pair)); }

    // Awaited: until all that was posted to a queue has completed. Throws what comes in between.
    struct Idle : IdleWaiter {
        explicit Idle(WorkQueue& q) noexcept : IdleWaiter(q.router().failure()), queue(q) {}
        bool await_ready() const noexcept { return failure || queue.idle(); }
        void await_suspend(std::coroutine_handle<> handle) noexcept {
            coroutine = handle;
            queue.wait_until_idle(*this);
        }
        void await_resume() const {
            if (failure) throw std::system_error(*failure);
        }

        WorkQueue& queue;
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

    const std::shared_ptr<RouterState> router;
    const std::shared_ptr<SharedReceiveState> shared_receives;
    FlushCause cause;
    QueuePair queue_pair;
    WorkQueue sends;
    WorkQueue receives;

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
