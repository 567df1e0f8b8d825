// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <array>
#include <atomic>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <span>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/coro/detail/coroutine.hpp>
#include <asyncverbs/coro/task.hpp>

namespace asyncverbs {

namespace detail {

template <class T>
using result_element_t = typename ResultStorage<T>::Element;

template <class... As>
using result_tuple_t = std::tuple<result_element_t<await_result_t<As>>...>;

template <class... As>
Task<result_tuple_t<As...>> await_all(As... awaitables);

} // namespace detail

/// `auto [a, b] = co_await when_all(f(), g());` starts the awaitables in order, each up to its
/// first suspension, and returns a tuple of their results when all are complete; std::monostate
/// stands for void. If some of them fail, it still waits for all, then rethrows the exception that
/// came first. If none of them suspends, when_all does not suspend either.
///
/// Thread: the awaitables may complete on different threads; the awaiting coroutine continues on
/// the thread of the last one.
/// Lifetime: rvalues are moved in; lvalues are awaited in place and must outlive the await.
/// Destroying the suspended when_all destroys the awaitables that it awaits.
/// Cancellation: as for Task, which is its type.
template <class... As>
    requires(awaitable<As> && ...)
[[nodiscard]] Task<detail::result_tuple_t<As...>> when_all(As&&... awaitables) {
    return detail::await_all<As...>(std::forward<As>(awaitables)...);
}

/// The same for a number of tasks that is known at run time. Returns their results in the same
/// order, std::monostate for void.
template <class T>
    requires(!std::is_reference_v<T>)
[[nodiscard]] Task<std::vector<detail::result_element_t<T>>> when_all(std::vector<Task<T>> tasks);

namespace detail {

// Starts the tasks and waits for the last one, which resumes the awaiting coroutine.
class WhenAllAwaiter {
public:
    explicit WhenAllAwaiter(std::span<JoinedTask<WhenAllAwaiter>> tasks) noexcept : tasks_(tasks) {}

    bool await_ready() const noexcept { return tasks_.empty(); }
    bool await_suspend(std::coroutine_handle<> awaiting) {
        awaiting_ = awaiting;
        // One more than the number of tasks, so that none is the last before all have started.
        pending_.store(tasks_.size() + 1, std::memory_order_relaxed);
        for (JoinedTask<WhenAllAwaiter>& each : tasks_) each.start(*this);
        return pending_.fetch_sub(1, std::memory_order_acq_rel) != 1;
    }
    void await_resume() const {
        if (exception_) std::rethrow_exception(exception_);
    }

    // Tasks may end on different threads.
    void task_failed(std::exception_ptr exception) noexcept {
        if (!failed_.exchange(true, std::memory_order_relaxed)) exception_ = std::move(exception);
    }
    std::coroutine_handle<> task_done() noexcept {
        if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) return awaiting_;
        return std::noop_coroutine();
    }

private:
    std::span<JoinedTask<WhenAllAwaiter>> tasks_;
    std::coroutine_handle<> awaiting_;
    std::atomic<std::size_t> pending_{0};
    std::atomic<bool> failed_{false};
    std::exception_ptr exception_;
};

// `tasks` is declared last: a frame that is destroyed while suspended destroys the tasks before the
// awaitables and results that they use.
template <class... As>
Task<result_tuple_t<As...>> await_all(As... awaitables) {
    std::tuple<ResultStorage<await_result_t<As>>...> results;
    auto tasks = std::apply(
        [&](auto&... result) {
            return std::array<JoinedTask<WhenAllAwaiter>, sizeof...(As)>{
                joined_task<WhenAllAwaiter, As>(static_cast<As&&>(awaitables), result)...};
        },
        results);
    WhenAllAwaiter all(tasks);
    co_await all;
    co_return std::apply([](auto&... result) { return result_tuple_t<As...>(result.take()...); },
                         results);
}

} // namespace detail

template <class T>
    requires(!std::is_reference_v<T>)
Task<std::vector<detail::result_element_t<T>>> when_all(std::vector<Task<T>> tasks) {
    using detail::WhenAllAwaiter;
    std::vector<detail::ResultStorage<T>> storage(tasks.size());
    std::vector<detail::JoinedTask<WhenAllAwaiter>> joined;
    joined.reserve(tasks.size());
    for (std::size_t i = 0; i < tasks.size(); ++i) {
        joined.push_back(detail::joined_task<WhenAllAwaiter>(std::move(tasks[i]), storage[i]));
    }
    WhenAllAwaiter all(joined);
    co_await all;
    std::vector<detail::result_element_t<T>> results;
    results.reserve(storage.size());
    for (auto& result : storage) results.push_back(result.take());
    co_return results;
}

} // namespace asyncverbs
