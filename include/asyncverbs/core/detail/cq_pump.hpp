// SPDX-License-Identifier: MIT
// The coroutine that waits for a completion channel on behalf of everybody who waits for its CQ, or
// CQs: allocated once, whatever the notifier's type. It sleeps while nobody waits.
#pragma once

#include <cassert>
#include <concepts>
#include <coroutine>
#include <exception>
#include <system_error>
#include <utility>

#include <asyncverbs/core/cq_notifier.hpp>
#include <asyncverbs/core/cq_tracer.hpp>
#include <asyncverbs/core/detail/cq_reaper.hpp>
#include <asyncverbs/core/detail/pump_state.hpp>
#include <asyncverbs/core/detail/unique_coroutine.hpp>
#include <asyncverbs/verbs/detail/chrono.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs::detail {

// A notifier that has read the channel's events itself, and says how many were of this CQ.
template <class N>
concept reads_events = requires(N& n) { n.take_events(); };

// Owner is the CqReaper of one CQ, or the ChannelHub of several.
template <class Use>
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

    // The notifier goes before the owner, which holds the channel: an fd is deregistered before
    // it is closed (I12).
    template <class Owner, class N, class T>
    struct Parts {
        Parts(std::shared_ptr<Owner> o, N n, T t)
            : owner(std::move(o)), tracer(std::move(t)), notifier(std::move(n)) {}
        std::shared_ptr<Owner> owner;
        [[no_unique_address]] T tracer;
        N notifier;

        void trace_before_wait() noexcept {
            if constexpr (!std::same_as<T, NoTracer>) tracer.before_wait(owner->statistics());
        }
        void trace_after_wait(std::error_code result) noexcept {
            if constexpr (!std::same_as<T, NoTracer>) {
                tracer.after_wait(owner->statistics(), result);
            }
        }
        void trace_failed_wait() noexcept {
            if constexpr (!std::same_as<T, NoTracer>) {
                tracer.after_wait(owner->statistics(), owner->failure().code());
            }
        }
    };

    // Suspended here while nobody waits; the first who does transfers to the pump.
    template <class Owner>
    struct Idle {
        Owner& owner;
        bool await_ready() const noexcept { return !owner.idle(); }
        void await_suspend(std::coroutine_handle<>) const noexcept { owner.pump.idle = true; }
        void await_resume() const noexcept { owner.pump.idle = false; }
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

    // A frame that an exception leaves cannot destroy itself, and nobody else knows it any more. It
    // is empty; the next one on this thread takes its place, or the thread ends.
    static void bury(std::coroutine_handle<> frame) {
        thread_local UniqueCoroutine<promise_type> last;
        const auto pump = std::coroutine_handle<promise_type>::from_address(frame.address());
        last = UniqueCoroutine<promise_type>(pump.promise());
    }

    template <class Owner, class N, class T>
    static CqPump run(Parts<Owner, N, T> parts);

    // In the place of a pump that an exception is about to end.
    template <class Owner, class N, class T>
    static void succeed(Parts<Owner, N, T>& parts);

    std::coroutine_handle<promise_type> handle;
};

template <class Use>
template <class Owner, class N, class T>
CqPump<Use> CqPump<Use>::run(Parts<Owner, N, T> parts) {
    Owner& owner = *parts.owner;
    while (!owner.finished()) {
        co_await Idle<Owner>{owner};
        const bool yielding = owner.must_yield();
        assert(owner.may_wait() || yielding); // I1

        std::error_code result;
        parts.trace_before_wait();
        try {
            if constexpr (TimedCqNotifier<N>) {
                const auto bound = yielding ? std::chrono::nanoseconds(0) : owner.wait_bound();
                if (yielding || bound.count() != 0) {
                    result = co_await parts.notifier.readable(owner.stop_token(), bound);
                } else {
                    result = co_await parts.notifier.readable(owner.stop_token());
                }
            } else {
                result = co_await parts.notifier.readable(owner.stop_token());
            }
            parts.trace_after_wait(result);
        } catch (...) {
            owner.fail();
            parts.trace_failed_wait();
            result = std::make_error_code(std::errc::operation_canceled); // nothing to consume
        }

        owner.pump.running = true;
        try {
            if constexpr (reads_events<N>) {
                owner.credit(parts.notifier.take_events());
            }
            owner.turn(result, yielding);
        } catch (...) {
            // What a resumed coroutine let escape belongs to whoever runs the loop.
            owner.pump.escaped = std::current_exception();
            owner.escaped();
        }
        owner.pump.running = false;
        if (owner.pump.escaped) {
            co_await Here{}; // where nothing is alive that has a destructor
            std::exception_ptr escaped = std::exchange(owner.pump.escaped, nullptr);
            if (owner.closed()) {
                bury(owner.pump.handle);
                const Parts<Owner, N, T> gone(
                    std::move(parts)); // the last that refers to the owner
            } else if (!owner.finished()) {
                succeed(parts);
            }
            std::rethrow_exception(std::move(escaped));
        }
    }
    owner.pump.handle = nullptr;
}

template <class Use>
template <class Owner, class N, class T>
void CqPump<Use>::succeed(Parts<Owner, N, T>& parts) {
    const std::shared_ptr<Owner> owner = parts.owner;
    bury(owner->pump.handle);
    owner->pump.handle = nullptr;
    try {
        owner->pump.handle = run(Parts<Owner, N, T>(std::move(parts))).handle;
    } catch (...) { // no memory
        owner->fail();
        return owner->dismiss_all();
    }
    owner->pump.idle = true;
    if (!owner->idle()) owner->pump.handle.resume();
}

/// An owner whose pump waits with `notifier`.
template <class Owner, CqNotifier N, CqTracer T = NoTracer>
void start_pump(const std::shared_ptr<Owner>& owner, N notifier, T tracer = {}) {
    using Pump = Used<CqPump<OnUse>, Owner>;
    using Parts = typename Pump::template Parts<Owner, N, T>;
    owner->pump.handle = Pump::run(Parts(owner, std::move(notifier), std::move(tracer))).handle;
}

} // namespace asyncverbs::detail
