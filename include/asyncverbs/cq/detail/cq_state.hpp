// SPDX-License-Identifier: MIT
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <cassert>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/coro/detail/stop_callback.hpp>
#include <asyncverbs/cq/async_cq_options.hpp>
#include <asyncverbs/cq/cq_notifier.hpp>
#include <asyncverbs/cq/cq_poller.hpp>
#include <asyncverbs/cq/detail/wait_loop.hpp>
#include <asyncverbs/cq/detail/wr_id_table.hpp>

namespace asyncverbs::detail {

class CompletionHandler;
struct CqRequest;
struct CqWaiter;

// The one owner that reaps a CQ (I6): its poller, the coroutines that wait for completions, and the
// wait loop that waits for the channel on behalf of all of them. The steps are those of CqPoller's
// protocol. A Router installs a CompletionHandler in the place of the coroutines.
//
//     co_await cq.poll(wcs) ──► try_complete: poll, arm, poll ──► completed: no suspension
//                                   │ empty
//                                   ▼
//                               enqueue: waiters, in order ◄───────────────┐ still empty
//                                   │ the first one starts it              │
//                                   ▼                                      │
//     wait loop:                wait ──► consume ──► serve_waiters: poll, arm, poll; resume
//
class CqState : public ListNode, public WaitLoopOwner {
public:
    /// `notifier` is that of the wait loop.
    template <class N>
    CqState(CompletionQueue cq, const AsyncCqOptions& options, const N& notifier);

    // --- for the operations of AsyncCq ---

    /// Steps 1 and 2 for a request that does not wait yet. True: its outcome is set.
    bool try_complete(CqRequest& request);

    /// Adds a waiter, and returns the coroutine to resume next.
    std::coroutine_handle<> enqueue(CqWaiter& waiter) noexcept;

    /// Step 1 alone. Returns 0 while there are waiters, which were first.
    std::size_t try_poll(std::span<ibv_wc> wcs);

    /// Cancels the wait of all waiters, never to be resumed, and ends the wait loop.
    void close() noexcept;

    /// After close(): destroys the CQ, and returns {}; or fails this state, and returns the error.
    std::error_code destroy_cq() noexcept;

    const CqPoller& poller() const noexcept { return poller_; }
    const CqStatistics& statistics() const noexcept { return poller_.statistics(); }

    // --- for a Router ---

    /// From now on all completions go to `handler`, until close(). Throws std::system_error
    /// (device_or_resource_busy) if there are waiters.
    void set_handler(const std::shared_ptr<CompletionHandler>& handler);

    // --- for DeviceEvents ---

    /// The device reports that no more completions will come (I10). True: for the first time. From
    /// any thread, to be followed by wake().
    bool report_failure(ibv_event_type event) noexcept {
        int none = nothing_reported;
        return reported_event_.compare_exchange_strong(none, event);
    }

    // --- for other threads ---

    /// To be followed by request_stop(), which wakes the wait loop.
    std::stop_source prepare_wake() noexcept { return wake_source_.prepare(); }

    // --- for the wait loop, see WaitLoopOwner ---

    bool wait_needed() const noexcept { return handler_ || has_waiters(); }
    std::optional<std::chrono::nanoseconds> begin_wait() noexcept;
    void credit(unsigned events) {
        if (events > 0) poller_.credit(events);
    }
    void after_wait(std::error_code result);
    void on_escaped_exception() noexcept {
        fail(); // the wait loop ends, so nothing resumes later waiters
        fail_waiters();
    }
    void fail_waiters() noexcept;

private:
    static constexpr int nothing_reported = -1;
    // The wait for an arm that the device may have lost. Until a completion arrives, an idle CQ
    // wakes that often.
    static constexpr std::chrono::milliseconds lost_arm_wait{100};

    bool has_waiters() const noexcept { return !waiters_.empty() || !wr_id_waiters_.empty(); }
    bool must_yield() const noexcept { return polls_since_wait_ >= polls_per_iteration_; }

    void consume(std::error_code result);
    void serve();
    void serve_waiters();
    void serve_handler();
    CqWaiter* complete_next_waiter();

    bool is_first(const CqRequest& request) noexcept;
    bool complete_from_queue(CqRequest& request);
    bool complete_from_unmatched(CqRequest& request) noexcept;
    std::size_t take_unmatched(std::span<ibv_wc> wcs, std::uint64_t* timestamps) noexcept;
    std::size_t poll_into_unmatched();
    std::size_t poll_or_arm(std::span<ibv_wc> wcs, std::uint64_t* timestamps = nullptr);

    void resume_stopped();
    void resume_failed();
    void resume_removed();
    void fail_if_reported() noexcept;

    void assert_thread() const {
        assert(thread_.passes() && "asyncverbs: an AsyncCq used on another thread than its loop's");
    }

    CqPoller poller_;
    const ThreadCheck thread_;
    const std::chrono::nanoseconds max_wait_;
    const bool timed_; // the notifier can bound a wait
    // A poll that finds completions does not return to the event loop. After this number of them
    // the next one waits for an iteration of the loop, or a busy CQ would starve its neighbours
    // (I9).
    const std::uint64_t polls_per_iteration_;
    std::uint64_t polls_since_wait_ = 0; // that found completions
    bool yielding_ = false;              // in such a wait
    const bool notifier_reads_events_;

    IntrusiveList<CqWaiter> waiters_;       // for any completion, in order of arrival
    IntrusiveList<CqWaiter> wr_id_waiters_; // for one wr_id each
    WrIdTable<CqWaiter> waiters_by_wr_id_;
    IntrusiveList<CqWaiter> removed_; // stopped or failed, about to be resumed
    UnmatchedCompletions unmatched_;
    std::shared_ptr<CompletionHandler> handler_;        // null: coroutines poll
    std::atomic<int> reported_event_{nothing_reported}; // an ibv_event_type
};

// What a coroutine wants of an AsyncCq. Part of the operation, like the waiter, so that waiting
// allocates nothing.
struct CqRequest {
    enum class Outcome { undecided, delivered, stopped, failed };

    std::span<ibv_wc> completions{};      // where to deliver
    std::optional<std::uint64_t> wr_id{}; // set: only the completion of this work request
    std::uint64_t* timestamps = nullptr;  // not null: as many elements as `completions`
    std::size_t delivered = 0;
    Outcome outcome = Outcome::undecided;
};

// A suspended coroutine, linked into the list of waiters, and into the table if it waits for one
// wr_id.
struct CqWaiter : ListNode {
    CqWaiter(CqState& owner, CqRequest& wanted, std::coroutine_handle<> coroutine) noexcept
        : state(owner), request(wanted), handle(coroutine) {}

    void on_stop() noexcept {
        stop_requested.store(true, std::memory_order_release);
        state.wake();
    }

    CqState& state;
    CqRequest& request;
    std::coroutine_handle<> handle;
    WrIdTable<CqWaiter>::Entry by_wr_id{*this};
    std::atomic<bool> stop_requested{false};
    StopCallback<CqWaiter> stop_callback;
};

// Receives all completions of a CQ. A call may resume coroutines and let their exceptions through.
// These coroutines may close the CqState, and destroy every other object that refers to the
// handler: it lives until the call returns.
class CompletionHandler {
public:
    CompletionHandler() = default;
    CompletionHandler(const CompletionHandler&) = delete;
    CompletionHandler& operator=(const CompletionHandler&) = delete;

    ibv_wc completions[32];

    /// The first `count` of `completions` have arrived, at least one.
    virtual void on_completions(std::size_t count) = 0;

    /// CqState::wake() was called.
    virtual void on_wake() = 0;

    /// All completions that came before the last wake() have been delivered.
    virtual void on_empty() = 0;

    /// No more completions will arrive. Called again when a coroutine that it resumed has thrown.
    virtual void on_error(const std::system_error& cause) = 0;

protected:
    ~CompletionHandler() = default;
};

template <class N>
CqState::CqState(CompletionQueue cq, const AsyncCqOptions& options, const N& notifier)
    : poller_(std::move(cq), options), thread_(notifier), max_wait_(options.max_wait),
      timed_(TimedCqNotifier<N>), polls_per_iteration_(timed_ ? 1024 : UINT64_MAX),
      notifier_reads_events_(reads_events<N>) {}

// --- steps 1 and 2, for a request that does not wait yet ---

inline bool CqState::try_complete(CqRequest& request) {
    assert_thread();
    if (!unmatched_.empty() && is_first(request) && complete_from_unmatched(request)) return true;
    if (!failure_) {
        // The waiters were first, and the CQ is armed for them.
        if (has_waiters() || must_yield()) return false;
        try {
            if (complete_from_queue(request)) return true;
            fail_if_reported();
        } catch (...) {
            fail();
        }
        if (!failure_) return false;
    }
    request.outcome = CqRequest::Outcome::failed;
    return true;
}

// Whether no waiter was before it.
inline bool CqState::is_first(const CqRequest& request) noexcept {
    if (!waiters_.empty()) return false;
    return !request.wr_id || waiters_by_wr_id_.find(*request.wr_id) == nullptr;
}

inline bool CqState::complete_from_queue(CqRequest& request) {
    if (request.wr_id) {
        while (!must_yield() && poll_into_unmatched() > 0) {
            if (complete_from_unmatched(request)) return true;
        }
        return false;
    }
    request.delivered = poll_or_arm(request.completions, request.timestamps);
    if (request.delivered == 0) return false;
    request.outcome = CqRequest::Outcome::delivered;
    return true;
}

inline bool CqState::complete_from_unmatched(CqRequest& request) noexcept {
    if (request.wr_id) {
        const std::optional<ibv_wc> match = unmatched_.take(*request.wr_id);
        if (match) request.completions[0] = *match;
        request.delivered = match ? 1 : 0;
    } else {
        request.delivered = take_unmatched(request.completions, request.timestamps);
    }
    if (request.delivered == 0) return false;
    request.outcome = CqRequest::Outcome::delivered;
    return true;
}

// Leaves the completions that poll_wr_id() waits for: a batch may hold those of several waiters,
// and the first one that is resumed may poll for any completion.
inline std::size_t CqState::take_unmatched(std::span<ibv_wc> wcs,
                                           std::uint64_t* timestamps) noexcept {
    return unmatched_.take(wcs, timestamps, [this](std::uint64_t wr_id) {
        return waiters_by_wr_id_.find(wr_id) == nullptr;
    });
}

inline std::size_t CqState::poll_into_unmatched() {
    return unmatched_.add([this](std::span<ibv_wc> wcs, std::uint64_t* timestamps) {
        return poll_or_arm(wcs, timestamps);
    });
}

inline std::size_t CqState::poll_or_arm(std::span<ibv_wc> wcs, std::uint64_t* timestamps) {
    const std::size_t polled = poller_.poll_or_arm(wcs, timestamps);
    if (polled > 0) ++polls_since_wait_;
    return polled;
}

inline std::size_t CqState::try_poll(std::span<ibv_wc> wcs) {
    assert_thread();
    if (has_waiters()) return 0;
    if (const std::size_t taken = take_unmatched(wcs, nullptr)) return taken;
    return poller_.poll(wcs);
}

// --- step 3: wait ---

inline std::coroutine_handle<> CqState::enqueue(CqWaiter& waiter) noexcept {
    (waiter.request.wr_id ? wr_id_waiters_ : waiters_).push_back(waiter);
    if (waiter.request.wr_id) waiters_by_wr_id_.add(waiter.by_wr_id, *waiter.request.wr_id);
    return start_wait_loop();
}

inline std::optional<std::chrono::nanoseconds> CqState::begin_wait() noexcept {
    yielding_ = must_yield();
    assert(poller_.may_wait() || yielding_); // I1
    if (yielding_) return std::chrono::nanoseconds(0);
    if (max_wait_.count() > 0) return max_wait_;
    if (timed_ && poller_.arm_may_be_lost()) return lost_arm_wait;
    return std::nullopt;
}

// --- step 4: consume ---

inline void CqState::after_wait(std::error_code result) {
    try {
        consume(result);
    } catch (...) {
        fail();
    }
    serve();
}

inline void CqState::consume(std::error_code result) {
    polls_since_wait_ = 0;
    if (!result) {
        if (!notifier_reads_events_) poller_.consume();
    } else if (result == std::errc::timed_out) {
        // The event of this arm may have been dropped, or the arm lost: arm again and look.
        if (!yielding_) poller_.forget_arm();
    } else if (result != std::errc::operation_canceled) {
        throw std::system_error(result, "CqNotifier::readable");
    }
}

// --- step 5: back to 1, for the waiters ---

// Resume stopped waiters first, then serve the others; on failure, fail all of them. A resumed
// coroutine may poll again, or close this state, which empties the lists (I8).
inline void CqState::serve() {
    resume_stopped(); // before a poll: a completion that has left the CQ is always delivered (I7)
    if (handler_) {
        serve_handler();
    } else {
        serve_waiters();
    }
    fail_if_reported(); // after the polls: deliver what is in the queue before its failure
    resume_failed();
}

// Polls until no waiter is left, or waiting is safe (I1), or this iteration of the loop has lasted
// long enough (I9).
inline void CqState::serve_waiters() {
    while (!finished() && has_waiters() && !poller_.may_wait() && !must_yield()) {
        CqWaiter* waiter = nullptr;
        try {
            waiter = complete_next_waiter();
        } catch (...) {
            fail();
        }
        if (!waiter) continue;
        waiter->unlink();
        waiter->by_wr_id.unlink();
        waiter->handle.resume();
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
        if (polled == 0) {
            if (!failure_) handler_->on_empty(); // may close this state
            return;
        }
        handler_->on_completions(polled); // may, too
        resume_stopped();
    }
}

// Delivers to a waiter and returns it; null if there are no completions for any of them.
inline CqWaiter* CqState::complete_next_waiter() {
    if (wr_id_waiters_.empty() && unmatched_.empty()) {
        CqWaiter& first = waiters_.front();
        return complete_from_queue(first.request) ? &first : nullptr;
    }
    do {
        while (const std::optional<std::uint64_t> wr_id = unmatched_.next_unseen()) {
            CqWaiter* const waiter = waiters_by_wr_id_.find(*wr_id);
            if (waiter != nullptr && complete_from_unmatched(waiter->request)) return waiter;
        }
        if (!waiters_.empty() && complete_from_unmatched(waiters_.front().request)) {
            return &waiters_.front();
        }
    } while (!must_yield() && poll_into_unmatched() > 0);
    return nullptr;
}

inline void CqState::set_handler(const std::shared_ptr<CompletionHandler>& handler) {
    if (has_waiters()) {
        throw_error(std::errc::device_or_resource_busy,
                    "a coroutine waits for this AsyncCq already");
    }
    handler_ = handler; // which the caller keeps alive during this call
    serve();
    if (!finished()) start_wait_loop().resume();
}

// --- stops, failures, the end ---

inline void CqState::resume_stopped() {
    if (!wake_source_.pending()) return;
    try {
        wake_source_.reset();
    } catch (...) {
        fail();
    }
    const auto stops = [](CqWaiter& waiter) {
        if (!waiter.stop_requested.load(std::memory_order_acquire)) return false;
        waiter.request.outcome = CqRequest::Outcome::stopped;
        waiter.by_wr_id.unlink();
        return true;
    };
    waiters_.move_if(removed_, stops);
    wr_id_waiters_.move_if(removed_, stops);
    resume_removed();
    if (handler_) handler_->on_wake();
}

inline void CqState::fail_if_reported() noexcept {
    const int event = reported_event_.load(std::memory_order_acquire);
    if (event == nothing_reported || failure_) return;
    try {
        throw_error(std::errc::io_error,
                    std::string("the device reported: ") +
                        ibv_event_type_str(static_cast<ibv_event_type>(event)));
    } catch (...) {
        fail();
    }
}

inline void CqState::resume_failed() {
    if (!failure_) return;
    removed_.append(waiters_);
    removed_.append(wr_id_waiters_);
    removed_.for_each([](CqWaiter& waiter) {
        waiter.request.outcome = CqRequest::Outcome::failed;
        waiter.by_wr_id.unlink();
    });
    resume_removed();
    if (handler_) handler_->on_error(*failure_);
}

inline void CqState::fail_waiters() noexcept {
    for (;;) {
        try {
            return resume_failed();
        } catch (...) { // from a resumed coroutine: only the first exception is reported
        }
    }
}

inline void CqState::resume_removed() {
    while (!removed_.empty()) removed_.take_front().handle.resume();
}

inline void CqState::close() noexcept {
    handler_.reset(); // it refers to this state
    for (auto* list : {&waiters_, &wr_id_waiters_, &removed_}) {
        while (!list->empty()) list->take_front().stop_callback.reset(); // it refers to this state
    }
    WaitLoopOwner::close();
}

inline std::error_code CqState::destroy_cq() noexcept {
    const std::error_code error = poller_.close();
    if (!error) return {};
    try {
        throw_error(std::errc::bad_file_descriptor, "this AsyncCq was closed");
    } catch (...) {
        fail();
    }
    return error;
}

} // namespace asyncverbs::detail
