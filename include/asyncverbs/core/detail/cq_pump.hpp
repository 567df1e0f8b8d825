// SPDX-License-Identifier: MIT
// The coroutine that waits for a completion channel on behalf of everybody who waits for the CQ:
// one per AsyncCq, allocated once, whatever the notifier's type. It sleeps while nobody waits.
#pragma once

#include <cassert>
#include <chrono>
#include <coroutine>
#include <exception>
#include <memory>
#include <system_error>
#include <utility>

#include <asyncverbs/core/cq_notifier.hpp>
#include <asyncverbs/core/detail/cq_reaper.hpp>

namespace asyncverbs::detail {

struct CqPump {
    struct promise_type {
        CqPump get_return_object() noexcept {
            return {std::coroutine_handle<promise_type>::from_promise(*this)};
        }
        std::suspend_always initial_suspend() const noexcept { return {}; }
        std::suspend_never final_suspend() const noexcept { return {}; }
        void return_void() const noexcept {}
        // Only what a resumed coroutine lets escape: it belongs to whoever runs the loop.
        void unhandled_exception() const { throw; }
    };

    // The notifier goes before the reaper, which holds the channel: an fd is deregistered before
    // it is closed (I12).
    template <class N>
    struct Parts {
        Parts(std::shared_ptr<CqReaper> owner, N wait)
            : reaper(std::move(owner)), notifier(std::move(wait)) {}
        std::shared_ptr<CqReaper> reaper;
        N notifier;
    };

    // Suspended here while nobody waits; the first who does transfers to the pump.
    struct Idle {
        CqReaper& reaper;
        bool await_ready() const noexcept { return reaper.anyone_waits(); }
        void await_suspend(std::coroutine_handle<>) const noexcept { reaper.pump.idle = true; }
        void await_resume() const noexcept { reaper.pump.idle = false; }
    };

    // While the pump may be resuming somebody. An exception that a resumed coroutine lets escape
    // passes through to the loop and ends the pump; whoever polls later learns of it.
    class Running {
    public:
        explicit Running(CqReaper& reaper) noexcept
            : reaper_(reaper), exceptions_(std::uncaught_exceptions()) {
            reaper_.pump.running = true;
        }
        Running(const Running&) = delete;
        Running& operator=(const Running&) = delete;
        ~Running() {
            reaper_.pump.running = false;
            if (std::uncaught_exceptions() == exceptions_) return;
            reaper_.attempt([] {
                throw std::system_error(std::make_error_code(std::errc::state_not_recoverable),
                                        "AsyncCq: an exception escaped from a resumed coroutine");
            });
        }

    private:
        CqReaper& reaper_;
        const int exceptions_;
    };

    template <class N>
    static CqPump run(Parts<N> parts);

    std::coroutine_handle<promise_type> handle;
};

template <class N>
CqPump CqPump::run(Parts<N> parts) {
    CqReaper& reaper = *parts.reaper;
    while (!reaper.finished()) {
        co_await Idle{reaper};
        const bool yielding = reaper.must_yield();
        assert(reaper.may_wait() || yielding); // I1

        const std::stop_token stop = reaper.stop_token();
        std::error_code result;
        std::exception_ptr thrown;
        try {
            if constexpr (TimedCqNotifier<N>) {
                const auto bound = yielding ? std::chrono::nanoseconds(0) : reaper.max_wait;
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
            result = std::make_error_code(std::errc::operation_canceled); // nothing to consume
        }

        const Running running(reaper);
        if (thrown) reaper.attempt([&] { std::rethrow_exception(thrown); });
        reaper.turn(result, yielding);
    }
    reaper.pump.handle = nullptr;
}

/// A reaper whose pump waits with `notifier`.
template <CqNotifier N>
std::shared_ptr<CqReaper> start_reaper(CompletionQueue cq, N notifier,
                                       const AsyncCqOptions& options) {
    auto reaper = std::make_shared<CqReaper>(std::move(cq), options, TimedCqNotifier<N>);
    reaper->pump.handle = CqPump::run(CqPump::Parts<N>(reaper, std::move(notifier))).handle;
    return reaper;
}

} // namespace asyncverbs::detail
