// SPDX-License-Identifier: MIT
// Small tasks that the tests of coro/ await.
#pragma once

#include <memory>
#include <stdexcept>
#include <utility>

#include <asyncverbs/coro/task.hpp>

#include "support/coroutine.hpp"
#include "support/gate.hpp"

namespace asyncverbs::support {

inline Task<> nothing() { co_return; }
inline Task<int> number(int n) { co_return n; }
inline Task<int&> same(int& n) { co_return n; }
inline Task<std::unique_ptr<int>> owned(int n) { co_return std::make_unique<int>(n); }
inline Task<int> fails(const char* text) {
    co_await nothing();
    throw std::runtime_error(text);
}

/// Wait at a gate; `alive` is held until the task is destroyed.
inline Task<> wait_at(Gate& gate, std::shared_ptr<int> alive = nullptr) {
    co_await gate;
    static_cast<void>(alive);
}
inline Task<int> number_after(Gate& gate, int n) {
    co_await gate;
    co_return n;
}
inline Task<int> fails_after(Gate& gate, const char* text) {
    co_await gate;
    throw std::runtime_error(text);
}

/// Awaits a task and keeps its result.
template <class T>
Coroutine store(Task<T> task, std::unique_ptr<T>& result) {
    auto value = co_await std::move(task);
    result = std::make_unique<T>(std::move(value));
}

} // namespace asyncverbs::support
