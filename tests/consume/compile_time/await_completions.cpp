// SPDX-License-Identifier: MIT
// Two queue pairs and one message. Awaits its completions with a deadline.
#include <asyncverbs/asyncverbs.hpp>

#include <chrono>
#include <cstdio>
#include <exception>
#include <stop_token>

namespace {

using namespace asyncverbs;

// Ends a wait after a second.
Task<> stop_late(EpollExecutor& loop, std::stop_source deadline) {
    co_await loop.sleep_for(std::chrono::seconds(1), deadline.get_token());
    deadline.request_stop();
}

Task<> exchange(EpollExecutor& loop) {
    const ProtectionDomain domain(Context::open());
    const MemoryRegion memory = MemoryRegion::allocate(domain, 128);
    AsyncCq cq = AsyncCq::create(domain.context(), 64, loop);
    QueuePair sender(domain, cq.completion_queue(), cq.completion_queue());
    QueuePair receiver(domain, cq.completion_queue(), cq.completion_queue());
    sender.connect(receiver.local_address());
    receiver.connect(sender.local_address());
    receiver.post_recv(1, memory.slice(64, 64));
    sender.post_send(2, memory.slice(0, 64));
    const std::stop_source deadline;
    Scope scope;
    scope.spawn(stop_late(loop, deadline));
    ibv_wc wcs[4];
    for (const ibv_wc& wc : co_await cq.poll(wcs, deadline.get_token())) {
        std::printf("%u bytes\n", wc.byte_len);
    }
}

} // namespace

int main() try {
    EpollExecutor loop;
    loop.run(exchange(loop));
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
