// SPDX-License-Identifier: MIT
// A loop to whose thread a coroutine can be sent, whichever loop that is.
#pragma once

#include <concepts>
#include <coroutine>

#include <asyncverbs/core/awaitable.hpp>

namespace asyncverbs {

/// `co_await loop.schedule()` continues on the thread that runs the loop. EpollExecutor is a model.
///
/// Semantic requirements of the awaiter:
///  - It always suspends, and resumes the coroutine later, never inside await_suspend().
///  - await_suspend() may be called on any thread, and neither blocks nor throws.
///  - Destroying it on the loop's thread cancels it: its coroutine is not resumed afterwards.
template <class L>
concept Scheduler = requires(L& loop, std::coroutine_handle<> coroutine) {
    { loop.schedule() } -> awaitable_of<void>;
    { detail::get_awaiter(loop.schedule()).await_suspend(coroutine) } -> std::same_as<void>;
};

} // namespace asyncverbs
