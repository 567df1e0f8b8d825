// SPDX-License-Identifier: MIT
// Two queue pairs, one message, whose completions are awaited.
#include <asyncverbs/asyncverbs.hpp>

#include <cstdio>

namespace {

using namespace asyncverbs;

Task<> receive(EpollExecutor& loop) {
    const ProtectionDomain domain(Context::open());
    const MemoryRegion memory = MemoryRegion::allocate(domain, 128);
    ibv_sge from = memory.slice(0, 64).sge();
    ibv_sge to = memory.slice(64, 64).sge();
    AsyncCq cq = AsyncCq::create(domain.context(), 64, loop);
    QueuePair sender(domain, cq.completion_queue(), cq.completion_queue());
    QueuePair receiver(domain, cq.completion_queue(), cq.completion_queue());
    sender.connect(receiver.local_address());
    receiver.connect(sender.local_address());
    ibv_recv_wr receive{.wr_id = 1, .next = nullptr, .sg_list = &to, .num_sge = 1};
    receiver.post_recv(receive);
    ibv_send_wr send{};
    send.sg_list = &from;
    send.num_sge = 1;
    sender.post_send(send);
    ibv_wc wcs[4];
    for (const ibv_wc& wc : co_await cq.poll(wcs)) std::printf("%u bytes\n", wc.byte_len);
}

} // namespace

int main() try {
    EpollExecutor loop;
    loop.run(receive(loop));
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
