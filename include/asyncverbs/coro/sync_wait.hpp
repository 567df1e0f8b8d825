// SPDX-License-Identifier: MIT
// sync_wait: blocks a thread until an awaitable is complete, for the border between code that
// awaits and code that cannot.
#pragma once

#include <atomic>
#include <coroutine>
#include <exception>
#include <mutex>
#include <type_traits>
#include <utility>

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/coro/detail/coroutine.hpp>

namespace asyncverbs {
namespace detail {

class SyncWaiter {
public:
    void branch_failed(std::exception_ptr exception) noexcept { exception_ = std::move(exception); }
    std::coroutine_handle<> branch_done() noexcept {
        // Under the mutex: the waiting thread destroys this object as soon as it may.
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

/// Awaits `awaitable` and blocks the calling thread until it is complete. Returns its result, an
/// rvalue reference as a value, or rethrows its exception.
///
/// Thread: the awaitable starts on the calling thread and may complete on any other. It must not
/// need the calling thread to complete: an EpollExecutor that nobody runs never will; see
/// EpollExecutor::run for that.
template <awaitable A>
auto sync_wait(A&& awaitable) -> typename detail::SlotFor<await_result_t<A>>::Result {
    using Waiter = detail::SyncWaiter;
    Waiter waiter;
    detail::SlotFor<await_result_t<A>> result;
    auto branch = detail::branch<Waiter, A>(std::forward<A>(awaitable), result);
    branch.start(waiter);
    waiter.wait();
    if constexpr (!std::is_void_v<await_result_t<A>>) return result.take();
}

} // namespace asyncverbs
