// SPDX-License-Identifier: MIT
// A coroutine on its way to an executor's thread. Its node is in its awaiter: nothing is allocated,
// and a coroutine that is destroyed on the way has left the queue.
#pragma once

#include <coroutine>
#include <memory>
#include <utility>

#include <asyncverbs/core/detail/epoll_loop.hpp>

namespace asyncverbs::detail {

class ScheduleAwaiter : ReadyNode {
public:
    explicit ScheduleAwaiter(std::shared_ptr<EpollLoop>&& loop) noexcept
        : ReadyNode(&on_run), loop_(std::move(loop)) {}

    ~ScheduleAwaiter() {
        if (!queued_) return;
        loop_->assert_thread();
        if (!linked()) loop_->collect_posted();
    }

    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> coroutine) noexcept {
        coroutine_ = coroutine;
        queued_ = true;
        // Once posted, the coroutine may run on the other thread, and end, and with it this object
        // and the executor, while this thread still wakes the loop.
        const std::shared_ptr<EpollLoop> loop = loop_;
        loop->post(*this);
    }
    void await_resume() const noexcept {}

private:
    static void on_run(ReadyNode& node) {
        auto& self = static_cast<ScheduleAwaiter&>(node);
        self.queued_ = false;
        self.coroutine_.resume();
    }

    std::shared_ptr<EpollLoop> loop_;
    std::coroutine_handle<> coroutine_;
    bool queued_ = false;
};

class ScheduleOperation {
public:
    explicit ScheduleOperation(std::shared_ptr<EpollLoop> loop) noexcept : loop_(std::move(loop)) {}

    ScheduleAwaiter operator co_await() && noexcept { return ScheduleAwaiter(std::move(loop_)); }

private:
    std::shared_ptr<EpollLoop> loop_;
};

} // namespace asyncverbs::detail
