// SPDX-License-Identifier: MIT
// Harnesses for the conformance suite: EpollExecutor, alone and within another loop, and the
// poll(2) loop of the example.
#pragma once

#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/testing/notifier_conformance.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>

#include <poll.h>

#include <chrono>
#include <memory>
#include <stop_token>
#include <utility>

#include "03_poll_loop_notifier/poll_notifier.hpp"

namespace asyncverbs::support {

struct PollHarness {
    PollNotifier notifier(int fd) { return PollNotifier(loop, fd); }
    void run_once(std::chrono::milliseconds at_most) {
        loop.run_once(static_cast<int>(at_most.count()));
    }
    PollLoop loop;
};

inline void sleep_until_readable(int epoll_fd, std::chrono::milliseconds at_most) {
    pollfd fd{epoll_fd, POLLIN, 0};
    ::poll(&fd, 1, static_cast<int>(at_most.count()));
}

// The executor embedded in another loop, which sleeps on its behalf.
struct EpollHarness {
    EpollNotifier notifier(int fd) { return executor.notifier(fd); }
    EpollNotifier notifier(const CompletionChannel& channel) { return executor.notifier(channel); }
    void run_once(std::chrono::milliseconds at_most) {
        sleep_until_readable(executor.native_handle(), at_most);
        executor.run_once();
    }
    EpollExecutor executor;
};

// A loop that never sleeps. It has no notifier(channel), so that channels are level-triggered, too.
struct BusyHarness {
    EpollNotifier notifier(int fd) { return executor.notifier(fd); }
    void run_once(std::chrono::milliseconds) { executor.run_once(); }
    EpollExecutor executor;
};

// EpollNotifier is edge-triggered for completion channels only; this one is for any fd.
class EdgeNotifier {
public:
    EdgeNotifier(std::shared_ptr<detail::EpollLoop> loop, int fd)
        : registration_(std::make_unique<detail::EpollRegistration>(std::move(loop), fd,
                                                                    detail::EpollTrigger::edge)) {}
    detail::ReadableOperation readable(std::stop_token stop) {
        return {*registration_, detail::Deadline::never, std::move(stop)};
    }
    detail::ReadableOperation readable(std::stop_token stop, std::chrono::nanoseconds bound) {
        return {*registration_, detail::Deadline::after(bound), std::move(stop)};
    }

private:
    std::unique_ptr<detail::EpollRegistration> registration_;
};
static_assert(TimedCqNotifier<EdgeNotifier>);

struct EdgeHarness {
    static constexpr bool edge_triggered = true;

    EdgeHarness() = default;
    EdgeHarness(const EdgeHarness&) = delete;
    EdgeHarness& operator=(const EdgeHarness&) = delete;
    ~EdgeHarness() { loop->discard_all(); }

    EdgeNotifier notifier(int fd) { return EdgeNotifier(loop, fd); }
    void run_once(std::chrono::milliseconds at_most) {
        sleep_until_readable(loop->epoll_fd(), at_most);
        const detail::EpollLoop::Running running(*loop);
        loop->iterate(false);
    }
    std::shared_ptr<detail::EpollLoop> loop = std::make_shared<detail::EpollLoop>();
};

} // namespace asyncverbs::support
