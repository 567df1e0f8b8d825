// SPDX-License-Identifier: MIT
// What a router and its work queues share. It lives as long as any of them.
//
//     poll: a batch of completions ──► wr_id ──► route ──► work queue ──► slot ──► operation
//     then: those who wait for the operations of the batch are resumed, in order
//
// Operations are settled before anybody is resumed: who is resumed may destroy what he likes.
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/core/async_cq.hpp>
#include <asyncverbs/core/detail/cq_reaper.hpp>
#include <asyncverbs/core/detail/cq_sink.hpp>
#include <asyncverbs/core/detail/intrusive_list.hpp>
#include <asyncverbs/core/detail/maybe.hpp>
#include <asyncverbs/rdma/detail/resumable.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs::detail {

template <class Use>
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

template <class Use>
class RouterState final : public CqSink<Use>,
                          public std::enable_shared_from_this<RouterState<Use>> {
public:
    explicit RouterState(BasicAsyncCq<Use> cq)
        : reaper_(cq.reaper_),
          closed_failure_(std::make_shared<std::system_error>(
              std::make_error_code(std::errc::operation_canceled), "the Router was destroyed")),
          queue_failure_(std::make_shared<std::system_error>(
              std::make_error_code(std::errc::operation_canceled), "the queue was destroyed")) {
        cq_.emplace(std::move(cq));
    }

    /// Takes the completions from now on.
    void start() { reaper_->attach(this->shared_from_this()); }

    /// The last call. Whoever still waits is never resumed.
    void close() noexcept {
        closed_ = true;
        if (!failure_) failure_ = closed_failure_;
        if (resuming_) alive_ = this->shared_from_this();
        cq_.reset();
    }

    const Maybe<BasicAsyncCq<Use>>& cq() const noexcept { return cq_; }

    // --- routes ---

    /// Returns the wr_id of the queue's slot 0. Throws std::system_error (not_enough_memory) when
    /// there are too many.
    std::uint64_t add(WorkQueue<Use>& queue);
    void remove(std::uint64_t wr_id) noexcept;
    WorkQueue<Use>* find(std::uint64_t wr_id) const noexcept {
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
    void interrupt() noexcept { reaper_->interrupt(); }

    /// Null, or why no completion will come any more.
    const Failure& failure() const noexcept { return failure_; }
    /// What a queue that is destroyed leaves to its operations.
    const Failure& queue_failure() const noexcept { return queue_failure_; }

    // --- what the completion queue brings ---

    void deliver(std::size_t count) override;
    void interrupted() override;
    void fail(const std::system_error& cause) override;

private:
    struct Route {
        WorkQueue<Use>* queue = nullptr;
        std::uint32_t generation = 0;
    };

    void dispatch(std::span<const ibv_wc> wcs);
    void note_causes(std::span<const ibv_wc> wcs) const noexcept;
    void dismiss_stopped() noexcept;
    void resume_ready();

    Maybe<BasicAsyncCq<Use>> cq_;
    const std::shared_ptr<CqReaper<Use>> reaper_;
    bool closed_ = false;
    bool resuming_ = false;
    std::shared_ptr<RouterState> alive_; // until whoever closed it, and was resumed, returns
    Failure failure_;
    const Failure closed_failure_;
    const Failure queue_failure_;

    std::vector<Route> routes_;
    Used<std::vector<std::uint32_t>, Use> free_routes_;
    IntrusiveList<Resumable> ready_;
    IntrusiveList<Stoppable> stoppable_;
};

template <class Use>
inline std::uint64_t RouterState<Use>::add(WorkQueue<Use>& queue) {
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

template <class Use>
inline void RouterState<Use>::remove(std::uint64_t wr_id) noexcept {
    Route& route = routes_[WrId::route(wr_id)];
    route.queue = nullptr;
    route.generation = (route.generation + 1) & WrId::generation_mask;
    free_routes_.push_back(WrId::route(wr_id));
}

} // namespace asyncverbs::detail
