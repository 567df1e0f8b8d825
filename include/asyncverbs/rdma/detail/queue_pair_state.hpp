// SPDX-License-Identifier: MIT
#pragma once

#include <infiniband/verbs.h>

#include <coroutine>
#include <memory>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/awaitable.hpp>
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
    // `shared` may be null. The routers may be the same one.
    QueuePairState(std::shared_ptr<RouterState> sends_to, std::shared_ptr<RouterState> receives_to,
                   std::shared_ptr<SharedReceiveState> shared, QueuePair pair)
        : router(std::move(sends_to)), receive_router(std::move(receives_to)),
          shared_receives(std::move(shared)), queue_pair(std::move(pair)),
          sends(*router, send_options()), receives(*receive_router, receive_options()) {}
    QueuePairState(const QueuePairState&) = delete;
    QueuePairState& operator=(const QueuePairState&) = delete;

    // The device must not use the memory of requests once the slots have released it. The native
    // queue pair may belong to the program, and not be destroyed here.
    ~QueuePairState() {
        QueuePair released(std::move(queue_pair));
        if (released.is_adopted() && (sends.in_flight() || receives.in_flight())) {
            std::error_code ignored;    // no caller is left to handle it
            released.to_error(ignored); // soft-iWARP goes from RTS to ERR only
            released.to_reset(ignored);
        }
    }

    // A queue pair that completes into the routers' queues. Throws as the routers have failed.
    static QueuePair make(const RouterState& sends_to, const RouterState& receives_to,
                          const SharedReceiveState* shared, const ProtectionDomain& domain,
                          QueuePairOptions options) {
        options.sq_sig_all = false;
        const CompletionQueue& send_cq = queue_of(sends_to);
        const CompletionQueue& recv_cq = queue_of(receives_to);
        if (shared == nullptr) return {domain, send_cq, recv_cq, options};
        if (shared->router.get() != &receives_to) {
            throw_error(std::errc::invalid_argument,
                        "the AsyncSrq belongs to another Router than the queue pair");
        }
        return {domain, send_cq, recv_cq, shared->queue, options};
    }

    // Returns `pair`, unless it completes into other queues than those of the routers.
    static QueuePair checked(const RouterState& sends_to, const RouterState& receives_to,
                             QueuePair pair) {
        const ibv_qp& native = *detail::checked(pair.shared_handle(), "QueuePair");
        check_completes_into(native.send_cq, queue_of(sends_to), "sends");
        if (has_receives(native)) {
            check_completes_into(native.recv_cq, queue_of(receives_to), "receives");
        }
        return pair;
    }

    const std::shared_ptr<RouterState> router; // of the sends
    const std::shared_ptr<RouterState> receive_router;
    const std::shared_ptr<SharedReceiveState> shared_receives;
    FlushCause cause;
    QueuePair queue_pair;
    WorkQueue sends;
    WorkQueue receives;

private:
    static const CompletionQueue& queue_of(const RouterState& router) {
        if (!router.cq()) router.failure().raise();
        return router.cq()->completion_queue();
    }

    // The sends of a provider's own type may complete in any order, as those of EFA's SRD do.
    WorkQueueOptions send_options() {
        const QueuePairOptions& options = queue_pair.options();
        return {.qp = queue_pair.native_handle(),
                .sends = true,
                .keeps_peers = sends_datagrams(options.type),
                .unordered = options.type == IBV_QPT_DRIVER,
                .capacity = options.max_send_wr,
                .max_slices = options.max_send_sge,
                .cause = &cause,
                .receive_router = router != receive_router ? receive_router.get() : nullptr,
                .connection_ended = connection_ended(queue_pair.shared_handle()).get_token()};
    }
    WorkQueueOptions receive_options() {
        const QueuePairOptions& options = queue_pair.options();
        return {.qp = queue_pair.native_handle(),
                .capacity = options.max_recv_wr,
                .max_slices = options.max_recv_sge,
                .cause = &cause,
                .sends_of_pair = &sends,
                .connection_ended = connection_ended(queue_pair.shared_handle()).get_token()};
    }
};

// What AsyncQp::drain() returns. May be moved until it is awaited. The queue pair may be destroyed
// while it waits: then it throws.
class [[nodiscard]] DrainAwaiter : IdleWaiter, AwaitedByReference {
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
        if (!failure) failure = state_.receive_router->failure();
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
