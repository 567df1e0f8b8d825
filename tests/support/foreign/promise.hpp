// SPDX-License-Identifier: MIT
// What the foreign coroutine types share. They are independent of this library, as other libraries'
// types are.
#pragma once

#include <coroutine>
#include <exception>
#include <optional>
#include <utility>

namespace foreign {

// Stores the result of a task, and resumes the coroutine that awaits it.
template <class T>
class Promise {
public:
    auto final_suspend() const noexcept {
        struct Continue {
            bool await_ready() const noexcept { return false; }
            std::coroutine_handle<> await_suspend(std::coroutine_handle<>) const noexcept {
                return next;
            }
            void await_resume() const noexcept {}
            std::coroutine_handle<> next;
        };
        return Continue{continuation_};
    }
    void return_value(T value) { value_.emplace(std::move(value)); }
    void unhandled_exception() noexcept { error_ = std::current_exception(); }

    void continue_with(std::coroutine_handle<> next) noexcept { continuation_ = next; }
    T result() {
        if (error_) std::rethrow_exception(error_);
        return std::move(*value_);
    }

private:
    std::optional<T> value_;
    std::exception_ptr error_;
    std::coroutine_handle<> continuation_ = std::noop_coroutine();
};

// Owns a coroutine.
template <class PromiseType>
class UniqueHandle {
public:
    explicit UniqueHandle(PromiseType& promise) noexcept
        : handle_(std::coroutine_handle<PromiseType>::from_promise(promise)) {}
    UniqueHandle(UniqueHandle&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    UniqueHandle& operator=(UniqueHandle&& other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    ~UniqueHandle() {
        if (handle_) handle_.destroy();
    }

    std::coroutine_handle<PromiseType> get() const noexcept { return handle_; }
    PromiseType& promise() const noexcept { return handle_.promise(); }

private:
    std::coroutine_handle<PromiseType> handle_;
};

// Returns the awaiter of an awaitable. A promise with an await_transform needs this, because it
// must do the lookup that the compiler does otherwise; each coroutine library has such a function.
template <class Awaitable>
decltype(auto) get_awaiter(Awaitable&& awaitable) {
    if constexpr (requires { std::forward<Awaitable>(awaitable).operator co_await(); }) {
        return std::forward<Awaitable>(awaitable).operator co_await();
    } else if constexpr (requires { operator co_await(std::forward<Awaitable>(awaitable)); }) {
        return operator co_await(std::forward<Awaitable>(awaitable));
    } else {
        return std::forward<Awaitable>(awaitable);
    }
}

} // namespace foreign
