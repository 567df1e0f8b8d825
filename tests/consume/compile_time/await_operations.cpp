// SPDX-License-Identifier: MIT
// Two queue pairs and one message. Awaits the send and the receive; the receive has a deadline.
#include <asyncverbs/rdma.hpp>

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

Task<> receive(AsyncQp& qp, Slice into, std::stop_token deadline) {
    const Completion completion = co_await qp.recv(into, std::move(deadline));
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
    const std::stop_source deadline;
    Scope scope;
    scope.spawn(stop_late(loop, deadline));
    scope.spawn(receive(receiver, memory.slice(64, 64), deadline.get_token()));
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
