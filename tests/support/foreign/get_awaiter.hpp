// SPDX-License-Identifier: MIT
// What a promise with an await_transform needs, and what each library writes for itself: the
// awaiter of an awaitable, which the compiler otherwise finds.
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
