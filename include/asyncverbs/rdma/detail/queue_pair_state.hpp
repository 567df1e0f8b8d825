// SPDX-License-Identifier: MIT
#pragma once

#include <infiniband/verbs.h>

#include <coroutine>
#include <memory>
#include <system_error>
#include <utility>

#include <asyncverbs/rdma/detail/router_state.hpp>
#include <asyncverbs/rdma/detail/work_queue.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/error.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>
#include <asyncverbs/verbs/queue_pair_options.hpp>
#include <asyncverbs/verbs/shared_receive_queue.hpp>

namespace asyncverbs::detail {

// State of an AsyncSrq. Its queue pairs keep it: while one exists, the device may write to the
// posted buffers.
struct SharedReceiveState {
    SharedReceiveState(std::shared_ptr<RouterState> owner, const ProtectionDomain& domain,
                       const SharedReceiveQueueOptions& options)
        : router(std::move(owner)), queue(domain, options),
          receives(*router, {.srq = queue.native_handle(),
                             .capacity = options.max_wr,
                             .max_slices = options.max_sge}) {}
    SharedReceiveState(const SharedReceiveState&) = delete;
    SharedReceiveState& operator=(const SharedReceiveState&) = delete;

    // Destroys the native queue before the slots release the buffers.
    ~SharedReceiveState() { const SharedReceiveQueue destroyed(std::move(queue)); }

    const std::shared_ptr<RouterState> router;
    SharedReceiveQueue queue;
    WorkQueue receives;
};

// State of an AsyncQp. Slots and routes refer to it by address.
struct QueuePairState {
    // `shared` may be null.
    QueuePairState(std::shared_ptr<RouterState> owner, std::shared_ptr<SharedReceiveState> shared,
                   const ProtectionDomain& domain, const QueuePairOptions& options)
        : router(std::move(owner)), shared_receives(std::move(shared)),
          queue_pair(make(domain, options)),
          sends(*router, {.qp = queue_pair.native_handle(),
                          .sends = true,
                          .keeps_peers = options.type == IBV_QPT_UD,
                          .capacity = options.max_send_wr,
                          .max_slices = options.max_send_sge,
                          .cause = &cause}),
          receives(*router, {.qp = queue_pair.native_handle(),
                             .capacity = shared_receives ? 0 : options.max_recv_wr,
                             .max_slices = options.max_recv_sge,
                             .cause = &cause,
                             .sends_of_pair = &sends}) {}
    QueuePairState(const QueuePairState&) = delete;
    QueuePairState& operator=(const QueuePairState&) = delete;

    // Destroys the native queue pair before the slots release the buffers.
    ~QueuePairState() { const QueuePair destroyed(std::move(queue_pair)); }

    const std::shared_ptr<RouterState> router;
    const std::shared_ptr<SharedReceiveState> shared_receives;
    FlushCause cause;
    QueuePair queue_pair;
    WorkQueue sends;
    WorkQueue receives;

private:
    QueuePair make(const ProtectionDomain& domain, QueuePairOptions options) const {
        if (!router->cq()) router->failure().raise();
        const CompletionQueue& cq = router->cq()->completion_queue();
        options.sq_sig_all = false;
        if (!shared_receives) return {domain, cq, cq, options};
        if (shared_receives->router != router) {
            throw_error(std::errc::invalid_argument,
                        "the AsyncSrq belongs to another Router than the queue pair");
        }
        return {domain, cq, cq, shared_receives->queue, options};
    }
};

// What AsyncQp::drain() returns. May be moved until it is awaited. The queue pair may be destroyed
// while it waits: then it throws.
class [[nodiscard]] DrainAwaiter : IdleWaiter {
public:
    explicit DrainAwaiter(QueuePairState& state) noexcept : state_(state) {}
    DrainAwaiter(DrainAwaiter&& other) noexcept : DrainAwaiter(other.state_) {}

    bool await_ready() {
        state_.sends.flush();
        if (to_error()) {
            state_.sends.post_marker();
            state_.sends.on_error_state();
            state_.receives.on_error_state();
        }
        failure = state_.router->failure();
        return failure || idle();
    }
    void await_suspend(std::coroutine_handle<> handle) noexcept {
        coroutine = handle;
        if (state_.sends.idle()) return state_.receives.wait_until_idle(*this);
        next = &state_.receives;
        state_.sends.wait_until_idle(*this);
    }
    void await_resume() const {
        if (failure) failure.raise();
    }

private:
    bool idle() const noexcept { return state_.sends.idle() && state_.receives.idle(); }

    // False in RESET, where nothing is posted.
    bool to_error() {
        if (!idle()) {
            state_.queue_pair.to_error();
            return true;
        }
        std::error_code error;
        state_.queue_pair.to_error(error);
        return !error;
    }

    QueuePairState& state_;
};

} // namespace asyncverbs::detail
