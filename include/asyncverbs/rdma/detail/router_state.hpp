// SPDX-License-Identifier: MIT
// A suspended coroutine that the router is to resume: a node that lives in its awaiter.
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/cq/detail/cq_state.hpp>

namespace asyncverbs::detail {

struct Resumable : ListNode {
    std::coroutine_handle<> coroutine;
};

// What a router and its work queues share. It lives as long as any of them.
//
//     poll: a batch of completions ──► wr_id ──► route ──► work queue ──► slot ──► operation
//     then: those who wait for the operations of the batch are resumed, in order
//
// Operations are settled before anybody is resumed: who is resumed may destroy what he likes.

class WorkQueue;

// How a wr_id leads to a slot: 20 bits say which slot, 20 which route, that is which work queue of
// the router, and 24 how often that route was given away before, so that a completion which has
// outlived its work queue leads nowhere.
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
    // That of slot 0.
    static std::uint64_t make(std::uint32_t route, std::uint32_t generation) noexcept {
        return std::uint64_t{generation} << (slot_bits + route_bits) | std::uint64_t{route}
                                                                           << slot_bits;
    }
};

// Why no completion will come.
using Failure = std::shared_ptr<const std::system_error>;

// Somebody who waits and may be stopped meanwhile, from any thread.
struct Stoppable : ListNode {
    explicit Stoppable(Resumable& w) noexcept : waiter(w) {}

    Resumable& waiter;
    std::atomic<bool> requested{false};
};

class RouterState final : public CompletionHandler,
                          public std::enable_shared_from_this<RouterState> {
public:
    explicit RouterState(AsyncCq cq)
        : cq_state_(AsyncCqAccess::state(cq)),
          closed_failure_(std::make_shared<std::system_error>(
              std::make_error_code(std::errc::operation_canceled), "the Router was destroyed")),
          queue_failure_(std::make_shared<std::system_error>(
              std::make_error_code(std::errc::operation_canceled), "the queue was destroyed")) {
        cq_.emplace(std::move(cq));
    }

    /// Takes the completions from now on.
    void start() { cq_state_->set_handler(this->shared_from_this()); }

    /// The last call. Whoever still waits is never resumed.
    void close() noexcept {
        closed_ = true;
        if (!failure_) failure_ = closed_failure_;
        if (resuming_) alive_ = this->shared_from_this();
        cq_.reset();
    }

    const std::optional<AsyncCq>& cq() const noexcept { return cq_; }

    // --- routes ---

    /// Returns the wr_id of the queue's slot 0. Throws std::system_error (not_enough_memory) when
    /// there are too many.
    std::uint64_t add(WorkQueue& queue);
    void remove(std::uint64_t wr_id) noexcept;
    WorkQueue* find(std::uint64_t wr_id) const noexcept {
        const std::uint32_t index = WrId::route(wr_id);
        if (index >= routes_.size()) return nullptr;
        const Route& route = routes_[index];
        return route.generation == WrId::generation(wr_id) ? route.queue : nullptr;
    }

    // --- those who wait ---

    /// The router resumes it, in the order in which these calls are made.
    void make_ready(Resumable& waiter) noexcept {
        if (!waiter.linked()) ready_.push_back(waiter);
    }
    /// For those who were made ready by somebody else than the router.
    void wake() noexcept {
        if (!resuming_ && !ready_.empty()) interrupt();
    }

    void add_stoppable(Stoppable& stoppable) noexcept { stoppable_.push_back(stoppable); }

    /// Makes the router look who is to be stopped or resumed. From any thread.
    void interrupt() noexcept { cq_state_->wake(); }

    /// Null, or why no completion will come any more.
    const Failure& failure() const noexcept { return failure_; }
    /// What a queue that is destroyed leaves to its operations.
    const Failure& queue_failure() const noexcept { return queue_failure_; }

    // --- what the completion queue brings ---

    void on_completions(std::size_t count) override;
    void on_wake() override;
    void on_error(const std::system_error& cause) override;

private:
    struct Route {
        WorkQueue* queue = nullptr;
        std::uint32_t generation = 0;
    };

    void dispatch(std::span<const ibv_wc> wcs);
    void note_causes(std::span<const ibv_wc> wcs) const noexcept;
    void dismiss_stopped() noexcept;
    void resume_ready();

    std::optional<AsyncCq> cq_;
    const std::shared_ptr<CqState> cq_state_;
    bool closed_ = false;
    bool resuming_ = false;
    std::shared_ptr<RouterState> alive_; // until whoever closed it, and was resumed, returns
    Failure failure_;
    const Failure closed_failure_;
    const Failure queue_failure_;

    std::vector<Route> routes_;
    std::vector<std::uint32_t> free_routes_;
    IntrusiveList<Resumable> ready_;
    IntrusiveList<Stoppable> stoppable_;
};

inline std::uint64_t RouterState::add(WorkQueue& queue) {
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

inline void RouterState::remove(std::uint64_t wr_id) noexcept {
    Route& route = routes_[WrId::route(wr_id)];
    route.queue = nullptr;
    route.generation = (route.generation + 1) & WrId::generation_mask;
    free_routes_.push_back(WrId::route(wr_id));
}

// How a stop token, from any thread, ends the waiting of a coroutine that the router is to resume.

class OnStop {
public:
    OnStop(Resumable& waiter, RouterState& router, const std::stop_token& stop)
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
        std::shared_ptr<RouterState> router;
        void operator()() const noexcept {
            stoppable.requested.store(true, std::memory_order_release);
            router->interrupt();
        }
    };

    Stoppable stoppable_;
    std::stop_callback<Callback> callback_; // destroyed first
};

} // namespace asyncverbs::detail
