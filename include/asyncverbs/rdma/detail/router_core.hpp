// SPDX-License-Identifier: MIT
// What work queues and awaiters use of a router.
#pragma once

#include <atomic>
#include <coroutine>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/coro/detail/stop_callback.hpp>
#include <asyncverbs/cq/detail/cq_state.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

class WorkQueue;
class WaiterStop;

// Why no completion will come any more.
using Failure = std::shared_ptr<const std::system_error>;

// Waits for a completion. It lives in an awaiter; destroying it ends the wait.
class CompletionWaiter : public ListNode {
public:
    // The router calls `callback`, if there is one, instead of resuming `coroutine`.
    using Callback = void (*)(CompletionWaiter&);

    CompletionWaiter() noexcept = default;
    explicit CompletionWaiter(Callback callback) noexcept : callback_(callback) {}

    void resume() {
        if (callback_ != nullptr) return callback_(*this);
        coroutine.resume();
    }

    std::coroutine_handle<> coroutine;

private:
    Callback callback_ = nullptr;
};

// A wr_id leads to a slot of a work queue: 20 bits say which slot, 20 which route, that is, which
// work queue of the router. 24 bits count how often the route was assigned before: a completion
// that outlives its work queue finds none (I13).
struct WrId {
    static constexpr unsigned slot_bits = 20;
    static constexpr unsigned route_bits = 20;
    static constexpr std::uint64_t slot_mask = (1u << slot_bits) - 1;
    static constexpr std::uint64_t route_mask = (1u << route_bits) - 1;
    static constexpr std::uint32_t generation_mask = 0xffffff;

    static std::uint32_t slot(std::uint64_t wr_id) noexcept {
        return static_cast<std::uint32_t>(wr_id & slot_mask);
    }
    static std::uint32_t route(std::uint64_t wr_id) noexcept {
        return static_cast<std::uint32_t>(wr_id >> slot_bits & route_mask);
    }
    static std::uint32_t generation(std::uint64_t wr_id) noexcept {
        return static_cast<std::uint32_t>(wr_id >> (slot_bits + route_bits));
    }
    // The wr_id of slot 0.
    static std::uint64_t make(std::uint32_t route, std::uint32_t generation) noexcept {
        return std::uint64_t{generation} << (slot_bits + route_bits) | std::uint64_t{route}
                                                                           << slot_bits;
    }
};

class RouterCore {
public:
    explicit RouterCore(std::shared_ptr<CqState> cq)
        : cq_state_(std::move(cq)),
          queue_failure_(std::make_shared<std::system_error>(
              std::make_error_code(std::errc::operation_canceled), "the queue was destroyed")) {}
    RouterCore(const RouterCore&) = delete;
    RouterCore& operator=(const RouterCore&) = delete;

    // --- routes ---

    /// Returns the wr_id of the queue's slot 0. Throws std::system_error (not_enough_memory) if
    /// there are too many queues.
    std::uint64_t add(WorkQueue& queue);
    void remove(std::uint64_t wr_id) noexcept;
    WorkQueue* find(std::uint64_t wr_id) const noexcept {
        const std::uint32_t index = WrId::route(wr_id);
        if (index >= routes_.size()) return nullptr;
        const Route& route = routes_[index];
        return route.generation == WrId::generation(wr_id) ? route.queue : nullptr;
    }

    // --- waiters ---

    /// The router resumes `waiter`, in the order of these calls.
    void make_ready(CompletionWaiter& waiter) noexcept {
        if (!waiter.linked()) ready_.push_back(waiter);
    }
    /// Makes the router resume waiters that became ready outside of a batch of completions.
    void wake() noexcept {
        if (!resuming_ && !ready_.empty()) cq_state_->wake();
    }

    /// Null, or why no completion will come any more.
    const Failure& failure() const noexcept { return failure_; }
    /// The failure of operations whose queue is destroyed.
    const Failure& queue_failure() const noexcept { return queue_failure_; }

protected:
    friend class WaiterStop;

    struct Route {
        WorkQueue* queue = nullptr;
        std::uint32_t generation = 0;
    };

    ~RouterCore() = default;

    const std::shared_ptr<CqState> cq_state_;
    Failure failure_;
    const Failure queue_failure_;
    bool resuming_ = false;

    std::vector<Route> routes_;
    std::vector<std::uint32_t> free_routes_;
    IntrusiveList<CompletionWaiter> ready_;
    IntrusiveList<WaiterStop> stops_;
};

inline std::uint64_t RouterCore::add(WorkQueue& queue) {
    if (free_routes_.empty()) {
        if (routes_.size() > WrId::route_mask) {
            throw_error(std::errc::not_enough_memory, "a Router has at most 1,048,576 work queues");
        }
        routes_.emplace_back();
        free_routes_.reserve(routes_.capacity()); // remove() must not fail
        free_routes_.push_back(static_cast<std::uint32_t>(routes_.size() - 1));
    }
    const std::uint32_t index = free_routes_.back();
    free_routes_.pop_back();
    routes_[index].queue = &queue;
    return WrId::make(index, routes_[index].generation);
}

inline void RouterCore::remove(std::uint64_t wr_id) noexcept {
    Route& route = routes_[WrId::route(wr_id)];
    route.queue = nullptr;
    route.generation = (route.generation + 1) & WrId::generation_mask;
    free_routes_.push_back(WrId::route(wr_id));
}

// Ends the wait of a waiter when a stop is requested, on any thread: the router resumes it.
class WaiterStop : public ListNode {
public:
    WaiterStop(CompletionWaiter& waiter, RouterCore& router, const std::stop_token& token) noexcept
        : waiter_(waiter), cq_(router.cq_state_) {
        router.stops_.push_back(*this);
        callback_.set(token, *this);
    }

    /// For await_suspend: false if the stop came already. A later stop wakes the router.
    bool may_wait() noexcept {
        if (!requested()) return true;
        unlink();
        return false;
    }

    CompletionWaiter& waiter() const noexcept { return waiter_; }
    bool requested() const noexcept { return requested_.load(std::memory_order_acquire); }

    void on_stop() noexcept {
        requested_.store(true, std::memory_order_release);
        cq_->wake();
    }

private:
    CompletionWaiter& waiter_;
    const std::shared_ptr<CqState> cq_; // the router may be destroyed before the stop
    std::atomic<bool> requested_{false};
    StopCallback<WaiterStop> callback_; // destroyed first
};

} // namespace asyncverbs::detail
