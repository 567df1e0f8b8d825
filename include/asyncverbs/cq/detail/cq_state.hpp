// SPDX-License-Identifier: MIT
// Takes all completions of a CQ, in the place of coroutines that poll it: a router.
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/cq/async_cq_options.hpp>
#include <asyncverbs/cq/cq_poller.hpp>
#include <asyncverbs/cq/detail/wait_loop.hpp>

namespace asyncverbs::detail {

// Each call may resume coroutines, and let through what they throw. These may close the state, and
// destroy all else that refers to the sink: it lives until the call returns.
class CompletionHandler {
public:
    CompletionHandler() = default;
    CompletionHandler(const CompletionHandler&) = delete;
    CompletionHandler& operator=(const CompletionHandler&) = delete;

    ibv_wc completions[16];

    /// So many of `completions` have come, at least one.
    virtual void on_completions(std::size_t count) = 0;

    /// Somebody called CqState::interrupt().
    virtual void on_wake() = 0;

    /// Nothing will come any more. Called again when a coroutine that it resumed has thrown.
    virtual void on_error(const std::system_error& cause) = 0;

protected:
    ~CompletionHandler() = default;
};

// What a coroutine wants of an AsyncCq, and, once it has to wait for that, the node by which it
// waits. Both live in its awaiter, so waiting allocates nothing.

class CqState;

struct CqRequest {
    enum class Outcome { undecided, delivered, stopped, failed };

    std::span<ibv_wc> completions;       // where to deliver
    std::optional<std::uint64_t> wr_id;  // set: wants this work request alone
    std::uint64_t* timestamps = nullptr; // set: as many as there is room for completions
    std::size_t delivered = 0;
    Outcome outcome = Outcome::undecided;
};

struct CqWaiter : ListNode {
    struct OnStop {
        CqWaiter& waiter;
        void operator()() const noexcept; // defined with the state
    };

    CqWaiter(CqState& owner, CqRequest& wanted, std::coroutine_handle<> coroutine) noexcept
        : state(owner), request(wanted), handle(coroutine) {}

    CqState& state;
    CqRequest& request;
    std::coroutine_handle<> handle;
    std::atomic<bool> stop_requested{false};
    std::optional<std::stop_callback<OnStop>> on_stop;
};

// Completions that were polled while somebody waited for one wr_id, and that did not match: kept
// in order for whoever polls next, so that waiting for one loses none of the others.

class UnmatchedCompletions {
public:
    bool empty() const noexcept { return unmatched_.empty(); }

    /// Moves the oldest ones whose wr_id `may_take` holds for to the front of `wcs`, their
    /// timestamps to `timestamps` unless that is null, and returns how many.
    template <class Predicate>
    std::size_t take(std::span<ibv_wc> wcs, std::uint64_t* timestamps,
                     Predicate may_take) noexcept {
        std::size_t taken = 0;
        for (auto next = unmatched_.begin(); next != unmatched_.end() && taken < wcs.size();) {
            const auto kept = next++;
            if (!may_take(kept->wc.wr_id)) continue;
            if (timestamps) timestamps[taken] = kept->timestamp;
            wcs[taken++] = kept->wc;
            spare_.splice(spare_.begin(), unmatched_, kept);
        }
        return taken;
    }

    /// Adds what `poll(span, timestamps)` delivers and returns how many. Makes room first: what has
    /// left the CQ cannot be lost to a failing allocation.
    template <class Poll>
    std::size_t add(Poll poll) {
        constexpr std::size_t batch = 16;
        ibv_wc wcs[batch];
        std::uint64_t timestamps[batch] = {};
        while (spare_.size() < batch) spare_.emplace_back();
        const std::size_t count = poll(std::span<ibv_wc>(wcs, batch), timestamps);
        for (std::size_t i = 0; i < count; ++i) {
            spare_.front() = {wcs[i], timestamps[i]};
            unmatched_.splice(unmatched_.end(), spare_, spare_.begin());
        }
        return count;
    }

private:
    struct Kept {
        ibv_wc wc;
        std::uint64_t timestamp;
    };
    using List = std::list<Kept>;

    List unmatched_;
    List spare_; // room for more: nothing is allocated once there were as many before
};

// The one owner that reaps a CQ (invariant I6): the poller, and the coroutines that wait for what
// it polls. The pump waits for the channel on behalf of all of them. The steps are those of
// CqPoller's protocol. A sink, where there is one, takes the place of the coroutines.
//
//     co_await poll() ──► offer: poll, arm, poll ──► ready: no suspension
//                             │ empty
//                             ▼
//                         waiters, in order ◄──────────────────────┐ still empty
//                             │ the first one starts               │
//                             ▼                                    │
//     pump:               wait ──► turn: consume ──► serve: poll, resume, next

class CqState : public ListNode, public std::enable_shared_from_this<CqState> {
public:
    /// `reads_events`: the pump's notifier reads the channel, and says so by credit().
    CqState(CompletionQueue cq, const AsyncCqOptions& options, bool can_yield, bool reads_events)
        : poller_(std::move(cq), options), max_wait_(options.max_wait),
          polls_per_iteration_(can_yield ? 1024 : UINT64_MAX), events_are_credited_(reads_events) {}

    // --- for the coroutines that poll ---

    /// Steps 1 and 2 for a coroutine that does not wait yet. True: the outcome is decided.
    bool offer(CqRequest& request);

    /// Puts a waiter in line and returns what runs next: the pump, if it was idle.
    std::coroutine_handle<> enqueue(CqWaiter& waiter) noexcept;

    /// What is there now, without arming. Nothing while others wait, for they came first.
    std::size_t try_poll(std::span<ibv_wc> wcs, std::uint64_t* timestamps = nullptr);

    /// From now on all completions go to `sink`, until close(). Throws std::system_error
    /// (device_or_resource_busy) if somebody waits.
    void attach(const std::shared_ptr<CompletionHandler>& sink);

    /// Makes the pump look for waiters that are to stop, and for what was reported. From any
    /// thread.
    void interrupt() noexcept { wake_source_.wake(); }

    /// The device says that no completion will come any more (I10); true: for the first time. From
    /// any thread, to be followed by interrupt().
    bool report(ibv_event_type event) noexcept {
        int none = nothing_reported;
        return reported_.compare_exchange_strong(none, event);
    }

    /// Detaches whoever waits, never to be resumed, and ends the wait loop.
    void close() noexcept;

    const CqPoller& poller() const noexcept { return poller_; }
    const CqStatistics& statistics() const noexcept { return poller_.statistics(); }
    const std::system_error& failure() const noexcept { return *failure_; }

    // --- for the pump ---

    WaitLoopState wait_loop;

    bool idle() const noexcept { return !handler_ && !anyone_waits(); }
    bool may_wait() const noexcept { return poller_.may_wait(); }
    bool must_yield() const noexcept { return busy_polls_ >= polls_per_iteration_; }
    std::chrono::nanoseconds wait_bound() const noexcept { return max_wait_; }
    bool closed() const noexcept { return closed_; }
    bool finished() const noexcept { return closed_ || failure_; }
    std::stop_token stop_token() const noexcept { return wake_source_.token(); }

    void credit(unsigned events) {
        if (events > 0) poller_.credit(events);
    }

    /// After each wait: step 4, then whoever stops, then steps 1 and 2 for whoever still waits.
    void turn(std::error_code result, bool yielded);

    /// Called in a catch block. The first error is the cause, and it is final: it reaches all
    /// current and later waiters (I5).
    void fail() noexcept;

    /// Called in a catch block: a coroutine that turn() resumed let this escape. It ends the
    /// wait_loop; who waits or polls later learns of it.
    void escaped() noexcept {
        fail();
        dismiss_all();
    }

    /// Resumes all who wait, with the failure. What they let escape is dropped: it is not the
    /// first.
    void dismiss_all() noexcept;

private:
    static constexpr int nothing_reported = -1;

    bool anyone_waits() const noexcept { return !waiters_.empty() || !selective_.empty(); }
    void wake(std::error_code result, bool yielded);
    void attend();
    void serve();
    void serve_handler();
    CqWaiter* next_served();
    bool deliver(CqRequest& request);
    bool deliver_kept(CqRequest& request) noexcept {
        return !unmatched_.empty() && deliver_from_kept(request);
    }
    bool deliver_from_kept(CqRequest& request) noexcept;
    std::size_t take_kept(std::span<ibv_wc> wcs, std::uint64_t* timestamps) noexcept;
    bool awaited(std::uint64_t wr_id) noexcept;
    std::size_t keep();
    std::size_t poll_or_arm(std::span<ibv_wc> wcs, std::uint64_t* timestamps = nullptr);

    void fail_if_reported() {
        const int event = reported_.load(std::memory_order_acquire);
        if (event != nothing_reported && !failure_) fail_as_reported(event);
    }
    void fail_as_reported(int event);
    void dismiss_stopped() {
        if (wake_source_.pending()) handle_wake();
    }
    void handle_wake();
    void dismiss_failed() {
        if (failure_) dismiss_those_in_vain();
    }
    void dismiss_those_in_vain();
    void dismiss(typename CqRequest::Outcome outcome);

    CqPoller poller_;
    const std::chrono::nanoseconds max_wait_;
    // The hot path never returns to the loop, so after this many polls in a row that found
    // something, the next one takes a turn of the loop, lest a busy CQ starve its neighbours (I9).
    const std::uint64_t polls_per_iteration_;
    std::uint64_t busy_polls_ = 0;
    const bool events_are_credited_;
    bool closed_ = false;

    IntrusiveList<CqWaiter> waiters_;   // for any completion, in order of arrival
    IntrusiveList<CqWaiter> selective_; // for one wr_id each
    IntrusiveList<CqWaiter> leaving_;   // stopped or failed, about to be resumed
    UnmatchedCompletions unmatched_;
    std::shared_ptr<CompletionHandler> handler_; // null: coroutines poll
    std::optional<std::system_error> failure_;
    std::atomic<int> reported_{nothing_reported}; // an ibv_event_type
    WakeSource wake_source_;
};

inline void CqWaiter::OnStop::operator()() const noexcept {
    waiter.stop_requested.store(true, std::memory_order_release);
    waiter.state.interrupt();
}

inline bool CqState::offer(CqRequest& request) {
    const bool is_first = waiters_.empty() && !(request.wr_id && awaited(*request.wr_id));
    if (is_first && deliver_kept(request)) return true;
    if (!failure_) {
        // Whoever came first is served first, and the pump has seen to it that it will be woken.
        if (anyone_waits() || must_yield()) return false;
        try {
            if (deliver(request)) return true;
            fail_if_reported();
        } catch (...) {
            fail();
        }
        if (!failure_) return false;
    }
    request.outcome = CqRequest::Outcome::failed;
    return true;
}

inline std::coroutine_handle<> CqState::enqueue(CqWaiter& waiter) noexcept {
    (waiter.request.wr_id ? selective_ : waiters_).push_back(waiter);
    if (wait_loop.idle) return wait_loop.handle;
    return std::noop_coroutine();
}

inline std::size_t CqState::try_poll(std::span<ibv_wc> wcs, std::uint64_t* timestamps) {
    if (anyone_waits()) return 0;
    if (const std::size_t taken = take_kept(wcs, timestamps)) return taken;
    return poller_.poll(wcs, timestamps);
}

inline void CqState::attach(const std::shared_ptr<CompletionHandler>& sink) {
    if (anyone_waits()) {
        throw_error(std::errc::device_or_resource_busy, "somebody waits for this AsyncCq");
    }
    handler_ = sink; // which lives as long as this call, whoever it resumes
    attend();
    if (wait_loop.idle && !finished()) wait_loop.handle.resume();
}

inline void CqState::close() noexcept {
    closed_ = true;
    handler_.reset(); // it refers to this state
    for (auto* list : {&waiters_, &selective_, &leaving_}) {
        while (!list->empty()) list->take_front().on_stop.reset(); // it refers to this state
    }
    wait_loop.close();
}

inline void CqState::turn(std::error_code result, bool yielded) {
    try {
        wake(result, yielded);
    } catch (...) {
        fail();
    }
    attend();
}

/// Whoever stops, then whoever still waits, then whoever waits in vain.
inline void CqState::attend() {
    dismiss_stopped();
    serve();
    fail_if_reported();
    dismiss_failed();
}

inline void CqState::wake(std::error_code result, bool yielded) {
    busy_polls_ = 0;
    if (!result) {
        if (!events_are_credited_) poller_.consume();
    } else if (result == std::errc::timed_out) {
        // The event of this arm may have been dropped: arm again and look (max_wait).
        if (!yielded) poller_.forget_arm();
    } else if (result != std::errc::operation_canceled) {
        throw std::system_error(result, "CqNotifier::readable");
    }
}

/// Steps 1 and 2 for those who wait, until nobody does, or I1 holds, or the turn is over.
inline void CqState::serve() {
    if (handler_) return serve_handler();
    while (!finished() && anyone_waits() && !may_wait() && !must_yield()) {
        CqWaiter* waiter = nullptr;
        try {
            waiter = next_served();
        } catch (...) {
            fail();
        }
        if (!waiter) continue;
        waiter->unlink();
        waiter->handle.resume(); // may poll again, or destroy its AsyncCq (I8)
    }
}

inline void CqState::serve_handler() {
    while (!finished() && !must_yield()) {
        std::size_t polled = 0;
        try {
            polled = poll_or_arm(handler_->completions);
        } catch (...) {
            fail();
        }
        if (polled == 0) return;
        handler_->on_completions(polled); // whom it resumes may close us
        dismiss_stopped();
    }
}

/// The next waiter that has been given completions; null if there are none to give.
inline CqWaiter* CqState::next_served() {
    if (selective_.empty() && unmatched_.empty()) {
        CqWaiter& first = waiters_.front();
        return deliver(first.request) ? &first : nullptr;
    }
    do {
        const auto served = [this](CqWaiter& waiter) { return deliver_kept(waiter.request); };
        if (CqWaiter* waiter = selective_.find_if(served)) return waiter;
        if (!waiters_.empty() && served(waiters_.front())) return &waiters_.front();
    } while (!must_yield() && keep() > 0);
    return nullptr;
}

inline bool CqState::deliver(CqRequest& request) {
    if (request.wr_id) {
        while (!must_yield() && keep() > 0) {
            if (deliver_kept(request)) return true;
        }
        return false;
    }
    request.delivered = poll_or_arm(request.completions, request.timestamps);
    if (request.delivered == 0) return false;
    request.outcome = CqRequest::Outcome::delivered;
    return true;
}

inline bool CqState::deliver_from_kept(CqRequest& request) noexcept {
    if (request.wr_id) {
        const auto matches = [&](std::uint64_t wr_id) { return wr_id == *request.wr_id; };
        request.delivered = unmatched_.take(request.completions.first(1), nullptr, matches);
    } else {
        request.delivered = take_kept(request.completions, request.timestamps);
    }
    if (request.delivered == 0) return false;
    request.outcome = CqRequest::Outcome::delivered;
    return true;
}

/// What nobody waits for by its wr_id: a batch may hold the completions of several who do, and the
/// first of them that is resumed may poll for any.
inline std::size_t CqState::take_kept(std::span<ibv_wc> wcs, std::uint64_t* timestamps) noexcept {
    return unmatched_.take(wcs, timestamps,
                           [this](std::uint64_t wr_id) { return !awaited(wr_id); });
}

inline bool CqState::awaited(std::uint64_t wr_id) noexcept {
    const auto awaits = [=](const CqWaiter& waiter) { return waiter.request.wr_id == wr_id; };
    return selective_.find_if(awaits) != nullptr;
}

inline std::size_t CqState::keep() {
    return unmatched_.add([this](std::span<ibv_wc> wcs, std::uint64_t* timestamps) {
        return poll_or_arm(wcs, timestamps);
    });
}

[[gnu::always_inline]] inline std::size_t CqState::poll_or_arm(std::span<ibv_wc> wcs,
                                                               std::uint64_t* timestamps) {
    const std::size_t polled = poller_.poll_or_arm(wcs, timestamps);
    if (polled > 0) ++busy_polls_;
    return polled;
}

/// Decided before the poll: a completion that has left the CQ is always delivered (I7).
inline void CqState::handle_wake() {
    try {
        wake_source_.reset();
    } catch (...) {
        fail();
    }
    const auto stops = [](const CqWaiter& waiter) {
        return waiter.stop_requested.load(std::memory_order_acquire);
    };
    waiters_.move_if(leaving_, stops);
    selective_.move_if(leaving_, stops);
    dismiss(CqRequest::Outcome::stopped);
    if (handler_) handler_->on_wake();
}

/// After a poll: what is in the queue is delivered before its failure.
inline void CqState::fail_as_reported(int event) {
    failure_.emplace(std::make_error_code(std::errc::io_error),
                     std::string("the device reported: ") +
                         ibv_event_type_str(static_cast<ibv_event_type>(event)));
}

inline void CqState::dismiss_those_in_vain() {
    leaving_.append(waiters_);
    leaving_.append(selective_);
    dismiss(CqRequest::Outcome::failed);
    if (handler_) handler_->on_error(*failure_);
}

inline void CqState::dismiss_all() noexcept {
    for (;;) {
        try {
            return dismiss_failed();
        } catch (...) {
        }
    }
}

/// Resumes those who leave without a completion.
inline void CqState::dismiss(typename CqRequest::Outcome outcome) {
    while (!leaving_.empty()) { // close() empties it
        CqWaiter& waiter = leaving_.take_front();
        waiter.request.outcome = outcome;
        waiter.handle.resume();
    }
}

inline void CqState::fail() noexcept {
    if (!failure_) failure_.emplace(current_failure());
}

// The AsyncCqs that exist. A device reports the failure of a completion queue not on the queue's
// own channel but on its channel for asynchronous events; from there it has to find the waiters.

// Thread-safe: an event may be read on another thread than the one that runs the AsyncCq.
class CqRegistry {
public:
    static CqRegistry& instance() {
        static CqRegistry registry;
        return registry;
    }

    void add(CqState& state) {
        const std::lock_guard lock(mutex_);
        reapers_.push_back(state);
    }

    void remove(CqState& state) {
        const std::lock_guard lock(mutex_);
        state.unlink();
    }

    /// Fails those that `event` of `device` leaves without a future.
    void report(ibv_context* device, const ibv_async_event& event) {
        while (const std::shared_ptr<CqState> state = next_failing(device, event)) {
            state->interrupt(); // calls its notifier, hence with no lock held
        }
    }

private:
    // One that has not heard of it.
    std::shared_ptr<CqState> next_failing(ibv_context* device, const ibv_async_event& event) {
        const std::lock_guard lock(mutex_);
        const auto fails = [&](CqState& state) {
            const ibv_cq* const cq = state.poller().completion_queue().native_handle();
            const bool concerned =
                event.event_type == IBV_EVENT_CQ_ERR
                    ? event.element.cq == cq
                    : event.event_type == IBV_EVENT_DEVICE_FATAL && cq->context == device;
            return concerned && state.report(event.event_type);
        };
        CqState* const state = reapers_.find_if(fails);
        return state == nullptr ? nullptr : state->shared_from_this();
    }

    std::mutex mutex_;
    IntrusiveList<CqState> reapers_;
};

} // namespace asyncverbs::detail
