// SPDX-License-Identifier: MIT
// A foreign coroutine type that starts when it is called; awaiting it later returns its result.
#pragma once

#include <coroutine>

#include "support/foreign/promise.hpp"

namespace foreign {

template <class T>
class EagerTask {
public:
    class promise_type : public Promise<T> {
    public:
        EagerTask get_return_object() noexcept { return EagerTask(*this); }
        std::suspend_never initial_suspend() const noexcept { return {}; }
    };

    void start() const noexcept {} // it has started already
    bool done() const noexcept { return handle_.get().done(); }
    T get() { return handle_.promise().result(); }

    friend auto operator co_await(EagerTask&& task) noexcept { return Awaiter{task.handle_.get()}; }

private:
    struct Awaiter {
        bool await_ready() const noexcept { return handle.done(); }
        void await_suspend(std::coroutine_handle<> next) const noexcept {
            handle.promise().continue_with(next);
        }
        T await_resume() const { return handle.promise().result(); }
        std::coroutine_handle<promise_type> handle;
    };

    explicit EagerTask(promise_type& promise) noexcept : handle_(promise) {}
    UniqueHandle<promise_type> handle_;
};

} // namespace foreign
