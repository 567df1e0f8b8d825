// SPDX-License-Identifier: MIT
// A model of the parts of stdexec that carry a stop request: the stop token of an environment, and
// a coroutine type that can read it. Under stdexec's names, so that the tests contain the code of
// the documentation.
#pragma once

#include <coroutine>
#include <stop_token>
#include <utility>

#include "support/foreign/promise.hpp"

namespace stdexec {

// Has callbacks of its own, as any stop token of an environment.
struct inplace_stop_token {
    template <class Function>
    struct callback_type : std::stop_callback<Function> {
        callback_type(const inplace_stop_token& of, Function function)
            : std::stop_callback<Function>(of.token, std::move(function)) {}
    };
    std::stop_token token;
};
template <class Token, class Function>
using stop_callback_for_t = typename Token::template callback_type<Function>;

struct env {
    inplace_stop_token token;
};
struct get_stop_token_t {
    inplace_stop_token operator()(const env& of) const { return of.token; }
};
inline constexpr get_stop_token_t get_stop_token;

template <class Query>
struct read_env_t {
    Query query;
};
template <class Query>
read_env_t<Query> read_env(Query query) {
    return {query};
}

} // namespace stdexec

namespace exec {

template <class T>
class task {
public:
    class promise_type : public foreign::Promise<T> {
    public:
        task get_return_object() noexcept { return task(*this); }
        std::suspend_always initial_suspend() const noexcept { return {}; }
        template <class Awaitable>
        Awaitable&& await_transform(Awaitable&& awaitable) const noexcept {
            return std::forward<Awaitable>(awaitable);
        }
        template <class Query>
        auto await_transform(stdexec::read_env_t<Query> read) const noexcept {
            struct Ready : std::suspend_never {
                explicit Ready(decltype(read.query(stdexec::env())) v) : value(std::move(v)) {}
                auto await_resume() const { return value; }
                decltype(read.query(stdexec::env())) value;
            };
            return Ready(read.query(env_));
        }

    private:
        friend task;
        stdexec::env env_;
    };

    // What starting the operation state does, which connects it to a receiver.
    void start(stdexec::env receiver_env) const {
        handle_.promise().env_ = std::move(receiver_env);
        handle_.get().resume();
    }
    bool done() const noexcept { return handle_.get().done(); }
    T get() { return handle_.promise().result(); }

private:
    explicit task(promise_type& promise) noexcept : handle_(promise) {}
    foreign::UniqueHandle<promise_type> handle_;
};

} // namespace exec
