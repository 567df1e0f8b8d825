// SPDX-License-Identifier: MIT
// A coroutine that awaits one operation of a loop, and its result.
#pragma once

#include <asyncverbs/coro/awaitable.hpp>

#include <optional>
#include <system_error>
#include <type_traits>
#include <utility>

#include "support/coroutine.hpp"

namespace asyncverbs::support {

struct Wait {
    template <class Operation>
    explicit Wait(Operation operation) : coroutine(run(*this, std::move(operation))) {}
    Wait(const Wait&) = delete;
    Wait& operator=(const Wait&) = delete;

    std::optional<std::error_code> result; // empty while it waits
    Coroutine coroutine;

private:
    template <class Operation>
    static Coroutine run(Wait& self, Operation operation) {
        if constexpr (std::is_void_v<await_result_t<Operation>>) {
            co_await std::move(operation);
            self.result.emplace();
        } else {
            self.result = co_await std::move(operation);
        }
    }
};

inline const std::error_code ok;

} // namespace asyncverbs::support
