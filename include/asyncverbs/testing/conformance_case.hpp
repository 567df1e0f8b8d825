// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <chrono>
#include <cstdio>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
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
    std::string name;   ///< unique within its suite, such as "stop: before the call"
    std::string clause; ///< the sentence of the contract that it tries
    /// Returns if the clause is kept, and throws ConformanceFailure if not. A notifier that blocks
    /// cannot be interrupted: after some time without progress the case reports that on stderr and
    /// aborts the program.
    std::function<void()> run;
};

/// Which cases a suite has, and how long they wait.
struct ConformanceOptions {
    /// An event that does not happen within this time is a failure; nothing else depends on time. A
    /// short time makes a run against a broken notifier short.
    std::chrono::milliseconds patience = std::chrono::seconds(10);
    /// Only the cases whose name contains this: "stop: " for those of stop requests.
    std::string filter = {};
};

/// Runs `cases`, and prints to stdout the name of each before it runs, then its result. Returns how
/// many failed: an exit status.
inline int run_conformance(const std::vector<ConformanceCase>& cases) {
    int failed = 0;
    for (const ConformanceCase& each : cases) {
        std::printf("%s ... ", each.name.c_str());
        std::fflush(stdout); // the case may crash or hang
        try {
            each.run();
            std::puts("ok");
        } catch (const std::exception& error) {
            ++failed;
            std::printf("FAILED\n    %s\n", error.what());
        }
    }
    std::printf("%zu cases, %d failed\n", cases.size(), failed);
    return failed;
}

} // namespace asyncverbs
