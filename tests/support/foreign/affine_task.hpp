// SPDX-License-Identifier: MIT
// A foreign coroutine type that has a scheduler and continues only there, no matter where its
// awaitable resumes it.
#pragma once

#include <algorithm>
#include <coroutine>
#include <deque>
#include <exception>
#include <optional>
#include <utility>

#include "support/foreign/promise.hpp"

namespace foreign {

// The scheduler: a queue of coroutines, which run() resumes.
class RunQueue {
public:
    void post(std::coroutine_handle<> coroutine) { queue_.push_back(coroutine); }
    void remove(std::coroutine_handle<> coroutine) { std::erase(queue_, coroutine); }
    bool empty() const noexcept { return queue_.empty(); }

    void run() {
        running_ = true;
        while (!queue_.empty()) {
            const std::coroutine_handle<> next = queue_.front();
            queue_.pop_front();
            next.resume();
        }
        running_ = false;
    }
    bool running() const noexcept { return running_; }

private:
    std::deque<std::coroutine_handle<>> queue_;
    bool running_ = false;
};

// Awaits in a helper coroutine, which then posts the task to its scheduler.
template <class Awaitable>
class Affine {
    using Awaiter = decltype(get_awaiter(std::declval<Awaitable>()));
    using Value = decltype(std::declval<Awaiter&>().await_resume());

public:
    Affine(Awaitable&& awaitable, RunQueue& queue)
        : awaitable_(std::forward<Awaitable>(awaitable)), queue_(queue) {}
    Affine(const Affine&) = delete;
    Affine& operator=(const Affine&) = delete;
    ~Affine() {
        if (task_) queue_.remove(task_);
        if (inner_) inner_.destroy();
    }

    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> task) {
        task_ = task;
        inner_ = await(*this).handle;
        inner_.resume();
    }
    Value await_resume() {
        if (error_) std::rethrow_exception(error_);
        return std::move(*value_);
    }

private:
    struct Inner {
        struct promise_type {
            Inner get_return_object() noexcept {
                return Inner(std::coroutine_handle<promise_type>::from_promise(*this));
            }
            std::suspend_always initial_suspend() const noexcept { return {}; }
            std::suspend_always final_suspend() const noexcept { return {}; }
            void return_void() const noexcept {}
            void unhandled_exception() const noexcept { std::terminate(); }
        };
        explicit Inner(std::coroutine_handle<> h) noexcept : handle(h) {}
        std::coroutine_handle<> handle;
    };

    static Inner await(Affine& self) {
        try {
            Value value = co_await static_cast<Awaitable&&>(self.awaitable_);
            self.value_.emplace(std::move(value));
        } catch (...) {
            self.error_ = std::current_exception();
        }
        self.queue_.post(self.task_);
    }

    Awaitable awaitable_;
    RunQueue& queue_;
    std::coroutine_handle<> task_;
    std::coroutine_handle<> inner_;
    std::optional<Value> value_;
    std::exception_ptr error_;
};

// Its scheduler is the first argument of the coroutine.
template <class T>
class AffineTask {
public:
    class promise_type : public Promise<T> {
    public:
        template <class... Arguments>
        explicit promise_type(RunQueue& queue, Arguments&&...) noexcept : queue_(queue) {}
        promise_type(const promise_type&) = delete;
        promise_type& operator=(const promise_type&) = delete;
        ~promise_type() { queue_.remove(handle()); }

        AffineTask get_return_object() noexcept { return AffineTask(*this); }
        std::suspend_always initial_suspend() const noexcept { return {}; }
        template <class Awaitable>
        Affine<Awaitable> await_transform(Awaitable&& awaitable) {
            return {std::forward<Awaitable>(awaitable), queue_};
        }
        void schedule() { queue_.post(handle()); }

    private:
        std::coroutine_handle<> handle() noexcept {
            return std::coroutine_handle<promise_type>::from_promise(*this);
        }
        RunQueue& queue_;
    };

    void start() const { handle_.promise().schedule(); }
    bool done() const noexcept { return handle_.get().done(); }
    T get() { return handle_.promise().result(); }

    auto operator co_await() && noexcept { return Awaiter{handle_.promise()}; }

private:
    struct Awaiter {
        bool await_ready() const noexcept { return false; }
        void await_suspend(std::coroutine_handle<> next) const {
            promise.continue_with(next);
            promise.schedule();
        }
        T await_resume() const { return promise.result(); }
        promise_type& promise;
    };

    explicit AffineTask(promise_type& promise) noexcept : handle_(promise) {}
    UniqueHandle<promise_type> handle_;
};

} // namespace foreign
