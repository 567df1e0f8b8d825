// SPDX-License-Identifier: MIT
//
// Catch2 as the system has it: v3 where its umbrella header exists, else v2.13. Tests include this
// header and never Catch2 itself, so that one source builds on Debian 12 and on newer systems.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif

#include <string>

namespace asyncverbs::support {

// The matcher "has this substring", which the two versions name differently.
inline auto contains(const std::string& text) {
#if __has_include(<catch2/catch_all.hpp>)
    return Catch::Matchers::ContainsSubstring(text);
#else
    return Catch::Matchers::Contains(text);
#endif
}

} // namespace asyncverbs::support
