// SPDX-License-Identifier: MIT
// What the conformance cases are written with: a loop that is watched, coroutines that may be
// resumed at any time, and a second thread.
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
#include <semaphore>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <asyncverbs/coro/detail/coroutine.hpp>
#include <asyncverbs/testing/conformance_case.hpp>

namespace asyncverbs::detail::conformance {

[[noreturn]] inline void fail(const std::string& what) { throw ConformanceFailure(what); }

inline void expect(bool holds, const char* otherwise) {
    if (!holds) fail(otherwise);
}

// Keeps the first violation, and what the thread of the loop is doing, which decides whether a
// coroutine may be resumed now.
class Recorder {
public:
    enum class Place { elsewhere, in_run_once, in_request_stop, in_await_suspend };

    // The thread of the loop is at `place` as long as this object exists.
    class At {
    public:
        At(Recorder& recorder, Place place) noexcept
            : recorder_(recorder), before_(std::exchange(recorder.place_, place)) {}
        At(const At&) = delete;
        At& operator=(const At&) = delete;
        ~At() { recorder_.place_ = before_; }

    private:
        Recorder& recorder_;
        Place before_;
    };

    Place place() const noexcept { return place_; }

    /// To be called by a coroutine that was resumed. Records violations, and returns whether this
    /// is the thread of the loop.
    bool resumed() noexcept {
        if (std::this_thread::get_id() != thread_) {
            record("it was resumed on another thread than the loop's");
            return false;
        }
        if (place_ == Place::in_request_stop) record("it was resumed inside request_stop()");
        return true;
    }

    /// From any thread. `violation` is a literal.
    void record(const char* violation) noexcept {
        const char* none = nullptr;
        violation_.compare_exchange_strong(none, violation);
    }
    void record(std::exception_ptr exception) noexcept {
        if (!exception_) exception_ = std::move(exception);
    }

    /// Throws what was recorded.
    void check() {
        if (const char* violation = violation_.load()) fail(violation);
        if (exception_) std::rethrow_exception(std::exchange(exception_, nullptr));
    }

private:
    std::thread::id thread_ = std::this_thread::get_id();
    Place place_ = Place::elsewhere;
    std::atomic<const char*> violation_{nullptr};
    std::exception_ptr exception_;
};

// The coroutine that a notifier resumes. It survives being resumed twice, too late, inside
// request_stop() or on another thread, and records that. Kept until the loop has been destroyed.
class ProbeCoroutine {
public:
    ProbeCoroutine(Recorder& recorder, std::function<void()> on_resumed)
        : recorder_(recorder), on_resumed_(std::move(on_resumed)), coroutine_(run(*this)) {}
    ProbeCoroutine(const ProbeCoroutine&) = delete;
    ProbeCoroutine& operator=(const ProbeCoroutine&) = delete;

    std::coroutine_handle<> handle() const noexcept { return coroutine_.handle(); }

    /// From now on, a resume is the violation `why_not`.
    void close(const char* why_not) noexcept {
        why_not_ = why_not;
        on_resumed_ = nullptr;
    }

private:
    static BackgroundCoroutine run(ProbeCoroutine& self) {
        for (;;) {
            co_await std::suspend_always{};
            self.resumed();
        }
    }

    void resumed() noexcept {
        using Place = Recorder::Place;
        if (!recorder_.resumed()) return; // on another thread, touch nothing else
        if (!on_resumed_) return recorder_.record(why_not_);
        if (recorder_.place() == Place::in_await_suspend) {
            recorder_.record("it was resumed before await_suspend() had returned");
        } else if (recorder_.place() != Place::in_run_once) {
            recorder_.record("it was not resumed by the loop");
        }
        try {
            const auto on_resumed = std::move(on_resumed_);
            close("it was resumed twice");
            on_resumed();
        } catch (...) {
            recorder_.record(std::current_exception());
        }
    }

    Recorder& recorder_;
    std::function<void()> on_resumed_;
    const char* why_not_ = "";
    BackgroundCoroutine coroutine_;
};

// Aborts the program if progress() is not called for `limit`. Nothing else can end a program that
// hangs inside the code under test, and an unattended run has to name the case.
class Watchdog {
public:
    Watchdog(std::string_view name, std::chrono::milliseconds limit)
        : thread_([this, name, limit](const std::stop_token& stop) { watch(stop, name, limit); }) {}

    void progress() noexcept { steps_.fetch_add(1, std::memory_order_relaxed); }

private:
    void watch(const std::stop_token& stop, std::string_view name,
               std::chrono::milliseconds limit) {
        std::mutex mutex;
        std::unique_lock lock(mutex);
        std::condition_variable_any stopped;
        for (unsigned seen = steps_;; seen = steps_) {
            stopped.wait_for(lock, stop, limit, [] { return false; });
            if (stop.stop_requested()) return;
            if (steps_ != seen) continue;
            std::fprintf(stderr,
                         "%.*s: it hangs. No step of the suite has ended for %lld ms: either a "
                         "function of the notifier blocks, or run_once() exceeds its limit.\n",
                         static_cast<int>(name.size()), name.data(),
                         static_cast<long long>(limit.count()));
            std::abort();
        }
    }

    std::atomic<unsigned> steps_{0};
    std::jthread thread_; // destroyed first
};

// A second thread, which requests stops and makes descriptors readable while the loop runs.
class OtherThread {
public:
    OtherThread() = default;
    OtherThread(const OtherThread&) = delete;
    OtherThread& operator=(const OtherThread&) = delete;
    ~OtherThread() {
        wait();
        action_ = nullptr;
        started_.release();
    }

    /// Starts `action`, which must not throw; the one before must have ended.
    void start(std::function<void()> action) {
        action_ = std::move(action);
        running_ = true;
        started_.release();
    }

    /// Waits until the action has ended.
    void wait() {
        if (std::exchange(running_, false)) ended_.acquire();
    }

private:
    void run() {
        for (;;) {
            started_.acquire();
            if (!action_) return;
            action_();
            ended_.release();
        }
    }

    std::function<void()> action_;
    bool running_ = false;
    std::binary_semaphore started_{0};
    std::binary_semaphore ended_{0};
    std::jthread thread_{[this] { run(); }}; // destroyed first
};

// Spins for 0 to 63 µs, another time in each round, so that two threads meet at every point.
inline void spin_for(int round) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point end = Clock::now() + std::chrono::microseconds(round % 64);
    while (Clock::now() < end) {
    }
}

// The loop of a harness, and what watches it. All waiting of the suite is here, and is bounded.
template <class Harness>
class Fixture {
    using Clock = std::chrono::steady_clock;

public:
    using Notifier = decltype(std::declval<Harness&>().notifier(0));

    Fixture(std::string_view name, std::chrono::milliseconds patience)
        : patience_(patience), watchdog_(name, 2 * patience + std::chrono::seconds(20)) {}

    Notifier notifier(int fd) { return harness_.notifier(fd); }
    Harness& harness() noexcept { return harness_; }
    Recorder& recorder() noexcept { return recorder_; }

    ProbeCoroutine& make_probe(std::function<void()> on_resumed) {
        probes_.push_back(std::make_unique<ProbeCoroutine>(recorder_, std::move(on_resumed)));
        return *probes_.back();
    }

    /// One iteration of the loop. Throws if it violates the contract.
    void run_once(std::chrono::milliseconds at_most = std::chrono::milliseconds(0)) {
        {
            const Recorder::At at(recorder_, Recorder::Place::in_run_once);
            harness_.run_once(at_most);
        }
        watchdog_.progress();
        recorder_.check();
    }

    /// Runs the loop long enough for a wrong resume to happen.
    void settle() {
        for (int i = 0; i < 5; ++i) run_once(std::chrono::milliseconds(1));
    }

    /// Runs the loop until `done`, which is expected. The loop may sleep: the event has to wake it.
    template <class Predicate>
    void run_until(Predicate done, const std::string& expected,
                   std::chrono::milliseconds longest = std::chrono::milliseconds::max()) {
        const Clock::time_point end = Clock::now() + patience_;
        while (!done()) {
            const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now());
            if (left.count() > 0) run_once(std::min(left, longest));
            // Also if it is done now: then the end of the sleep, not a wake, has led here.
            if (Clock::now() >= end) {
                fail("timeout: " + expected + " was expected within " +
                     std::to_string(patience_.count()) + " ms, and to wake the loop");
            }
            std::this_thread::yield(); // run_once() may be one that never sleeps
        }
    }

    /// Requests the stop on the thread of the loop.
    void request_stop(std::stop_source& source) {
        const Recorder::At at(recorder_, Recorder::Place::in_request_stop);
        source.request_stop();
    }

private:
    const std::chrono::milliseconds patience_;
    Watchdog watchdog_;
    Recorder recorder_;
    std::vector<std::unique_ptr<ProbeCoroutine>> probes_; // outlive the loop, which may resume them
    Harness harness_;
};

template <class Harness>
class CaseList {
public:
    explicit CaseList(std::chrono::milliseconds patience) : patience_(patience) {}

    /// `body` is called with a Fixture. What it throws becomes a ConformanceFailure that names the
    /// case and `clause`, the sentence of the contract that it tries.
    template <class Body>
    void add(std::string_view name, std::string_view clause, Body body) {
        cases_.push_back({name, clause, [name, clause, body, patience = patience_] {
                              std::string what;
                              try {
                                  Fixture<Harness> fixture(name, patience);
                                  return body(fixture);
                              } catch (const ConformanceFailure& failure) {
                                  what = failure.what();
                              } catch (const std::exception& error) {
                                  what = std::string("an exception: ") + error.what();
                              } catch (...) {
                                  what = "an exception that is not a std::exception";
                              }
                              fail(std::string(name) + ": " + what +
                                   "\n        the contract: " + std::string(clause));
                          }});
    }

    std::vector<ConformanceCase> take() { return std::move(cases_); }

private:
    const std::chrono::milliseconds patience_;
    std::vector<ConformanceCase> cases_;
};

} // namespace asyncverbs::detail::conformance
