// SPDX-License-Identifier: MIT
// A coroutine type as other libraries have them, independent of this library. It starts when it is
// called; awaiting it later returns its result.
#pragma once

#include <coroutine>
#include <exception>
#include <optional>
#include <utility>

namespace foreign {

template <class T>
class EagerTask {
public:
    class promise_type {
    public:
        EagerTask get_return_object() noexcept { return EagerTask(*this); }
        std::suspend_never initial_suspend() const noexcept { return {}; }
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

        T result() {
            if (error_) std::rethrow_exception(error_);
            return std::move(*value_);
        }

    private:
        friend EagerTask;
        std::optional<T> value_;
        std::exception_ptr error_;
        std::coroutine_handle<> continuation_;
    };

    EagerTask(EagerTask&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    EagerTask& operator=(EagerTask&& other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    ~EagerTask() {
        if (handle_) handle_.destroy();
    }

    void start() const noexcept {} // it has started already
    bool done() const noexcept { return handle_.done(); }
    T get() { return handle_.promise().result(); }

    friend auto operator co_await(EagerTask&& task) noexcept { return task.awaiter(); }

private:
    auto awaiter() const noexcept {
        struct Awaiter {
            explicit Awaiter(std::coroutine_handle<promise_type> h) noexcept : handle(h) {}
            bool await_ready() const noexcept { return handle.done(); }
            void await_suspend(std::coroutine_handle<> next) const noexcept {
                handle.promise().continuation_ = next;
            }
            T await_resume() const { return handle.promise().result(); }
            std::coroutine_handle<promise_type> handle;
        };
        return Awaiter(handle_);
    }
    explicit EagerTask(promise_type& promise) noexcept
        : handle_(std::coroutine_handle<promise_type>::from_promise(promise)) {}

    std::coroutine_handle<promise_type> handle_;
};

} // namespace foreign
