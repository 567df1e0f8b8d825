// SPDX-License-Identifier: MIT
// A coroutine that a stream runs for itself, as long as it lives. It starts at once, and lets no
// exception escape.
#pragma once

#include <coroutine>
#include <exception>

#include <asyncverbs/core/detail/unique_coroutine.hpp>

namespace asyncverbs::detail {

class StreamLoop {
public:
    struct promise_type {
        StreamLoop get_return_object() noexcept { return StreamLoop(*this); }
        std::suspend_never initial_suspend() const noexcept { return {}; }
        std::suspend_always final_suspend() const noexcept { return {}; }
        void return_void() const noexcept {}
        [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }
    };

    StreamLoop() noexcept = default;

private:
    explicit StreamLoop(promise_type& promise) noexcept : coroutine_(promise) {}

    UniqueCoroutine<promise_type> coroutine_;
};

} // namespace asyncverbs::detail
