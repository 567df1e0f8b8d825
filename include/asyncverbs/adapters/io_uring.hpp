// SPDX-License-Identifier: MIT
// Waits for file descriptors on an io_uring that a program already has: the program's loop passes
// completions to the adapter. Needs liburing; link asyncverbs::io_uring.
#pragma once

#include <asyncverbs/requirements.hpp>

#include <liburing.h>

#include <cassert>
#include <chrono>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <utility>

#include <asyncverbs/adapters/detail/io_uring_loop.hpp>
#include <asyncverbs/coro/detail/deadline.hpp>
#include <asyncverbs/executor/detail/awaiters.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>

namespace asyncverbs {

class IoUringNotifier;

/// Lets coroutines wait for completion queues on the loop of an io_uring.
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
/// The poller queues its requests in the ring; your loop submits them. It has two requests by which
/// stop tokens and timeouts wake the loop, and one more per notifier. It submits by itself only if
/// the submission queue is full, and when a notifier is destroyed. So do not use the adapter
/// between the requests of a chain (IOSQE_IO_LINK).
///
/// A kernel without multishot poll, before 5.13, costs a request per wait. If the kernel refuses a
/// request, such as IORING_OP_POLL_ADD on a ring whose restrictions exclude it, readable() gives
/// the error. Works with IORING_SETUP_SQPOLL, SINGLE_ISSUER and DEFER_TASKRUN, too.
///
/// Thread: everything on the thread that runs the ring's loop, or on any one thread while none runs
/// it, as far as the ring permits; only stop tokens cross threads. complete() resumes the waiting
/// coroutines.
/// Lifetime: the ring must outlive the poller: destroy the poller before io_uring_queue_exit(3).
/// Notifiers may outlive the poller; a coroutine that waits then is never resumed, and later waits
/// give errc::bad_file_descriptor. The kernel is given no address of the adapter's.
class IoUringPoller {
public:
    /// In the highest 16 bits of the user_data of each request.
    static constexpr std::uint16_t default_tag = 0x6176;

    /// On `ring`, which io_uring_queue_init(3) has set up. No user_data of your own may have `tag`
    /// in its highest 16 bits; pointers and small numbers have 0 there.
    /// Throws std::system_error: invalid_argument for the tags 0 and 0xffff; bad_file_descriptor
    /// for a zeroed io_uring, whose initialisation must have failed; not_supported for a ring with
    /// IORING_SETUP_IOPOLL; else the error of eventfd, timerfd_create or, if the submission queue
    /// is full, io_uring_submit.
    explicit IoUringPoller(io_uring& ring, std::uint16_t tag = default_tag)
        : loop_(std::make_shared<detail::IoUringLoop>(ring, tag)) {}
    IoUringPoller(const IoUringPoller&) = delete;
    IoUringPoller& operator=(const IoUringPoller&) = delete;

    /// Cancels its requests. Ignore their last completions, which have the tag.
    ~IoUringPoller() { loop_->requests.close(); }

    /// Call it with each completion of the ring. Returns false if the completion is not the
    /// adapter's. Resumes the coroutine that waits for it, and throws what that lets escape. `cqe`
    /// is not used afterwards; passing the same one twice does no harm.
    bool complete(const io_uring_cqe& cqe) { return loop_->complete(cqe); }

    /// For any file descriptor that can be polled: what is not read wakes again. One request per
    /// wait.
    IoUringNotifier notifier(int fd);

    /// For a channel: each event wakes once, read or not. One multishot poll instead of a request
    /// per wait. The reader must read at least one event per wake, as AsyncCq does.
    IoUringNotifier notifier(const CompletionChannel& channel);

private:
    friend IoUringNotifier;

    std::shared_ptr<detail::IoUringLoop> loop_;
};

/// Waits until a file descriptor is readable. Models TimedCqNotifier.
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
    /// the fd became readable while there was no waiter.
    [[nodiscard]] detail::ReadableOperation readable(std::stop_token stop = {}) {
        return wait(detail::Deadline::never, std::move(stop));
    }

    /// The same, with errc::timed_out when `max_wait` has passed since the call. Zero or less
    /// resumes after one iteration of the loop. A timeout that is earlier than those before costs a
    /// system call, and so does one that has passed.
    [[nodiscard]] detail::ReadableOperation readable(std::stop_token stop,
                                                     std::chrono::nanoseconds max_wait) {
        return wait(detail::Deadline::after(max_wait), std::move(stop));
    }

    /// The file descriptor.
    int native_handle() const noexcept { return registration_->fd(); }

private:
    friend IoUringPoller;

    IoUringNotifier(const IoUringPoller& poller, int fd, detail::IoUringTrigger trigger)
        : registration_(std::make_unique<detail::IoUringRegistration>(poller.loop_, fd, trigger)) {}

    detail::ReadableOperation wait(detail::Deadline::Clock::time_point deadline,
                                   std::stop_token stop) noexcept {
        assert(registration_ && "asyncverbs: a moved-from IoUringNotifier");
        return {*registration_, deadline, std::move(stop)};
    }

    // On the heap: a waiting coroutine refers to it by address.
    std::unique_ptr<detail::IoUringRegistration> registration_;
};

inline IoUringNotifier IoUringPoller::notifier(int fd) {
    return {*this, fd, detail::IoUringTrigger::level};
}

inline IoUringNotifier IoUringPoller::notifier(const CompletionChannel& channel) {
    return {*this, channel.fd(), detail::IoUringTrigger::edge};
}

} // namespace asyncverbs
