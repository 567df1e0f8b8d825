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
#include <asyncverbs/core/detail/unique_coroutine.hpp>

namespace asyncverbs::detail {

struct CqPump {
    struct promise_type {
        CqPump get_return_object() noexcept {
            return {std::coroutine_handle<promise_type>::from_promise(*this)};
        }
        std::suspend_always initial_suspend() const noexcept { return {}; }
        std::suspend_never final_suspend() const noexcept { return {}; }
        void return_void() const noexcept {}
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
        bool await_ready() const noexcept { return !reaper.idle(); }
        void await_suspend(std::coroutine_handle<>) const noexcept { reaper.pump.idle = true; }
        void await_resume() const noexcept { reaper.pump.idle = false; }
    };

    // Suspends and goes on at once. A coroutine that ends with an exception has to be destroyed;
    // clang 19 then also destroys what was alive where it was last suspended, once more.
    struct Here {
        bool await_ready() const noexcept { return false; }
        std::coroutine_handle<> await_suspend(std::coroutine_handle<> pump) const noexcept {
            return pump;
        }
        void await_resume() const noexcept {}
    };

    // A frame that an exception leaves cannot destroy itself, and its AsyncCq has gone before. It
    // is empty; the next one on this thread takes its place, or the thread ends.
    static void bury(std::coroutine_handle<> frame) {
        thread_local UniqueCoroutine<promise_type> last;
        const auto pump = std::coroutine_handle<promise_type>::from_address(frame.address());
        last = UniqueCoroutine<promise_type>(pump.promise());
    }

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

        std::error_code result;
        try {
            if constexpr (TimedCqNotifier<N>) {
                const auto bound = yielding ? std::chrono::nanoseconds(0) : reaper.max_wait;
                if (yielding || bound.count() != 0) {
                    result = co_await parts.notifier.readable(reaper.stop_token(), bound);
                } else {
                    result = co_await parts.notifier.readable(reaper.stop_token());
                }
            } else {
                result = co_await parts.notifier.readable(reaper.stop_token());
            }
        } catch (...) {
            reaper.fail();
            result = std::make_error_code(std::errc::operation_canceled); // nothing to consume
        }

        reaper.pump.running = true;
        try {
            reaper.turn(result, yielding);
        } catch (...) {
            // What a resumed coroutine let escape belongs to whoever runs the loop. It ends the
            // pump; who waits or polls later learns of it.
            reaper.pump.escaped = std::current_exception();
            reaper.fail();
            reaper.dismiss_all();
        }
        reaper.pump.running = false;
        if (reaper.pump.escaped) {
            co_await Here{}; // where nothing is alive that has a destructor
            std::exception_ptr escaped = std::exchange(reaper.pump.escaped, nullptr);
            if (reaper.closed()) {
                bury(reaper.pump.handle);
                const Parts<N> gone(std::move(parts)); // the last that refers to the reaper
            }
            std::rethrow_exception(std::move(escaped));
        }
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
