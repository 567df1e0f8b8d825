// SPDX-License-Identifier: MIT
// The entry point of the device tests. On an iWARP device it runs the tests with the tag [iwarp].
#include "device/pair.hpp"
#include "support/run_tests.hpp"

int main(int argc, char** argv) {
    if (!asyncverbs::device::is_iwarp()) return asyncverbs::support::run_tests(argc, argv);
    return asyncverbs::support::run_tests(
        argc, argv, "[iwarp]",
        "they need what iWARP lacks, which is queue pairs without rdma_cm, immediate data, atomics "
        "and UD; or they are beyond the limits of soft-iWARP");
}
