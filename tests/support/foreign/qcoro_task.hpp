// SPDX-License-Identifier: MIT
// A model of QCoro::Task. It starts at once. Its await_transform checks what it is given with a
// concept that looks at an lvalue, and returns a reference to it.
#pragma once

#include <concepts>
#include <coroutine>

#include "support/foreign/promise.hpp"

namespace foreign {

template <class T>
concept qcoro_awaitable = requires(T t) { t.operator co_await(); } || requires(T t) {
    operator co_await(static_cast<T&&>(t));
} || requires(T t, std::coroutine_handle<> coroutine) {
    { t.await_ready() } -> std::same_as<bool>;
    t.await_suspend(coroutine);
    t.await_resume();
};

template <class T>
class QcoroTask {
public:
    class promise_type : public Promise<T> {
    public:
        QcoroTask get_return_object() noexcept { return QcoroTask(*this); }
        std::suspend_never initial_suspend() const noexcept { return {}; }
        template <qcoro_awaitable A>
        auto&& await_transform(A&& awaitable) {
            return std::forward<A>(awaitable);
        }
        template <qcoro_awaitable A>
        auto& await_transform(A& awaitable) {
            return awaitable;
        }
    };

    void start() const noexcept {} // it has started already
    bool done() const noexcept { return handle_.get().done(); }
    T get() { return handle_.promise().result(); }

    auto operator co_await() const noexcept { return Awaiter{handle_.get()}; }

private:
    struct Awaiter {
        bool await_ready() const noexcept { return handle.done(); }
        void await_suspend(std::coroutine_handle<> next) const noexcept {
            handle.promise().continue_with(next);
        }
        T await_resume() const { return handle.promise().result(); }
        std::coroutine_handle<promise_type> handle;
    };

    explicit QcoroTask(promise_type& promise) noexcept : handle_(promise) {}
    UniqueHandle<promise_type> handle_;
};

} // namespace foreign
