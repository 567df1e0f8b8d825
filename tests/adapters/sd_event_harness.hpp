// SPDX-License-Identifier: MIT
// A harness for the conformance suite: the sd-event notifier of the example.
#pragma once

#include <systemd/sd-event.h>

#include <chrono>
#include <cstdint>
#include <exception>

#include "14_sd_event/sd_event_notifier.hpp"

namespace asyncverbs::support {

struct SdEventHarness {
    SdEventHarness() {
        if (sd_event_new(&event) < 0) std::terminate();
    }
    SdEventHarness(const SdEventHarness&) = delete;
    SdEventHarness& operator=(const SdEventHarness&) = delete;
    ~SdEventHarness() { sd_event_unref(event); }

    SdEventNotifier notifier(int fd) { return {event, fd}; }

    void run_once(std::chrono::milliseconds at_most) {
        const std::chrono::microseconds bound = at_most;
        if (sd_event_run(event, static_cast<std::uint64_t>(bound.count())) < 0) std::terminate();
    }

    sd_event* event = nullptr;
};

} // namespace asyncverbs::support
