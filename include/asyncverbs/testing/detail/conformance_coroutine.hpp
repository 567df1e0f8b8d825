// SPDX-License-Identifier: MIT
// The coroutines of the conformance suite: they start at once, and can be destroyed where they
// wait, by the suite or by one another.
#pragma once

#include <coroutine>
#include <exception>

#include <asyncverbs/core/detail/unique_coroutine.hpp>

namespace asyncverbs::detail::conformance {

class Coroutine {
public:
    struct promise_type {
        Coroutine get_return_object() noexcept { return Coroutine(*this); }
        std::suspend_never initial_suspend() const noexcept { return {}; }
        std::suspend_always final_suspend() const noexcept { return {}; }
        void return_void() const noexcept {}
        void unhandled_exception() const noexcept { std::terminate(); } // they throw nothing
    };

    bool done() const noexcept { return coroutine_.handle().done(); }
    void destroy() noexcept { coroutine_ = {}; }

private:
    explicit Coroutine(promise_type& promise) noexcept : coroutine_(promise) {}
    UniqueCoroutine<promise_type> coroutine_;
};

} // namespace asyncverbs::detail::conformance
