// SPDX-License-Identifier: MIT
// The one owner that reaps a CQ (invariant I6): the poller, the coroutines that wait, and the
// pump, a coroutine that waits for the channel on behalf of all of them. The steps are those of
// CqPoller's protocol.
//
//     co_await poll() ──► offer: poll, arm, poll ──► ready: no suspension
//                             │ empty
//                             ▼
//                         waiters, in order ◄──────────────────────┐ still empty
//                             │ the first one starts               │
//                             ▼                                    │
//     pump:               wait ──► wake: consume ──► serve: poll, resume, next
#pragma once

#include <algorithm>
#include <cassert>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/core/async_cq_options.hpp>
#include <asyncverbs/core/cq_notifier.hpp>
#include <asyncverbs/core/cq_poller.hpp>
#include <asyncverbs/core/detail/cq_waiter.hpp>
#include <asyncverbs/core/detail/intrusive_list.hpp>

namespace asyncverbs::detail {

class CqReaper {
public:
    CqReaper(CompletionQueue cq, const AsyncCqOptions& options, bool can_yield)
        : poller_(std::move(cq), options.ack_batch), max_wait_(options.max_wait),
          can_yield_(can_yield) {}

    /// Makes the reaper and its pump, which owns the notifier.
    template <CqNotifier N>
    static std::shared_ptr<CqReaper> start(CompletionQueue cq, N notifier,
                                           const AsyncCqOptions& options);

    /// Steps 1 and 2 for a coroutine that is not waiting yet. True: its outcome is decided.
    bool offer(CqWaiter& waiter);

    /// Puts a waiter in line and returns what runs next: the pump, if it was idle.
    std::coroutine_handle<> enqueue(CqWaiter& waiter) noexcept;

    /// What is there now, without arming. Nothing while others wait, for they came first.
    std::size_t try_poll(std::span<ibv_wc> wcs);

    /// Makes the pump look for waiters that are to stop. From any thread.
    void interrupt() noexcept;

    /// Detaches whoever waits, never to be resumed, and ends the pump.
    void close() noexcept;

    const CqPoller& poller() const noexcept { return poller_; }
    const std::system_error& failure() const noexcept { return *failure_; }

private:
    struct Pump;
    struct Idle;
    class Running;
    template <class N>
    struct PumpParts;

    template <class N>
    static Pump pump(PumpParts<N> parts);

    // The hot path never returns to the loop, so after this many polls in a row that found
    // something, the next one takes a turn of the loop, lest a busy CQ starve its neighbours (I9).
    static constexpr unsigned polls_per_turn = 1024;

    // How many completions to take from the CQ at a time while somebody waits for a wr_id.
    static constexpr std::size_t keep_batch = 16;

    void wake(std::error_code result, bool yielded);
    void dismiss_stopped();
    void serve();
    CqWaiter* next_served();
    void dismiss(CqWaiter::Outcome outcome);

    bool deliver(CqWaiter& waiter);
    bool deliver_kept(CqWaiter& waiter) noexcept;
    std::size_t take_kept(std::span<ibv_wc> wcs) noexcept;
    std::size_t keep();
    std::size_t poll_or_arm(std::span<ibv_wc> wcs);
    template <class Step>
    void attempt(Step step) noexcept;

    bool anyone_waits() const noexcept { return !waiters_.empty() || !selective_.empty(); }
    bool must_yield() const noexcept { return can_yield_ && busy_polls_ >= polls_per_turn; }
    bool finished() const noexcept { return closed_ || failure_; }

    CqPoller poller_;
    const std::chrono::nanoseconds max_wait_;
    const bool can_yield_;
    unsigned busy_polls_ = 0;

    IntrusiveList<CqWaiter> waiters_;   // for any completion, in order of arrival
    IntrusiveList<CqWaiter> selective_; // for one wr_id each
    IntrusiveList<CqWaiter> leaving_;   // stopped or failed, about to be resumed
    std::vector<ibv_wc> kept_;          // polled for a wr_id, matched by none
    std::optional<std::system_error> failure_;

    std::coroutine_handle<> pump_; // null once it has ended
    bool pump_idle_ = true;
    bool pump_running_ = false; // and may be resuming somebody
    bool closed_ = false;

    std::mutex stop_mutex_; // stop_source_ is replaced while interrupt() may copy it
    std::stop_source stop_source_;
};

inline void CqWaiter::OnStop::operator()() const noexcept {
    waiter.stop_requested.store(true, std::memory_order_release);
    waiter.reaper.interrupt();
}

inline bool CqReaper::offer(CqWaiter& waiter) {
    if (deliver_kept(waiter)) return true;
    if (failure_) {
        waiter.outcome = CqWaiter::Outcome::failed;
        return true;
    }
    // Whoever came first is served first, and the pump has seen to it that it will be woken.
    if (anyone_waits() || must_yield()) return false;
    bool served = false;
    attempt([&] { served = deliver(waiter); });
    if (failure_) waiter.outcome = CqWaiter::Outcome::failed;
    return served || failure_;
}

inline std::coroutine_handle<> CqReaper::enqueue(CqWaiter& waiter) noexcept {
    (waiter.wr_id ? selective_ : waiters_).push_back(waiter);
    if (pump_idle_) return pump_;
    return std::noop_coroutine();
}

inline std::size_t CqReaper::try_poll(std::span<ibv_wc> wcs) {
    if (anyone_waits()) return 0;
    if (const std::size_t taken = take_kept(wcs)) return taken;
    return poller_.poll(wcs);
}

inline void CqReaper::interrupt() noexcept {
    std::stop_source source{std::nostopstate};
    {
        const std::lock_guard lock(stop_mutex_);
        source = stop_source_;
    }
    // With no lock held, for a notifier on this thread may resume the pump at once (I8).
    source.request_stop();
}

inline void CqReaper::close() noexcept {
    closed_ = true;
    for (auto* list : {&waiters_, &selective_, &leaving_}) {
        while (!list->empty()) {
            CqWaiter& waiter = list->front();
            waiter.unlink();
            waiter.on_stop.reset(); // it refers to this reaper
        }
    }
    // A pump that is resuming the coroutine that closes us ends by itself when that returns.
    if (pump_ && !pump_running_) std::exchange(pump_, nullptr).destroy();
}

/// After a wait: step 4, or whatever else ended it.
inline void CqReaper::wake(std::error_code result, bool yielded) {
    busy_polls_ = 0;
    if (!result) {
        poller_.consume();
    } else if (result == std::errc::timed_out) {
        // The event of this arm may have been dropped: arm again and look (max_wait).
        if (!yielded) poller_.forget_arm();
    } else if (result != std::errc::operation_canceled) {
        throw std::system_error(result, "CqNotifier::readable");
    }
}

/// Decided before the poll: a completion that has left the CQ is always delivered (I7).
inline void CqReaper::dismiss_stopped() {
    if (!stop_source_.stop_requested()) return;
    attempt([&] {
        std::stop_source next;
        const std::lock_guard lock(stop_mutex_);
        stop_source_ = std::move(next);
    });
    // Whoever raises its flag from now on interrupts the new source.
    const auto stops = [](const CqWaiter& waiter) {
        return waiter.stop_requested.load(std::memory_order_acquire);
    };
    waiters_.move_if(leaving_, stops);
    selective_.move_if(leaving_, stops);
    dismiss(CqWaiter::Outcome::stopped);
}

/// Steps 1 and 2 for those who wait, until nobody does, or I1 holds, or the turn is over.
inline void CqReaper::serve() {
    while (!finished() && anyone_waits() && !poller_.may_wait() && !must_yield()) {
        CqWaiter* waiter = nullptr;
        attempt([&] { waiter = next_served(); });
        if (!waiter) continue;
        waiter->unlink();
        waiter->handle.resume(); // may poll again, or destroy its AsyncCq (I8)
    }
    if (failure_) {
        const auto all = [](const CqWaiter&) { return true; };
        waiters_.move_if(leaving_, all);
        selective_.move_if(leaving_, all);
        dismiss(CqWaiter::Outcome::failed);
    }
}

/// The next waiter that has been given completions; null if there are none to give.
inline CqWaiter* CqReaper::next_served() {
    if (selective_.empty() && kept_.empty()) {
        CqWaiter& first = waiters_.front();
        return deliver(first) ? &first : nullptr;
    }
    do {
        const auto served = [this](CqWaiter& waiter) { return deliver_kept(waiter); };
        if (CqWaiter* waiter = selective_.find_if(served)) return waiter;
        if (!waiters_.empty() && served(waiters_.front())) return &waiters_.front();
    } while (!must_yield() && keep() > 0);
    return nullptr;
}

/// Resumes those who leave without a completion.
inline void CqReaper::dismiss(CqWaiter::Outcome outcome) {
    while (!leaving_.empty()) { // close() empties it
        CqWaiter& waiter = leaving_.front();
        waiter.unlink();
        waiter.outcome = outcome;
        waiter.handle.resume();
    }
}

inline bool CqReaper::deliver(CqWaiter& waiter) {
    if (waiter.wr_id) {
        while (!must_yield() && keep() > 0) {
            if (deliver_kept(waiter)) return true;
        }
        return false;
    }
    waiter.delivered = poll_or_arm(waiter.completions);
    if (waiter.delivered == 0) return false;
    waiter.outcome = CqWaiter::Outcome::delivered;
    return true;
}

inline bool CqReaper::deliver_kept(CqWaiter& waiter) noexcept {
    if (kept_.empty()) return false;
    if (waiter.wr_id) {
        const auto match = std::find_if(kept_.begin(), kept_.end(), [&](const ibv_wc& wc) {
            return wc.wr_id == *waiter.wr_id;
        });
        if (match == kept_.end()) return false;
        waiter.completions.front() = *match;
        waiter.delivered = 1;
        kept_.erase(match);
    } else {
        if (!waiters_.empty() && &waiter != &waiters_.front()) return false;
        waiter.delivered = take_kept(waiter.completions);
    }
    waiter.outcome = CqWaiter::Outcome::delivered;
    return true;
}

inline std::size_t CqReaper::take_kept(std::span<ibv_wc> wcs) noexcept {
    const std::size_t count = std::min(kept_.size(), wcs.size());
    const auto end = kept_.begin() + static_cast<std::ptrdiff_t>(count);
    std::copy(kept_.begin(), end, wcs.begin());
    kept_.erase(kept_.begin(), end);
    return count;
}

/// Takes completions from the CQ into kept_. Makes room first: what has left the CQ is not lost
/// to a failing allocation.
inline std::size_t CqReaper::keep() {
    const std::size_t size = kept_.size();
    kept_.resize(size + keep_batch);
    std::size_t count = 0;
    try {
        count = poll_or_arm(std::span(kept_).subspan(size));
    } catch (...) {
        kept_.resize(size);
        throw;
    }
    kept_.resize(size + count);
    return count;
}

inline std::size_t CqReaper::poll_or_arm(std::span<ibv_wc> wcs) {
    const std::size_t polled = poller_.poll_or_arm(wcs);
    if (polled > 0) ++busy_polls_;
    return polled;
}

/// Runs a step of the protocol. The first error is the cause, and it is final: it reaches all
/// current and later waiters (I5).
template <class Step>
void CqReaper::attempt(Step step) noexcept {
    try {
        step();
    } catch (const std::system_error& error) {
        if (!failure_) failure_ = error;
    } catch (const std::exception& error) { // out of memory, or an exception of the notifier's own
        const auto code = std::make_error_code(std::errc::not_enough_memory);
        if (!failure_) failure_.emplace(code, error.what());
    }
}

struct CqReaper::Pump {
    struct promise_type {
        Pump get_return_object() noexcept {
            return {std::coroutine_handle<promise_type>::from_promise(*this)};
        }
        std::suspend_always initial_suspend() const noexcept { return {}; }
        std::suspend_never final_suspend() const noexcept { return {}; }
        void return_void() const noexcept {}
        // Only what a resumed coroutine lets escape: it belongs to whoever runs the loop.
        void unhandled_exception() const { throw; }
    };
    std::coroutine_handle<promise_type> handle;
};

struct CqReaper::Idle {
    CqReaper& reaper;
    bool await_ready() const noexcept { return reaper.anyone_waits(); }
    void await_suspend(std::coroutine_handle<>) const noexcept { reaper.pump_idle_ = true; }
    void await_resume() const noexcept { reaper.pump_idle_ = false; }
};

/// The notifier goes before the reaper that holds the channel: an fd is deregistered before it
/// is closed (I12).
template <class N>
struct CqReaper::PumpParts {
    PumpParts(std::shared_ptr<CqReaper> owner, N wait) noexcept(
        std::is_nothrow_move_constructible_v<N>)
        : reaper(std::move(owner)), notifier(std::move(wait)) {}

    std::shared_ptr<CqReaper> reaper;
    N notifier;
};

/// While the pump may be resuming somebody. An exception that a resumed coroutine lets escape
/// passes through to the loop and ends the pump; whoever polls then learns of it.
class CqReaper::Running {
public:
    explicit Running(CqReaper& reaper) noexcept
        : reaper_(reaper), exceptions_(std::uncaught_exceptions()) {
        reaper_.pump_running_ = true;
    }
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;
    ~Running() {
        reaper_.pump_running_ = false;
        if (std::uncaught_exceptions() > exceptions_) {
            reaper_.attempt([] {
                throw std::system_error(std::make_error_code(std::errc::state_not_recoverable),
                                        "AsyncCq: an exception escaped from a resumed coroutine");
            });
        }
    }

private:
    CqReaper& reaper_;
    const int exceptions_;
};

template <class N>
CqReaper::Pump CqReaper::pump(PumpParts<N> parts) {
    CqReaper& reaper = *parts.reaper;
    while (!reaper.finished()) {
        co_await Idle{reaper};
        const bool yielding = reaper.must_yield();
        assert(reaper.poller_.may_wait() || yielding);

        const std::stop_token stop = reaper.stop_source_.get_token();
        std::error_code result;
        std::exception_ptr thrown;
        try {
            if constexpr (TimedCqNotifier<N>) {
                const auto bound = yielding ? std::chrono::nanoseconds{0} : reaper.max_wait_;
                if (yielding || bound.count() != 0) {
                    result = co_await parts.notifier.readable(stop, bound);
                } else {
                    result = co_await parts.notifier.readable(stop);
                }
            } else {
                result = co_await parts.notifier.readable(stop);
            }
        } catch (...) {
            thrown = std::current_exception();
        }

        const Running running(reaper);
        reaper.attempt([&] {
            if (thrown) std::rethrow_exception(thrown);
            reaper.wake(result, yielding);
        });
        reaper.dismiss_stopped();
        reaper.serve();
    }
    reaper.pump_ = nullptr;
}

template <CqNotifier N>
std::shared_ptr<CqReaper> CqReaper::start(CompletionQueue cq, N notifier,
                                          const AsyncCqOptions& options) {
    auto reaper = std::make_shared<CqReaper>(std::move(cq), options, TimedCqNotifier<N>);
    reaper->pump_ = pump(PumpParts<N>(reaper, std::move(notifier))).handle;
    return reaper;
}

} // namespace asyncverbs::detail
