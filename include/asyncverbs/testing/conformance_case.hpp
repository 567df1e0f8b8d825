// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <cstdio>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace asyncverbs {

/// Thrown by a case that fails: what() names the case, what happened, and the violated clause.
class ConformanceFailure : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// One case of a conformance suite, independent of any test framework. Cases do not depend on each
/// other and can be run any number of times.
struct ConformanceCase {
    std::string_view name;   ///< unique within its suite, such as "stop: before the call"
    std::string_view clause; ///< the sentence of the contract that it tries
    /// Returns if the clause is kept, and throws ConformanceFailure if not. A notifier that blocks
    /// cannot be interrupted: after some time without progress the case reports that on stderr and
    /// aborts the program.
    std::function<void()> run;
};

/// Runs `cases` and prints the result of each to stdout. Returns how many failed: an exit status.
inline int run_conformance(const std::vector<ConformanceCase>& cases) {
    int failed = 0;
    for (const ConformanceCase& each : cases) {
        try {
            each.run();
            std::printf("ok      %s\n", std::string(each.name).c_str());
        } catch (const std::exception& error) {
            ++failed;
            std::printf("FAILED  %s\n", error.what());
        }
        std::fflush(stdout); // before a case that aborts
    }
    std::printf("%zu cases, %d failed\n", cases.size(), failed);
    return failed;
}

} // namespace asyncverbs
