// SPDX-License-Identifier: MIT
// The shortest example: two queue pairs of one process, a message from alice to bob, and a
// coroutine that awaits its arrival. The device is the one that RDMA_DEVICE names, else the first
// active one.

// [readme:hello]
#include <asyncverbs/asyncverbs.hpp>
#include <cstdio>

asyncverbs::Task<> hello(asyncverbs::EpollExecutor& loop, const char* device) {
    const asyncverbs::ProtectionDomain domain(asyncverbs::Context::open(device ? device : ""));
    char text[2][16] = {"Hello, Bob!"};
    const asyncverbs::MemoryRegion memory(domain, std::as_writable_bytes(std::span(text)));
    auto cq = asyncverbs::AsyncCq::create(domain.context(), 64, loop);
    asyncverbs::QueuePair alice(domain, cq.completion_queue(), cq.completion_queue());
    asyncverbs::QueuePair bob(domain, cq.completion_queue(), cq.completion_queue());
    alice.connect(bob.local_address());
    bob.connect(alice.local_address());
    bob.post_recv(1, memory.slice(16, 16));
    alice.post_send(2, memory.slice(0, 16), 0); // 0: unsignaled, so only the receive completes
    for (ibv_wc wcs[4]; const ibv_wc& wc : co_await cq.poll(wcs)) {
        if (wc.status != 0) throw std::system_error(asyncverbs::make_wc_error(wc.status));
        std::printf("Bob received %u bytes: %s\n", wc.byte_len, text[1]);
    }
}

int main() try {
    asyncverbs::EpollExecutor loop;
    loop.run(hello(loop, std::getenv("RDMA_DEVICE")));
    if (std::fflush(stdout) != 0) throw std::runtime_error("standard output cannot be written");
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
// [/readme:hello]
