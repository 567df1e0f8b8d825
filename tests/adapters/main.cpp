// SPDX-License-Identifier: MIT
// The entry point of the tests of adapters. Where there is no io_uring, as in many sandboxes, what
// needs it is left out, aloud.
#if !__has_include(<catch2/catch_all.hpp>)
// GCC 12 with sanitizers takes the uninitialised half of a union in <regex> for a mistake.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#define CATCH_CONFIG_RUNNER
#endif
#include "support/catch.hpp"

#if __has_include(<liburing.h>)
#include "adapters/ring.hpp"
#endif

int main(int argc, char** argv) {
    Catch::Session session;
    if (const int error = session.applyCommandLine(argc, argv)) return error;
#if __has_include(<liburing.h>)
    if (!asyncverbs::support::has_io_uring()) {
        session.configData().testsOrTags.push_back("~[ring]");
    }
#endif
    return session.run();
}
