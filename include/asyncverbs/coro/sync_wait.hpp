// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <atomic>
#include <coroutine>
#include <exception>
#include <mutex>
#include <type_traits>
#include <utility>

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/coro/detail/coroutine.hpp>

namespace asyncverbs {

/// Awaits `awaitable` and blocks the calling thread until it is complete: for the border between
/// code that awaits and code that cannot. Returns its result (an rvalue reference as a value) or
/// rethrows its exception.
///
/// Thread: the awaitable starts on the calling thread and may complete on any other. It must not
/// need the calling thread to complete. In particular, an EpollExecutor must be run by another
/// thread; otherwise use EpollExecutor::run.
template <awaitable A>
auto sync_wait(A&& awaitable) -> typename detail::ResultStorage<await_result_t<A>>::Result;

namespace detail {

class SyncWaiter {
public:
    void task_failed(std::exception_ptr exception) noexcept { exception_ = std::move(exception); }
    std::coroutine_handle<> task_done() noexcept {
        // Under the mutex: wait() must not return, and its caller destroy this object, before
        // notify_one() has returned.
        const std::lock_guard lock(mutex_);
        done_.store(true);
        done_.notify_one();
        return std::noop_coroutine();
    }

    void wait() {
        done_.wait(false);
        const std::lock_guard lock(mutex_);
        if (exception_) std::rethrow_exception(exception_);
    }

private:
    std::mutex mutex_;
    std::atomic<bool> done_{false};
    std::exception_ptr exception_;
};

} // namespace detail

template <awaitable A>
auto sync_wait(A&& awaitable) -> typename detail::ResultStorage<await_result_t<A>>::Result {
    detail::SyncWaiter waiter;
    detail::ResultStorage<await_result_t<A>> result;
    auto task = detail::joined_task<detail::SyncWaiter, A>(std::forward<A>(awaitable), result);
    task.start(waiter);
    waiter.wait();
    if constexpr (!std::is_void_v<await_result_t<A>>) return result.take();
}

} // namespace asyncverbs
