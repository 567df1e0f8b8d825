// SPDX-License-Identifier: MIT
// Runs what is expected to fail and hands back the error, so that a test can look at its code and
// at every part of its text.
// Naming what failed is a promise of this layer, and REQUIRE_THROWS_AS alone would not check it.
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

// The text of the error, which must also have this code.
template <class Action>
std::string failure_text(std::errc code, Action&& action) {
    const std::system_error error = failure_of(std::forward<Action>(action));
    CHECK(error.code() == code);
    return error.what();
}

} // namespace asyncverbs::support
