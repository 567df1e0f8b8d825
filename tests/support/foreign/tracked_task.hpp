// SPDX-License-Identifier: MIT
// A foreign coroutine type that is lazy. Its await_transform wraps every awaitable, to track when
// the task waits: it takes ownership by a move and passes handles of the task's promise type.
#pragma once

#include <coroutine>
#include <utility>

#include "support/foreign/promise.hpp"

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
    class promise_type : public Promise<T> {
    public:
        TrackedTask get_return_object() noexcept { return TrackedTask(*this); }
        std::suspend_always initial_suspend() const noexcept { return {}; }
        auto final_suspend() noexcept {
            state_ = TaskState::done;
            return Promise<T>::final_suspend();
        }
        template <class Awaitable>
        Tracked<Awaitable> await_transform(Awaitable&& awaitable) {
            return {std::forward<Awaitable>(awaitable), state_};
        }

    private:
        friend TrackedTask;
        TaskState state_ = TaskState::created;
    };

    void start() const {
        handle_.promise().state_ = TaskState::running;
        handle_.get().resume();
    }
    bool done() const noexcept { return state() == TaskState::done; }
    TaskState state() const noexcept { return handle_.promise().state_; }
    T get() { return handle_.promise().result(); }

    auto operator co_await() && noexcept { return Awaiter{handle_.get()}; }

private:
    struct Awaiter {
        bool await_ready() const noexcept { return false; }
        std::coroutine_handle<> await_suspend(std::coroutine_handle<> next) const noexcept {
            handle.promise().continue_with(next);
            handle.promise().state_ = TaskState::running;
            return handle;
        }
        T await_resume() const { return handle.promise().result(); }
        std::coroutine_handle<promise_type> handle;
    };

    explicit TrackedTask(promise_type& promise) noexcept : handle_(promise) {}
    UniqueHandle<promise_type> handle_;
};

} // namespace foreign
