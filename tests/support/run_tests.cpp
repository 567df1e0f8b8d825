// SPDX-License-Identifier: MIT
#include "support/run_tests.hpp"

#include <cstdio>

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
// GCC 12 with sanitizers warns about an uninitialised union in <regex>.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#define CATCH_CONFIG_RUNNER // Catch2 v2 compiles its runner here
#include <catch2/catch.hpp>
#endif

int asyncverbs::support::run_tests(int argc, char** argv, const std::string& selection,
                                   const std::string& reason) {
    Catch::Session session;
    if (const int error = session.applyCommandLine(argc, argv)) return error;
    if (selection.empty()) return session.run();

    const bool without = selection.front() == '~';
    const std::string tag = selection.substr(without ? 1 : 0);
    std::printf("skipped, because %s:\n", reason.c_str());
    for (const auto& test : Catch::getRegistryHub().getTestCaseRegistry().getAllTests()) {
        const auto& info = test.getTestCaseInfo();
        if ((info.tagsAsString().find(tag) != std::string::npos) != without) continue;
        std::printf("  %s\n", info.name.c_str());
    }
    std::fflush(stdout);
    session.configData().testsOrTags.push_back(selection);
    return session.run();
}
