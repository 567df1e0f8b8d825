// SPDX-License-Identifier: MIT
// Completions in Asio's event loop: Asio's coroutines await them like a timer or a socket, with
// async_poll() and any completion token. Alice sends a message every 20 ms, Bob receives until he
// is cancelled, both on one thread.
#include <asyncverbs/adapters/asio.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

#include <asio/awaitable.hpp>
#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <asio/redirect_error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <span>
#include <stdexcept>
#include <system_error>

using namespace asyncverbs;

namespace {

// One side of the conversation: a queue pair, its completion queue, and memory for a text.
struct Side {
    Side(asio::io_context& io, const ProtectionDomain& domain, const Slice& room)
        : cq(io, domain.context(), 16), text(room),
          queue_pair(domain, cq.completion_queue(), cq.completion_queue(),
                     {.max_send_wr = 2, .max_recv_wr = 2}) {}

    char* characters() const { return reinterpret_cast<char*>(text.address); }

    AsioCq<> cq;
    Slice text;
    QueuePair queue_pair;
    int received = 0;
};

constexpr int messages = 5;

asio::awaitable<void> sleep() {
    asio::steady_timer timer(co_await asio::this_coro::executor, std::chrono::milliseconds(20));
    co_await timer.async_wait(asio::use_awaitable);
}

void check(std::span<const ibv_wc> completions) {
    for (const ibv_wc& wc : completions) {
        if (wc.status != IBV_WC_SUCCESS) throw std::system_error(make_wc_error(wc.status));
    }
}

asio::awaitable<void> send_all(Side& alice, Side& bob) {
    std::array<ibv_wc, 1> wcs;
    for (int i = 1; i <= messages; ++i) {
        co_await sleep();
        std::snprintf(alice.characters(), alice.text.length, "message %d of %d", i, messages);
        alice.queue_pair.post_send(1, alice.text);
        check(co_await async_poll(alice.cq, wcs, asio::use_awaitable));
    }
    while (bob.received < messages) co_await sleep();
    bob.cq.cancel();
}

asio::awaitable<void> receive_all(Side& bob) {
    std::array<ibv_wc, 1> wcs;
    for (;;) {
        bob.queue_pair.post_recv(2, bob.text);
        std::error_code error;
        check(co_await async_poll(bob.cq, wcs, asio::redirect_error(asio::use_awaitable, error)));
        if (error == asio::error::operation_aborted) break;
        if (error) throw std::system_error(error, "async_poll");
        std::printf("received: %s\n", bob.characters());
        ++bob.received;
    }
    std::printf("stopped while waiting for one more\n");
}

void run() {
    const char* device = std::getenv("RDMA_DEVICE");
    const ProtectionDomain domain(Context::open(device != nullptr ? device : ""));
    std::array<std::byte, 64> bytes{};
    const MemoryRegion memory(domain, bytes);

    asio::io_context io(1);
    Side alice(io, domain, memory.slice(0, 32));
    Side bob(io, domain, memory.slice(32));
    alice.queue_pair.connect(bob.queue_pair.local_address());
    bob.queue_pair.connect(alice.queue_pair.local_address());

    const auto rethrow = [](const std::exception_ptr& error) {
        if (error) std::rethrow_exception(error);
    };
    asio::co_spawn(io, receive_all(bob), rethrow);
    asio::co_spawn(io, send_all(alice, bob), rethrow);
    io.run();
}

} // namespace

int main() try {
    run();
    if (std::fflush(stdout) != 0) throw std::runtime_error("standard output cannot be written");
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
