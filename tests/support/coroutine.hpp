// SPDX-License-Identifier: MIT
// A minimal coroutine type: it starts at once, and the test may destroy it while it is suspended.
// Independent of coro/, so that the tests of AsyncCq depend on no other layer.
#pragma once

#include <coroutine>
#include <exception>
#include <utility>

namespace asyncverbs::support {

class Coroutine {
public:
    struct promise_type {
        std::exception_ptr exception;

        Coroutine get_return_object() noexcept {
            return Coroutine(std::coroutine_handle<promise_type>::from_promise(*this));
        }
        std::suspend_never initial_suspend() const noexcept { return {}; }
        std::suspend_always final_suspend() const noexcept { return {}; }
        void return_void() const noexcept {}
        void unhandled_exception() noexcept { exception = std::current_exception(); }
    };

    Coroutine() noexcept = default;
    Coroutine(Coroutine&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Coroutine& operator=(Coroutine&& other) noexcept {
        destroy();
        handle_ = std::exchange(other.handle_, nullptr);
        return *this;
    }
    ~Coroutine() { destroy(); }

    bool done() const noexcept { return handle_.done(); }

    /// Rethrows the exception with which the coroutine ended.
    void get() const {
        if (handle_.promise().exception) std::rethrow_exception(handle_.promise().exception);
    }

    void destroy() noexcept {
        if (handle_) std::exchange(handle_, nullptr).destroy();
    }

private:
    explicit Coroutine(std::coroutine_handle<promise_type> handle) noexcept : handle_(handle) {}
    std::coroutine_handle<promise_type> handle_;
};

} // namespace asyncverbs::support
