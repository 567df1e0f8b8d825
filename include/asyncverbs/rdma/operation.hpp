// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <coroutine>
#include <memory>
#include <optional>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/rdma/completion.hpp>
#include <asyncverbs/rdma/detail/router_state.hpp>
#include <asyncverbs/rdma/send_request.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs {

namespace detail {
class OperationAwaiter;
class StreamAwaiter;
class StreamState;
} // namespace detail

/// An operation of a queue pair. Awaiting it gives its Completion.
///
///     Operation receive = qp.post_recv(buffer);   // posted: a message may arrive from now on
///     co_await qp.send(request);
///     Completion answer = co_await receive;
///
/// The call that returns it posts it, or enqueues it until the queue has room: then operations are
/// posted in order, and the operation holds copies of its slices.
///
/// Errors: throws OperationError if the completion is not a success; std::system_error naming the
/// verb if the device rejected the request, the failure of the completion queue if that failed,
/// operation_canceled if the queue was destroyed. With a std::error_code, see wait(), these are
/// reported instead.
///
/// Cancellation: a stop ends the wait, with operation_canceled, but not the operation, which can be
/// awaited again. Destroying an operation does not take back a request that was posted: its slot is
/// not reused, and the memory region stays registered, until the completion came. A request that
/// still waits for room is not posted any more. So to cancel a receive without losing the message
/// that it may take, keep the Operation.
///
/// Thread: that of the router, except for stop tokens. Move-only; it must not be moved or destroyed
/// while it is awaited. One coroutine may await it at a time; once done, any number of times.
class [[nodiscard]] Operation : detail::ListNode {
public:
    /// An operation that was never posted, to be assigned to.
    Operation() noexcept = default;
    Operation(Operation&& other) noexcept;
    /// Abandons the operation that was here before, as its destructor does.
    Operation& operator=(Operation&& other) noexcept {
        if (this == &other) return *this;
        this->~Operation();
        std::construct_at(this, std::move(other));
        return *this;
    }
    [[gnu::always_inline]] ~Operation() {
        if (slot_operation_ != nullptr) *slot_operation_ = nullptr;
    }

    /// Whether awaiting it would not suspend.
    [[nodiscard]] bool done() const noexcept { return completion_ || failure_; }

    /// Awaits the Completion; see above.
    detail::OperationAwaiter operator co_await() noexcept;

    /// Awaits it until `stop` is requested, from any thread, instead of the stop of the call that
    /// returned it. Refers to this Operation.
    [[nodiscard]] detail::OperationAwaiter wait(std::stop_token stop) noexcept;

    /// Awaits it without exceptions: sets `error`, or clears it. Look at `error`, not only at the
    /// Completion: its status() is IBV_WC_SUCCESS also if `error` is not that of a completion.
    /// Refers to this Operation.
    [[nodiscard]] detail::OperationAwaiter wait(std::error_code& error) noexcept;

    /// Both.
    [[nodiscard]] detail::OperationAwaiter wait(std::error_code& error,
                                                std::stop_token stop) noexcept;

private:
    friend class AsyncQp;
    friend class AsyncSrq;
    friend class detail::OperationAwaiter;
    friend class detail::StreamAwaiter;
    friend class detail::StreamState;
    friend class detail::WorkQueue;
    friend class detail::IntrusiveList<Operation>; // of the operations that wait for room

    explicit Operation(std::stop_token&& stop) noexcept : stop_(std::move(stop)) {}

    Completion result(std::error_code* error) const {
        if (!completion_ || completion_->status() != IBV_WC_SUCCESS) [[unlikely]]
            return failed_result(error);
        if (error != nullptr) *error = {};
        return *completion_;
    }
    Completion failed_result(std::error_code* error) const;

    detail::RouterState* router_ = nullptr; // from start to completion
    Operation** slot_operation_ = nullptr;  // the slot's pointer to this, once it is posted
    detail::CompletionWaiter* waiter_ = nullptr;
    std::optional<Completion> completion_;
    detail::Failure failure_;
    std::unique_ptr<detail::DeferredRequest> deferred_; // while it waits for room
    std::stop_token stop_;
};

namespace detail {

// May be moved until it is awaited. The operation outlives it.
class [[nodiscard]] OperationAwaiter : CompletionWaiter, AwaitedByReference {
public:
    OperationAwaiter(Operation& operation, std::error_code* error, std::stop_token stop) noexcept
        : operation_(operation), error_(error), stop_(std::move(stop)) {}
    OperationAwaiter(OperationAwaiter&& other) noexcept
        : OperationAwaiter(other.operation_, other.error_, std::move(other.stop_)) {}
    [[gnu::always_inline]] ~OperationAwaiter() {
        if (coroutine && operation_.waiter_ == this) operation_.waiter_ = nullptr;
    }

    bool await_ready() const noexcept {
        return operation_.router_ == nullptr || stop_.stop_requested();
    }

    [[gnu::always_inline]] bool await_suspend(std::coroutine_handle<> handle) noexcept {
        coroutine = handle;
        operation_.waiter_ = this;
        return !stop_.stop_possible() || watch_stop();
    }

    Completion await_resume() {
        operation_.waiter_ = nullptr;
        return operation_.result(error_); // a completion counts also after a stop (I7)
    }

private:
    [[gnu::noinline]] bool watch_stop() noexcept {
        return watched_stop_
            .emplace(static_cast<CompletionWaiter&>(*this), *operation_.router_, stop_)
            .may_wait();
    }

    Operation& operation_;
    std::error_code* error_;
    std::stop_token stop_;
    std::optional<WaiterStop> watched_stop_; // while it waits
};

} // namespace detail

inline Operation::Operation(Operation&& other) noexcept
    : router_(std::exchange(other.router_, nullptr)),
      slot_operation_(std::exchange(other.slot_operation_, nullptr)),
      completion_(other.completion_), failure_(std::move(other.failure_)),
      deferred_(std::move(other.deferred_)), stop_(std::move(other.stop_)) {
    if (slot_operation_ != nullptr) *slot_operation_ = this;
    if (other.linked()) take_place_of(other);
}

inline detail::OperationAwaiter Operation::operator co_await() noexcept {
    return {*this, nullptr, stop_};
}
inline detail::OperationAwaiter Operation::wait(std::stop_token stop) noexcept {
    return {*this, nullptr, std::move(stop)};
}
inline detail::OperationAwaiter Operation::wait(std::error_code& error) noexcept {
    return {*this, &error, stop_};
}
inline detail::OperationAwaiter Operation::wait(std::error_code& error,
                                                std::stop_token stop) noexcept {
    return {*this, &error, std::move(stop)};
}

[[gnu::noinline]] inline Completion Operation::failed_result(std::error_code* error) const {
    // Describes an error only for the exception: a caller with an error_code pays no allocation.
    const auto report = [error](std::errc code, const char* text) -> Completion {
        if (error == nullptr) detail::throw_error(code, text);
        *error = std::make_error_code(code);
        return {};
    };
    if (completion_) {
        if (error == nullptr) throw OperationError(*completion_);
        *error = completion_->error();
        return *completion_;
    }
    if (failure_) {
        if (error == nullptr) failure_.raise();
        *error = failure_.code();
        return {};
    }
    if (router_ == nullptr) {
        return report(std::errc::invalid_argument, "this Operation was moved from or never posted");
    }
    return report(std::errc::operation_canceled, "waiting for an operation");
}

} // namespace asyncverbs
