// SPDX-License-Identifier: MIT
// Completions in GLib's main loop, as in a program with GTK or GStreamer: its timers, its signals
// and the coroutines run on one thread. GlibNotifier is all that an AsyncCq needs to wait in it.
#include "glib_notifier.hpp"

#include "../conversation.hpp"

#include <glib.h>

#include <coroutine>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <utility>

using namespace asyncverbs;

namespace {

// `co_await Sleep{milliseconds}`: a timer of GLib, beside the notifier.
struct Sleep {
    bool await_ready() const { return false; }
    void await_suspend(std::coroutine_handle<> waiting) const {
        const auto resume = [](gpointer address) -> gboolean {
            std::coroutine_handle<>::from_address(address).resume();
            return G_SOURCE_REMOVE;
        };
        g_timeout_add(duration, resume, waiting.address());
    }
    void await_resume() const {}
    guint duration;
};

void run() {
    const ProtectionDomain domain(conversation::open_device());
    GMainContext* const context = g_main_context_default();
    CompletionQueue queue(domain.context(), 16);
    const GlibNotifier notifier(context, queue.channel().fd());
    Router router(AsyncCq(std::move(queue), notifier));

    const auto pause = [] { return Sleep{10}; };
    const conversation::Running task(conversation::converse(domain, router, pause));
    while (!task.done()) g_main_context_iteration(context, TRUE);
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
