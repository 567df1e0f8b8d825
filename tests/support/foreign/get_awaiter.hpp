// SPDX-License-Identifier: MIT
// Returns the awaiter of an awaitable. A promise with an await_transform needs this, because it
// must do the lookup that the compiler does otherwise; each coroutine library has such a function.
#pragma once

#include <utility>

namespace foreign {

template <class Awaitable>
decltype(auto) get_awaiter(Awaitable&& awaitable) {
    if constexpr (requires { std::forward<Awaitable>(awaitable).operator co_await(); }) {
        return std::forward<Awaitable>(awaitable).operator co_await();
    } else if constexpr (requires { operator co_await(std::forward<Awaitable>(awaitable)); }) {
        return operator co_await(std::forward<Awaitable>(awaitable));
    } else {
        return std::forward<Awaitable>(awaitable);
    }
}

} // namespace foreign
