// SPDX-License-Identifier: MIT
// An awaitable that suspends its coroutine until the test opens it.
#pragma once

#include <coroutine>
#include <utility>

namespace asyncverbs::support {

struct Gate {
    Gate() = default;
    Gate(const Gate&) = delete;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> coroutine) noexcept { waiting = coroutine; }
    void await_resume() const noexcept {}
    void open() { std::exchange(waiting, nullptr).resume(); }
    std::coroutine_handle<> waiting;
};

} // namespace asyncverbs::support
