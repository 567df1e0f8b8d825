// SPDX-License-Identifier: MIT
// One case of a conformance suite: a clause of a contract, and the function that tries it. Bound to
// no test framework: run them all and print, or each within a test of your own.
#pragma once

#include <cstdio>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace asyncverbs {

/// Why a case failed: what() names the case, what happened, and the clause that was broken.
class ConformanceFailure : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// A case, which is independent of all others and can be run any number of times.
struct ConformanceCase {
    std::string_view name;   ///< unique within its suite, such as "stop: before the call"
    std::string_view clause; ///< what the contract says
    /// Returns if the clause is kept. Throws ConformanceFailure if not. A notifier that blocks for
    /// ever cannot be interrupted: after some time without progress the case says so on stderr and
    /// aborts the program.
    std::function<void()> run;
};

/// Runs `cases` and prints the outcome of each to stdout. Returns how many failed: an exit status.
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
        std::fflush(stdout); // a case that aborts comes after what is printed
    }
    std::printf("%zu cases, %d failed\n", cases.size(), failed);
    return failed;
}

} // namespace asyncverbs
