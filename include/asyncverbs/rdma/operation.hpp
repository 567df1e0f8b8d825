// SPDX-License-Identifier: MIT
// What every operation of a queue pair returns: posted by then, awaited when it suits.
#pragma once

#include <coroutine>
#include <optional>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/rdma/completion.hpp>
#include <asyncverbs/rdma/detail/router_state.hpp>
#include <asyncverbs/rdma/detail/work_queue.hpp>

namespace asyncverbs {

namespace detail {

// Pinned; the operation and the token that it refers to outlive it. What every operation does is
// inlined into the coroutine that awaits it, what few do is not.
class OperationAwaiter : Resumable {
public:
    OperationAwaiter(OperationState& operation, std::error_code* error,
                     const std::stop_token& stop) noexcept
        : operation_(operation), error_(error), stop_(stop) {}
    OperationAwaiter(const OperationAwaiter&) = delete;
    OperationAwaiter& operator=(const OperationAwaiter&) = delete;
    [[gnu::always_inline]] ~OperationAwaiter() {
        if (operation_.waiter == this) operation_.waiter = nullptr;
    }

    [[gnu::always_inline]] bool await_ready() const noexcept {
        return operation_.queue == nullptr || stop_.stop_requested();
    }

    [[gnu::always_inline]] bool await_suspend(std::coroutine_handle<> handle) {
        coroutine = handle;
        operation_.waiter = this;
        return !stop_.stop_possible() || watch_stop();
    }

    [[gnu::always_inline]] Completion await_resume() {
        operation_.waiter = nullptr;
        const auto& completion = operation_.completion; // also after a stop
        if (!completion || completion->status() != IBV_WC_SUCCESS) [[unlikely]]
            return failure();
        if (error_ != nullptr) *error_ = {};
        return *completion;
    }

private:
    // False: a stop was requested.
    [[gnu::noinline]] bool watch_stop() {
        on_stop_.emplace(static_cast<Resumable&>(*this), operation_.queue->router(), stop_);
        return on_stop_->may_wait();
    }

    [[gnu::noinline]] Completion failure() const {
        if (operation_.completion) {
            if (error_ == nullptr) throw OperationError(*operation_.completion);
            *error_ = operation_.completion->error();
            return *operation_.completion;
        }
        if (operation_.failure) {
            if (error_ == nullptr) throw *operation_.failure;
            *error_ = operation_.failure->code();
            return {};
        }
        if (operation_.queue == nullptr) {
            return report(std::errc::invalid_argument,
                          "this Operation was moved from or never posted");
        }
        return report(std::errc::operation_canceled, "waiting for an operation");
    }

    // The text is memory, which who wants no exceptions has no use for.
    Completion report(std::errc error, const char* text) const {
        if (error_ == nullptr) throw_error(error, text);
        *error_ = std::make_error_code(error);
        return {};
    }

    OperationState& operation_;
    std::error_code* error_;
    const std::stop_token& stop_;
    std::optional<OnStop> on_stop_; // once it waits
};

} // namespace detail

/// An operation of a queue pair. Awaiting it gives its Completion.
///
///     Operation receive = qp.post_recv(buffer);   // posted: a message may come from now on
///     co_await qp.send(request);
///     Completion answer = co_await receive;
///
/// It was posted by the call that returned it, or will be when there is room in the queue: then it
/// waits in line with those before and behind it, and holds copies of its slices.
///
/// Errors: throws OperationError where the completion is not a success; std::system_error naming
/// the verb where the device refused the request, the failure of the completion queue where that
/// failed, operation_canceled where the queue was destroyed. With a std::error_code, see wait(),
/// these are reported instead.
///
/// Cancellation: a stop ends the waiting, with operation_canceled, not the operation, which can be
/// awaited again. An operation that is destroyed leaves what was posted to the device: its slot is
/// not used again, and the memory region stays registered, until the completion came. What still
/// waited for room is not posted any more. So to be rid of a receive without losing the message
/// that it may take, keep the Operation.
///
/// Thread: that of the router, but for stop tokens. Move-only; it must not be moved or destroyed
/// while it is awaited. One coroutine may await it at a time; once done, any number of times.
class [[nodiscard]] Operation {
public:
    /// One that was never posted, to be assigned to.
    Operation() noexcept = default;
    Operation(Operation&&) noexcept = default;
    Operation& operator=(Operation&&) noexcept = default;
    [[gnu::always_inline]] ~Operation() = default;

    /// Whether awaiting it would not suspend.
    [[nodiscard]] bool done() const noexcept { return state_.done(); }

    /// Awaits the Completion; see above.
    detail::OperationAwaiter operator co_await() noexcept { return {state_, nullptr, stop_}; }

    /// What wait() returns, to be awaited at once.
    class [[nodiscard]] Wait {
    public:
        /// Awaits the Completion.
        detail::OperationAwaiter operator co_await() && noexcept { return {state_, error_, stop_}; }

    private:
        friend Operation;
        Wait(detail::OperationState& state, std::error_code* error, std::stop_token stop) noexcept
            : state_(state), error_(error), stop_(std::move(stop)) {}

        detail::OperationState& state_;
        std::error_code* error_;
        std::stop_token stop_;
    };

    /// Awaits it until `stop` is requested, from any thread, instead of the stop of the call that
    /// returned it. Refers to this Operation.
    [[nodiscard]] Wait wait(std::stop_token stop) noexcept {
        return {state_, nullptr, std::move(stop)};
    }

    /// Awaits it without exceptions: sets `error`, or clears it. The Completion says more: its
    /// status() is IBV_WC_SUCCESS also where `error` is not that of a completion. Refers to this
    /// Operation.
    [[nodiscard]] Wait wait(std::error_code& error) noexcept { return {state_, &error, stop_}; }

    /// Both.
    [[nodiscard]] Wait wait(std::error_code& error, std::stop_token stop) noexcept {
        return {state_, &error, std::move(stop)};
    }

private:
    friend class AsyncQp;
    friend class AsyncSrq;

    template <class... Request>
    [[gnu::always_inline]] Operation(detail::WorkQueue& queue, std::stop_token&& stop,
                                     const Request&... request)
        : stop_(std::move(stop)) {
        queue.submit(state_, request...);
    }

    detail::OperationState state_;
    std::stop_token stop_;
};

} // namespace asyncverbs
