// SPDX-License-Identifier: MIT
// Plug in your own loop: a CqNotifier for a bare poll(2) loop, such as many programs have. PollLoop
// stands for the loop that is there already; PollNotifier is what an AsyncCq needs to live in it.
// How such a notifier is tested: conformance.cpp.
#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <optional>
#include <span>
#include <stop_token>
#include <system_error>
#include <thread>
#include <utility>

#include "poll_loop.hpp"
#include "poll_notifier.hpp"

using namespace asyncverbs;

namespace {

// Runs a task in the loop.
Task<> run_to_end(Task<> task, std::optional<std::exception_ptr>& end) {
    try {
        co_await std::move(task);
        end = nullptr;
    } catch (...) {
        end = std::current_exception();
    }
}

void run(PollLoop& loop, Task<> task) {
    std::optional<std::exception_ptr> end;
    Scope scope;
    scope.spawn(run_to_end(std::move(task), end)); // starts it, up to its first wait
    while (!end) loop.run_once();
    if (*end) std::rethrow_exception(*end);
}

// One side of the conversation.
struct Side {
    QueuePair& queue_pair;
    AsyncCq& cq;
    Slice text;
};

constexpr int messages = 5;

Task<> send_all(Side side) {
    std::array<ibv_wc, 1> wcs;
    ibv_sge sge = side.text.sge();
    for (int i = 1; i <= messages; ++i) {
        auto* text = reinterpret_cast<char*>(side.text.address);
        std::snprintf(text, side.text.length, "message %d of %d", i, messages);
        ibv_send_wr request{};
        request.sg_list = &sge;
        request.num_sge = 1;
        request.opcode = IBV_WR_SEND;
        request.send_flags = IBV_SEND_SIGNALED;
        side.queue_pair.post_send(request);
        for (const ibv_wc& wc : co_await side.cq.poll(wcs)) {
            if (wc.status != IBV_WC_SUCCESS) throw std::system_error(make_wc_error(wc.status));
        }
    }
}

// Prints what arrives, until it is stopped.
Task<> receive_all(Side side, std::stop_token stop, std::function<void()> on_last) {
    std::array<ibv_wc, 1> wcs;
    std::error_code error;
    ibv_sge sge = side.text.sge();
    for (int received = 0; !error;) {
        ibv_recv_wr request{1, nullptr, &sge, 1};
        side.queue_pair.post_recv(request);
        for (const ibv_wc& wc : co_await side.cq.poll(wcs, error, stop)) {
            if (wc.status != IBV_WC_SUCCESS) throw std::system_error(make_wc_error(wc.status));
            std::printf("received: %s\n", reinterpret_cast<const char*>(side.text.address));
            if (++received == messages) on_last();
        }
    }
    if (error != std::errc::operation_canceled) throw std::system_error(error);
    std::printf("stopped while waiting for one more\n");
}

Task<> converse(Side alice, Side bob) {
    std::stop_source stop;
    std::jthread other;
    const auto stop_from_another_thread = [&] {
        other = std::jthread([&stop] { stop.request_stop(); });
    };
    Scope scope;
    scope.spawn(receive_all(bob, stop.get_token(), stop_from_another_thread));
    co_await send_all(alice);
    co_await scope.join();
}

AsyncCq make_cq(const Context& context, PollLoop& loop) {
    CompletionQueue cq(context, 16);
    const int fd = cq.channel().fd();
    return AsyncCq(std::move(cq), PollNotifier(loop, fd));
}

void run() {
    const char* device = std::getenv("RDMA_DEVICE");
    const Context context = Context::open(device != nullptr ? device : "");
    const ProtectionDomain domain(context);
    std::array<std::byte, 128> bytes{};
    const MemoryRegion memory(domain, bytes);

    PollLoop loop;
    AsyncCq alice_cq = make_cq(context, loop);
    AsyncCq bob_cq = make_cq(context, loop);
    QueuePairOptions options;
    options.max_send_wr = options.max_recv_wr = 8;
    QueuePair alice(domain, alice_cq.completion_queue(), alice_cq.completion_queue(), options);
    QueuePair bob(domain, bob_cq.completion_queue(), bob_cq.completion_queue(), options);
    alice.connect(bob.local_address());
    bob.connect(alice.local_address());

    run(loop, converse({alice, alice_cq, memory.slice(0, 64)}, {bob, bob_cq, memory.slice(64)}));
}

} // namespace

int main() try { run(); } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
