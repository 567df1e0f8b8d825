// SPDX-License-Identifier: MIT
// What the pump of a completion channel and its owner know of each other.
#pragma once

#include <coroutine>
#include <exception>
#include <utility>

#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs::detail {

template <class Use>
struct PumpState {
    Used<std::coroutine_handle<>, Use> handle; // null once it has ended
    bool idle = true;
    bool running = false;       // and may be resuming somebody
    std::exception_ptr escaped; // of whom it resumed

    /// The owner goes. A pump that is resuming the coroutine that closes it ends by itself when
    /// that returns.
    void close() noexcept {
        if (handle && !running) std::exchange(handle, nullptr).destroy();
    }
};

} // namespace asyncverbs::detail
