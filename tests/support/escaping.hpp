// SPDX-License-Identifier: MIT
// A coroutine whose exception reaches its resumer, and so the event loop. A completion queue must
// survive it.
#pragma once

#include <asyncverbs/cq/async_cq.hpp>

#include <array>
#include <coroutine>
#include <optional>
#include <stdexcept>
#include <system_error>

namespace asyncverbs::support {

// As a return type it makes any coroutine throw into its resumer. run() polls once, then throws.
struct Escaping {
    struct promise_type {
        Escaping get_return_object() noexcept {
            return {std::coroutine_handle<promise_type>::from_promise(*this)};
        }
        std::suspend_never initial_suspend() const noexcept { return {}; }
        std::suspend_always final_suspend() const noexcept { return {}; }
        void return_void() const noexcept {}
        void unhandled_exception() const { throw; }
    };
    // Clang 19 destroys a coroutine that threw as if it were suspended at its last suspension
    // point.
    struct Pass {
        bool await_ready() const noexcept { return false; }
        bool await_suspend(std::coroutine_handle<>) const noexcept { return false; }
        void await_resume() const noexcept {}
    };

    static Escaping run(std::optional<AsyncCq>& cq, bool destroys = false) {
        std::array<ibv_wc, 1> wcs{};
        std::error_code error;
        co_await cq->poll(wcs, error);
        if (destroys) cq.reset();
        co_await Pass{};
        throw std::runtime_error("escaped");
    }

    std::coroutine_handle<promise_type> handle;
};

} // namespace asyncverbs::support
