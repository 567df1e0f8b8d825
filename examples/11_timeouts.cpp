// SPDX-License-Identifier: MIT
// timeouts: a receive with a time limit, awaited again after it; and the first of two events, which
// ends the other. Both queue pairs are in this process. The device is the one that RDMA_DEVICE
// names, else the first active one.
#include <asyncverbs/executor/with_timeout.hpp>
#include <asyncverbs/rdma.hpp>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <stop_token>
#include <system_error>
#include <utility>

using namespace asyncverbs;
using namespace std::chrono_literals;

namespace {

struct Ends {
    Ends(EpollExecutor& loop, const Context& context)
        : domain(context), memory(MemoryRegion::allocate(domain, 64)),
          router(Router::create(context, 64, loop)), alice(router, domain), bob(router, domain) {
        alice.queue_pair().connect(bob.queue_pair().local_address());
        bob.queue_pair().connect(alice.queue_pair().local_address());
    }

    ProtectionDomain domain;
    MemoryRegion memory;
    Router router;
    AsyncQp alice;
    AsyncQp bob;
};

// The time limit ends the wait, not the receive: a message that comes later still arrives in it.
// To give up, destroy the Operation. The buffer belongs to the device until the completion.
Task<> receive_patiently(EpollExecutor& loop, Ends& ends) {
    Operation receive = ends.bob.post_recv(ends.memory.slice(0, 32));
    const auto arrival = [&](std::stop_token stop) { return receive.wait(std::move(stop)); };
    for (bool arrived = false; !arrived;) {
        try {
            const Completion message = co_await with_timeout(loop, 50ms, arrival);
            std::printf("a message of %u bytes\n", message.bytes());
            arrived = true;
        } catch (const std::system_error& error) {
            if (error.code() != std::errc::timed_out) throw;
            std::printf("no message within 50 ms\n");
        }
        if (!arrived) co_await ends.alice.send(ends.memory.slice(32, 5));
    }
}

Task<> await_message(Operation& receive, std::stop_source& decided) {
    std::error_code error;
    co_await receive.wait(error, decided.get_token());
    if (!error) std::printf("the message was first\n");
    decided.request_stop();
}

Task<> await_time(EpollExecutor& loop, std::stop_source& decided) {
    const std::error_code error = co_await loop.sleep_for(50ms, decided.get_token());
    if (!error) std::printf("the timer was first\n");
    decided.request_stop();
}

// Both coroutines get the same stop token, and the first one that ends requests the stop.
Task<> first_of_two(EpollExecutor& loop, Ends& ends) {
    Operation receive = ends.bob.post_recv(ends.memory.slice(0, 32));
    std::stop_source decided;
    co_await when_all(await_message(receive, decided), await_time(loop, decided));
}

Task<> play(EpollExecutor& loop) {
    const char* device = std::getenv("RDMA_DEVICE");
    Ends ends(loop, Context::open(device != nullptr ? device : ""));
    co_await receive_patiently(loop, ends);
    co_await first_of_two(loop, ends);
}

} // namespace

int main() try {
    EpollExecutor loop;
    loop.run(play(loop));
    if (std::fflush(stdout) != 0) throw std::runtime_error("standard output cannot be written");
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
