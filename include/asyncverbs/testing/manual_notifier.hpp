// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <coroutine>
#include <memory>
#include <optional>
#include <stop_token>
#include <system_error>
#include <utility>

namespace asyncverbs {

/// A CqNotifier without a loop, for tests: the test decides when the channel is "readable" and when
/// the waiting coroutine runs, so that it can produce every order of events. Copies share their
/// state: give one to an AsyncCq, keep one.
///
///     ManualNotifier notifier;
///     AsyncCq cq(CompletionQueue(context, 16), notifier);
///     auto task = consume(cq);   // waits
///     notifier.notify();         // the channel is readable, perhaps
///     notifier.run();            // in place of the event loop: the consumer resumes
///
/// Thread safety: none, except for stop tokens.
class ManualNotifier {
    struct State {
        std::coroutine_handle<> waiting;
        std::stop_token stop;
        std::optional<std::error_code> result;
    };

public:
    /// What readable() returns; an awaiter.
    class Readable {
    public:
        Readable(std::shared_ptr<State> state, std::stop_token stop) : state_(std::move(state)) {
            state_->stop = std::move(stop);
        }
        Readable(const Readable&) = delete;
        Readable& operator=(const Readable&) = delete;
        ~Readable() { state_->waiting = nullptr; }

        bool await_ready() const noexcept { return false; }
        void await_suspend(std::coroutine_handle<> handle) const noexcept {
            state_->waiting = handle;
        }
        std::error_code await_resume() const {
            if (state_->result) return *std::exchange(state_->result, std::nullopt);
            return std::make_error_code(std::errc::operation_canceled);
        }

    private:
        std::shared_ptr<State> state_;
    };

    /// Completes in a run() after notify(), with the result passed to that; or with
    /// errc::operation_canceled in the first run() after `stop` was requested. One at a time.
    Readable readable(std::stop_token stop) { return {state_, std::move(stop)}; }

    /// Sets what readable() gives in the next run(), also if it is not awaited yet.
    void notify(std::error_code result = {}) { state_->result = result; }

    /// Whether readable() is suspended.
    bool waiting() const noexcept { return static_cast<bool>(state_->waiting); }

    /// Whether readable() is suspended and its stop was requested.
    bool stop_requested() const noexcept { return waiting() && state_->stop.stop_requested(); }

    /// One iteration of the loop: resumes readable() if it was notified or its stop was requested.
    /// Returns whether it did.
    bool run() {
        const std::shared_ptr<State> state = state_; // this may be destroyed meanwhile
        if (!waiting() || !(state->result || stop_requested())) return false;
        std::exchange(state->waiting, nullptr).resume();
        return true;
    }

private:
    std::shared_ptr<State> state_ = std::make_shared<State>();
};

} // namespace asyncverbs
