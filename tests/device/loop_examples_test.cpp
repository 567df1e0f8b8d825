// SPDX-License-Identifier: MIT
// The examples of other event loops.
#include "support/catch.hpp"
#include "support/process.hpp"

using asyncverbs::support::contains;
using asyncverbs::support::Process;

TEST_CASE("the examples of loops run") {
    for (const char* program : {LOOP_EXAMPLES}) {
        INFO(program);
        Process process({program});
        CHECK(process.wait() == 0);
        CHECK_THAT(process.output(), contains("received: message 5 of 5\nstopped"));
        CHECK(process.error().empty());
    }
}

TEST_CASE("the examples of loops name a missing device") {
    for (const char* program : {LOOP_EXAMPLES}) {
        INFO(program);
        Process process({"env", "RDMA_DEVICE=nosuch", program});
        CHECK(process.wait() == 1);
        CHECK_THAT(process.error(),
                   contains("error: no RDMA device is named \"nosuch\"; there are: "));
    }
}

#ifdef IO_URING_LOOP
TEST_CASE("the example of io_uring reports that io_uring is forbidden") {
    Process process({WITHOUT_IO_URING, IO_URING_LOOP});
    CHECK(process.wait() == 1);
    CHECK(process.error() == "error: io_uring is not available: io_uring_queue_init: "
                             "Operation not permitted\n");
}
#endif
