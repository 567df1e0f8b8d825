// SPDX-License-Identifier: MIT
// Returns the error of an action that must fail, so that a test can check its code and its text.
#pragma once

#include <string>
#include <system_error>
#include <utility>

#include "support/catch.hpp"

namespace asyncverbs::support {

template <class Action>
std::system_error failure_of(Action&& action) {
    try {
        std::forward<Action>(action)();
    } catch (const std::system_error& error) {
        return error;
    }
    FAIL("expected a std::system_error");
    throw 0; // not reached
}

// The text of an error with this code.
template <class Action>
std::string failure_text(std::errc code, Action&& action) {
    const std::system_error error = failure_of(std::forward<Action>(action));
    CHECK(error.code() == code);
    return error.what();
}

} // namespace asyncverbs::support
