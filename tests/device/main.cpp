// SPDX-License-Identifier: MIT
// The entry point of the device tests. On an iWARP device it runs the tests with the tag [iwarp],
// and prints which of the others it skips.
#if !__has_include(<catch2/catch_all.hpp>)
// GCC 12 with sanitizers warns about an uninitialised union in <regex>.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#define CATCH_CONFIG_RUNNER
#endif
#include "support/catch.hpp"

#include <cstdio>
#include <string>

#include "device/pair.hpp"

int main(int argc, char** argv) {
    Catch::Session session;
    if (const int error = session.applyCommandLine(argc, argv)) return error;
    if (asyncverbs::device::is_iwarp()) {
        for (const auto& test : Catch::getRegistryHub().getTestCaseRegistry().getAllTests()) {
            const auto& info = test.getTestCaseInfo();
            if (info.tagsAsString().find("[iwarp]") == std::string::npos) {
                std::printf("skipped: %s (it needs what iWARP lacks, which is queue pairs without "
                            "rdma_cm, immediate data, atomics and UD; or it is beyond the limits "
                            "of soft-iWARP)\n",
                            info.name.c_str());
            }
        }
        std::fflush(stdout);
        session.configData().testsOrTags.push_back("[iwarp]");
    }
    return session.run();
}
