// SPDX-License-Identifier: MIT
// A model of unifex::task. It is lazy. Its await_transform gets the awaiter of an rvalue and moves
// it, once into an object that stands for a sender and once into a coroutine that awaits it there.
#pragma once

#include <coroutine>
#include <exception>
#include <optional>
#include <utility>

#include "support/foreign/promise.hpp"

namespace foreign {

// An awaiter that can be moved before it suspends, and a reference to its awaitable.
template <class Awaitable>
class MovedAwaiter {
    using Awaiter = decltype(get_awaiter(std::declval<Awaitable>()));

public:
    explicit MovedAwaiter(Awaitable&& awaitable)
        : awaitable_(std::move(awaitable)), awaiter_(get_awaiter(std::move(awaitable))) {}
    MovedAwaiter(MovedAwaiter&& other) noexcept
        : awaitable_(std::move(other.awaitable_)), awaiter_(std::move(other.awaiter_)) {}
    MovedAwaiter& operator=(MovedAwaiter&&) = delete;

    bool await_ready() { return awaiter_.await_ready(); }
    auto await_suspend(std::coroutine_handle<> task) { return awaiter_.await_suspend(task); }
    decltype(auto) await_resume() { return awaiter_.await_resume(); }

private:
    Awaitable&& awaitable_;
    Awaiter awaiter_;
};

// Awaits in a coroutine of its own, and then resumes the task.
template <class Awaitable>
class AsSender {
    using Value = decltype(std::declval<MovedAwaiter<Awaitable>&>().await_resume());

public:
    explicit AsSender(MovedAwaiter<Awaitable>&& awaiter) : awaiter_(std::move(awaiter)) {}
    AsSender(const AsSender&) = delete;
    AsSender& operator=(const AsSender&) = delete;
    ~AsSender() {
        if (operation_) operation_.destroy();
    }

    bool await_ready() const noexcept { return false; }
    std::coroutine_handle<> await_suspend(std::coroutine_handle<> task) {
        task_ = task;
        operation_ = run(std::move(awaiter_), *this).handle;
        return operation_;
    }
    Value await_resume() {
        if (error_) std::rethrow_exception(error_);
        return std::move(*value_);
    }

private:
    // Resumes the task while the operation is suspended, because the task destroys it.
    struct Complete {
        bool await_ready() const noexcept { return false; }
        std::coroutine_handle<> await_suspend(std::coroutine_handle<>) const { return task; }
        void await_resume() const noexcept {}
        std::coroutine_handle<> task;
    };
    struct Operation {
        struct promise_type {
            Operation get_return_object() noexcept {
                return Operation(std::coroutine_handle<promise_type>::from_promise(*this));
            }
            std::suspend_always initial_suspend() const noexcept { return {}; }
            std::suspend_always final_suspend() const noexcept { return {}; }
            void return_void() const noexcept {}
            void unhandled_exception() const noexcept { std::terminate(); }
        };
        explicit Operation(std::coroutine_handle<> h) noexcept : handle(h) {}
        std::coroutine_handle<> handle;
    };

    static Operation run(MovedAwaiter<Awaitable> awaiter, AsSender& self) {
        try {
            self.value_.emplace(co_await std::move(awaiter));
        } catch (...) {
            self.error_ = std::current_exception();
        }
        co_await Complete{self.task_};
    }

    MovedAwaiter<Awaitable> awaiter_;
    std::coroutine_handle<> task_;
    std::coroutine_handle<> operation_;
    std::optional<Value> value_;
    std::exception_ptr error_;
};

template <class T>
class UnifexTask {
public:
    class promise_type : public Promise<T> {
    public:
        UnifexTask get_return_object() noexcept { return UnifexTask(*this); }
        std::suspend_always initial_suspend() const noexcept { return {}; }
        template <class Awaitable>
        AsSender<Awaitable> await_transform(Awaitable&& awaitable) {
            return AsSender<Awaitable>(MovedAwaiter<Awaitable>(std::move(awaitable)));
        }
    };

    void start() const { handle_.get().resume(); }
    bool done() const noexcept { return handle_.get().done(); }
    T get() { return handle_.promise().result(); }

    auto operator co_await() && noexcept { return Awaiter{handle_.get()}; }

private:
    struct Awaiter {
        bool await_ready() const noexcept { return false; }
        std::coroutine_handle<> await_suspend(std::coroutine_handle<> next) const noexcept {
            handle.promise().continue_with(next);
            return handle;
        }
        T await_resume() const { return handle.promise().result(); }
        std::coroutine_handle<promise_type> handle;
    };

    explicit UnifexTask(promise_type& promise) noexcept : handle_(promise) {}
    UniqueHandle<promise_type> handle_;
};

} // namespace foreign
