// SPDX-License-Identifier: MIT
// A coroutine type as other libraries have them, independent of this library. It is lazy. Its
// await_transform wraps every awaitable, to track when the task waits: it takes ownership by a move
// and passes handles of the task's promise type.
#pragma once

#include <coroutine>
#include <exception>
#include <optional>
#include <utility>

#include "support/foreign/get_awaiter.hpp"

namespace foreign {

enum class TaskState { created, running, waiting, done };

// Holds the awaitable and updates the task's state while it waits.
template <class Awaitable>
class Tracked {
    using Awaiter = decltype(get_awaiter(std::declval<Awaitable>()));

public:
    Tracked(Awaitable&& awaitable, TaskState& state)
        : awaitable_(std::forward<Awaitable>(awaitable)),
          awaiter_(get_awaiter(static_cast<Awaitable&&>(awaitable_))), state_(state) {}
    Tracked(const Tracked&) = delete;
    Tracked& operator=(const Tracked&) = delete;

    bool await_ready() { return awaiter_.await_ready(); }
    template <class Promise>
    auto await_suspend(std::coroutine_handle<Promise> task) {
        state_ = TaskState::waiting; // first: it may be resumed before this returns
        return awaiter_.await_suspend(task);
    }
    decltype(auto) await_resume() {
        state_ = TaskState::running;
        return awaiter_.await_resume();
    }

private:
    Awaitable awaitable_; // a value, or a reference if an lvalue was awaited
    Awaiter awaiter_;
    TaskState& state_;
};

template <class T>
class TrackedTask {
public:
    class promise_type {
    public:
        TrackedTask get_return_object() noexcept { return TrackedTask(*this); }
        std::suspend_always initial_suspend() const noexcept { return {}; }
        auto final_suspend() const noexcept {
            struct Continue {
                bool await_ready() const noexcept { return false; }
                std::coroutine_handle<>
                await_suspend(std::coroutine_handle<promise_type> self) const noexcept {
                    self.promise().state_ = TaskState::done;
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
        Tracked<Awaitable> await_transform(Awaitable&& awaitable) {
            return {std::forward<Awaitable>(awaitable), state_};
        }

    private:
        friend TrackedTask;
        TaskState state_ = TaskState::created;
        std::optional<T> value_;
        std::exception_ptr error_;
        std::coroutine_handle<> continuation_;
    };

    TrackedTask(TrackedTask&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    TrackedTask& operator=(TrackedTask&& other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    ~TrackedTask() {
        if (handle_) handle_.destroy();
    }

    void start() const {
        handle_.promise().state_ = TaskState::running;
        handle_.resume();
    }
    bool done() const noexcept { return state() == TaskState::done; }
    TaskState state() const noexcept { return handle_.promise().state_; }
    T get() {
        promise_type& promise = handle_.promise();
        if (promise.error_) std::rethrow_exception(promise.error_);
        return std::move(*promise.value_);
    }

    auto operator co_await() && noexcept {
        struct Awaiter {
            explicit Awaiter(TrackedTask& t) noexcept : task(t) {}
            bool await_ready() const noexcept { return false; }
            std::coroutine_handle<> await_suspend(std::coroutine_handle<> next) const noexcept {
                promise_type& promise = task.handle_.promise();
                promise.continuation_ = next;
                promise.state_ = TaskState::running;
                return task.handle_;
            }
            T await_resume() const { return task.get(); }
            TrackedTask& task;
        };
        return Awaiter(*this);
    }

private:
    explicit TrackedTask(promise_type& promise) noexcept
        : handle_(std::coroutine_handle<promise_type>::from_promise(promise)) {}

    std::coroutine_handle<promise_type> handle_;
};

} // namespace foreign
