// SPDX-License-Identifier: MIT
// A coroutine type as other libraries have them, independent of this library. It has a scheduler
// and continues only there, no matter where its awaitable resumes it.
#pragma once

#include <algorithm>
#include <coroutine>
#include <deque>
#include <exception>
#include <optional>
#include <utility>

#include "support/foreign/get_awaiter.hpp"

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
    class promise_type {
    public:
        template <class... Arguments>
        explicit promise_type(RunQueue& queue, Arguments&&...) noexcept : queue_(queue) {}

        AffineTask get_return_object() noexcept { return AffineTask(*this); }
        std::suspend_always initial_suspend() const noexcept { return {}; }
        auto final_suspend() const noexcept {
            struct Continue {
                bool await_ready() const noexcept { return false; }
                std::coroutine_handle<>
                await_suspend(std::coroutine_handle<promise_type> self) const noexcept {
                    const std::coroutine_handle<> next = self.promise().continuation_;
                    return next ? next : std::noop_coroutine();
                }
                void await_resume() const noexcept {}
            };
            return Continue();
        }
        void return_value(T value) { value_.emplace(std::move(value)); }
        void unhandled_exception() noexcept { error_ = std::current_exception(); }

        template <class Awaitable>
        Affine<Awaitable> await_transform(Awaitable&& awaitable) {
            return {std::forward<Awaitable>(awaitable), queue_};
        }

    private:
        friend AffineTask;
        RunQueue& queue_;
        std::optional<T> value_;
        std::exception_ptr error_;
        std::coroutine_handle<> continuation_;
    };

    AffineTask(AffineTask&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    AffineTask& operator=(AffineTask&& other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    ~AffineTask() {
        if (!handle_) return;
        handle_.promise().queue_.remove(handle_);
        handle_.destroy();
    }

    void start() const { handle_.promise().queue_.post(handle_); }
    bool done() const noexcept { return handle_.done(); }
    T get() {
        promise_type& promise = handle_.promise();
        if (promise.error_) std::rethrow_exception(promise.error_);
        return std::move(*promise.value_);
    }

    auto operator co_await() && noexcept {
        struct Awaiter {
            explicit Awaiter(AffineTask& t) noexcept : task(t) {}
            bool await_ready() const noexcept { return false; }
            void await_suspend(std::coroutine_handle<> next) const {
                task.handle_.promise().continuation_ = next;
                task.start();
            }
            T await_resume() const { return task.get(); }
            AffineTask& task;
        };
        return Awaiter(*this);
    }

private:
    explicit AffineTask(promise_type& promise) noexcept
        : handle_(std::coroutine_handle<promise_type>::from_promise(promise)) {}

    std::coroutine_handle<promise_type> handle_;
};

} // namespace foreign
