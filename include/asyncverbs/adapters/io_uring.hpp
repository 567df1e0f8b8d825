// SPDX-License-Identifier: MIT
// Waits for file descriptors on an io_uring that a program already has: its loop hands over the
// completions that are not its own. Needs liburing; link asyncverbs::io_uring.
#pragma once

#include <liburing.h>

#include <cassert>
#include <chrono>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <utility>

#include <asyncverbs/adapters/detail/io_uring_loop.hpp>
#include <asyncverbs/adapters/detail/io_uring_readable.hpp>
#include <asyncverbs/coro/detail/deadline.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>

namespace asyncverbs {

class IoUringNotifier;

/// Makes the loop of a ring one in which completion queues are awaited.
///
///     io_uring ring;                                 // yours
///     IoUringPoller poller(ring);
///     AsyncCq cq = AsyncCq::create(context, 64, poller);
///     for (;;) {                                     // your loop
///         io_uring_submit_and_wait(&ring, 1);
///         io_uring_cqe* next;
///         while (io_uring_peek_cqe(&ring, &next) == 0) {
///             const io_uring_cqe cqe = *next;
///             io_uring_cqe_seen(&ring, next);
///             if (!poller.complete(cqe)) handle(cqe); // one of yours
///         }
///     }
///
/// It queues its requests in the ring and leaves it to the loop to submit them. There are two while
/// nobody waits, by which stop tokens and timeouts wake the loop; a notifier has one more. Where
/// the submission queue is full, it submits; so it does when a notifier is destroyed. Hence nothing
/// of the adapter is to be used between the requests of a chain (IOSQE_IO_LINK).
///
/// A kernel without multishot poll, before 5.13, costs a request per wait. What the kernel refuses,
/// such as IORING_OP_POLL_ADD on a ring whose restrictions exclude it, is the error of readable().
/// Works with IORING_SETUP_SQPOLL, SINGLE_ISSUER and DEFER_TASKRUN, too.
///
/// Thread: everything on the thread that runs the ring's loop, or on any one thread while nobody
/// runs it, as far as the ring permits; only stop tokens cross threads. A waiting coroutine is
/// resumed by complete().
/// Lifetime: the ring must outlive the poller: destroy it before io_uring_queue_exit(3). Notifiers
/// may outlive it; a coroutine that waits then is never resumed, and later waits give
/// errc::bad_file_descriptor. The kernel is given no address of the adapter's.
class IoUringPoller {
public:
    /// In the highest 16 bits of the user_data of each request.
    static constexpr std::uint16_t default_tag = 0x6176;

    /// On `ring`, which io_uring_queue_init(3) has set up. No user_data of your own may have `tag`
    /// in its highest 16 bits; pointers and small numbers have 0 there.
    /// Throws std::system_error: invalid_argument for the tags 0 and 0xffff, bad_file_descriptor
    /// for an io_uring of zeros, whose initialisation must have failed, not_supported for one with
    /// IORING_SETUP_IOPOLL; else the error of eventfd, timerfd_create or, where the submission
    /// queue is full, io_uring_submit.
    explicit IoUringPoller(io_uring& ring, std::uint16_t tag = default_tag)
        : loop_(std::make_shared<detail::IoUringLoop>(ring, tag)) {}
    IoUringPoller(const IoUringPoller&) = delete;
    IoUringPoller& operator=(const IoUringPoller&) = delete;

    /// Cancels its requests. Their last completions, which have the tag, are to be ignored.
    ~IoUringPoller() { loop_->requests.close(); }

    /// To be called for each completion of the ring. False: it is not the adapter's. Resumes the
    /// coroutine that waits for it, and lets escape what that throws; `cqe` is not used afterwards,
    /// and one that is handed over twice does no harm.
    bool complete(const io_uring_cqe& cqe) { return loop_->complete(cqe); }

    /// For any file descriptor that can be polled: what is not read wakes again. A request per
    /// wait.
    IoUringNotifier notifier(int fd);

    /// For a channel: each event wakes once, read or not. No request per wait, but one multishot
    /// poll. For whoever reads at least one event per wake, as AsyncCq does.
    IoUringNotifier notifier(const CompletionChannel& channel);

private:
    friend IoUringNotifier;

    std::shared_ptr<detail::IoUringLoop> loop_;
};

/// Tells when a file descriptor is readable. Models TimedCqNotifier.
///
/// Thread: as IoUringPoller. Lifetime: the fd is not owned and must stay open until the notifier is
/// destroyed. Movable at any time; a moved-from notifier can only be assigned to or destroyed.
class IoUringNotifier {
public:
    /// An awaitable of std::error_code: {} when the fd is readable, has an error or was hung up;
    /// errc::operation_canceled when `stop` was requested first, from any thread, or the notifier
    /// was destroyed; errc::device_or_resource_busy when another readable() is outstanding; else
    /// why the kernel cannot poll, such as errc::bad_file_descriptor. A wake may be spurious.
    ///
    /// Destroying the suspended coroutine cancels the wait. No allocation; no system call unless
    /// something came while nobody waited.
    [[nodiscard]] detail::IoUringReadableOperation readable(std::stop_token stop = {}) {
        return wait(detail::Deadline::never, std::move(stop));
    }

    /// The same, with errc::timed_out when `max_wait` has passed since the call. Zero or less comes
    /// back after one turn of the loop. A timeout that is earlier than those before costs a system
    /// call, and so does one that has passed.
    [[nodiscard]] detail::IoUringReadableOperation readable(std::stop_token stop,
                                                            std::chrono::nanoseconds max_wait) {
        return wait(detail::Deadline::after(max_wait), std::move(stop));
    }

    /// The file descriptor.
    int native_handle() const noexcept { return registration_->fd(); }

private:
    friend IoUringPoller;

    IoUringNotifier(const IoUringPoller& poller, int fd, detail::IoUringTrigger trigger)
        : registration_(std::make_unique<detail::IoUringRegistration>(poller.loop_, fd, trigger)) {}

    detail::IoUringReadableOperation wait(detail::Deadline::Clock::time_point deadline,
                                          std::stop_token stop) noexcept {
        assert(registration_ && "asyncverbs: a moved-from IoUringNotifier");
        return {*registration_, deadline, std::move(stop)};
    }

    // On the heap: who waits refers to it by address.
    std::unique_ptr<detail::IoUringRegistration> registration_;
};

inline IoUringNotifier IoUringPoller::notifier(int fd) {
    return {*this, fd, detail::IoUringTrigger::level};
}

inline IoUringNotifier IoUringPoller::notifier(const CompletionChannel& channel) {
    return {*this, channel.fd(), detail::IoUringTrigger::edge};
}

} // namespace asyncverbs
