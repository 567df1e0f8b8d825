// SPDX-License-Identifier: MIT
// What a fuzzer demands: an input for which it does not hold is a finding, also without assert.
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
