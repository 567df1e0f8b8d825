// SPDX-License-Identifier: MIT
// The assertion of a fuzzer. Unlike assert(), it also works in a release build.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace asyncverbs::fuzz {

inline void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "does not hold: %s\n", what);
    std::abort();
}

} // namespace asyncverbs::fuzz
