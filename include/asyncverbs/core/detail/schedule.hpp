// SPDX-License-Identifier: MIT
// A coroutine on its way to an executor's thread. Its node is in its awaiter: nothing is allocated,
// and a coroutine that is destroyed on the way has left the queue.
#pragma once

#include <coroutine>
#include <utility>

#include <asyncverbs/core/detail/epoll_loop.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>

namespace asyncverbs::detail {

template <class Use>
class ScheduleAwaiter : ReadyNode<Use> {
public:
    explicit ScheduleAwaiter(std::shared_ptr<EpollLoop<Use>>&& loop) noexcept
        : ReadyNode<Use>(&on_run), loop_(std::move(loop)) {}

    ~ScheduleAwaiter() {
        if (!queued_) return;
        loop_->assert_thread();
        if (!this->linked()) loop_->collect_posted();
    }

    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> coroutine) noexcept {
        coroutine_ = coroutine;
        queued_ = true;
        // Once posted, the coroutine may run on the other thread, and end, and with it this object
        // and the executor, while this thread still wakes the loop.
        const std::shared_ptr<EpollLoop<Use>> loop = loop_;
        loop->post(*this);
    }
    void await_resume() const noexcept {}

private:
    static void on_run(ReadyNode<Use>& node) {
        auto& self = static_cast<ScheduleAwaiter&>(node);
        self.queued_ = false;
        self.coroutine_.resume();
    }

    std::shared_ptr<EpollLoop<Use>> loop_;
    std::coroutine_handle<> coroutine_;
    bool queued_ = false;
};

template <class Use>
class ScheduleOperation {
public:
    explicit ScheduleOperation(std::shared_ptr<EpollLoop<Use>> loop) noexcept
        : loop_(std::move(loop)) {}

    ScheduleAwaiter<Use> operator co_await() && noexcept {
        return ScheduleAwaiter<Use>(std::move(loop_));
    }

private:
    std::shared_ptr<EpollLoop<Use>> loop_;
};

} // namespace asyncverbs::detail
