// SPDX-License-Identifier: MIT
// Two queue pairs, one message, whose send and receive are awaited.
#include <asyncverbs/rdma.hpp>

#include <cstdio>

namespace {

using namespace asyncverbs;

Task<> receive(AsyncQp& qp, Slice into) {
    const Completion completion = co_await qp.recv(into);
    std::printf("%zu bytes\n", static_cast<std::size_t>(completion.bytes()));
}

Task<> exchange(EpollExecutor& loop) {
    const Context context = Context::open();
    const ProtectionDomain domain(context);
    const MemoryRegion memory = MemoryRegion::allocate(domain, 128);
    Router router = Router::create(context, 64, loop);
    AsyncQp sender(router, domain);
    AsyncQp receiver(router, domain);
    sender.queue_pair().connect(receiver.queue_pair().local_address());
    receiver.queue_pair().connect(sender.queue_pair().local_address());
    Scope scope;
    scope.spawn(receive(receiver, memory.slice(64, 64)));
    co_await sender.send(memory.slice(0, 64));
    co_await scope.join();
}

} // namespace

int main() try {
    EpollExecutor loop;
    loop.run(exchange(loop));
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
