// SPDX-License-Identifier: MIT
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
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>

#include <asyncverbs/core/async_cq_options.hpp>
#include <asyncverbs/core/cq_poller.hpp>
#include <asyncverbs/core/detail/cq_sink.hpp>
#include <asyncverbs/core/detail/cq_waiter.hpp>
#include <asyncverbs/core/detail/current_failure.hpp>
#include <asyncverbs/core/detail/interruption.hpp>
#include <asyncverbs/core/detail/intrusive_list.hpp>
#include <asyncverbs/core/detail/kept_completions.hpp>
#include <asyncverbs/core/detail/maybe.hpp>
#include <asyncverbs/core/detail/pump_state.hpp>
#include <asyncverbs/verbs/detail/chrono.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs::detail {

template <class Use>
class CqReaper : public ListNode, public std::enable_shared_from_this<CqReaper<Use>> {
public:
    /// `reads_events`: the pump's notifier reads the channel, and says so by credit().
    CqReaper(BasicCompletionQueue<Use> cq, const AsyncCqOptions& options, bool can_yield,
             bool reads_events)
        : poller_(std::move(cq), options), max_wait_(options.max_wait),
          polls_per_turn_(can_yield ? 1024 : UINT64_MAX), events_are_credited_(reads_events) {}

    // --- for the coroutines that poll ---

    /// Steps 1 and 2 for a coroutine that does not wait yet. True: the outcome is decided.
    bool offer(CqRequest<Use>& request);

    /// Puts a waiter in line and returns what runs next: the pump, if it was idle.
    std::coroutine_handle<> enqueue(CqWaiter<Use>& waiter) noexcept;

    /// What is there now, without arming. Nothing while others wait, for they came first.
    std::size_t try_poll(std::span<ibv_wc> wcs, std::uint64_t* timestamps = nullptr);

    /// From now on all completions go to `sink`, until close(). Throws std::system_error
    /// (device_or_resource_busy) if somebody waits.
    void attach(const std::shared_ptr<CqSink<Use>>& sink);

    /// Makes the pump look for waiters that are to stop, and for what was reported. From any
    /// thread.
    void interrupt() noexcept { interruption_.request(); }

    /// The device says that no completion will come any more (I10); true: for the first time. From
    /// any thread, to be followed by interrupt().
    bool report(ibv_event_type event) noexcept {
        int none = nothing_reported;
        return reported_.compare_exchange_strong(none, event);
    }

    /// Detaches whoever waits, never to be resumed, and ends the pump.
    void close() noexcept;

    const BasicCqPoller<Use>& poller() const noexcept { return poller_; }
    const CqStatistics& statistics() const noexcept { return poller_.statistics(); }
    const std::system_error& failure() const noexcept { return *failure_; }

    // --- for the pump ---

    PumpState<Use> pump;

    bool idle() const noexcept { return !sink_ && !anyone_waits(); }
    bool may_wait() const noexcept { return poller_.may_wait(); }
    bool must_yield() const noexcept { return busy_polls_ >= polls_per_turn_; }
    std::chrono::nanoseconds wait_bound() const noexcept { return max_wait_; }
    bool closed() const noexcept { return closed_; }
    bool finished() const noexcept { return closed_ || failure_; }
    std::stop_token stop_token() const noexcept { return interruption_.token(); }

    void credit(unsigned events) {
        if (events > 0) poller_.credit(events);
    }

    /// After each wait: step 4, then whoever stops, then steps 1 and 2 for whoever still waits.
    void turn(std::error_code result, bool yielded);

    /// Called in a catch block. The first error is the cause, and it is final: it reaches all
    /// current and later waiters (I5).
    void fail() noexcept;

    /// Called in a catch block: a coroutine that turn() resumed let this escape. It ends the pump;
    /// who waits or polls later learns of it.
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
    void serve_sink();
    CqWaiter<Use>* next_served();
    bool deliver(CqRequest<Use>& request);
    bool deliver_kept(CqRequest<Use>& request) noexcept {
        return !kept_.empty() && deliver_from_kept(request);
    }
    bool deliver_from_kept(CqRequest<Use>& request) noexcept;
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
        if (interruption_.pending()) heed_interruption();
    }
    void heed_interruption();
    void dismiss_failed() {
        if (failure_) dismiss_those_in_vain();
    }
    void dismiss_those_in_vain();
    void dismiss(typename CqRequest<Use>::Outcome outcome);

    BasicCqPoller<Use> poller_;
    const std::chrono::nanoseconds max_wait_;
    // The hot path never returns to the loop, so after this many polls in a row that found
    // something, the next one takes a turn of the loop, lest a busy CQ starve its neighbours (I9).
    const std::uint64_t polls_per_turn_;
    std::uint64_t busy_polls_ = 0;
    const bool events_are_credited_;
    bool closed_ = false;

    IntrusiveList<CqWaiter<Use>> waiters_;   // for any completion, in order of arrival
    IntrusiveList<CqWaiter<Use>> selective_; // for one wr_id each
    IntrusiveList<CqWaiter<Use>> leaving_;   // stopped or failed, about to be resumed
    KeptCompletions<Use> kept_;
    std::shared_ptr<CqSink<Use>> sink_; // null: coroutines poll
    Used<Maybe<std::system_error>, Use> failure_;
    std::atomic<int> reported_{nothing_reported}; // an ibv_event_type
    Interruption<Use> interruption_;
};

template <class Use>
inline void CqWaiter<Use>::OnStop::operator()() const noexcept {
    waiter.stop_requested.store(true, std::memory_order_release);
    waiter.reaper.interrupt();
}

template <class Use>
inline bool CqReaper<Use>::offer(CqRequest<Use>& request) {
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
    request.outcome = CqRequest<Use>::Outcome::failed;
    return true;
}

template <class Use>
inline std::coroutine_handle<> CqReaper<Use>::enqueue(CqWaiter<Use>& waiter) noexcept {
    (waiter.request.wr_id ? selective_ : waiters_).push_back(waiter);
    if (pump.idle) return pump.handle;
    return std::noop_coroutine();
}

template <class Use>
inline std::size_t CqReaper<Use>::try_poll(std::span<ibv_wc> wcs, std::uint64_t* timestamps) {
    if (anyone_waits()) return 0;
    if (const std::size_t taken = take_kept(wcs, timestamps)) return taken;
    return poller_.poll(wcs, timestamps);
}

template <class Use>
inline void CqReaper<Use>::attach(const std::shared_ptr<CqSink<Use>>& sink) {
    if (anyone_waits()) {
        throw_error(std::errc::device_or_resource_busy, "somebody waits for this AsyncCq");
    }
    sink_ = sink; // which lives as long as this call, whoever it resumes
    attend();
    if (pump.idle && !finished()) pump.handle.resume();
}

template <class Use>
inline void CqReaper<Use>::close() noexcept {
    closed_ = true;
    sink_.reset(); // it refers to this reaper
    for (auto* list : {&waiters_, &selective_, &leaving_}) {
        while (!list->empty()) list->take_front().on_stop.reset(); // it refers to this reaper
    }
    pump.close();
}

template <class Use>
inline void CqReaper<Use>::turn(std::error_code result, bool yielded) {
    try {
        wake(result, yielded);
    } catch (...) {
        fail();
    }
    attend();
}

/// Whoever stops, then whoever still waits, then whoever waits in vain.
template <class Use>
inline void CqReaper<Use>::attend() {
    dismiss_stopped();
    serve();
    fail_if_reported();
    dismiss_failed();
}

template <class Use>
inline void CqReaper<Use>::wake(std::error_code result, bool yielded) {
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
template <class Use>
inline void CqReaper<Use>::serve() {
    if (sink_) return serve_sink();
    while (!finished() && anyone_waits() && !may_wait() && !must_yield()) {
        CqWaiter<Use>* waiter = nullptr;
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

template <class Use>
inline void CqReaper<Use>::serve_sink() {
    while (!finished() && !must_yield()) {
        std::size_t polled = 0;
        try {
            polled = poll_or_arm(sink_->completions);
        } catch (...) {
            fail();
        }
        if (polled == 0) return;
        sink_->deliver(polled); // whom it resumes may close us
        dismiss_stopped();
    }
}

/// The next waiter that has been given completions; null if there are none to give.
template <class Use>
inline CqWaiter<Use>* CqReaper<Use>::next_served() {
    if (selective_.empty() && kept_.empty()) {
        CqWaiter<Use>& first = waiters_.front();
        return deliver(first.request) ? &first : nullptr;
    }
    do {
        const auto served = [this](CqWaiter<Use>& waiter) { return deliver_kept(waiter.request); };
        if (CqWaiter<Use>* waiter = selective_.find_if(served)) return waiter;
        if (!waiters_.empty() && served(waiters_.front())) return &waiters_.front();
    } while (!must_yield() && keep() > 0);
    return nullptr;
}

template <class Use>
inline bool CqReaper<Use>::deliver(CqRequest<Use>& request) {
    if (request.wr_id) {
        while (!must_yield() && keep() > 0) {
            if (deliver_kept(request)) return true;
        }
        return false;
    }
    request.delivered = poll_or_arm(request.completions, request.timestamps);
    if (request.delivered == 0) return false;
    request.outcome = CqRequest<Use>::Outcome::delivered;
    return true;
}

template <class Use>
inline bool CqReaper<Use>::deliver_from_kept(CqRequest<Use>& request) noexcept {
    if (request.wr_id) {
        const auto matches = [&](std::uint64_t wr_id) { return wr_id == *request.wr_id; };
        request.delivered = kept_.take(request.completions.first(1), nullptr, matches);
    } else {
        request.delivered = take_kept(request.completions, request.timestamps);
    }
    if (request.delivered == 0) return false;
    request.outcome = CqRequest<Use>::Outcome::delivered;
    return true;
}

/// What nobody waits for by its wr_id: a batch may hold the completions of several who do, and the
/// first of them that is resumed may poll for any.
template <class Use>
inline std::size_t CqReaper<Use>::take_kept(std::span<ibv_wc> wcs,
                                            std::uint64_t* timestamps) noexcept {
    return kept_.take(wcs, timestamps, [this](std::uint64_t wr_id) { return !awaited(wr_id); });
}

template <class Use>
inline bool CqReaper<Use>::awaited(std::uint64_t wr_id) noexcept {
    const auto awaits = [=](const CqWaiter<Use>& waiter) { return waiter.request.wr_id == wr_id; };
    return selective_.find_if(awaits) != nullptr;
}

template <class Use>
inline std::size_t CqReaper<Use>::keep() {
    return kept_.add([this](std::span<ibv_wc> wcs, std::uint64_t* timestamps) {
        return poll_or_arm(wcs, timestamps);
    });
}

template <class Use>
[[gnu::always_inline]] inline std::size_t CqReaper<Use>::poll_or_arm(std::span<ibv_wc> wcs,
                                                                     std::uint64_t* timestamps) {
    const std::size_t polled = poller_.poll_or_arm(wcs, timestamps);
    if (polled > 0) ++busy_polls_;
    return polled;
}

/// Decided before the poll: a completion that has left the CQ is always delivered (I7).
template <class Use>
inline void CqReaper<Use>::heed_interruption() {
    try {
        interruption_.renew();
    } catch (...) {
        fail();
    }
    const auto stops = [](const CqWaiter<Use>& waiter) {
        return waiter.stop_requested.load(std::memory_order_acquire);
    };
    waiters_.move_if(leaving_, stops);
    selective_.move_if(leaving_, stops);
    dismiss(CqRequest<Use>::Outcome::stopped);
    if (sink_) sink_->interrupted();
}

/// After a poll: what is in the queue is delivered before its failure.
template <class Use>
inline void CqReaper<Use>::fail_as_reported(int event) {
    failure_.emplace(std::make_error_code(std::errc::io_error),
                     Used<std::string, Use>("the device reported: ") +
                         ibv_event_type_str(static_cast<ibv_event_type>(event)));
}

template <class Use>
inline void CqReaper<Use>::dismiss_those_in_vain() {
    leaving_.append(waiters_);
    leaving_.append(selective_);
    dismiss(CqRequest<Use>::Outcome::failed);
    if (sink_) sink_->fail(*failure_);
}

template <class Use>
inline void CqReaper<Use>::dismiss_all() noexcept {
    for (;;) {
        try {
            return dismiss_failed();
        } catch (...) {
        }
    }
}

/// Resumes those who leave without a completion.
template <class Use>
inline void CqReaper<Use>::dismiss(typename CqRequest<Use>::Outcome outcome) {
    while (!leaving_.empty()) { // close() empties it
        CqWaiter<Use>& waiter = leaving_.take_front();
        waiter.request.outcome = outcome;
        waiter.handle.resume();
    }
}

template <class Use>
inline void CqReaper<Use>::fail() noexcept {
    if (!failure_) failure_.emplace(current_failure());
}

} // namespace asyncverbs::detail
