// SPDX-License-Identifier: MIT
// Completions in GLib's main loop, as in a program with GTK or GStreamer: its timers, its signals
// and the coroutines run on one thread. GlibNotifier is all that an AsyncCq needs to wait in it.
#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

#include <glib.h>

#include <array>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <stop_token>
#include <system_error>
#include <thread>
#include <utility>

#include "glib_notifier.hpp"

using namespace asyncverbs;

namespace {

constexpr int messages = 5;
constexpr std::size_t size = 64; // of each

// The program's main loop, and the exception that ended it.
struct Main {
    ~Main() { g_main_loop_unref(loop); }

    void run() {
        if (!ended) g_main_loop_run(loop);
        if (error) std::rethrow_exception(error);
    }
    void end(std::exception_ptr reason = nullptr) noexcept {
        ended = true;
        error = std::move(reason);
        g_main_loop_quit(loop);
    }

    GMainLoop* loop = g_main_loop_new(nullptr, FALSE);
    bool ended = false;
    std::exception_ptr error;
};

// A timer of GLib that sends a message each time it fires.
struct Sender {
    static gboolean on_tick(gpointer data) {
        auto& self = *static_cast<Sender*>(data);
        const Slice text = self.memory.slice(size * static_cast<std::size_t>(self.sent), size);
        std::snprintf(reinterpret_cast<char*>(text.address), text.length, "message %d of %d",
                      ++self.sent, messages);
        try {
            self.queue_pair.post_send(1, text);
        } catch (...) { // GLib is C: an exception must not pass through it
            self.main.end(std::current_exception());
            return G_SOURCE_REMOVE;
        }
        return self.sent < messages ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
    }

    Main& main;
    QueuePair& queue_pair;
    const MemoryRegion& memory;
    int sent = 0;
};

// Prints what arrives until it is stopped, by another thread after the last message.
Task<> receive_all(QueuePair& queue_pair, AsyncCq& cq, Slice text) {
    std::stop_source stop;
    std::jthread other;
    std::array<ibv_wc, 4> wcs;
    std::error_code error;
    queue_pair.post_recv(1, text);
    for (int received = 0; !error;) {
        for (const ibv_wc& wc : co_await cq.poll(wcs, error, stop.get_token())) {
            if (wc.status != IBV_WC_SUCCESS) throw std::system_error(make_wc_error(wc.status));
            if (wc.opcode != IBV_WC_RECV) continue; // a send
            std::printf("received: %s\n", reinterpret_cast<const char*>(text.address));
            queue_pair.post_recv(1, text);
            if (++received == messages) other = std::jthread([&stop] { stop.request_stop(); });
        }
    }
    if (error != std::errc::operation_canceled) throw std::system_error(error);
    std::printf("stopped while waiting for one more\n");
}

Task<> run_to_end(Task<> task, Main& main) {
    try {
        co_await std::move(task);
        main.end();
    } catch (...) {
        main.end(std::current_exception());
    }
}

void run() {
    const char* device = std::getenv("RDMA_DEVICE");
    const Context context = Context::open(device != nullptr ? device : "");
    const ProtectionDomain domain(context);
    std::array<std::byte, size*(messages + 1)> bytes{};
    const MemoryRegion memory(domain, bytes);

    Main main;
    CompletionQueue queue(context, 64);
    const GlibNotifier notifier(g_main_loop_get_context(main.loop), queue.channel().fd());
    AsyncCq cq(std::move(queue), notifier);
    QueuePairOptions options;
    options.max_send_wr = options.max_recv_wr = 8;
    QueuePair alice(domain, cq.completion_queue(), cq.completion_queue(), options);
    QueuePair bob(domain, cq.completion_queue(), cq.completion_queue(), options);
    alice.connect(bob.local_address());
    bob.connect(alice.local_address());

    Sender sender{main, alice, memory};
    g_timeout_add(10, &Sender::on_tick, &sender);
    Scope scope;
    scope.spawn(run_to_end(receive_all(bob, cq, memory.slice(size * messages)), main));
    main.run();
}

} // namespace

int main() try {
    run();
    if (std::fflush(stdout) != 0) throw std::runtime_error("standard output cannot be written");
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
