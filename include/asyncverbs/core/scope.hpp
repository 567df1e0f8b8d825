// SPDX-License-Identifier: MIT
// Scope: a group of coroutines that run side by side and are waited for together, so that none of
// them outlives what it uses.
#pragma once

#include <concepts>
#include <utility>

#include <asyncverbs/core/awaitable.hpp>
#include <asyncverbs/core/detail/scope_child.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs {

/// Runs any number of awaitables at the same time and waits for all of them.
///
///     Scope scope;
///     for (Client& client : clients) scope.spawn(serve(client));
///     co_await scope.join();
///
/// Thread: one. spawn(), join(), the destructor and the ends of the children, all on the same.
/// Lifetime: destroying a scope never blocks; it destroys the children that are still suspended,
/// as destroying a Task does, and a coroutine that is suspended in join() is never resumed. A
/// child must not destroy its own scope after its first suspension: it would destroy itself while
/// it runs. What a child took is destroyed by the next spawn() or join() at the latest.
/// Errors: the others run on when a child fails. join() rethrows the exception that came first and
/// drops those that came after it; nobody learns of them if join() is never awaited.
/// Cancellation: of the children, by the std::stop_token that they were given.
template <class Use>
class BasicScope {
public:
    BasicScope() noexcept = default;
    BasicScope(const BasicScope&) = delete;
    BasicScope& operator=(const BasicScope&) = delete;
    ~BasicScope();

    /// Starts `awaitable`, which runs at once, up to its first suspension, before spawn() returns.
    /// Its result is dropped.
    template <class A>
        requires awaitable<A> && std::move_constructible<A>
    void spawn(A awaitable);

    /// `co_await scope.join()` continues when no child is left, at once if there is none; children
    /// that are spawned meanwhile count. The scope can be used again afterwards. One join at a
    /// time: a second one throws std::logic_error.
    [[nodiscard]] detail::JoinOperation<Use> join() noexcept {
        return detail::JoinOperation<Use>(state_);
    }

private:
    detail::ScopeState<Use> state_;
};

template <class Use>
inline BasicScope<Use>::~BasicScope() = default;

template <class Use>
template <class A>
    requires awaitable<A> && std::move_constructible<A>
void BasicScope<Use>::spawn(A awaitable) {
    state_.start(detail::scope_child<Use>(std::move(awaitable)));
}

/// The Scope of programs: compiled only where it is used, but otherwise as a class.
using Scope = BasicScope<OnUse>;

} // namespace asyncverbs
