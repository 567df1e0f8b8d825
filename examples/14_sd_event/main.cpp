// SPDX-License-Identifier: MIT
// Completions in sd-event, the loop of systemd and of services that speak D-Bus with sd-bus.
// SdEventNotifier is all that an AsyncCq needs to wait in that loop.
#include "sd_event_notifier.hpp"

#include "../conversation.hpp"

#include <systemd/sd-event.h>

#include <coroutine>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <exception>
#include <memory>
#include <stdexcept>
#include <system_error>
#include <utility>

using namespace asyncverbs;

namespace {

int check(int result, const char* what) {
    if (result < 0) throw std::system_error(-result, std::generic_category(), what);
    return result;
}

// `co_await Sleep(event, microseconds)`: a timer of the loop, beside the notifier.
struct Sleep {
    bool await_ready() const { return false; }
    void await_suspend(std::coroutine_handle<> waiting) const {
        const auto resume = [](sd_event_source*, std::uint64_t, void* address) {
            std::coroutine_handle<>::from_address(address).resume();
            return 0;
        };
        // Without a place for the source, the loop owns it.
        check(sd_event_add_time_relative(event, nullptr, CLOCK_MONOTONIC, duration, 0, resume,
                                         waiting.address()),
              "sd_event_add_time_relative");
    }
    void await_resume() const {}
    sd_event* event;
    std::uint64_t duration;
};

void run() {
    const ProtectionDomain domain(conversation::open_device());
    sd_event* event = nullptr;
    check(sd_event_default(&event), "sd_event_default");
    const std::unique_ptr<sd_event, decltype(&sd_event_unref)> owner(event, &sd_event_unref);
    CompletionQueue queue(domain.context(), 16);
    SdEventNotifier notifier(event, queue.channel().fd());
    Router router(AsyncCq(std::move(queue), std::move(notifier)));

    const auto pause = [event] { return Sleep{event, 10'000}; };
    const conversation::Running task(conversation::converse(domain, router, pause));
    while (!task.done()) check(sd_event_run(event, UINT64_MAX), "sd_event_run");
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
