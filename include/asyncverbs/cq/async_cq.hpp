// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

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

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/cq/async_cq_options.hpp>
#include <asyncverbs/cq/cq_notifier.hpp>
#include <asyncverbs/cq/detail/cq_registry.hpp>
#include <asyncverbs/cq/detail/cq_state.hpp>
#include <asyncverbs/cq/detail/wait_loop.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs {

class PollOperation;
class PollWrIdOperation;

namespace detail {
struct AsyncCqAccess;
}

/// A completion queue whose completions are awaited.
///
///     std::array<ibv_wc, 16> wcs;
///     for (const ibv_wc& wc : co_await cq.poll(wcs)) handle(wc);
///
/// Takes the CQ and its completion channel over: no other code may poll it, arm it or read the
/// channel's events. It follows CqPoller's protocol: completions that have arrived are delivered
/// without a system call, an allocation or a suspension. Otherwise the CQ is armed and polled once
/// more, and the notifier waits for the channel.
///
/// Several coroutines may wait at a time: first come, first served. A poll that finds completions
/// does not return to the event loop, except that with a TimedCqNotifier every 1,024th one in a row
/// lets one iteration of the loop pass.
///
/// Errors: a failing verb or a failing notifier is final. It is thrown as a std::system_error that
/// names the verb, to all current and later waiters; try_poll() still takes the completions that
/// have arrived. An overrun of the CQ and the loss of its device are such errors, too, if the
/// program reads DeviceEvents; so is a lack of memory (not_enough_memory) in poll_wr_id() or after
/// a stop. An error *completion* is not an error here: look at `wc.status`; then only wr_id,
/// status, qp_num and vendor_err are valid.
///
/// Thread safety: none, except for stop tokens. Everything happens on the thread that runs the
/// notifier's loop; a waiting coroutine resumes there.
/// Lifetime: must outlive the operations that it returned. It may be destroyed at any time, also
/// by a coroutine that it has just resumed: events are acked, the fd leaves the loop, and a
/// coroutine that still waits is never resumed but may be destroyed. To destroy a CQ without
/// losing a completion, move its queue pairs to the error state, poll until every work request has
/// completed, destroy the queue pairs, and then this.
/// Move-only; a moved-from object may only be destroyed or assigned to.
class AsyncCq {
public:
    /// Takes `cq` over. `notifier` waits for `cq.channel()` to become readable. `tracer` is called
    /// before and after each wait, see CqTracer.
    /// Throws std::system_error: invalid_argument for an ack batch of 0, a negative duration, or
    /// the SharedChannel::notifier() of another CQ, not_supported for a max_wait with a notifier
    /// that is not a TimedCqNotifier.
    template <class N, class T = NoTracer>
    AsyncCq(CompletionQueue cq, N notifier, const AsyncCqOptions& options = {}, T tracer = {});

    /// Creates a CQ of at least `depth` entries whose channel `loop` waits for. Loop is an
    /// EpollExecutor or any other type with `notifier(const CompletionChannel&)` or
    /// `notifier(int fd)` that returns a CqNotifier; it must outlive the AsyncCq unless the
    /// documentation of its notifiers says otherwise. Or it is a SharedChannel, on which the CQ is
    /// then created. Throws std::system_error as CompletionQueue and the notifier do.
    template <class Loop, class T = NoTracer>
    static AsyncCq create(const Context& context, int depth, Loop& loop,
                          const AsyncCqOptions& options = {}, T tracer = {});

    /// The same with an existing CQ, such as one with another completion vector.
    template <class Loop, class T = NoTracer>
    static AsyncCq create(CompletionQueue cq, Loop& loop, const AsyncCqOptions& options = {},
                          T tracer = {});

    AsyncCq(AsyncCq&&) noexcept = default;

    /// Closes the CQ that this object held before, as the destructor does.
    AsyncCq& operator=(AsyncCq&& other) noexcept {
        AsyncCq old(std::move(other));
        old.state_.swap(state_);
        return *this;
    }
    ~AsyncCq() {
        if (!state_) return;
        detail::CqRegistry::instance().remove(*state_);
        state_->close();
    }

    /// Does what the destructor does, and reports what that cannot: {}, after which this object is
    /// as if moved from, or the error of CompletionQueue::close(), device_or_resource_busy while a
    /// queue pair uses the CQ. The object then still owns the CQ and behaves as after a fatal error
    /// (bad_file_descriptor): destroy the queue pairs, also those that were created on
    /// native_handle(), and close again. The destructor would leak the CQ and its device instead.
    [[nodiscard]] std::error_code close() noexcept {
        if (!state_) return {};
        detail::CqRegistry::instance().remove(*state_);
        state_->close();
        if (const std::error_code error = state_->destroy_cq()) return error;
        state_.reset();
        return {};
    }

    /// Awaits at least one completion, and returns the front part of `wcs` that was filled. `wcs`
    /// and the array that it refers to must stay valid until then. Throws std::system_error:
    /// invalid_argument if `wcs` is empty, operation_canceled if `stop` is requested (from any
    /// thread), else the fatal error of this CQ. A completion that was taken from the CQ is
    /// delivered even if `stop` was requested meanwhile.
    PollOperation poll(std::span<ibv_wc> wcs, std::stop_token stop = {});

    /// The same without exceptions: clears `error`, or sets it and returns an empty span.
    PollOperation poll(std::span<ibv_wc> wcs, std::error_code& error, std::stop_token stop = {});

    /// The same for a CompletionQueue that was created with timestamps: the timestamp of each
    /// completion is stored in the element of `timestamps` with its index, 0 for an error
    /// completion. Throws std::system_error at once: invalid_argument if the spans differ in
    /// length, operation_not_supported if the CQ has no timestamps.
    PollOperation poll_timestamped(std::span<ibv_wc> wcs, std::span<std::uint64_t> timestamps,
                                   std::stop_token stop = {});

    /// The same without exceptions of the wait: clears `error`, or sets it and returns an empty
    /// span.
    PollOperation poll_timestamped(std::span<ibv_wc> wcs, std::span<std::uint64_t> timestamps,
                                   std::error_code& error, std::stop_token stop = {});

    /// Awaits the completion with this `wr_id`. Others that arrive before it are kept, in order,
    /// for the next poll() or try_poll(); keeping them may allocate. Errors as in poll().
    PollWrIdOperation poll_wr_id(std::uint64_t wr_id, std::stop_token stop = {});

    /// The same without exceptions: clears `error`, or sets it and returns a zeroed completion.
    PollWrIdOperation poll_wr_id(std::uint64_t wr_id, std::error_code& error,
                                 std::stop_token stop = {});

    /// Polls once, without waiting or arming. Returns an empty span if there are no completions, or
    /// while a coroutine waits, since that one was first. Throws std::system_error if ibv_poll_cq
    /// fails.
    std::span<ibv_wc> try_poll(std::span<ibv_wc> wcs) {
        return wcs.first(wcs.empty() ? 0 : state_->try_poll(wcs));
    }

    /// The number of verbs calls, completions and events so far.
    const CqStatistics& statistics() const noexcept { return state_->statistics(); }

    /// For creating queue pairs.
    const CompletionQueue& completion_queue() const noexcept {
        return state_->poller().completion_queue();
    }

    /// The native object, for verbs that this library does not cover; not to be polled or armed.
    ibv_cq* native_handle() const noexcept { return completion_queue().native_handle(); }

private:
    friend detail::AsyncCqAccess;

    std::uint64_t* check_timestamps(std::span<ibv_wc> wcs,
                                    std::span<std::uint64_t> timestamps) const;

    std::shared_ptr<detail::CqState> state_;
};

/// What AsyncCq::poll() returns. `co_await` gives the delivered completions: the front of the
/// caller's span, never empty unless an error was stored in a std::error_code.
///
/// Nothing happens until it is awaited, as an rvalue or as an lvalue, in a coroutine of any type;
/// awaited again, it polls again. It may be moved, except while a coroutine waits for it; to
/// destroy it then cancels the wait.
///
/// By being awaitable it is a sender of std::execution: it completes with
/// set_value(std::span<ibv_wc>) or set_error(std::exception_ptr), the latter also for a stop. The
/// stop token of the receiver's environment does not reach it by itself: only the std::stop_token
/// given to poll() does. A coroutine can pass the stop on; with stdexec:
///
///     exec::task<std::span<ibv_wc>> poll(AsyncCq& cq, std::span<ibv_wc> wcs) {
///         auto token = co_await stdexec::read_env(stdexec::get_stop_token);
///         std::stop_source source;
///         auto stop = [&source] { source.request_stop(); };
///         stdexec::stop_callback_for_t<decltype(token), decltype(stop)> bridge(token, stop);
///         co_return co_await cq.poll(wcs, source.get_token());
///     }
class [[nodiscard]] PollOperation : detail::AwaitedByReference {
public:
    /// Must not be called while a coroutine waits for `other`.
    PollOperation(PollOperation&& other) noexcept
        : state_(other.state_), request_(other.request_), error_(other.error_),
          stop_(std::move(other.stop_)) {}

    /// Polls, and arms the CQ if it is empty. True: the coroutine need not wait.
    bool await_ready() {
        if (request_.completions.empty()) return true;
        if (stop_.stop_requested()) { // decided before the poll (I7)
            request_.outcome = Outcome::stopped;
            return true;
        }
        return state_.try_complete(request_);
    }

    /// Waits. Returns the coroutine to resume next.
    std::coroutine_handle<> await_suspend(std::coroutine_handle<> coroutine) {
        detail::CqWaiter& waiter = waiter_.emplace(state_, request_, coroutine);
        waiter.stop_callback.set(stop_, waiter);
        // A stop that was requested just now, by any thread; a later one wakes the wait loop.
        if (waiter.stop_requested.load(std::memory_order_acquire)) {
            request_.outcome = Outcome::stopped;
            return coroutine;
        }
        return state_.enqueue(waiter);
    }

    /// Returns the completions, or reports the error.
    std::span<ibv_wc> await_resume() {
        waiter_.reset();
        if (request_.outcome != Outcome::delivered) return report_error();
        if (error_) error_->clear();
        return request_.completions.first(request_.delivered);
    }

private:
    friend class AsyncCq;
    friend class PollWrIdOperation;
    using Outcome = detail::CqRequest::Outcome;

    PollOperation(detail::CqState& state, std::span<ibv_wc> wcs, std::optional<std::uint64_t> wr_id,
                  std::uint64_t* ts, std::error_code* error, std::stop_token stop) noexcept
        : state_(state), request_{wcs, wr_id, ts}, error_(error), stop_(std::move(stop)) {}

    std::span<ibv_wc> report_error() const;
    std::span<ibv_wc> report_error(std::errc error, const char* text) const;

    detail::CqState& state_;
    detail::CqRequest request_;
    std::error_code* error_; // null: throw
    std::stop_token stop_;
    std::optional<detail::CqWaiter> waiter_; // while the coroutine waits
};

/// What AsyncCq::poll_wr_id() returns. `co_await` gives the completion, an ibv_wc; a zeroed one if
/// an error was stored in a std::error_code. Otherwise as PollOperation.
class [[nodiscard]] PollWrIdOperation : PollOperation {
public:
    /// As PollOperation.
    bool await_ready() {
        request_.completions = {&completion_, 1};
        return PollOperation::await_ready();
    }

    /// As PollOperation.
    std::coroutine_handle<> await_suspend(std::coroutine_handle<> coroutine) {
        request_.completions = {&completion_, 1}; // it may have been moved since await_ready()
        return PollOperation::await_suspend(coroutine);
    }

    /// Returns the completion, or reports the error.
    ibv_wc await_resume() { return PollOperation::await_resume().empty() ? ibv_wc{} : completion_; }

private:
    friend class AsyncCq;
    using PollOperation::PollOperation;

    ibv_wc completion_{};
};

inline PollOperation AsyncCq::poll(std::span<ibv_wc> wcs, std::stop_token stop) {
    return {*state_, wcs, std::nullopt, nullptr, nullptr, std::move(stop)};
}

inline PollOperation AsyncCq::poll(std::span<ibv_wc> wcs, std::error_code& error,
                                   std::stop_token stop) {
    return {*state_, wcs, std::nullopt, nullptr, &error, std::move(stop)};
}

inline PollOperation AsyncCq::poll_timestamped(std::span<ibv_wc> wcs,
                                               std::span<std::uint64_t> timestamps,
                                               std::stop_token stop) {
    return {*state_,        wcs, std::nullopt, check_timestamps(wcs, timestamps), nullptr,
            std::move(stop)};
}

inline PollOperation AsyncCq::poll_timestamped(std::span<ibv_wc> wcs,
                                               std::span<std::uint64_t> timestamps,
                                               std::error_code& error, std::stop_token stop) {
    return {*state_, wcs, std::nullopt, check_timestamps(wcs, timestamps), &error, std::move(stop)};
}

inline PollWrIdOperation AsyncCq::poll_wr_id(std::uint64_t wr_id, std::stop_token stop) {
    return {*state_, {}, wr_id, nullptr, nullptr, std::move(stop)};
}

inline PollWrIdOperation AsyncCq::poll_wr_id(std::uint64_t wr_id, std::error_code& error,
                                             std::stop_token stop) {
    return {*state_, {}, wr_id, nullptr, &error, std::move(stop)};
}

inline std::uint64_t* AsyncCq::check_timestamps(std::span<ibv_wc> wcs,
                                                std::span<std::uint64_t> timestamps) const {
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

inline std::span<ibv_wc> PollOperation::report_error() const {
    switch (request_.outcome) {
    case Outcome::failed:
        if (!error_) throw *state_.failure();
        *error_ = state_.failure()->code();
        return {};
    case Outcome::stopped:
        return report_error(std::errc::operation_canceled, "AsyncCq::poll");
    default:
        return report_error(std::errc::invalid_argument,
                            "AsyncCq::poll: the span for completions is empty");
    }
}

// Does not allocate a message if the caller asked for an error_code.
inline std::span<ibv_wc> PollOperation::report_error(std::errc error, const char* text) const {
    if (!error_) detail::throw_error(error, text);
    *error_ = std::make_error_code(error);
    return {};
}

template <class N, class T>
AsyncCq::AsyncCq(CompletionQueue cq, N notifier, const AsyncCqOptions& options, T tracer) {
    detail::check_cq_notifier<N>();
    static_assert(CqTracer<T>, "AsyncCq: the tracer needs before_wait(const CqStatistics&) and "
                               "after_wait(const CqStatistics&, std::error_code), both noexcept");
    if constexpr (detail::reads_events<N>) {
        if (!notifier.is_of(cq)) { // or its events would be acked to this one (I4)
            detail::throw_error(std::errc::invalid_argument,
                                "the notifier is that of another completion queue");
        }
    }
    if (options.max_wait.count() > 0 && !TimedCqNotifier<N>) {
        detail::throw_error(std::errc::not_supported,
                            "AsyncCqOptions: max_wait needs a TimedCqNotifier");
    }
    if constexpr (CqNotifier<N> && CqTracer<T>) { // otherwise report only the error above
        state_ = std::make_shared<detail::CqState>(std::move(cq), options, notifier);
        detail::WaitLoop::start(state_, std::move(notifier), std::move(tracer));
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

// Gives a Router the state behind an AsyncCq, to install its CompletionHandler.
struct AsyncCqAccess {
    static const std::shared_ptr<CqState>& state(const AsyncCq& cq) noexcept { return cq.state_; }
};

} // namespace detail
} // namespace asyncverbs
