// SPDX-License-Identifier: MIT
// when_all: awaits several things at once and continues when all of them are complete.
#pragma once

#include <array>
#include <atomic>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <span>
#include <tuple>
#include <type_traits>
#include <utility>

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/coro/detail/coroutine.hpp>
#include <asyncverbs/coro/task.hpp>

namespace asyncverbs {
namespace detail {

// Of one type for each use, so that nothing of it is compiled without one. Starts branches and
// waits for the last of them, which resumes the awaiting coroutine.
template <class... Awaitables>
class Gather {
public:
    explicit Gather(std::span<Branch<Gather>> branches) noexcept : branches_(branches) {}

    bool await_ready() const noexcept { return branches_.empty(); }
    bool await_suspend(std::coroutine_handle<> awaiting) {
        awaiting_ = awaiting;
        // One more than there are, so that none of them is the last before all have started.
        pending_.store(branches_.size() + 1, std::memory_order_relaxed);
        for (Branch<Gather>& each : branches_) each.start(*this);
        return pending_.fetch_sub(1, std::memory_order_acq_rel) != 1;
    }
    void await_resume() const {
        if (exception_) std::rethrow_exception(exception_);
    }

    // Branches may end on different threads.
    void branch_failed(std::exception_ptr exception) noexcept {
        if (!failed_.exchange(true, std::memory_order_relaxed)) exception_ = std::move(exception);
    }
    std::coroutine_handle<> branch_done() noexcept {
        if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) return awaiting_;
        return std::noop_coroutine();
    }

private:
    std::span<Branch<Gather>> branches_;
    std::coroutine_handle<> awaiting_;
    std::atomic<std::size_t> pending_{0};
    std::atomic<bool> failed_{false};
    std::exception_ptr exception_;
};

template <class A>
using gathered_t = typename SlotFor<await_result_t<A>>::Element;

// The parameters, and after them what is made of them, live in this frame: destroyed while
// suspended, it destroys the branches first.
template <class... As>
Task<std::tuple<gathered_t<As>...>> gather(As... awaitables) {
    std::tuple<SlotFor<await_result_t<As>>...> slots;
    using All = Gather<As...>;
    auto branches = std::apply(
        [&](auto&... slot) {
            return std::array<Branch<All>, sizeof...(As)>{
                branch<All, As>(static_cast<As&&>(awaitables), slot)...};
        },
        slots);
    All all(branches);
    co_await all;
    co_return std::apply(
        [](auto&... slot) { return std::tuple<gathered_t<As>...>(slot.take()...); }, slots);
}

} // namespace detail

/// `auto [a, b] = co_await when_all(f(), g());` starts the awaitables in order, each up to its
/// first suspension, and gives a tuple of their results when all are complete; std::monostate
/// stands for void. If some fail, all are complete before the exception that came first is
/// rethrown. If none suspends, neither does when_all.
///
/// Rvalues are moved in; lvalues are awaited where they are and have to outlive the await.
/// Thread: the awaitables may complete on different threads; it continues on that of the last.
/// Lifetime, cancellation: as Task, which it is; destroying it suspended destroys what it awaits.
template <class... As>
    requires(awaitable<As> && ...)
[[nodiscard]] Task<std::tuple<detail::gathered_t<As>...>> when_all(As&&... awaitables) {
    return detail::gather<As...>(std::forward<As>(awaitables)...);
}

/// The same for as many tasks as there are at run time, in a std::vector (or what is like it);
/// gives one of their results in the same order, of std::monostate for void.
template <template <class...> class Vector, class T, class... Rest>
    requires(!std::is_reference_v<T> && requires(Vector<Task<T>, Rest...>& tasks) { tasks.size(); })
[[nodiscard]] Task<Vector<typename detail::SlotFor<T>::Element>>
when_all(Vector<Task<T>, Rest...> tasks) {
    Vector<detail::SlotFor<T>> slots(tasks.size());
    using All = detail::Gather<T>;
    Vector<detail::Branch<All>> branches;
    branches.reserve(tasks.size());
    for (std::size_t i = 0; i < tasks.size(); ++i) {
        branches.push_back(detail::branch<All>(std::move(tasks[i]), slots[i]));
    }
    All all(branches);
    co_await all;
    Vector<typename detail::SlotFor<T>::Element> results;
    results.reserve(slots.size());
    for (auto& slot : slots) results.push_back(slot.take());
    co_return results;
}

} // namespace asyncverbs
