// SPDX-License-Identifier: MIT
// Waits for a file descriptor on an EpollExecutor.
// The CqNotifier that AsyncCq uses unless a program brings a loop of its own.
#pragma once

#include <cassert>
#include <stop_token>
#include <utility>

#include <asyncverbs/core/detail/deadline.hpp>
#include <asyncverbs/core/detail/epoll_readable.hpp>
#include <asyncverbs/core/detail/epoll_registration.hpp>
#include <asyncverbs/verbs/completion_channel.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs {

template <class Use>
class BasicEpollExecutor;

/// Tells when a file descriptor is readable. Models TimedCqNotifier.
///
///     EpollNotifier readable = executor.notifier(fd);
///     std::error_code error = co_await readable.readable(stop_token);
///
/// Thread: all calls, and its destruction, on the thread that runs the executor, or on any one
/// thread while nobody runs it. Coroutines are resumed by the executor.
/// Lifetime: the fd is not owned and must stay open until the notifier is destroyed. The executor
/// may be destroyed before; a coroutine that waits then is never resumed. One notifier per fd and
/// executor. Movable at any time; a moved-from notifier can only be assigned to or destroyed.
template <class Use>
class BasicEpollNotifier {
public:
    /// Registers `fd`. Throws std::system_error, "epoll_ctl(EPOLL_CTL_ADD)": bad_file_descriptor;
    /// operation_not_permitted for a file that cannot be waited for, such as a regular one;
    /// file_exists for an fd that is registered already.
    BasicEpollNotifier(BasicEpollExecutor<Use>& executor, int fd)
        : BasicEpollNotifier(executor, fd, Trigger::level) {}

    /// Registers the fd of `channel`, edge-triggered: each event wakes once, read or not. For
    /// whoever reads at least one event per wake, as AsyncCq does, this is the cheaper one, for the
    /// kernel does not look whether there are more. Errors as above.
    BasicEpollNotifier(BasicEpollExecutor<Use>& executor,
                       const BasicCompletionChannel<Use>& channel)
        : BasicEpollNotifier(executor, channel.fd(), Trigger::edge) {}

    /// An awaitable of std::error_code: {} when the fd is readable, has an error or was hung up;
    /// errc::operation_canceled when `stop` was requested first, from any thread, or the notifier
    /// was destroyed; errc::device_or_resource_busy when another readable() is outstanding; else
    /// the error of epoll_ctl. A wake may be spurious. What is not read wakes again, except where
    /// it is a channel that was registered.
    ///
    /// Destroying the suspended coroutine cancels the wait. No allocation; no system call but the
    /// executor's epoll_wait, unless the fd became readable while nobody waited.
    [[nodiscard]] detail::EpollReadableOperation<Use> readable(std::stop_token stop = {}) {
        assert(registration_ && "asyncverbs: a moved-from EpollNotifier");
        return {*registration_, detail::Deadline<Use>::never, std::move(stop)};
    }

    /// The same, with errc::timed_out when `max_wait` has passed since the call. Zero or less comes
    /// back after one turn of the executor, with {} if the fd is readable then.
    [[nodiscard]] detail::EpollReadableOperation<Use> readable(std::stop_token stop,
                                                               std::chrono::nanoseconds max_wait) {
        assert(registration_ && "asyncverbs: a moved-from EpollNotifier");
        return {*registration_, detail::Deadline<Use>::after(max_wait), std::move(stop)};
    }

    /// The file descriptor.
    int native_handle() const noexcept { return registration_->fd(); }

private:
    using Trigger = detail::EpollTrigger;
    BasicEpollNotifier(BasicEpollExecutor<Use>& executor, int fd, Trigger trigger);

    // On the heap: epoll refers to it by address.
    std::unique_ptr<detail::EpollRegistration<Use>> registration_;
};

/// The EpollNotifier of programs: compiled only where it is used, but otherwise as a class.
using EpollNotifier = BasicEpollNotifier<OnUse>;

} // namespace asyncverbs

// For the constructor, which needs both classes.
// NOLINTNEXTLINE(misc-header-include-cycle)
#include <asyncverbs/core/epoll_executor.hpp>
#include <asyncverbs/verbs/detail/chrono.hpp>
