// SPDX-License-Identifier: MIT
#pragma once

#include <liburing.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <system_error>
#include <utility>

#include <asyncverbs/adapters/detail/io_uring_requests.hpp>
#include <asyncverbs/executor/detail/awaiters.hpp>
#include <asyncverbs/executor/detail/run_queue.hpp>

namespace asyncverbs::detail {

/// What an IoUringPoller, its notifiers and their operations share: the requests on the ring, and
/// the work that is not started by a notifier's descriptor: timeouts, stops, cancelled waits. It
/// lives as long as any of them.
class IoUringLoop final : public RunQueue, public std::enable_shared_from_this<IoUringLoop> {
public:
    IoUringLoop(io_uring& ring, std::uint16_t tag)
        : requests(ring, tag), signalled_(*this, event_.get(), IoUringTrigger::edge),
          expired_(*this, timers_.fd(), IoUringTrigger::edge),
          iteration_(*this, -1, IoUringTrigger::iteration) {
        for (const Waker* waker : {&signalled_, &expired_}) {
            if (const int error = requests.arm(waker->index)) {
                throw std::system_error(error, std::system_category(), "io_uring_submit");
            }
        }
    }

    IoUringRequests requests;

    /// Handles a completion of the ring. Returns whether it is the adapter's.
    bool complete(const io_uring_cqe& cqe) {
        requests.retry();
        if (!requests.owns(cqe)) return false;
        if (IoUringHandler* const handler = requests.take(cqe)) {
            // If the program cancelled a request that is not its own, look again.
            handler->on_event(cqe.res >= 0 || cqe.res == -ECANCELED ? 0 : -cqe.res);
        }
        return true;
    }

    /// Starts to poll the descriptor of a registration. Returns 0 or an errno.
    int arm(std::uint32_t index) noexcept {
        if (failure_ != 0) return failure_;
        const int error = requests.arm(index);
        signal_to_retry();
        return error;
    }

    void remove(std::uint32_t index) noexcept {
        requests.remove(index);
        signal_to_retry();
    }

private:
    /// A request that starts an iteration.
    struct Waker final : IoUringHandler {
        Waker(IoUringLoop& owner, int descriptor, IoUringTrigger trigger)
            : loop(owner), fd(descriptor), index(owner.requests.add(*this, descriptor, trigger)) {}
        void on_event(int error) override { loop.iterate(*this, error); }
        void on_failure(int) noexcept override {}

        IoUringLoop& loop;
        const int fd;
        const std::uint32_t index;
    };

    void iterate(const Waker& waker, int error);
    void request_iteration() noexcept override {
        if (requests.arm(iteration_.index) != 0 || requests.must_retry()) signal();
    }
    void signal_to_retry() noexcept {
        if (requests.must_retry()) signal();
    }

    int failure_ = 0; // the errno of a waker that cannot work any more
    Waker signalled_;
    Waker expired_;
    // Not a write to event_: its completion could come within the iteration that requests it, which
    // would then never end.
    Waker iteration_;
};

inline void IoUringLoop::iterate(const Waker& waker, int error) {
    const std::shared_ptr<IoUringLoop> keep_alive = shared_from_this();
    if (waker.fd >= 0) {
        // Edges do not need it, but without multishot polls the fd would stay readable.
        std::uint64_t ignored = 0;
        [[maybe_unused]] const auto size = ::read(waker.fd, &ignored, sizeof ignored);
        if (error == 0) error = requests.arm(waker.index);
        if (error != 0 && failure_ == 0) {
            // Without it, stops and timeouts would be missed: fail all waits.
            failure_ = error;
            requests.fail(error);
        }
    }
    signal_to_retry();
    if (&waker == &expired_) {
        expire_timers();
        timers_.arm();
    }
    run_ready([] { return false; });
}

/// A file descriptor that is polled by the ring.
class IoUringRegistration final : public Registration, IoUringHandler {
public:
    IoUringRegistration(const std::shared_ptr<IoUringLoop>& loop, int fd, IoUringTrigger trigger)
        : Registration(loop, fd, trigger == IoUringTrigger::edge), ring_(*loop),
          index_(ring_.requests.add(*this, fd, trigger)) {}
    ~IoUringRegistration() { ring_.remove(index_); }

    /// The completion of its poll may be behind that of the timer.
    bool is_readable() const noexcept override {
        pollfd fd{fd_, POLLIN, 0};
        return ::poll(&fd, 1, 0) > 0;
    }

private:
    int watch() noexcept override { return ring_.arm(index_); }

    void on_event(int error) override {
        if (waiter_ == nullptr) {
            // If the poll has ended, the next one finds what is readable then.
            if (error == 0) pending_edge_ = ring_.requests.armed(index_);
            return;
        }
        Waiter& waiter = *waiter_;
        waiter.unlink();
        waiter.error = error;
        waiter.run(waiter); // may destroy this
    }
    void on_failure(int error) noexcept override {
        if (waiter_ != nullptr) ring_.RunQueue::complete(*waiter_, error);
    }

    IoUringLoop& ring_; // the base class keeps it alive
    const std::uint32_t index_;
};

} // namespace asyncverbs::detail
