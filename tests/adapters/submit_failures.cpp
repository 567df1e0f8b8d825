// SPDX-License-Identifier: MIT
#include "adapters/submit_failures.hpp"

#include <liburing.h>

namespace {

int failure = 0;
int left = 0;
int failed = 0;

} // namespace

namespace asyncverbs::support {

void fail_submits(int error, int times) noexcept {
    failure = error;
    left = times;
    failed = 0;
}
int failed_submits() noexcept { return failed; }

} // namespace asyncverbs::support

// What the linker puts in the place of the calls that the tests and the library make.
extern "C" {
int __real_io_uring_submit(io_uring* ring);

int __wrap_io_uring_submit(io_uring* ring) {
    if (left == 0) return __real_io_uring_submit(ring);
    --left;
    ++failed;
    return -failure;
}
}
