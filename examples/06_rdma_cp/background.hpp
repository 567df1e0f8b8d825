// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include <chrono>
#include <future>
#include <stop_token>

namespace rdma_cp {

/// Calls `work` on another thread and awaits its end, so that a slow disk does not stop the loop.
/// Throws what it throws. Destroying the waiting coroutine blocks until `work` has ended.
template <class Work>
asyncverbs::Task<> in_background(asyncverbs::EpollExecutor& loop, Work work) {
    std::stop_source ended;
    const auto call = [&] {
        struct End {
            ~End() { ended.request_stop(); }
            std::stop_source& ended;
        } const end{ended};
        work();
    };
    std::future<void> result = std::async(std::launch::async, call);
    while (!ended.stop_requested()) {
        co_await loop.sleep_for(std::chrono::hours(1), ended.get_token());
    }
    result.get();
}

} // namespace rdma_cp
