// SPDX-License-Identifier: MIT
// Catch2 v3 if its umbrella header exists, else v2.13. Tests include this header instead of Catch2,
// to build on Debian 12 and on newer systems.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif

#include <string>

namespace asyncverbs::support {

// The matcher for a substring, which has a different name in the two versions.
inline auto contains(const std::string& text) {
#if __has_include(<catch2/catch_all.hpp>)
    return Catch::Matchers::ContainsSubstring(text);
#else
    return Catch::Matchers::Contains(text);
#endif
}

} // namespace asyncverbs::support
