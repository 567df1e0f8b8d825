// SPDX-License-Identifier: MIT
// What AsyncCq::poll() and poll_wr_id() return: an operation that can be moved until it is awaited.
// From then on it is pinned: the waiter that the CQ knows is a part of it.
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <coroutine>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/cq/async_cq_options.hpp>
#include <asyncverbs/cq/cq_notifier.hpp>
#include <asyncverbs/cq/cq_statistics.hpp>
#include <asyncverbs/cq/detail/cq_state.hpp>
#include <asyncverbs/cq/detail/wait_loop.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs {

namespace detail {

/// What both operations have in common.
class CqOperation {
public:
    CqOperation(CqState& state, std::span<ibv_wc> completions, std::optional<std::uint64_t> wr_id,
                std::error_code* error, std::stop_token stop) noexcept
        : state_(state), request_{completions, wr_id}, error_(error), stop_(std::move(stop)) {}
    CqOperation(CqOperation&& other) noexcept // nobody waits yet
        : state_(other.state_), request_(other.request_), error_(other.error_),
          stop_(std::move(other.stop_)) {}

    // NOLINTNEXTLINE(readability-non-const-parameter): the reaper writes there
    void stamp(std::uint64_t* timestamps) noexcept { request_.timestamps = timestamps; }
    void deliver_to(std::span<ibv_wc> completions) noexcept { request_.completions = completions; }

    bool await_ready() {
        if (request_.completions.empty()) return true;
        if (stop_.stop_requested()) {
            request_.outcome = CqRequest::Outcome::stopped;
            return true;
        }
        return state_.offer(request_);
    }

    std::coroutine_handle<> await_suspend(std::coroutine_handle<> handle) {
        CqWaiter& waiter = waiter_.emplace(state_, request_, handle);
        if (stop_.stop_possible()) {
            waiter.on_stop.emplace(stop_, typename CqWaiter::OnStop{waiter});
            // It may have come just now, on this thread or another; a later one wakes the pump.
            if (waiter.stop_requested.load(std::memory_order_acquire)) {
                request_.outcome = CqRequest::Outcome::stopped;
                return handle;
            }
        }
        return state_.enqueue(waiter);
    }

    /// Throws or reports what went wrong; otherwise returns what was delivered.
    std::span<ibv_wc> result() {
        if (request_.outcome != CqRequest::Outcome::delivered) return report();
        if (error_) error_->clear();
        return request_.completions.first(request_.delivered);
    }

private:
    std::span<ibv_wc> report() const {
        switch (request_.outcome) {
        case CqRequest::Outcome::failed:
            if (!error_) throw state_.failure();
            *error_ = state_.failure().code();
            return {};
        case CqRequest::Outcome::stopped:
            return report(std::errc::operation_canceled, "AsyncCq::poll");
        default:
            return report(std::errc::invalid_argument,
                          "AsyncCq::poll: the span for completions is empty");
        }
    }
    // The text is memory, which who wants no exceptions has no use for.
    std::span<ibv_wc> report(std::errc error, const char* text) const {
        if (!error_) throw_error(error, text);
        *error_ = std::make_error_code(error);
        return {};
    }

    CqState& state_;
    CqRequest request_;
    std::error_code* error_;
    std::stop_token stop_;
    std::optional<CqWaiter> waiter_; // once it waits
};

// Refers to the operation, which lives as long: to the end of the expression that awaits it. (GCC
// 12 copies what an operator co_await returns by reference, or that would be the operation.)
class PollAwaiter {
public:
    explicit PollAwaiter(CqOperation& operation) noexcept : operation_(operation) {}
    PollAwaiter(const PollAwaiter&) = delete;
    PollAwaiter& operator=(const PollAwaiter&) = delete;

    bool await_ready() { return operation_.await_ready(); }
    std::coroutine_handle<> await_suspend(std::coroutine_handle<> handle) {
        return operation_.await_suspend(handle);
    }
    std::span<ibv_wc> await_resume() { return operation_.result(); }

private:
    CqOperation& operation_;
};

class PollWrIdAwaiter : public PollAwaiter {
public:
    using PollAwaiter::PollAwaiter;
    ibv_wc await_resume() {
        const auto result = PollAwaiter::await_resume();
        return result.empty() ? ibv_wc{} : result.front();
    }
};

} // namespace detail

/// Awaits to the completions that were delivered: the front of the caller's span, never empty
/// unless an error was reported through a std::error_code. Nothing happens until it is awaited,
/// once, as an rvalue; it must not be moved or destroyed while it is.
///
/// By being awaitable it is a sender of std::execution: set_value(std::span<ibv_wc>), or
/// set_error(std::exception_ptr), also for a stop.
class [[nodiscard]] PollOperation {
public:
    /// Awaits the completions, a std::span<ibv_wc>.
    detail::PollAwaiter operator co_await() && noexcept { return detail::PollAwaiter(operation_); }

private:
    friend class AsyncCq;
    PollOperation(detail::CqState& state, std::span<ibv_wc> wcs, std::uint64_t* timestamps,
                  std::error_code* error, std::stop_token stop) noexcept
        : PollOperation(state, wcs, error, std::move(stop)) {
        operation_.stamp(timestamps);
    }
    PollOperation(detail::CqState& state, std::span<ibv_wc> wcs, std::error_code* error,
                  std::stop_token stop) noexcept
        : operation_(state, wcs, std::nullopt, error, std::move(stop)) {}

    detail::CqOperation operation_;
};

/// Awaits to the completion of one work request; a zeroed one if an error was reported through a
/// std::error_code. Otherwise as PollOperation.
class [[nodiscard]] PollWrIdOperation {
public:
    /// Awaits the completion, an ibv_wc.
    detail::PollWrIdAwaiter operator co_await() && noexcept {
        operation_.deliver_to({&completion_, 1});
        return detail::PollWrIdAwaiter(operation_);
    }

private:
    friend class AsyncCq;
    PollWrIdOperation(detail::CqState& state, std::uint64_t wr_id, std::error_code* error,
                      std::stop_token stop) noexcept
        : operation_(state, {}, wr_id, error, std::move(stop)) {}

    detail::CqOperation operation_;
    ibv_wc completion_{};
};

namespace detail {
struct AsyncCqAccess;
}

/// A completion queue whose completions are awaited.
///
///     std::array<ibv_wc, 16> wcs;
///     for (const ibv_wc& wc : co_await cq.poll(wcs)) handle(wc);
///
/// It takes the CQ over, with its completion channel, and is the only one that may poll it, arm
/// it or read the channel's events. How it does that is CqPoller's protocol: completions that are
/// there are delivered without a system call, an allocation or a suspension; otherwise the CQ is
/// armed, polled once more, and the notifier waits for the channel.
///
/// Several coroutines may wait at a time: first come, first served. A ready CQ does not return to
/// the loop, except that with a TimedCqNotifier every 1,024th ready poll in a row takes a turn.
///
/// Errors: a failing verb or a failing notifier is final. It is thrown as a std::system_error that
/// names the verb, to all who wait and all who come later; try_poll() still takes what is there. So
/// is an overrun of the CQ or the loss of its device, if somebody reads DeviceEvents.
/// An error *completion* is not an error here: look at `wc.status`; then only wr_id, status, qp_num
/// and vendor_err are valid.
///
/// Thread safety: none, but for stop tokens. Everything happens on the thread that runs the
/// notifier's loop, and a waiting coroutine resumes there.
/// Lifetime: must outlive the operations that it returned. It may be destroyed at any time, also
/// by a coroutine that it has just resumed: events are acked, the fd leaves the loop, and a
/// coroutine that still waits is never resumed but may be destroyed. To destroy a CQ without
/// losing anything, move its queue pairs to the error state, poll until every work request has
/// completed, destroy the queue pairs, and then this.
/// Move-only; only to be destroyed or assigned to when moved from.
class AsyncCq {
public:
    /// Takes `cq` over. `notifier` waits for `cq.channel()` to become readable.
    /// Throws std::system_error: invalid_argument for an ack batch of 0, a negative duration, or
    /// what SharedChannel::notifier() gave for another CQ, not_supported for a max_wait with a
    /// notifier that is not a TimedCqNotifier.
    /// `tracer` is told of each wait, see CqTracer.
    template <class N, class T = NoTracer>
    AsyncCq(CompletionQueue cq, N notifier, const AsyncCqOptions& options = {}, T tracer = {});

    /// Creates a CQ of at least `depth` entries whose channel `loop` waits for. Loop is an
    /// EpollExecutor or whatever else has `notifier(const CompletionChannel&)` or
    /// `notifier(int fd)` that returns a CqNotifier, and must outlive the AsyncCq unless its
    /// notifiers say otherwise. Or it is a SharedChannel, which the CQ then is on.
    /// Throws std::system_error as CompletionQueue and the notifier do.
    template <class Loop, class T = NoTracer>
    static AsyncCq create(const Context& context, int depth, Loop& loop,
                          const AsyncCqOptions& options = {}, T tracer = {});

    /// The same with a CQ that is there, such as one of another completion vector.
    template <class Loop, class T = NoTracer>
    static AsyncCq create(CompletionQueue cq, Loop& loop, const AsyncCqOptions& options = {},
                          T tracer = {});

    AsyncCq(AsyncCq&&) noexcept = default;

    /// Closes the AsyncCq that was here before, as its destructor does.
    AsyncCq& operator=(AsyncCq&& other) noexcept {
        AsyncCq old(std::move(other));
        old.state_.swap(state_); // closes what was here
        return *this;
    }
    ~AsyncCq() {
        if (!state_) return;
        detail::CqRegistry::instance().remove(*state_);
        state_->close();
    }

    /// Awaits at least one completion; gives the front part of `wcs` that was filled. `wcs` and
    /// what it refers to must stay until then. Throws std::system_error: invalid_argument if
    /// `wcs` is empty, operation_canceled if `stop` is requested (from any thread), else the
    /// fatal error of this CQ. A completion that was taken from the CQ is delivered even if
    /// `stop` was requested meanwhile.
    PollOperation poll(std::span<ibv_wc> wcs, std::stop_token stop = {}) {
        return {*state_, wcs, nullptr, std::move(stop)};
    }

    /// The same without exceptions: clears `error`, or sets it and gives an empty span.
    PollOperation poll(std::span<ibv_wc> wcs, std::error_code& error, std::stop_token stop = {}) {
        return {*state_, wcs, &error, std::move(stop)};
    }

    /// The same for a CompletionQueue that is extended by timestamps: the timestamp of each
    /// completion goes to the element of `timestamps` with its index, 0 for an error completion.
    /// Throws std::system_error at once: invalid_argument if the spans differ in length,
    /// operation_not_supported if the CQ has no timestamps.
    PollOperation poll_timestamped(std::span<ibv_wc> wcs, std::span<std::uint64_t> timestamps,
                                   std::stop_token stop = {}) {
        return {*state_, wcs, check(wcs, timestamps), nullptr, std::move(stop)};
    }

    /// The same without exceptions of the wait: clears `error`, or sets it and gives an empty span.
    PollOperation poll_timestamped(std::span<ibv_wc> wcs, std::span<std::uint64_t> timestamps,
                                   std::error_code& error, std::stop_token stop = {}) {
        return {*state_, wcs, check(wcs, timestamps), &error, std::move(stop)};
    }

    /// Awaits the completion with this `wr_id`. Others that come first are kept, in order, and go
    /// to the next poll() or try_poll(); keeping them is what may allocate. Errors as in poll().
    PollWrIdOperation poll_wr_id(std::uint64_t wr_id, std::stop_token stop = {}) {
        return {*state_, wr_id, nullptr, std::move(stop)};
    }

    /// The same without exceptions: clears `error`, or sets it and gives a zeroed completion.
    PollWrIdOperation poll_wr_id(std::uint64_t wr_id, std::error_code& error,
                                 std::stop_token stop = {}) {
        return {*state_, wr_id, &error, std::move(stop)};
    }

    /// What is there now, without waiting or arming; empty if there is nothing, or while a
    /// coroutine waits, since that one comes first. Throws std::system_error if ibv_poll_cq fails.
    std::span<ibv_wc> try_poll(std::span<ibv_wc> wcs) {
        return wcs.first(wcs.empty() ? 0 : state_->try_poll(wcs));
    }

    /// What this CQ has cost so far.
    const CqStatistics& statistics() const noexcept { return state_->poller().statistics(); }

    /// For creating queue pairs.
    const CompletionQueue& completion_queue() const noexcept {
        return state_->poller().completion_queue();
    }

    /// The native object, for verbs that this library does not cover; not to be polled or armed.
    ibv_cq* native_handle() const noexcept { return completion_queue().native_handle(); }

private:
    friend detail::AsyncCqAccess;

    std::uint64_t* check(std::span<ibv_wc> wcs, std::span<std::uint64_t> timestamps) const {
        if (completion_queue().wc_flags() == 0) {
            detail::throw_error(std::errc::operation_not_supported,
                                "AsyncCq::poll_timestamped: the queue has no timestamps");
        }
        if (wcs.size() != timestamps.size()) {
            detail::throw_error(std::errc::invalid_argument,
                                "AsyncCq::poll_timestamped: the spans differ in length");
        }
        return timestamps.data();
    }

    std::shared_ptr<detail::CqState> state_;
};

template <class N, class T>
AsyncCq::AsyncCq(CompletionQueue cq, N notifier, const AsyncCqOptions& options, T tracer) {
    detail::check_cq_notifier<N>();
    static_assert(CqTracer<T>, "AsyncCq: the tracer needs before_wait(const CqStatistics&) and "
                               "after_wait(const CqStatistics&, std::error_code), both noexcept");
    if (options.ack_batch == 0 || options.max_wait.count() < 0 ||
        options.busy_poll.limit.count() < 0) {
        detail::throw_error(std::errc::invalid_argument,
                            "AsyncCqOptions: ack_batch must be at least 1, max_wait and "
                            "busy_poll.limit at least 0");
    }
    if constexpr (detail::reads_events<N>) {
        if (!notifier.is_of(cq)) { // its events would be acked to this one (I4)
            detail::throw_error(std::errc::invalid_argument,
                                "the notifier is that of another completion queue");
        }
    }
    if (options.max_wait.count() > 0 && !TimedCqNotifier<N>) {
        detail::throw_error(std::errc::not_supported,
                            "AsyncCqOptions: max_wait needs a TimedCqNotifier");
    }
    if constexpr (CqNotifier<N> && CqTracer<T>) { // else the error above is the only one
        state_ = std::make_shared<detail::CqState>(std::move(cq), options, TimedCqNotifier<N>,
                                                   detail::reads_events<N>);
        detail::start_wait_loop(state_, std::move(notifier), std::move(tracer));
        detail::CqRegistry::instance().add(*state_);
    }
}

template <class Loop, class T>
AsyncCq AsyncCq::create(const Context& context, int depth, Loop& loop,
                        const AsyncCqOptions& options, T tracer) {
    if constexpr (detail::has_channel<Loop>) {
        return create(CompletionQueue(context, depth, loop.channel()), loop, options,
                      std::move(tracer));
    } else {
        return create(CompletionQueue(context, depth), loop, options, std::move(tracer));
    }
}

template <class Loop, class T>
AsyncCq AsyncCq::create(CompletionQueue cq, Loop& loop, const AsyncCqOptions& options, T tracer) {
    if constexpr (detail::has_channel<Loop>) {
        auto notifier = loop.notifier(cq);
        return AsyncCq(std::move(cq), std::move(notifier), options, std::move(tracer));
    } else {
        auto notifier = detail::loop_notifier(loop, cq.channel());
        return AsyncCq(std::move(cq), std::move(notifier), options, std::move(tracer));
    }
}

namespace detail {

// Gives the rest of the library the state behind an AsyncCq, to install a CompletionHandler.
struct AsyncCqAccess {
    static const std::shared_ptr<CqState>& state(const AsyncCq& cq) noexcept { return cq.state_; }
};

} // namespace detail
} // namespace asyncverbs
