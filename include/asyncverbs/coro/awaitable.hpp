// SPDX-License-Identifier: MIT
// Concepts for the operands of `co_await`. An awaitable is an awaiter, or returns one from a member
// or free operator co_await.
#pragma once

#include <asyncverbs/requirements.hpp>

#include <concepts>
#include <coroutine>
#include <type_traits>
#include <utility>

namespace asyncverbs {
namespace detail {

template <class R>
concept suspend_result = std::same_as<R, void> || std::same_as<R, bool> ||
                         std::convertible_to<R, std::coroutine_handle<>>;

template <class A>
concept awaiter = requires(A& a, std::coroutine_handle<> coroutine) {
    a.await_ready() ? 1 : 0;
    { a.await_suspend(coroutine) } -> suspend_result;
    a.await_resume();
};

// Refers to an awaiter that lives elsewhere. GCC 12 copies an awaiter that a function returns by
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

// A base of the library's awaiters. `co_await` of an lvalue then awaits a reference to it, also
// where an await_transform returns the lvalue itself, as that of QCoro does.
struct AwaitedByReference {};

template <class A>
concept awaiter_lvalue = std::is_lvalue_reference_v<A> &&
                         std::is_base_of_v<AwaitedByReference, std::remove_reference_t<A>> &&
                         !std::is_const_v<std::remove_reference_t<A>>;

// The constraint leaves rvalues out: for a parameter A&, GCC 12 rejects them instead of awaiting
// them as they are.
template <awaiter_lvalue A>
AwaiterReference<std::remove_reference_t<A>> operator co_await(A && awaiter) noexcept {
    return AwaiterReference<std::remove_reference_t<A>>(awaiter);
}

template <class A>
concept has_member_co_await = requires { std::declval<A>().operator co_await(); };

// Other types have no operators of their own, and Clang rejects the question.
template <class A>
concept has_free_co_await =
    (std::is_class_v<std::remove_cvref_t<A>> || std::is_union_v<std::remove_cvref_t<A>> ||
     std::is_enum_v<std::remove_cvref_t<A>>) &&
    requires { operator co_await(std::declval<A>()); };

// Returns the awaiter that `co_await a` uses: a new object, or a reference to `a` itself.
//
// A function object, so that argument-dependent lookup does not find it: other coroutine libraries
// call a get_awaiter() of their own, with awaiters of this namespace, too.
struct GetAwaiter {
    template <class A>
    decltype(auto) operator()(A&& a) const {
        if constexpr (has_member_co_await<A&&>) {
            return std::forward<A>(a).operator co_await();
        } else if constexpr (has_free_co_await<A&&>) {
            return operator co_await(std::forward<A>(a));
        } else {
            return std::forward<A>(a);
        }
    }
};
inline constexpr GetAwaiter get_awaiter{};

template <class A>
concept has_co_await = has_member_co_await<A> || has_free_co_await<A>;

template <class A>
using awaiter_t = decltype(get_awaiter(std::declval<A>()));

} // namespace detail

/// `co_await std::declval<A>()` is valid in a coroutine of any type. Pass a value type for an
/// awaitable that is awaited as an rvalue, and `A&` for one that is awaited as an lvalue.
template <class A>
concept awaitable = (detail::has_co_await<A&&> && detail::awaiter<detail::awaiter_t<A>>) ||
                    (!detail::has_co_await<A&&> && detail::awaiter<A>);

/// The type of `co_await std::declval<A>()`.
template <awaitable A>
using await_result_t = decltype(std::declval<detail::awaiter_t<A>&>().await_resume());

/// An awaitable whose result converts to `T`; `void` matches only `void`.
template <class A, class T>
concept awaitable_of = awaitable<A> && std::convertible_to<await_result_t<A>, T>;

/// `co_await loop.schedule()` continues on the thread that runs the loop. EpollExecutor is a model.
///
/// Semantic requirements of the awaiter:
///  - It always suspends, and resumes the coroutine later, never inside await_suspend().
///  - await_suspend() may be called on any thread, and neither blocks nor throws.
///  - Destroying it on the loop's thread cancels it: its coroutine is not resumed afterwards.
template <class L>
concept Scheduler = requires(L& loop, std::coroutine_handle<> coroutine) {
    { loop.schedule() } -> awaitable_of<void>;
    { detail::get_awaiter(loop.schedule()).await_suspend(coroutine) } -> std::same_as<void>;
};

} // namespace asyncverbs
