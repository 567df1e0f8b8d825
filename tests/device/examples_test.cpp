// SPDX-License-Identifier: MIT
// The examples that take no options.
#include "support/catch.hpp"
#include "support/process.hpp"

#include <string>

using asyncverbs::support::contains;
using asyncverbs::support::Process;

TEST_CASE("the examples run", "[threads]") {
    Process hello({HELLO});
    CHECK(hello.wait() == 0);
    CHECK_THAT(hello.output(), contains("Hello, Bob!"));
    CHECK(hello.error().empty());

    Process poll_loop({POLL_LOOP_NOTIFIER});
    CHECK(poll_loop.wait() == 0);
    CHECK_THAT(poll_loop.output(), contains("received: message 5 of 5\nstopped"));
    CHECK(poll_loop.error().empty());

    Process timeouts({TIMEOUTS});
    CHECK(timeouts.wait() == 0);
    CHECK(timeouts.output() ==
          "no message within 50 ms\na message of 5 bytes\nthe timer was first\n");
    CHECK(timeouts.error().empty());

    Process adopt({ADOPT});
    CHECK(adopt.wait() == 0);
    CHECK(adopt.output() == "request 1: Work Request Flushed Error\n"
                            "request 2: Work Request Flushed Error\n");
    CHECK(adopt.error().empty());

    Process cores({CORES, "3"}); // possibly more than the guest has
    CHECK(cores.wait() == 0);
    for (const char* core : {"core 0: CPU ", "core 1: CPU ", "core 2: CPU "}) {
        CHECK_THAT(cores.output(), contains(core));
    }
    CHECK_THAT(cores.output(), contains("6000 messages between 3 cores"));
    CHECK(cores.error().empty());
}

TEST_CASE("the examples name a missing device and the existing ones") {
    for (const char* program : {HELLO, POLL_LOOP_NOTIFIER, CORES, TIMEOUTS}) {
        Process process({"env", "RDMA_DEVICE=nosuch", program});
        CHECK(process.wait() == 1);
        CHECK_THAT(process.error(),
                   contains("error: no RDMA device is named \"nosuch\"; there are: "));
    }
}

TEST_CASE("the examples fail if their output cannot be written") {
    for (const std::string program : {HELLO, POLL_LOOP_NOTIFIER, CORES " 2", TIMEOUTS, ADOPT}) {
        CAPTURE(program);
        Process process({"sh", "-c", program + " >/dev/full"});
        CHECK(process.wait() == 1);
        CHECK_THAT(process.error(), contains("error: standard output cannot be written"));
    }
}
