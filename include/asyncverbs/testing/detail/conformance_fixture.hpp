// SPDX-License-Identifier: MIT
// The coroutines of the conformance suite: they start at once, and can be destroyed where they
// wait, by the suite or by one another.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <coroutine>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <asyncverbs/coro/detail/coroutine.hpp>
#include <asyncverbs/testing/conformance_case.hpp>

namespace asyncverbs::detail::conformance {

class Coroutine {
public:
    struct promise_type {
        Coroutine get_return_object() noexcept { return Coroutine(*this); }
        std::suspend_never initial_suspend() const noexcept { return {}; }
        std::suspend_always final_suspend() const noexcept { return {}; }
        void return_void() const noexcept {}
        void unhandled_exception() const noexcept { std::terminate(); } // they throw nothing
    };

    bool done() const noexcept { return coroutine_.handle().done(); }
    void destroy() noexcept { coroutine_ = {}; }

private:
    explicit Coroutine(promise_type& promise) noexcept : coroutine_(promise) {}
    UniqueCoroutineHandle<promise_type> coroutine_;
};

// What the conformance suite gives a notifier to resume: a coroutine that may be resumed at any
// time, on any thread and any number of times, so that what must not happen is seen and survived.

/// Knows what the thread of the loop is just doing, and keeps the first thing that went wrong.
class Witness {
public:
    enum class Place { elsewhere, in_turn, in_request_stop, in_await_suspend };

    /// The thread of the loop is at `place` as long as this exists.
    class At {
    public:
        At(Witness& witness, Place place) noexcept
            : witness_(witness), before_(std::exchange(witness.place_, place)) {}
        At(const At&) = delete;
        At& operator=(const At&) = delete;
        ~At() { witness_.place_ = before_; }

    private:
        Witness& witness_;
        Place before_;
    };

    Place place() const noexcept { return place_; }

    /// A coroutine goes on, which the loop may have resumed. Reports what must not be, and returns
    /// whether this is the thread of the loop.
    bool resumed() noexcept {
        if (std::this_thread::get_id() != thread_) {
            report("it was resumed on another thread than the loop's");
            return false;
        }
        if (place_ == Place::in_request_stop) report("it was resumed inside request_stop()");
        return true;
    }

    /// From any thread. The text is a literal.
    void report(const char* violation) noexcept {
        const char* none = nullptr;
        violation_.compare_exchange_strong(none, violation);
    }
    void report(std::exception_ptr exception) noexcept {
        if (!exception_) exception_ = std::move(exception);
    }

    /// Throws what was reported.
    void check() {
        if (const char* violation = violation_.load()) throw ConformanceFailure(violation);
        if (exception_) std::rethrow_exception(std::exchange(exception_, nullptr));
    }

private:
    std::thread::id thread_ = std::this_thread::get_id();
    Place place_ = Place::elsewhere;
    std::atomic<const char*> violation_{nullptr};
    std::exception_ptr exception_;
};

/// Lets one resume through. Kept until the loop has gone, whatever became of the wait.
class Passage {
public:
    Passage(Witness& witness, std::function<void()> on_resumed)
        : witness_(witness), on_resumed_(std::move(on_resumed)), coroutine_(run(*this)) {}
    Passage(const Passage&) = delete;
    Passage& operator=(const Passage&) = delete;

    std::coroutine_handle<> handle() const noexcept { return coroutine_.handle(); }

    /// From now on, being resumed is the violation that `why_not` names.
    void close(const char* why_not) noexcept {
        why_not_ = why_not;
        on_resumed_ = nullptr;
    }

private:
    struct Coroutine {
        struct promise_type {
            Coroutine get_return_object() noexcept { return {*this}; }
            std::suspend_never initial_suspend() const noexcept { return {}; }
            std::suspend_always final_suspend() const noexcept { return {}; }
            void return_void() const noexcept {}
            void unhandled_exception() const noexcept { std::terminate(); }
        };
        promise_type& promise;
    };

    static UniqueCoroutineHandle<Coroutine::promise_type> run(Passage& self) {
        return UniqueCoroutineHandle<Coroutine::promise_type>(pass(self).promise);
    }
    static Coroutine pass(Passage& self) {
        for (;;) {
            co_await std::suspend_always{};
            self.resumed();
        }
    }

    void resumed() noexcept {
        using Place = Witness::Place;
        if (!witness_.resumed()) return; // nothing else here is for other threads
        if (!on_resumed_) return witness_.report(why_not_);
        if (witness_.place() == Place::in_await_suspend) {
            witness_.report("it was resumed before await_suspend() had returned");
        } else if (witness_.place() != Place::in_turn) {
            witness_.report("it was not resumed by the loop");
        }
        try {
            const auto on_resumed = std::move(on_resumed_);
            close("it was resumed twice");
            on_resumed();
        } catch (...) {
            witness_.report(std::current_exception());
        }
    }

    Witness& witness_;
    std::function<void()> on_resumed_;
    const char* why_not_ = "it was resumed without waiting";
    UniqueCoroutineHandle<Coroutine::promise_type> coroutine_;
};

/// All passages of a case.
class Passages {
public:
    Passage& add(Witness& witness, std::function<void()> on_resumed) {
        all_.push_back(std::make_unique<Passage>(witness, std::move(on_resumed)));
        return *all_.back();
    }

private:
    std::vector<std::unique_ptr<Passage>> all_;
};

// Ends a program that hangs inside the code under test, where nothing else can: a suite that is run
// unattended has to name the case, not to be killed for its time.

/// Aborts when progress() was not called for `limit`.
class Watchdog {
public:
    Watchdog(std::string_view name, std::chrono::milliseconds limit)
        : name_(name), limit_(limit), thread_([this] { watch(); }) {}
    Watchdog(const Watchdog&) = delete;
    Watchdog& operator=(const Watchdog&) = delete;
    ~Watchdog() {
        {
            const std::lock_guard lock(mutex_);
            ended_ = true;
        }
        changed_.notify_one();
        thread_.join();
    }

    void progress() noexcept { steps_.fetch_add(1, std::memory_order_relaxed); }

private:
    void watch() {
        std::unique_lock lock(mutex_);
        for (unsigned seen = steps_;; seen = steps_) {
            if (changed_.wait_for(lock, limit_, [this] { return ended_; })) return;
            if (steps_ != seen) continue;
            std::fprintf(
                stderr,
                "%.*s: it hangs. No step of the suite has ended for %lld ms: either a "
                "function of the notifier blocks, or run_once() does not keep to its bound.\n",
                static_cast<int>(name_.size()), name_.data(),
                static_cast<long long>(limit_.count()));
            std::abort();
        }
    }

    const std::string_view name_;
    const std::chrono::milliseconds limit_;
    std::atomic<unsigned> steps_{0};
    std::mutex mutex_;
    std::condition_variable changed_;
    bool ended_ = false;
    std::thread thread_;
};

// The other thread of the conformance suite: it requests stops and makes descriptors readable while
// the loop does something else.

class OtherThread {
public:
    OtherThread() : thread_([this] { serve(); }) {}
    OtherThread(const OtherThread&) = delete;
    OtherThread& operator=(const OtherThread&) = delete;
    ~OtherThread() {
        wait();
        {
            const std::lock_guard lock(mutex_);
            ended_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }

    /// Starts `action`, which does not throw; what was started before has ended.
    void start(std::function<void()> action) {
        {
            const std::lock_guard lock(mutex_);
            action_ = std::move(action);
        }
        changed_.notify_all();
    }

    /// Until the action has ended.
    void wait() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return !action_; });
    }

private:
    void serve() {
        std::unique_lock lock(mutex_);
        for (;;) {
            changed_.wait(lock, [this] { return action_ || ended_; });
            if (!action_) return;
            lock.unlock();
            action_();
            lock.lock();
            action_ = nullptr;
            changed_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::function<void()> action_;
    bool ended_ = false;
    std::thread thread_;
};

/// Passes a time that is another one in each round, so that two threads meet everywhere.
inline void dawdle(int round) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point end = Clock::now() + std::chrono::microseconds(round % 64);
    while (Clock::now() < end) {
    }
}

// Where a case of the conformance suite takes place: one loop of the harness, and what watches it.
// All waiting of the suite is here, and all of it is bounded.

[[noreturn]] inline void fail(const std::string& what) { throw ConformanceFailure(what); }

inline void expect(bool holds, const char* otherwise) {
    if (!holds) fail(otherwise);
}

template <class Harness>
class Bench {
    using Clock = std::chrono::steady_clock;

public:
    using Notifier = decltype(std::declval<Harness&>().notifier(0));

    Bench(std::string_view name, std::chrono::milliseconds patience)
        : patience_(patience), watchdog_(name, 2 * patience + std::chrono::seconds(20)) {}

    Notifier notifier(int fd) { return harness_.notifier(fd); }
    Harness& harness() noexcept { return harness_; }

    /// One turn of the loop. Throws what was found wrong.
    void run_once(std::chrono::milliseconds at_most = std::chrono::milliseconds(0)) {
        {
            const Witness::At at(witness_, Witness::Place::in_turn);
            harness_.run_once(at_most);
        }
        watchdog_.progress();
        witness_.check();
    }

    /// Time enough for what must not happen.
    void settle() {
        for (int i = 0; i < 5; ++i) run_once(std::chrono::milliseconds(1));
    }

    /// Turns until `done`. The loop may sleep all the time: what it waits for has to wake it.
    template <class Predicate>
    void run_until(Predicate done, const char* what,
                   std::chrono::milliseconds longest_turn = std::chrono::milliseconds::max()) {
        const Clock::time_point end = Clock::now() + patience_;
        while (!done()) {
            const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now());
            if (left.count() > 0) run_once(std::min(left, longest_turn));
            // Also when it is done now: that the loop's sleep has ended is no wake.
            if (Clock::now() >= end) {
                fail("in vain: " + std::string(what) + " has not happened within " +
                     std::to_string(patience_.count()) + " ms, or did not wake the loop");
            }
            std::this_thread::yield(); // a turn may be one that never sleeps
        }
    }

    /// Requests the stop on the thread of the loop.
    void request_stop(std::stop_source& source) {
        const Witness::At at(witness_, Witness::Place::in_request_stop);
        source.request_stop();
    }

    Witness& witness() noexcept { return witness_; }
    Passages& passages() noexcept { return passages_; }

private:
    const std::chrono::milliseconds patience_;
    Watchdog watchdog_;
    Witness witness_;
    Passages passages_; // the loop may still resume them while it ends
    Harness harness_;
};

// How a function that tries one clause becomes a case: it gets a loop of its own, and whatever it
// throws names the case and the clause.

[[noreturn]] inline void fail(std::string_view name, std::string_view clause,
                              std::string_view what) {
    std::string text(name);
    text.append(": ").append(what).append("\n        the contract: ").append(clause);
    throw ConformanceFailure(text);
}

/// Calls `body`; what it throws becomes a ConformanceFailure.
template <class Body>
void run_case(std::string_view name, std::string_view clause, const Body& body) {
    try {
        body();
    } catch (const ConformanceFailure& failure) {
        fail(name, clause, failure.what());
    } catch (const std::exception& error) {
        fail(name, clause, std::string("an exception: ") + error.what());
    } catch (...) {
        fail(name, clause, "an exception that is no std::exception");
    }
}

template <class Harness>
class CaseList {
public:
    explicit CaseList(std::chrono::milliseconds patience) : patience_(patience) {}

    /// `body` is called with a Bench.
    template <class Body>
    void add(std::string_view name, std::string_view clause, Body body) {
        cases_.push_back({name, clause, [name, clause, body, patience = patience_] {
                              run_case(name, clause, [&] {
                                  Bench<Harness> bench(name, patience);
                                  body(bench);
                              });
                          }});
    }

    std::vector<ConformanceCase> take() { return std::move(cases_); }

private:
    const std::chrono::milliseconds patience_;
    std::vector<ConformanceCase> cases_;
};

} // namespace asyncverbs::detail::conformance
