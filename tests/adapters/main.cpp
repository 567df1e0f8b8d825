// SPDX-License-Identifier: MIT
// The entry point of the tests of adapters. Many sandboxes have no io_uring.
#include "support/run_tests.hpp"

#if __has_include(<liburing.h>)
#include "adapters/ring.hpp"
#endif

int main(int argc, char** argv) {
#if __has_include(<liburing.h>)
    if (const std::string error = asyncverbs::support::why_no_io_uring(); !error.empty()) {
        return asyncverbs::support::run_tests(argc, argv, "~[ring]", error);
    }
#endif
    return asyncverbs::support::run_tests(argc, argv);
}
