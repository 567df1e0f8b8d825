// SPDX-License-Identifier: MIT
// The notifiers of this library conform.
#include <asyncverbs/testing/notifier_conformance.hpp>

#include <asyncverbs/core/epoll_executor.hpp>

#include <poll.h>

#include <chrono>
#include <memory>
#include <stop_token>
#include <utility>

#include "03_poll_loop_notifier/poll_notifier.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;

namespace {

struct PollHarness {
    PollNotifier notifier(int fd) { return PollNotifier(loop, fd); }
    void turn(std::chrono::milliseconds at_most) {
        loop.run_once(static_cast<int>(at_most.count()));
    }
    PollLoop loop;
};

// Sleeps as a foreign loop does in which the executor is embedded.
void sleep_until_readable(int epoll_fd, std::chrono::milliseconds at_most) {
    pollfd fd{epoll_fd, POLLIN, 0};
    ::poll(&fd, 1, static_cast<int>(at_most.count()));
}

struct EpollHarness {
    EpollNotifier notifier(int fd) { return executor.notifier(fd); }
    void turn(std::chrono::milliseconds at_most) {
        sleep_until_readable(executor.native_handle(), at_most);
        executor.run_once();
    }
    EpollExecutor executor;
};

// A turn that never sleeps.
struct BusyHarness {
    EpollNotifier notifier(int fd) { return executor.notifier(fd); }
    void turn(std::chrono::milliseconds) { executor.run_once(); }
    EpollExecutor executor;
};

// EpollNotifier waits for an edge with a completion channel alone; this is the same for any fd.
class EdgeNotifier {
public:
    EdgeNotifier(std::shared_ptr<detail::EpollLoop> loop, int fd)
        : registration_(std::make_unique<detail::EpollRegistration>(std::move(loop), fd,
                                                                    detail::EpollTrigger::edge)) {}
    detail::EpollReadableOperation readable(std::stop_token stop) {
        return {*registration_, detail::Deadline::never, std::move(stop)};
    }
    detail::EpollReadableOperation readable(std::stop_token stop, std::chrono::nanoseconds bound) {
        return {*registration_, detail::Deadline::after(bound), std::move(stop)};
    }

private:
    std::unique_ptr<detail::EpollRegistration> registration_;
};
static_assert(TimedCqNotifier<EdgeNotifier>);

struct EdgeHarness {
    static constexpr bool edge_triggered = true;
    EdgeNotifier notifier(int fd) { return EdgeNotifier(loop, fd); }
    void turn(std::chrono::milliseconds at_most) {
        sleep_until_readable(loop->epoll_fd(), at_most);
        const detail::EpollLoop::Running running(*loop);
        loop->turn(false);
    }
    ~EdgeHarness() { loop->discard_all(); }
    std::shared_ptr<detail::EpollLoop> loop = std::make_shared<detail::EpollLoop>();
};

} // namespace

TEMPLATE_TEST_CASE("Conformance:", "[conformance]", PollHarness, EpollHarness, BusyHarness,
                   EdgeHarness) {
    for (const ConformanceCase& each : notifier_cases<TestType>()) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
}
