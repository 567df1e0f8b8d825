// SPDX-License-Identifier: MIT
// Harnesses for the conformance suite: level- and edge-triggered io_uring notifiers, on rings with
// several flags and as on a kernel without multishot polls.
#pragma once

#include <asyncverbs/adapters/io_uring.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>

#include <chrono>
#include <cstdio>
#include <memory>
#include <system_error>

#include "adapters/edge_notifier.hpp"
#include "adapters/ring.hpp"

namespace asyncverbs::support {

template <unsigned Flags>
struct LevelHarness {
    static constexpr unsigned flags = Flags;

    IoUringNotifier notifier(int fd) { return poller.notifier(fd); }
    void run_once(std::chrono::milliseconds at_most) { ring.run_once(poller, at_most); }

    Ring ring{16, Flags};
    IoUringPoller poller{ring.get()};
};

template <unsigned Flags>
struct EdgeHarness {
    static constexpr unsigned flags = Flags;
    static constexpr bool edge_triggered = true;

    ~EdgeHarness() { loop->requests.close(); }
    EdgeNotifier notifier(int fd) { return {loop, fd}; }
    void run_once(std::chrono::milliseconds at_most) { ring.run_once(*loop, at_most); }

    Ring ring{16, Flags};
    std::shared_ptr<detail::IoUringLoop> loop =
        std::make_shared<detail::IoUringLoop>(ring.get(), IoUringPoller::default_tag);
};

// Linux before 5.13 refuses all flags of a poll. This one adds a flag that every kernel refuses.
struct OldKernelHarness : EdgeHarness<0> {
    void run_once(std::chrono::milliseconds at_most) {
        const io_uring_sq& queue = ring.get().sq;
        for (unsigned i = queue.sqe_head; i != queue.sqe_tail; ++i) {
            io_uring_sqe& sqe = queue.sqes[i & queue.ring_mask];
            if (sqe.opcode == IORING_OP_POLL_ADD && sqe.len == IORING_POLL_ADD_MULTI) {
                sqe.len |= 1U << 31;
            }
        }
        EdgeHarness::run_once(at_most);
    }
};

inline constexpr unsigned deferred = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;

inline bool kernel_has(unsigned flags) {
    try {
        const Ring ring(16, flags);
        return true;
    } catch (const std::system_error& error) {
        std::printf("skipped: rings with the flags %#x: %s\n", flags, error.what());
        return false;
    }
}

} // namespace asyncverbs::support
