// SPDX-License-Identifier: MIT
// What the conformance suite gives a notifier to resume: a coroutine that may be resumed at any
// time, on any thread and any number of times, so that what must not happen is seen and survived.
#pragma once

#include <atomic>
#include <coroutine>
#include <exception>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include <asyncverbs/core/detail/unique_coroutine.hpp>
#include <asyncverbs/testing/conformance_case.hpp>

namespace asyncverbs::detail::conformance {

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

    static UniqueCoroutine<Coroutine::promise_type> run(Passage& self) {
        return UniqueCoroutine<Coroutine::promise_type>(pass(self).promise);
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
    UniqueCoroutine<Coroutine::promise_type> coroutine_;
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

} // namespace asyncverbs::detail::conformance
