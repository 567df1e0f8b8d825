// SPDX-License-Identifier: MIT
// A coroutine that waits for a buffer of a pool. Its node and its way back to the loop are in its
// awaiter: waiting allocates nothing.
#pragma once

#include <coroutine>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/core/detail/maybe.hpp>
#include <asyncverbs/core/scheduler.hpp>
#include <asyncverbs/rdma/detail/buffer_pool_state.hpp>
#include <asyncverbs/rdma/detail/lend.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/slice.hpp>

namespace asyncverbs::detail {

template <class Loop>
class AcquireAwaiter;

// Movable as long as nobody awaits it.
template <Scheduler Loop>
class AcquireOperation {
public:
    AcquireOperation(Loop& loop, std::shared_ptr<BufferPoolState<Loop>> pool,
                     std::stop_token stop) noexcept
        : loop_(loop), pool_(std::move(pool)), stop_(std::move(stop)) {}

    AcquireAwaiter<Loop> operator co_await() && { return AcquireAwaiter<Loop>(*this); }

private:
    friend AcquireAwaiter<Loop>;

    Loop& loop_;
    std::shared_ptr<BufferPoolState<Loop>> pool_;
    std::stop_token stop_;
};

// Pinned: the pool's list points to it. The operation outlives it: both live until the end of the
// expression that awaits.
template <class Loop>
class AcquireAwaiter : BufferWaiter {
public:
    explicit AcquireAwaiter(AcquireOperation<Loop>& operation)
        : BufferWaiter(&on_wake), operation_(operation), schedule_(operation.loop_.schedule()),
          way_back_(detail::get_awaiter(std::move(schedule_))) {}
    // Destroyed with a buffer that it was given and never got to see: the next one gets it.
    ~AcquireAwaiter() {
        if (buffer != nullptr) operation_.pool_->put(*buffer);
    }

    bool await_ready() noexcept {
        if (operation_.stop_.stop_requested()) return true;
        buffer = operation_.pool_->take();
        return buffer != nullptr;
    }

    void await_suspend(std::coroutine_handle<> coroutine) {
        coroutine_ = coroutine;
        operation_.pool_->enqueue(*this);
        // Last. The callback may run before this returns, here or on another thread, but only
        // sends the coroutine to the loop, whose thread this is.
        if (operation_.stop_.stop_possible()) on_stop_.emplace(operation_.stop_, OnStop{*this});
    }

    Slice await_resume() {
        if (coroutine_) way_back_.await_resume();
        if (buffer != nullptr) return lend(operation_.pool_, *std::exchange(buffer, nullptr));
        throw std::system_error(std::make_error_code(std::errc::operation_canceled),
                                "BufferPool::acquire");
    }

private:
    struct OnStop {
        AcquireAwaiter& self;
        void operator()() const {
            if (self.take_wake()) self.wake();
        }
    };

    static void on_wake(BufferWaiter& waiter) {
        auto& self = static_cast<AcquireAwaiter&>(waiter);
        self.way_back_.await_suspend(self.coroutine_);
    }

    using Schedule = decltype(std::declval<Loop&>().schedule());

    AcquireOperation<Loop>& operation_;
    Schedule schedule_;
    awaiter_t<Schedule> way_back_;
    std::coroutine_handle<> coroutine_;
    Maybe<std::stop_callback<OnStop>> on_stop_; // destroyed first: it uses all the others
};

} // namespace asyncverbs::detail
