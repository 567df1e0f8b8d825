// SPDX-License-Identifier: MIT
// Owns a coroutine frame that is suspended whenever its owner may be destroyed.
// The one place where the library destroys frames.
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

template <class Promise>
class UniqueCoroutineHandle {
public:
    UniqueCoroutineHandle() noexcept = default;
    explicit UniqueCoroutineHandle(Promise& promise) noexcept
        : handle_(std::coroutine_handle<Promise>::from_promise(promise)) {}
    UniqueCoroutineHandle(UniqueCoroutineHandle&& other) noexcept
        : handle_(std::exchange(other.handle_, {})) {}
    UniqueCoroutineHandle& operator=(UniqueCoroutineHandle&& other) noexcept {
        // Through a temporary: the frame that is destroyed may own this object.
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

// Room for the result of a co_await, of whatever type: a value, a reference or nothing.
// Tasks and combinators keep results in it until somebody takes them.

template <class T>
class Slot {
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
class Slot<T&> {
public:
    using Result = T&;
    using Element = T&;

    void put(T& value) noexcept { value_ = std::addressof(value); }
    T& take() const noexcept { return *value_; }

private:
    T* value_ = nullptr;
};

template <>
class Slot<void> {
public:
    using Result = void;
    using Element = std::monostate;

    std::monostate take() const noexcept { return {}; }
};

// An awaitable may give an rvalue reference; it is kept by value.
template <class T>
using SlotFor = Slot<std::conditional_t<std::is_rvalue_reference_v<T>, std::remove_cvref_t<T>, T>>;

// A coroutine that awaits one awaitable on behalf of an owner and tells it of the end. It starts
// what no co_await in the user's own code starts: when_all, sync_wait, EpollExecutor::run.

// Owner: void branch_failed(std::exception_ptr) noexcept, and after that in any case
// std::coroutine_handle<> branch_done() noexcept, which returns what to run next. When branch_done
// is called the branch is suspended for good and may be destroyed.
template <class Owner>
class Branch {
public:
    struct promise_type {
        struct FinalAwaiter {
            bool await_ready() const noexcept { return false; }
            std::coroutine_handle<>
            await_suspend(std::coroutine_handle<promise_type> branch) const noexcept {
                return branch.promise().owner->branch_done();
            }
            void await_resume() const noexcept {}
        };

        Branch get_return_object() noexcept { return Branch(*this); }
        std::suspend_always initial_suspend() const noexcept { return {}; }
        FinalAwaiter final_suspend() const noexcept { return {}; }
        void return_void() const noexcept {}
        void unhandled_exception() noexcept { owner->branch_failed(std::current_exception()); }

        Owner* owner = nullptr;
    };

    void start(Owner& owner) {
        coroutine_.promise().owner = &owner;
        coroutine_.handle().resume();
    }

private:
    explicit Branch(promise_type& promise) noexcept : coroutine_(promise) {}

    UniqueCoroutineHandle<promise_type> coroutine_;
};

// Stands for an awaiter that lives elsewhere. GCC 12 copies an awaiter that a function returns by
// reference, and then awaits the copy.
template <class A>
class AwaiterReference {
public:
    explicit AwaiterReference(A& awaiter) noexcept : awaiter_(awaiter) {}

    bool await_ready() { return static_cast<bool>(awaiter_.await_ready()); }
    decltype(auto) await_suspend(std::coroutine_handle<> coroutine) {
        return awaiter_.await_suspend(coroutine);
    }
    decltype(auto) await_resume() { return awaiter_.await_resume(); }

private:
    A& awaiter_;
};

// What to write after co_await for an A that lives in a variable.
template <class A>
decltype(auto) awaited(std::remove_reference_t<A>& variable) noexcept {
    if constexpr (has_co_await<A&&>) {
        return static_cast<A&&>(variable);
    } else {
        return AwaiterReference(variable);
    }
}

// The awaitable and the slot outlive the branch.
template <class Owner, class A>
Branch<Owner> branch(A&& awaitable, SlotFor<await_result_t<A>>& slot) {
    if constexpr (std::is_void_v<await_result_t<A>>) {
        static_cast<void>(slot);
        co_await awaited<A>(awaitable);
    } else {
        slot.put(co_await awaited<A>(awaitable));
    }
}

} // namespace asyncverbs::detail
