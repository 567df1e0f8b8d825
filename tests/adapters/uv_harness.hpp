// SPDX-License-Identifier: MIT
// A harness for the conformance suite: the libuv notifier of the example.
#pragma once

#include <uv.h>

#include <chrono>
#include <cstdint>
#include <exception>

#include "13_libuv/uv_notifier.hpp"

namespace asyncverbs::support {

struct UvHarness {
    UvHarness() {
        uv_loop_init(&loop);
        uv_timer_init(&loop, &timer);
    }
    UvHarness(const UvHarness&) = delete;
    UvHarness& operator=(const UvHarness&) = delete;
    // One iteration frees the handles of the notifiers.
    ~UvHarness() {
        uv_close(reinterpret_cast<uv_handle_t*>(&timer), nullptr);
        uv_run(&loop, UV_RUN_NOWAIT);
        if (uv_loop_close(&loop) != 0) std::terminate();
    }

    UvNotifier notifier(int fd) { return {&loop, fd}; }

    void run_once(std::chrono::milliseconds at_most) {
        if (at_most.count() == 0) {
            uv_run(&loop, UV_RUN_NOWAIT);
            return;
        }
        uv_update_time(&loop);
        // It repeats: libuv may run it before it waits, which would then have no end.
        const auto time = static_cast<std::uint64_t>(at_most.count());
        uv_timer_start(&timer, [](uv_timer_t*) {}, time, time);
        uv_run(&loop, UV_RUN_ONCE);
        uv_timer_stop(&timer);
    }

    uv_loop_t loop;
    uv_timer_t timer;
};

} // namespace asyncverbs::support
