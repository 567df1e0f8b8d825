// SPDX-License-Identifier: MIT
// How a stop token, from any thread, ends the waiting of a coroutine that the router is to resume.
#pragma once

#include <atomic>
#include <stop_token>

#include <asyncverbs/rdma/detail/resumable.hpp>
#include <asyncverbs/rdma/detail/router_state.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>

namespace asyncverbs::detail {

template <class Use>
class OnStop {
public:
    OnStop(Resumable& waiter, RouterState<Use>& router, const std::stop_token& stop)
        : stoppable_(waiter), callback_(stop, Callback{stoppable_, router.shared_from_this()}) {
        router.add_stoppable(stoppable_);
    }

    /// For await_suspend: false if it came just now, on this thread or another. One that comes
    /// later wakes the router.
    bool may_wait() noexcept {
        if (!stoppable_.requested.load(std::memory_order_acquire)) return true;
        stoppable_.unlink();
        return false;
    }

private:
    struct Callback {
        Stoppable& stoppable;
        std::shared_ptr<RouterState<Use>> router;
        void operator()() const noexcept {
            stoppable.requested.store(true, std::memory_order_release);
            router->interrupt();
        }
    };

    Stoppable stoppable_;
    std::stop_callback<Callback> callback_; // destroyed first
};

} // namespace asyncverbs::detail
