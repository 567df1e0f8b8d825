// SPDX-License-Identifier: MIT
// How the author of a notifier tests it: each sentence of the contract, on this loop. Needs no
// device; asyncverbs/testing/async_cq_conformance.hpp has the tests that need one.
// [readme:conformance]
#include <asyncverbs/testing/notifier_conformance.hpp>

#include "poll_notifier.hpp"

struct PollHarness {
    PollNotifier notifier(int fd) { return PollNotifier(loop, fd); }
    void run_once(std::chrono::milliseconds at_most) {
        loop.run_once(static_cast<int>(at_most.count()));
    }
    PollLoop loop;
};

int main() { return asyncverbs::check_notifier<PollHarness>(); }
// [/readme:conformance]
