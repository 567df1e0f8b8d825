// SPDX-License-Identifier: MIT
// A coroutine that waits with a notifier, as the conformance suite plays it: step by step, so that
// a stop or an event can fall between any two of them, and tolerant of what the contract tolerates.
#pragma once

#include <concepts>
#include <coroutine>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include <asyncverbs/core/awaitable.hpp>
#include <asyncverbs/testing/detail/conformance_bench.hpp>

namespace asyncverbs::detail::conformance {

template <class Harness>
class Wait {
    using Notifier = typename Bench<Harness>::Notifier;

public:
    explicit Wait(Bench<Harness>& bench) : bench_(bench) {}
    Wait(const Wait&) = delete;
    Wait& operator=(const Wait&) = delete;
    ~Wait() { destroy(); }

    /// `co_await notifier.readable(arguments...)`
    template <class... Arguments>
    void begin(Notifier& notifier, const Arguments&... arguments) {
        call(notifier, arguments...);
        suspend();
    }

    /// The same in two steps: up to await_ready(), and await_suspend().
    template <class... Arguments>
    void call(Notifier& notifier, const Arguments&... arguments) {
        destroy();
        result_.reset();
        using Call = Awaited<Arguments...>;
        auto awaited = std::make_unique<Call>(notifier, arguments...);
        const bool ready = static_cast<bool>(awaited->awaiter.await_ready());
        suspend_ = [&call = *awaited](std::coroutine_handle<> coroutine) {
            return Call::suspend(call.awaiter, coroutine);
        };
        resume_ = [&call = *awaited]() -> std::error_code { return call.awaiter.await_resume(); };
        awaited_ = std::move(awaited);
        if (ready) end();
    }
    void suspend() {
        if (done()) return;
        passage_ = &bench_.passages().add(bench_.witness(), [this] { end(); });
        const std::coroutine_handle<> coroutine = passage_->handle();
        std::coroutine_handle<> next;
        {
            const Witness::At at(bench_.witness(), Witness::Place::in_await_suspend);
            next = suspend_(coroutine);
        }
        bench_.witness().check();
        if (next == coroutine) { // it does not suspend
            passage_->close("it was resumed although await_suspend() had not suspended it");
            end();
        } else {
            next.resume();
        }
    }

    /// The coroutine goes, and with it the awaiter.
    void destroy() noexcept {
        if (passage_ != nullptr) passage_->close("it was resumed after it was destroyed");
        passage_ = nullptr;
        awaited_.reset();
    }

    bool done() const noexcept { return result_.has_value(); }

    /// Runs the loop until it is done, for whatever reason.
    std::error_code result(const char* awaited = "the end of the wait") {
        bench_.run_until([this] { return done(); }, awaited);
        return *result_;
    }

    /// Runs the loop until it is done, which is because the descriptor is readable.
    void expect_readable(const char* awaited = "that the wait ends with {}") {
        const std::error_code error = result(awaited);
        if (error) fail("expected {} of a readable descriptor, got " + error.message());
    }

    /// The same for a wait that ends with `expected`. It may be spuriously readable, and then is
    /// begun again.
    template <class... Arguments>
    void expect_error(std::errc expected, Notifier& notifier, const Arguments&... arguments) {
        const std::string name = std::make_error_code(expected).message();
        for (int i = 0; i < enough; ++i) {
            const std::error_code error = result(("that the wait ends with " + name).c_str());
            if (error == expected) return;
            if (error) fail("expected " + name + ", got " + error.message());
            begin(notifier, arguments...);
        }
        fail("expected " + name + ", got {} each time");
    }

    /// Begins, with nothing to read, and is left waiting, after as many spurious wakes as it takes.
    template <class... Arguments>
    void park(Notifier& notifier, const Arguments&... arguments) {
        begin(notifier, arguments...);
        stay(notifier, arguments...);
    }

    /// It is still waiting, or has been woken spuriously and then is begun again.
    template <class... Arguments>
    void stay(Notifier& notifier, const Arguments&... arguments) {
        for (int i = 0; i < enough; ++i) {
            bench_.settle();
            if (!done()) return;
            if (*result_) fail("a wait that nothing ends gave " + result_->message());
            begin(notifier, arguments...);
        }
        fail("nothing can be read, but the wait ends each time: whoever relies on it spins");
    }

    /// What the coroutine does when it is resumed, or did not suspend. It may begin again.
    std::function<void()> then;

private:
    static constexpr int enough = 100; // spurious wakes in a row

    struct Anything {
        virtual ~Anything() = default;
    };

    // The objects that live in a coroutine's frame during co_await, on the heap as that is.
    template <class... Arguments>
    struct Awaited : Anything {
        using Operation =
            decltype(std::declval<Notifier&>().readable(std::declval<const Arguments&>()...));

        Awaited(Notifier& notifier, const Arguments&... arguments)
            : operation(notifier.readable(arguments...)),
              awaiter(detail::get_awaiter(static_cast<Operation&&>(operation))) {}

        static std::coroutine_handle<> suspend(auto& awaiter, std::coroutine_handle<> coroutine) {
            using Result = decltype(awaiter.await_suspend(coroutine));
            if constexpr (std::same_as<Result, void>) {
                awaiter.await_suspend(coroutine);
                return std::noop_coroutine();
            } else if constexpr (std::same_as<Result, bool>) {
                if (!awaiter.await_suspend(coroutine)) return coroutine;
                return std::noop_coroutine();
            } else {
                return awaiter.await_suspend(coroutine);
            }
        }

        Operation operation;
        awaiter_t<Operation> awaiter;
    };

    // As the compiler does it: the result first, then the awaiter goes, then the coroutine goes on.
    void end() {
        result_ = resume_();
        passage_ = nullptr;
        awaited_.reset();
        if (const std::function<void()> next = then) next();
    }

    Bench<Harness>& bench_;
    std::unique_ptr<Anything> awaited_;
    std::function<std::coroutine_handle<>(std::coroutine_handle<>)> suspend_;
    std::function<std::error_code()> resume_;
    Passage* passage_ = nullptr;
    std::optional<std::error_code> result_;
};

} // namespace asyncverbs::detail::conformance
