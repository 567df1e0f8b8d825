// SPDX-License-Identifier: MIT
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
#include <asyncverbs/coro/detail/stop_callback.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/cq/detail/cq_state.hpp>
#include <asyncverbs/rdma/completion.hpp>
#include <asyncverbs/rdma/detail/region_uses.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

class WorkQueue;
class WaiterStop;
class ConnectionEnd;

// Why no completion will come, if it is set. Making and copying one needs no memory, so that every
// waiter gets its error also when no memory is left.
class Failure {
public:
    Failure() noexcept = default;
    // `text` is a literal.
    Failure(std::error_code code, const char* text) noexcept : code_(code), text_(text) {}
    explicit Failure(const std::system_error& cause) noexcept
        : code_(cause.code()), cause_(cause) {}

    // Of operations whose queue or router was destroyed.
    static Failure canceled(const char* text) noexcept {
        return {std::make_error_code(std::errc::operation_canceled), text};
    }

    explicit operator bool() const noexcept { return code_.has_value(); }
    std::error_code code() const noexcept { return *code_; }
    [[noreturn]] void raise() const {
        if (cause_) throw std::system_error(*cause_);
        throw std::system_error(*code_, text_);
    }

private:
    std::optional<std::error_code> code_;
    const char* text_ = nullptr;
    std::optional<std::system_error> cause_; // has its own text
};

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

// A wr_id leads to a slot of a work queue:
//
//     bits 0–19    the slot
//     bits 20–39   the route: which work queue of the router, so also which direction
//     bits 40–63   the tag of the route, which changes when the route is assigned again
//
// The highest bit of a tag is set, and slot 0xfffff does not exist. So the values that other code
// uses for its requests, 0, ~0, small numbers and addresses, are none of these (I13).
struct WrId {
    static constexpr unsigned slot_bits = 20;
    static constexpr unsigned route_bits = 20;
    static constexpr std::uint64_t slot_mask = (1u << slot_bits) - 1;
    static constexpr std::uint64_t route_mask = (1u << route_bits) - 1;
    static constexpr std::uint32_t first_tag = 0x800000;
    static constexpr std::uint32_t last_tag = 0xffffff;

    static std::uint32_t slot(std::uint64_t wr_id) noexcept {
        return static_cast<std::uint32_t>(wr_id & slot_mask);
    }
    static std::uint32_t route(std::uint64_t wr_id) noexcept {
        return static_cast<std::uint32_t>(wr_id >> slot_bits & route_mask);
    }
    static std::uint32_t tag(std::uint64_t wr_id) noexcept {
        return static_cast<std::uint32_t>(wr_id >> (slot_bits + route_bits));
    }
    // The wr_id of slot 0.
    static std::uint64_t make(std::uint32_t route, std::uint32_t tag) noexcept {
        return std::uint64_t{tag} << (slot_bits + route_bits) | std::uint64_t{route} << slot_bits;
    }
};

// State of a Router, shared with its work queues.
//
//     poll: a batch of completions ──► wr_id ──► route ──► work queue ──► slot ──► operation
//     then: the waiters of these operations are resumed, in order
//     then: what was posted meanwhile is handed to the device, a chain for each work queue
//
// A resumed coroutine may destroy any of these objects, so all operations of a batch are completed
// before the first waiter is resumed. work_queue.hpp has the functions that use work queues.
class RouterState final : public CompletionHandler {
public:
    explicit RouterState(AsyncCq cq) : cq_state_(AsyncCqAccess::state(cq)), regions_(*cq_state_) {
        cq_.emplace(std::move(cq));
    }

    /// Takes the completions from now on.
    void start(const std::shared_ptr<RouterState>& self) { cq_state_->set_handler(self); }

    /// The last call. Waiters are never resumed afterwards.
    void close(std::shared_ptr<RouterState> self) noexcept {
        stop(std::move(self));
        cq_.reset();
        regions_.release_abandoned(); // a wake that tells about one is lost
    }

    /// The same, or returns the error of AsyncCq::close(); then only another close may follow.
    std::error_code try_close(std::shared_ptr<RouterState> self) noexcept {
        stop(std::move(self));
        const std::error_code error = cq_->close();
        if (!error) cq_.reset();
        return error;
    }

    const std::optional<AsyncCq>& cq() const noexcept { return cq_; }

    /// Set if no completion will come any more.
    const Failure& failure() const noexcept { return failure_; }

    /// The number of completions that belonged to no request of the router's work queues.
    std::uint64_t ignored() const noexcept { return ignored_; }

    std::vector<RequestInFlight> in_flight() const;

    // --- for work queues ---

    /// Returns the wr_id of the queue's slot 0. Throws std::system_error (not_enough_memory) if
    /// there are too many queues.
    std::uint64_t add(WorkQueue& queue);
    void remove(std::uint64_t wr_id) noexcept;

    /// The router resumes `waiter`, in the order of these calls.
    void make_ready(CompletionWaiter& waiter) noexcept {
        if (!waiter.linked()) ready_.push_back(waiter);
    }
    /// Makes the router resume waiters that became ready outside of a batch of completions.
    void wake() noexcept {
        if (!delivering_ && !ready_.empty()) cq_state_->wake();
    }

    /// Whether a batch is being delivered. Until its end, work queues gather what is posted.
    bool delivering() const noexcept { return delivering_; }
    /// Calls WorkQueue::post_chain() at the end of the batch, unless the queue leaves the list.
    void gather(ListNode& queue, bool sends) noexcept {
        (sends ? gathered_sends_ : gathered_receives_).push_back(queue);
    }
    void post_gathered_receives() noexcept { post_chains(gathered_receives_); }

    /// The memory regions that requests use.
    RegionUses& regions() noexcept { return regions_; }
    /// Requests have ended without completions.
    void on_queue_destroyed() noexcept {
        if (failure_) regions_.release_abandoned(); // a wake that tells about one may be lost
    }

    // --- for the wait loop, see CompletionHandler ---

    void on_completions(std::size_t count) override {
        const Delivery delivery(*this);
        dispatch(std::span<const ibv_wc>(completions, count));
        resume_ready();
    }
    void on_wake() override {
        const Delivery delivery(*this);
        regions_.on_wake();
        collect_stopped();
        collect_ended();
        resume_ready();
    }
    void on_empty() override {
        if (ended_.empty()) [[likely]]
            return;
        const Delivery delivery(*this);
        flush_ended();
        resume_ready();
    }
    void on_error(const std::system_error& cause) override {
        const Delivery delivery(*this);
        if (!failure_) {
            failure_ = Failure(cause);
            fail_queues();
        }
        resume_ready();
    }

private:
    friend class WaiterStop;
    friend class ConnectionEnd;

    static constexpr std::uint32_t none = UINT32_MAX;

    void stop(std::shared_ptr<RouterState> self) noexcept {
        closed_ = true;
        if (!failure_) failure_ = Failure::canceled("the Router was destroyed");
        if (delivering_) alive_ = std::move(self);
    }

    // One batch. What it has gathered is posted also if a coroutine ends it with an exception, or
    // closes the router.
    class Delivery {
    public:
        explicit Delivery(RouterState& state) noexcept : state_(state) { state.delivering_ = true; }
        Delivery(const Delivery&) = delete;
        Delivery& operator=(const Delivery&) = delete;
        [[gnu::always_inline]] ~Delivery() {
            state_.post_gathered();
            state_.delivering_ = false;
            if (state_.closed_) const auto last = std::move(state_.alive_);
        }

    private:
        RouterState& state_;
    };

    struct Route {
        WorkQueue* queue = nullptr;
        std::uint32_t tag = WrId::first_tag;
        std::uint32_t next_free = none;
    };

    void dispatch(std::span<const ibv_wc> wcs) noexcept;
    WorkQueue* find(const ibv_wc& wc) const noexcept;
    void note_causes(std::span<const ibv_wc> wcs) const noexcept;
    void fail_queues() noexcept;
    void collect_stopped() noexcept;
    void collect_ended() noexcept;
    void flush_ended() noexcept;
    void resume_ready();
    // The peer may answer a send at once, so the receives come first.
    [[gnu::always_inline]] void post_gathered() noexcept {
        if (!gathered_receives_.empty()) post_chains(gathered_receives_);
        if (!gathered_sends_.empty()) post_chains(gathered_sends_);
    }
    static void post_chains(IntrusiveList<ListNode>& queues) noexcept;

    const std::shared_ptr<CqState> cq_state_;
    RegionUses regions_;
    std::optional<AsyncCq> cq_;
    Failure failure_;
    bool delivering_ = false;
    bool closed_ = false;
    std::shared_ptr<RouterState> alive_; // if a resumed coroutine closed it: to the batch's end
    std::uint64_t ignored_ = 0;

    std::vector<Route> routes_;
    std::uint32_t first_free_ = none;
    IntrusiveList<CompletionWaiter> ready_;
    IntrusiveList<WaiterStop> stops_;
    IntrusiveList<ConnectionEnd> connections_;
    IntrusiveList<ConnectionEnd> ended_;        // their queues are flushed when the CQ is empty
    IntrusiveList<ListNode> gathered_receives_; // WorkQueues that have a chain to post
    IntrusiveList<ListNode> gathered_sends_;
};

// Ends the wait of a waiter when a stop is requested, on any thread: the router resumes it.
class WaiterStop : public ListNode {
public:
    WaiterStop(CompletionWaiter& waiter, RouterState& router, const std::stop_token& token) noexcept
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

// Ends the operations of a work queue when the connection of its queue pair ends, on any thread.
// Those whose completions are in the CQ come first.
class ConnectionEnd : public ListNode {
public:
    ConnectionEnd(WorkQueue& queue, RouterState& router, const std::stop_token& ended) noexcept
        : queue_(queue), cq_(router.cq_state_) {
        router.connections_.push_back(*this);
        callback_.set(ended, *this);
    }

    WorkQueue& queue() const noexcept { return queue_; }
    bool reported() const noexcept { return reported_.load(std::memory_order_acquire); }

    void on_stop() noexcept {
        reported_.store(true, std::memory_order_release);
        cq_->wake();
    }

private:
    WorkQueue& queue_;
    const std::shared_ptr<CqState> cq_;
    std::atomic<bool> reported_{false};
    StopCallback<ConnectionEnd> callback_; // destroyed first
};

inline std::uint64_t RouterState::add(WorkQueue& queue) {
    if (first_free_ == none) {
        if (routes_.size() > WrId::route_mask) {
            throw_error(std::errc::not_enough_memory, "a Router has at most 1,048,576 work queues");
        }
        routes_.emplace_back();
        first_free_ = static_cast<std::uint32_t>(routes_.size() - 1);
    }
    const std::uint32_t index = first_free_;
    Route& route = routes_[index];
    first_free_ = std::exchange(route.next_free, none);
    route.queue = &queue;
    return WrId::make(index, route.tag);
}

inline void RouterState::remove(std::uint64_t wr_id) noexcept {
    const std::uint32_t index = WrId::route(wr_id);
    Route& route = routes_[index];
    route.queue = nullptr;
    route.tag = route.tag == WrId::last_tag ? WrId::first_tag : route.tag + 1;
    route.next_free = std::exchange(first_free_, index);
}

inline void RouterState::collect_stopped() noexcept {
    IntrusiveList<WaiterStop> stopped;
    stops_.move_if(stopped, [](const WaiterStop& stop) { return stop.requested(); });
    while (!stopped.empty()) make_ready(stopped.take_front().waiter());
}

inline void RouterState::collect_ended() noexcept {
    connections_.move_if(ended_, [](const ConnectionEnd& end) { return end.reported(); });
}

inline void RouterState::resume_ready() {
    do {
        while (!ready_.empty() && !closed_) {
            ready_.take_front().resume(); // may destroy queue pairs and the router
        }
        post_gathered(); // makes the waiters ready whose requests the device rejects
    } while (!ready_.empty() && !closed_);
}

} // namespace asyncverbs::detail
