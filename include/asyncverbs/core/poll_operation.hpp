// SPDX-License-Identifier: MIT
// What AsyncCq::poll() and poll_wr_id() return: an operation that can be moved until it is awaited.
// From then on it is pinned: the waiter that the CQ knows is a part of it.
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <coroutine>
#include <cstdint>
#include <optional>
#include <span>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/core/detail/cq_reaper.hpp>
#include <asyncverbs/core/detail/cq_waiter.hpp>
#include <asyncverbs/core/detail/maybe.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs {

namespace detail {

/// What both operations have in common.
template <class Use>
class CqOperation {
public:
    CqOperation(CqReaper<Use>& reaper, std::span<ibv_wc> completions,
                Used<std::optional<std::uint64_t>, Use> wr_id, std::error_code* error,
                std::stop_token stop) noexcept
        : reaper_(reaper), request_{completions, wr_id}, error_(error), stop_(std::move(stop)) {}
    CqOperation(CqOperation&& other) noexcept // nobody waits yet
        : reaper_(other.reaper_), request_(other.request_), error_(other.error_),
          stop_(std::move(other.stop_)) {}

    // NOLINTNEXTLINE(readability-non-const-parameter): the reaper writes there
    void stamp(std::uint64_t* timestamps) noexcept { request_.timestamps = timestamps; }
    void deliver_to(std::span<ibv_wc> completions) noexcept { request_.completions = completions; }

    bool await_ready() {
        if (request_.completions.empty()) return true;
        if (stop_.stop_requested()) {
            request_.outcome = CqRequest<Use>::Outcome::stopped;
            return true;
        }
        return reaper_.offer(request_);
    }

    std::coroutine_handle<> await_suspend(std::coroutine_handle<> handle) {
        CqWaiter<Use>& waiter = waiter_.emplace(reaper_, request_, handle);
        if (stop_.stop_possible()) {
            waiter.on_stop.emplace(stop_, typename CqWaiter<Use>::OnStop{waiter});
            // It may have come just now, on this thread or another; a later one wakes the pump.
            if (waiter.stop_requested.load(std::memory_order_acquire)) {
                request_.outcome = CqRequest<Use>::Outcome::stopped;
                return handle;
            }
        }
        return reaper_.enqueue(waiter);
    }

    /// Throws or reports what went wrong; otherwise returns what was delivered.
    std::span<ibv_wc> result() {
        if (request_.outcome != CqRequest<Use>::Outcome::delivered) return report();
        if (error_) error_->clear();
        return request_.completions.first(request_.delivered);
    }

private:
    std::span<ibv_wc> report() const {
        switch (request_.outcome) {
        case CqRequest<Use>::Outcome::failed:
            if (!error_) throw reaper_.failure();
            *error_ = reaper_.failure().code();
            return {};
        case CqRequest<Use>::Outcome::stopped:
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

    CqReaper<Use>& reaper_;
    CqRequest<Use> request_;
    std::error_code* error_;
    std::stop_token stop_;
    Maybe<CqWaiter<Use>> waiter_; // once it waits
};

// Refers to the operation, which lives as long: to the end of the expression that awaits it. (GCC
// 12 copies what an operator co_await returns by reference, or that would be the operation.)
template <class Use>
class PollAwaiter {
public:
    explicit PollAwaiter(CqOperation<Use>& operation) noexcept : operation_(operation) {}
    PollAwaiter(const PollAwaiter&) = delete;
    PollAwaiter& operator=(const PollAwaiter&) = delete;

    bool await_ready() { return operation_.await_ready(); }
    std::coroutine_handle<> await_suspend(std::coroutine_handle<> handle) {
        return operation_.await_suspend(handle);
    }
    std::span<ibv_wc> await_resume() { return operation_.result(); }

private:
    CqOperation<Use>& operation_;
};

template <class Use>
class PollWrIdAwaiter : public PollAwaiter<Use> {
public:
    using PollAwaiter<Use>::PollAwaiter;
    ibv_wc await_resume() {
        const auto result = PollAwaiter<Use>::await_resume();
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
template <class Use>
class [[nodiscard]] BasicPollOperation {
public:
    /// Awaits the completions, a std::span<ibv_wc>.
    detail::PollAwaiter<Use> operator co_await() && noexcept {
        return detail::PollAwaiter<Use>(operation_);
    }

private:
    template <class>
    friend class BasicAsyncCq;
    BasicPollOperation(detail::CqReaper<Use>& reaper, std::span<ibv_wc> wcs,
                       std::uint64_t* timestamps, std::error_code* error,
                       std::stop_token stop) noexcept
        : BasicPollOperation(reaper, wcs, error, std::move(stop)) {
        operation_.stamp(timestamps);
    }
    BasicPollOperation(detail::CqReaper<Use>& reaper, std::span<ibv_wc> wcs, std::error_code* error,
                       std::stop_token stop) noexcept
        : operation_(reaper, wcs, std::nullopt, error, std::move(stop)) {}

    detail::CqOperation<Use> operation_;
};

/// The PollOperation of programs: compiled only where it is used, but otherwise as a class.
using PollOperation = BasicPollOperation<OnUse>;

/// Awaits to the completion of one work request; a zeroed one if an error was reported through a
/// std::error_code. Otherwise as PollOperation.
template <class Use>
class [[nodiscard]] BasicPollWrIdOperation {
public:
    /// Awaits the completion, an ibv_wc.
    detail::PollWrIdAwaiter<Use> operator co_await() && noexcept {
        operation_.deliver_to({&completion_, 1});
        return detail::PollWrIdAwaiter<Use>(operation_);
    }

private:
    template <class>
    friend class BasicAsyncCq;
    BasicPollWrIdOperation(detail::CqReaper<Use>& reaper, std::uint64_t wr_id,
                           std::error_code* error, std::stop_token stop) noexcept
        : operation_(reaper, {}, wr_id, error, std::move(stop)) {}

    detail::CqOperation<Use> operation_;
    ibv_wc completion_{};
};

/// The PollWrIdOperation of programs: compiled only where it is used, but otherwise as a class.
using PollWrIdOperation = BasicPollWrIdOperation<OnUse>;

} // namespace asyncverbs
