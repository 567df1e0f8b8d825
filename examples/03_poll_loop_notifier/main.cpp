// SPDX-License-Identifier: MIT
// Completions in your own event loop: a CqNotifier for a bare poll(2) loop. PollLoop stands for the
// loop that the program already has; PollNotifier is all that an AsyncCq needs to wait in it.
// conformance.cpp tests the notifier.
#include "poll_loop.hpp"
#include "poll_notifier.hpp"

#include "../conversation.hpp"

#include <coroutine>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <utility>

using namespace asyncverbs;

namespace {

void run() {
    const ProtectionDomain domain(conversation::open_device());
    PollLoop loop;
    // [readme:own_loop]
    CompletionQueue queue(domain.context(), 16);
    const PollNotifier notifier(loop, queue.channel().fd());
    Router router(AsyncCq(std::move(queue), notifier));
    // [/readme:own_loop]

    const auto no_pause = [] { return std::suspend_never(); };
    const conversation::Running task(conversation::converse(domain, router, no_pause));
    while (!task.done()) loop.run_once();
    task.rethrow();
}

} // namespace

int main() try {
    run();
    if (std::fflush(stdout) != 0) throw std::runtime_error("standard output cannot be written");
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
