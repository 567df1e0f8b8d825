// SPDX-License-Identifier: MIT
// Building blocks for coroutine types: owning handle, promise bases, result storage, and the
// coroutines that the library runs for itself.
#pragma once

#include <coroutine>
#include <exception>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <variant>

#include <asyncverbs/coro/awaitable.hpp>

namespace asyncverbs::detail {

// Owns a coroutine frame. The coroutine must be suspended whenever its owner may be destroyed.
template <class Promise>
class UniqueCoroutineHandle {
public:
    UniqueCoroutineHandle() noexcept = default;
    explicit UniqueCoroutineHandle(Promise& promise) noexcept
        : handle_(std::coroutine_handle<Promise>::from_promise(promise)) {}
    UniqueCoroutineHandle(UniqueCoroutineHandle&& other) noexcept
        : handle_(std::exchange(other.handle_, {})) {}
    UniqueCoroutineHandle& operator=(UniqueCoroutineHandle&& other) noexcept {
        // Through a temporary: the destroyed frame may own this object.
        UniqueCoroutineHandle(std::move(other)).swap(*this);
        return *this;
    }
    ~UniqueCoroutineHandle() {
        if (handle_) handle_.destroy();
    }

    void swap(UniqueCoroutineHandle& other) noexcept { std::swap(handle_, other.handle_); }

    explicit operator bool() const noexcept { return static_cast<bool>(handle_); }
    std::coroutine_handle<Promise> handle() const noexcept { return handle_; }
    Promise& promise() const { return handle_.promise(); }

private:
    std::coroutine_handle<Promise> handle_;
};

// Base of a promise whose coroutine starts when it is resumed for the first time. At its end the
// coroutine is suspended, then Promise::on_final_suspend() is called, and the handle that it
// returns is resumed. on_final_suspend() must be noexcept and must not destroy the coroutine.
struct LazyPromise {
    struct FinalAwaiter {
        bool await_ready() const noexcept { return false; }
        template <class Promise>
        std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> self) const noexcept {
            return self.promise().on_final_suspend();
        }
        void await_resume() const noexcept {}
    };

    std::suspend_always initial_suspend() const noexcept { return {}; }
    FinalAwaiter final_suspend() const noexcept { return {}; }
};

// A coroutine that its owner runs in the background: it starts at once and must not throw. The
// owner may destroy it whenever it is suspended, and must destroy it after its end.
class BackgroundCoroutine {
public:
    struct promise_type {
        BackgroundCoroutine get_return_object() noexcept { return BackgroundCoroutine(*this); }
        std::suspend_never initial_suspend() const noexcept { return {}; }
        std::suspend_always final_suspend() const noexcept { return {}; }
        void return_void() const noexcept {}
        [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }
    };

    BackgroundCoroutine() noexcept = default; ///< Empty.

    std::coroutine_handle<> handle() const noexcept { return coroutine_.handle(); }

private:
    explicit BackgroundCoroutine(promise_type& promise) noexcept : coroutine_(promise) {}

    UniqueCoroutineHandle<promise_type> coroutine_;
};

// Storage for the result of a co_await of any type: a value, a reference or nothing. An rvalue
// reference is stored as a value.
template <class T>
class ResultStorage {
public:
    using Result = T;  // of a function that returns the result
    using Element = T; // of a tuple or a vector of results

    template <class U>
    void put(U&& value) {
        value_.emplace(std::forward<U>(value));
    }
    T take() { return std::move(*value_); }

private:
    std::optional<T> value_;
};

template <class T>
class ResultStorage<T&> {
public:
    using Result = T&;
    using Element = T&;

    void put(T& value) noexcept { value_ = std::addressof(value); }
    T& take() const noexcept { return *value_; }

private:
    T* value_ = nullptr;
};

template <class T>
class ResultStorage<T&&> : public ResultStorage<std::remove_cv_t<T>> {};

template <>
class ResultStorage<void> {
public:
    using Result = void;
    using Element = std::monostate;

    std::monostate take() const noexcept { return {}; }
};

// A coroutine that awaits one awaitable for an owner and reports its end. It starts what is not
// awaited by a coroutine of the user: in when_all, sync_wait and EpollExecutor::run.
//
// Owner has two members that are noexcept, and may be called on the thread that ends the task:
//  - void task_failed(std::exception_ptr), only if the task failed;
//  - std::coroutine_handle<> task_done(), always and last; returns the coroutine to resume next.
// When task_done() is called, the coroutine is suspended at its end and may be destroyed.
template <class Owner>
class JoinedTask {
public:
    struct promise_type : LazyPromise {
        JoinedTask get_return_object() noexcept { return JoinedTask(*this); }
        void return_void() const noexcept {}
        void unhandled_exception() noexcept { owner->task_failed(std::current_exception()); }
        std::coroutine_handle<> on_final_suspend() noexcept { return owner->task_done(); }

        Owner* owner = nullptr;
    };

    void start(Owner& owner) {
        coroutine_.promise().owner = &owner;
        coroutine_.handle().resume();
    }

private:
    explicit JoinedTask(promise_type& promise) noexcept : coroutine_(promise) {}

    UniqueCoroutineHandle<promise_type> coroutine_;
};

// The operand of co_await for an A that is stored in a variable.
template <class A>
decltype(auto) awaited(std::remove_reference_t<A>& variable) noexcept {
    if constexpr (has_co_await<A&&>) {
        return static_cast<A&&>(variable);
    } else {
        return AwaiterReference(variable);
    }
}

// The awaitable and the result must outlive the task.
template <class Owner, class A>
JoinedTask<Owner> joined_task(A&& awaitable, ResultStorage<await_result_t<A>>& result) {
    if constexpr (std::is_void_v<await_result_t<A>>) {
        static_cast<void>(result);
        co_await awaited<A>(awaitable);
    } else {
        result.put(co_await awaited<A>(awaitable));
    }
}

} // namespace asyncverbs::detail
