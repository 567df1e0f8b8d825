// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <concepts>
#include <coroutine>
#include <exception>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include <asyncverbs/coro/detail/coroutine.hpp>

namespace asyncverbs {

namespace detail {
template <class T>
struct TaskPromise;
template <class T>
class TaskAwaiter;
} // namespace detail

/// The return type of a coroutine that returns a `T`, a `T&` or nothing to the coroutine that
/// awaits it.
///
///     Task<int> answer() { co_return 42; }
///     Task<> print() { std::cout << co_await answer() << '\n'; }
///
/// A task starts when it is awaited, which is possible once and as an rvalue: `co_await answer()`
/// or `co_await std::move(task)`. It can await anything and be awaited by a coroutine of any type.
/// A task that completes at once uses no stack, so a loop may await any number of them, if the
/// compiler turns symmetric transfer into a jump (GCC: at -O2, or with -foptimize-sibling-calls and
/// no sanitizer).
///
/// Errors: `co_await` rethrows an exception that leaves the task. Awaiting an empty Task throws
/// std::logic_error.
/// Thread: no affinity; it runs where it is awaited or resumed.
/// Lifetime: owns its frame; move-only. Destroying a suspended task destroys the tasks that it
/// awaits, innermost first. A running task must not be destroyed.
/// Cancellation: pass a std::stop_token to the operations that the task awaits.
///
/// Awaiting in a condition: name the result first, `const auto error = co_await f(); if (error)
/// ...`, or declare it in the `if`. GCC 12.2 miscompiles a co_await in the condition of an `if`,
/// `while` or `switch` if the coroutine is a function whose body has no local variable before it:
/// the coroutine is never resumed. tests/coro/compiler_forms_test.cpp lists the forms.
template <class T = void>
class [[nodiscard]] Task {
public:
    using promise_type = detail::TaskPromise<T>; ///< Required by the language.

    Task() noexcept = default; ///< Empty.

    /// False if it was default-constructed, moved from or awaited.
    explicit operator bool() const noexcept { return static_cast<bool>(coroutine_); }

    /// Starts the task and awaits its result; see above.
    friend detail::TaskAwaiter<T> operator co_await(Task && task) { // QCoro finds no member for &&
        if (!task.coroutine_) throw std::logic_error("asyncverbs::Task: awaited while empty");
        return detail::TaskAwaiter<T>(std::move(task.coroutine_));
    }

private:
    friend promise_type;
    explicit Task(promise_type& promise) noexcept : coroutine_(promise) {}

    detail::UniqueCoroutineHandle<promise_type> coroutine_;
};

namespace detail {

struct TaskPromiseBase : LazyPromise {
    std::coroutine_handle<> on_final_suspend() const noexcept { return continuation; }
    void unhandled_exception() noexcept { exception = std::current_exception(); }

    std::coroutine_handle<> continuation;
    std::exception_ptr exception;
};

template <class T>
struct TaskPromise : TaskPromiseBase {
    Task<T> get_return_object() noexcept { return Task<T>(*this); }

    template <std::convertible_to<T> U = T>
    void return_value(U&& value) {
        result.put(std::forward<U>(value));
    }

    ResultStorage<T> result;
};

template <>
struct TaskPromise<void> : TaskPromiseBase {
    Task<void> get_return_object() noexcept { return Task<void>(*this); }
    void return_void() const noexcept {}
};

// Owns the frame, so that a task's locals are destroyed at the end of the expression that awaits
// it.
template <class T>
class TaskAwaiter {
public:
    explicit TaskAwaiter(UniqueCoroutineHandle<TaskPromise<T>> coroutine) noexcept
        : coroutine_(std::move(coroutine)) {}

    bool await_ready() const noexcept { return false; }

    std::coroutine_handle<> await_suspend(std::coroutine_handle<> awaiting) const noexcept {
        coroutine_.promise().continuation = awaiting;
        return coroutine_.handle();
    }

    T await_resume() const {
        TaskPromise<T>& promise = coroutine_.promise();
        if (promise.exception) std::rethrow_exception(std::move(promise.exception));
        if constexpr (!std::is_void_v<T>) return promise.result.take();
    }

private:
    UniqueCoroutineHandle<TaskPromise<T>> coroutine_;
};

} // namespace detail
} // namespace asyncverbs
