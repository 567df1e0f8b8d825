// SPDX-License-Identifier: MIT
// A coroutine that awaits one awaitable on behalf of an owner and tells it of the end. It starts
// what no co_await in the user's own code starts: when_all, sync_wait, EpollExecutor::run.
#pragma once

#include <coroutine>
#include <exception>
#include <type_traits>

#include <asyncverbs/core/awaitable.hpp>
#include <asyncverbs/core/detail/slot.hpp>
#include <asyncverbs/core/detail/unique_coroutine.hpp>

namespace asyncverbs::detail {

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

    UniqueCoroutine<promise_type> coroutine_;
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
