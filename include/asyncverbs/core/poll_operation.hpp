// SPDX-License-Identifier: MIT
// What AsyncCq::poll() and poll_wr_id() return: a small movable operation, to be awaited once.
// The waiter itself is the awaiter, pinned in the frame of the coroutine that awaits.
#pragma once

#include <infiniband/verbs.h>

#include <coroutine>
#include <cstdint>
#include <optional>
#include <span>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/core/detail/cq_reaper.hpp>
#include <asyncverbs/core/detail/cq_waiter.hpp>

namespace asyncverbs {

namespace detail {

/// The awaiting common to both operations; what a completion is delivered to, they differ in.
class CqAwaiter {
public:
    CqAwaiter(CqReaper& reaper, std::span<ibv_wc> completions, std::optional<std::uint64_t> wr_id,
              std::error_code* error, std::stop_token stop)
        : waiter_(reaper, completions, wr_id), error_(error), stop_(std::move(stop)) {}

    bool await_ready() {
        if (waiter_.completions.empty()) return true;
        if (stop_.stop_requested()) {
            waiter_.outcome = CqWaiter::Outcome::stopped;
            return true;
        }
        return waiter_.reaper.offer(waiter_);
    }

    std::coroutine_handle<> await_suspend(std::coroutine_handle<> handle) {
        waiter_.handle = handle;
        if (stop_.stop_possible()) {
            waiter_.on_stop.emplace(stop_, CqWaiter::OnStop{waiter_});
            // It may have come just now, on this thread or another; a later one wakes the pump.
            if (waiter_.stop_requested.load(std::memory_order_acquire)) {
                waiter_.outcome = CqWaiter::Outcome::stopped;
                return handle;
            }
        }
        return waiter_.reaper.enqueue(waiter_);
    }

protected:
    /// Throws or reports what went wrong; otherwise returns what was delivered.
    std::span<ibv_wc> result() {
        waiter_.on_stop.reset();
        switch (waiter_.outcome) {
        case CqWaiter::Outcome::delivered:
            if (error_) error_->clear();
            return waiter_.completions.first(waiter_.delivered);
        case CqWaiter::Outcome::failed:
            return report(waiter_.reaper.failure());
        case CqWaiter::Outcome::stopped:
            return report(std::system_error(std::make_error_code(std::errc::operation_canceled),
                                            "AsyncCq::poll"));
        case CqWaiter::Outcome::pending:
            break;
        }
        return report(std::system_error(std::make_error_code(std::errc::invalid_argument),
                                        "AsyncCq::poll: the span for completions is empty"));
    }

private:
    std::span<ibv_wc> report(const std::system_error& error) const {
        if (!error_) throw error;
        *error_ = error.code();
        return {};
    }

    CqWaiter waiter_;
    std::error_code* error_;
    std::stop_token stop_;
};

class PollAwaiter : public CqAwaiter {
public:
    using CqAwaiter::CqAwaiter;
    std::span<ibv_wc> await_resume() { return result(); }
};

class PollWrIdAwaiter : public CqAwaiter {
public:
    PollWrIdAwaiter(CqReaper& reaper, std::uint64_t wr_id, std::error_code* error,
                    std::stop_token stop)
        : CqAwaiter(reaper, std::span(&completion_, 1), wr_id, error, std::move(stop)) {}
    ibv_wc await_resume() { return result().empty() ? ibv_wc{} : completion_; }

private:
    ibv_wc completion_{};
};

} // namespace detail

/// Awaits to the completions that were delivered: the front of the caller's span, never empty
/// unless an error was reported through a std::error_code. Nothing happens until it is awaited.
class [[nodiscard]] PollOperation {
public:
    detail::PollAwaiter operator co_await() && {
        return {*reaper_, wcs_, std::nullopt, error_, std::move(stop_)};
    }

private:
    friend class AsyncCq;
    PollOperation(detail::CqReaper& reaper, std::span<ibv_wc> wcs, std::error_code* error,
                  std::stop_token stop)
        : reaper_(&reaper), wcs_(wcs), error_(error), stop_(std::move(stop)) {}

    detail::CqReaper* reaper_;
    std::span<ibv_wc> wcs_;
    std::error_code* error_;
    std::stop_token stop_;
};

/// Awaits to the completion of one work request; a zeroed one if an error was reported through a
/// std::error_code. Nothing happens until it is awaited.
class [[nodiscard]] PollWrIdOperation {
public:
    detail::PollWrIdAwaiter operator co_await() && {
        return {*reaper_, wr_id_, error_, std::move(stop_)};
    }

private:
    friend class AsyncCq;
    PollWrIdOperation(detail::CqReaper& reaper, std::uint64_t wr_id, std::error_code* error,
                      std::stop_token stop)
        : reaper_(&reaper), wr_id_(wr_id), error_(error), stop_(std::move(stop)) {}

    detail::CqReaper* reaper_;
    std::uint64_t wr_id_;
    std::error_code* error_;
    std::stop_token stop_;
};

} // namespace asyncverbs
