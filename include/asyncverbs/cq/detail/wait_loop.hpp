// SPDX-License-Identifier: MIT
// The exception that is being handled, as what all who wait for a completion queue are told.
#pragma once

#include <atomic>
#include <cassert>
#include <chrono>
#include <concepts>
#include <coroutine>
#include <exception>
#include <memory>
#include <mutex>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/detail/coroutine.hpp>
#include <asyncverbs/cq/cq_notifier.hpp>
#include <asyncverbs/cq/cq_statistics.hpp>

namespace asyncverbs::detail {

/// To be called in a catch block. Keeps the code of a std::system_error.
inline std::system_error current_failure() {
    const auto code = std::make_error_code(std::errc::state_not_recoverable);
    try {
        throw;
    } catch (const std::system_error& error) {
        return error;
    } catch (const std::exception& error) {
        return std::system_error(code, error.what());
    } catch (...) {
        return std::system_error(code, "an exception of unknown type");
    }
}

// Ends a wait that is in progress, or else the next one, so that whoever waits looks around: a stop
// token that is renewed each time that its stop was heeded.

// One thread waits with token(); wake() comes from any thread.
class WakeSource {
public:
    std::stop_token token() const noexcept { return stop_source_.get_token(); }

    void wake() noexcept {
        std::stop_source source{std::nostopstate};
        {
            const std::lock_guard lock(mutex_);
            requested_.store(true, std::memory_order_relaxed);
            source = stop_source_;
        }
        // Calls the notifier, hence with no lock held (I8).
        // NOLINTNEXTLINE(clang-analyzer-cplusplus.Move): it was copied, by way of a temporary
        source.request_stop();
    }

    bool pending() const noexcept {
        // The flag is cheaper to ask, and says that the source will be stopped if it is not yet.
        return requested_.load(std::memory_order_relaxed) && stop_source_.stop_requested();
    }

    /// Heeds it: whoever raises a flag from now on interrupts the next wait. May throw bad_alloc.
    void reset() {
        const std::lock_guard lock(mutex_);
        stop_source_ = std::stop_source();
        requested_.store(false, std::memory_order_relaxed);
    }

private:
    std::mutex mutex_; // stop_source_ is replaced while wake() may copy it
    std::atomic<bool> requested_{false};
    std::stop_source stop_source_;
};

// What the pump of a completion channel and its owner know of each other.

struct WaitLoopState {
    std::coroutine_handle<> handle; // null once it has ended
    bool idle = true;
    bool running = false;       // and may be resuming somebody
    std::exception_ptr escaped; // of whom it resumed

    /// The owner goes. A pump that is resuming the coroutine that closes it ends by itself when
    /// that returns.
    void close() noexcept {
        if (handle && !running) std::exchange(handle, nullptr).destroy();
    }
};

// The coroutine that waits for a completion channel on behalf of everybody who waits for its CQ, or
// CQs: allocated once, whatever the notifier's type. It sleeps while nobody waits.

// A notifier that has read the channel's events itself, and says how many were of this CQ.
template <class N>
concept reads_events = requires(N& n) { n.take_events(); };

// Owner is the CqState of one CQ, or the SharedChannelState of several.
struct WaitLoop {
    struct promise_type {
        WaitLoop get_return_object() noexcept {
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
    struct Resources {
        Resources(std::shared_ptr<Owner> o, N n, T t)
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

    // Suspended here while nobody waits; the first who does transfers to the wait loop.
    template <class Owner>
    struct Idle {
        Owner& owner;
        bool await_ready() const noexcept { return !owner.idle(); }
        void await_suspend(std::coroutine_handle<>) const noexcept { owner.wait_loop.idle = true; }
        void await_resume() const noexcept { owner.wait_loop.idle = false; }
    };

    // Suspends and goes on at once. A coroutine that ends with an exception has to be destroyed;
    // clang 19 then also destroys what was alive where it was last suspended, once more.
    struct ResumeAtOnce {
        bool await_ready() const noexcept { return false; }
        std::coroutine_handle<> await_suspend(std::coroutine_handle<> coroutine) const noexcept {
            return coroutine;
        }
        void await_resume() const noexcept {}
    };

    // A frame that an exception leaves cannot destroy itself, and nobody else knows it any more. It
    // is empty; the next one on this thread takes its place, or the thread ends.
    static void retire_frame(std::coroutine_handle<> frame) {
        thread_local UniqueCoroutineHandle<promise_type> last;
        const auto ended = std::coroutine_handle<promise_type>::from_address(frame.address());
        last = UniqueCoroutineHandle<promise_type>(ended.promise());
    }

    template <class Owner, class N, class T>
    static WaitLoop run(Resources<Owner, N, T> parts);

    // In the place of a pump that an exception is about to end.
    template <class Owner, class N, class T>
    static void restart(Resources<Owner, N, T>& parts);

    std::coroutine_handle<promise_type> handle;
};

template <class Owner, class N, class T>
WaitLoop WaitLoop::run(Resources<Owner, N, T> parts) {
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

        owner.wait_loop.running = true;
        try {
            if constexpr (reads_events<N>) {
                owner.credit(parts.notifier.take_events());
            }
            owner.turn(result, yielding);
        } catch (...) {
            // What a resumed coroutine let escape belongs to whoever runs the loop.
            owner.wait_loop.escaped = std::current_exception();
            owner.escaped();
        }
        owner.wait_loop.running = false;
        if (owner.wait_loop.escaped) {
            co_await ResumeAtOnce{}; // where nothing is alive that has a destructor
            std::exception_ptr escaped = std::exchange(owner.wait_loop.escaped, nullptr);
            if (owner.closed()) {
                retire_frame(owner.wait_loop.handle);
                const Resources<Owner, N, T> gone(
                    std::move(parts)); // the last that refers to the owner
            } else if (!owner.finished()) {
                restart(parts);
            }
            std::rethrow_exception(std::move(escaped));
        }
    }
    owner.wait_loop.handle = nullptr;
}

template <class Owner, class N, class T>
void WaitLoop::restart(Resources<Owner, N, T>& parts) {
    const std::shared_ptr<Owner> owner = parts.owner;
    retire_frame(owner->wait_loop.handle);
    owner->wait_loop.handle = nullptr;
    try {
        owner->wait_loop.handle = run(Resources<Owner, N, T>(std::move(parts))).handle;
    } catch (...) { // no memory
        owner->fail();
        return owner->dismiss_all();
    }
    owner->wait_loop.idle = true;
    if (!owner->idle()) owner->wait_loop.handle.resume();
}

/// An owner whose pump waits with `notifier`.
template <class Owner, CqNotifier N, CqTracer T = NoTracer>
void start_wait_loop(const std::shared_ptr<Owner>& owner, N notifier, T tracer = {}) {
    using Pump = WaitLoop;
    using Resources = typename Pump::template Resources<Owner, N, T>;
    owner->wait_loop.handle =
        Pump::run(Resources(owner, std::move(notifier), std::move(tracer))).handle;
}

} // namespace asyncverbs::detail
