// SPDX-License-Identifier: MIT
#include <asyncverbs/simulation/simulated_verbs.hpp>

#include <cstdio>
#include <cstdlib>

// Weak: a definition in the program replaces it.
[[gnu::weak]] void asyncverbs::simulated::report_problem(const std::string& problem) {
    std::fprintf(stderr, "simulated verbs: %s\n", problem.c_str());
    [[maybe_unused]] static const int once = std::atexit([] {
        std::fflush(nullptr);
        std::_Exit(EXIT_FAILURE); // whatever main() returns
    });
}
