// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <chrono>
#include <concepts>
#include <coroutine>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/detail/coroutine.hpp>
#include <asyncverbs/cq/async_cq_options.hpp>
#include <asyncverbs/cq/cq_notifier.hpp>

namespace asyncverbs::detail {

// Step 3 of CqPoller's protocol: the coroutine that waits for a completion channel on behalf of all
// waiters. Allocated once per owner, for any type of notifier; suspended while there are no
// waiters.
//
// Owner is derived from WaitLoopOwner: the CqState of one CQ, or the SharedChannelState of several.
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

    template <class Owner, class N, class T>
    struct Resources;
    template <class Owner>
    struct WaitForWaiters;
    struct ResumeAtOnce;

    /// Makes the wait loop of `owner`, which waits with `notifier`. It stays suspended until there
    /// are waiters.
    template <class Owner, CqNotifier N, CqTracer T = NoTracer>
    static void start(const std::shared_ptr<Owner>& owner, N notifier, T tracer = {}) {
        Resources<Owner, N, T> resources(owner, std::move(notifier), std::move(tracer));
        owner->wait_loop_ = run(std::move(resources)).handle;
    }

    template <class Owner, class N, class T>
    static WaitLoop run(Resources<Owner, N, T> resources);

    template <class Owner, class N, class T>
    static void restart(Resources<Owner, N, T>& resources);

    static void retire_frame(std::coroutine_handle<> frame);

    std::coroutine_handle<promise_type> handle;
};

// A notifier that reads the events of the channel itself; take_events() returns the number of those
// of its CQ.
template <class N>
concept reads_events = requires(N& n) { n.take_events(); };

// Ends a wait that is in progress, or else the next one: a stop token that is replaced after each
// stop. One thread waits with token() and calls reset(); wake() may be called by any thread.
class WakeSource {
public:
    std::stop_token token() const noexcept { return stop_source_.get_token(); }

    void wake() noexcept { prepare().request_stop(); }

    /// The first half of wake(), for a caller that holds a lock: request_stop() of the result is
    /// the second half. It calls the notifier, hence must be called with no lock held (I8).
    std::stop_source prepare() noexcept {
        const std::lock_guard lock(mutex_);
        requested_.store(true, std::memory_order_relaxed);
        return stop_source_;
    }

    bool pending() const noexcept {
        // The flag is cheaper to read. It is set a moment before the source is stopped.
        return requested_.load(std::memory_order_relaxed) && stop_source_.stop_requested();
    }

    /// A wake() from now on ends the next wait. To be called before the flags are read whose change
    /// wake() reports. Throws std::bad_alloc.
    void reset() {
        const std::lock_guard lock(mutex_);
        stop_source_ = std::stop_source();
        requested_.store(false, std::memory_order_relaxed);
    }

private:
    std::mutex mutex_; // stop_source_ is replaced while prepare() may copy it
    std::atomic<bool> requested_{false};
    std::stop_source stop_source_;
};

// State shared by the wait loop and its owner. A derived class also has
//  - bool wait_needed(): whether there are waiters;
//  - std::optional<std::chrono::nanoseconds> begin_wait(): the longest time to wait, if bounded;
//    zero: one iteration of the event loop;
//  - void after_wait(std::error_code): step 4, and then all that the waiters need. Resumes
//    coroutines, and may let their exceptions through;
//  - void on_escaped_exception() noexcept: after_wait() has let an exception through;
//  - void fail_waiters() noexcept: resumes all waiters with the failure;
//  - void credit(unsigned events), if the notifier reads the events;
//  - const CqStatistics& statistics(), if there is a tracer.
class WaitLoopOwner {
public:
    /// Ends the current wait, or else the next one, so that after_wait() is called. From any
    /// thread.
    void wake() noexcept { wake_source_.wake(); }

    /// The cause, if no completion or event will come any more.
    const std::optional<std::system_error>& failure() const noexcept { return failure_; }

protected:
    /// What to resume when a waiter was added: the wait loop, if it is suspended without waiters.
    std::coroutine_handle<> start_wait_loop() const noexcept {
        if (idle_) return wait_loop_;
        return std::noop_coroutine();
    }

    /// Destroys the notifier. A wait loop that is resuming the coroutine that calls this ends when
    /// that returns.
    void close() noexcept {
        if (std::exchange(closed_, true) || !wait_loop_) return;
        if (resuming_) {
            release_notifier_(resources_);
        } else {
            std::exchange(wait_loop_, nullptr).destroy();
        }
    }

    bool closed() const noexcept { return closed_; }
    bool finished() const noexcept { return closed_ || failure_; }
    bool waiting() const noexcept { return !idle_ && !resuming_; }

    /// Called in a catch block. The first error is the cause, and it is final: it reaches all
    /// current and later waiters, also when no memory is left to describe it (I5).
    void fail() noexcept;

    std::optional<std::system_error> failure_;
    WakeSource wake_source_;

private:
    friend WaitLoop;

    // Made in advance: copying it allocates nothing.
    const std::system_error out_of_memory_{std::make_error_code(std::errc::not_enough_memory),
                                           "AsyncCq"};
    std::coroutine_handle<> wait_loop_; // null once it has ended
    void* resources_ = nullptr;         // of the wait loop
    void (*release_notifier_)(void* resources) noexcept = nullptr;
    bool idle_ = true;
    bool resuming_ = false; // in after_wait()
    bool closed_ = false;
    std::exception_ptr escaped_; // from after_wait()
};

inline void WaitLoopOwner::fail() noexcept {
    if (failure_) return;
    const auto code = std::make_error_code(std::errc::state_not_recoverable);
    try {
        try {
            throw;
        } catch (const std::system_error& error) {
            failure_.emplace(error);
        } catch (const std::bad_alloc&) {
            failure_.emplace(out_of_memory_);
        } catch (const std::exception& error) {
            failure_.emplace(code, error.what());
        } catch (...) {
            failure_.emplace(code, "an exception of unknown type");
        }
    } catch (const std::bad_alloc&) {
        failure_.emplace(out_of_memory_);
    }
}

// What the wait loop uses. The notifier is destroyed before the owner, which holds the channel: an
// fd is deregistered before it is closed (I12).
template <class Owner, class N, class T>
struct WaitLoop::Resources {
    Resources(std::shared_ptr<Owner> o, N n, T t)
        : owner(std::move(o)), tracer(std::move(t)), notifier(std::move(n)) {}

    std::shared_ptr<Owner> owner;
    [[no_unique_address]] T tracer;
    std::optional<N> notifier; // until the owner is closed

    void trace_before_wait() noexcept {
        if constexpr (!std::same_as<T, NoTracer>) tracer.before_wait(owner->statistics());
    }
    void trace_after_wait(std::error_code result) noexcept {
        if constexpr (!std::same_as<T, NoTracer>) tracer.after_wait(owner->statistics(), result);
    }
};

// Suspends while there are no waiters. The first waiter resumes it.
template <class Owner>
struct WaitLoop::WaitForWaiters {
    Owner& owner;
    bool await_ready() const noexcept { return owner.wait_needed(); }
    void await_suspend(std::coroutine_handle<>) const noexcept { owner.idle_ = true; }
    void await_resume() const noexcept { owner.idle_ = false; }
};

// Suspends and resumes at once. A coroutine that ends with an exception has to be destroyed; clang
// 19 then destroys the objects a second time that were alive at the last suspension.
struct WaitLoop::ResumeAtOnce {
    bool await_ready() const noexcept { return false; }
    std::coroutine_handle<> await_suspend(std::coroutine_handle<> coroutine) const noexcept {
        return coroutine;
    }
    void await_resume() const noexcept {}
};

template <class Owner, class N, class T>
WaitLoop WaitLoop::run(Resources<Owner, N, T> resources) {
    Owner& owner = *resources.owner;
    owner.resources_ = &resources;
    owner.release_notifier_ = [](void* self) noexcept {
        static_cast<Resources<Owner, N, T>*>(self)->notifier.reset();
    };
    while (!owner.finished()) {
        co_await WaitForWaiters<Owner>{owner};
        const std::optional<std::chrono::nanoseconds> bound = owner.begin_wait();

        std::error_code result;
        resources.trace_before_wait();
        try {
            if constexpr (TimedCqNotifier<N>) {
                if (bound) {
                    result =
                        co_await resources.notifier->readable(owner.wake_source_.token(), *bound);
                } else {
                    result = co_await resources.notifier->readable(owner.wake_source_.token());
                }
            } else {
                result = co_await resources.notifier->readable(owner.wake_source_.token());
            }
            resources.trace_after_wait(result);
        } catch (...) {
            owner.fail();
            resources.trace_after_wait(owner.failure_->code());
            result = std::make_error_code(std::errc::operation_canceled); // nothing to consume
        }

        owner.resuming_ = true;
        try {
            if constexpr (reads_events<N>) owner.credit(resources.notifier->take_events());
            owner.after_wait(result);
        } catch (...) {
            // The exception of a resumed coroutine belongs to the caller of the event loop.
            owner.escaped_ = std::current_exception();
            owner.on_escaped_exception();
        }
        owner.resuming_ = false;
        if (owner.escaped_) {
            co_await ResumeAtOnce{}; // where no object with a destructor is alive
            std::exception_ptr escaped = std::exchange(owner.escaped_, nullptr);
            if (owner.closed()) {
                retire_frame(owner.wait_loop_);
                // Releases what may be the last reference to the owner.
                const Resources<Owner, N, T> released(std::move(resources));
            } else if (!owner.finished()) {
                restart(resources);
            }
            std::rethrow_exception(std::move(escaped));
        }
    }
    owner.wait_loop_ = nullptr;
}

// Called by a wait loop that is about to end with an exception: starts another one in its place.
template <class Owner, class N, class T>
void WaitLoop::restart(Resources<Owner, N, T>& resources) {
    const std::shared_ptr<Owner> owner = resources.owner;
    retire_frame(owner->wait_loop_);
    owner->wait_loop_ = nullptr;
    try {
        owner->wait_loop_ = run(Resources<Owner, N, T>(std::move(resources))).handle;
    } catch (...) { // out of memory
        owner->fail();
        return owner->fail_waiters();
    }
    owner->idle_ = true;
    if (owner->wait_needed()) owner->wait_loop_.resume();
}

// A coroutine that exits by an exception stays suspended and must be destroyed by other code. Its
// frame, without objects in it, is kept until the next one on this thread, or until thread exit.
inline void WaitLoop::retire_frame(std::coroutine_handle<> frame) {
    thread_local UniqueCoroutineHandle<promise_type> last;
    const auto ended = std::coroutine_handle<promise_type>::from_address(frame.address());
    last = UniqueCoroutineHandle<promise_type>(ended.promise());
}

} // namespace asyncverbs::detail
