// SPDX-License-Identifier: MIT
// Waits for a file descriptor in Asio's event loop: what an AsyncCq, and whatever else of this
// library waits, needs to live in an io_context.
#pragma once

#include <cassert>
#include <chrono>
#include <memory>
#include <stop_token>
#include <utility>

#include <asyncverbs/adapters/detail/asio_flavour.hpp>
#include <asyncverbs/adapters/detail/asio_watch.hpp>
#include <asyncverbs/core/detail/deadline.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs::inline ASYNCVERBS_ASIO_FLAVOUR {

/// Tells when a file descriptor is readable, by a posix::stream_descriptor. Models
/// TimedCqNotifier.
///
///     asio::io_context io;
///     AsioNotifier readable(io.get_executor(), fd);
///
/// Everything happens on the executor: give it a strand where several threads run the context.
/// What an AsyncCq resumes, it resumes there.
///
/// Thread: all calls, and its destruction, on the executor, or on any one thread while nobody
/// runs it; stop tokens from any thread.
/// Lifetime: the fd is not owned and must stay open until the notifier is destroyed. The context
/// may be destroyed before; a coroutine that waits then is never resumed, and can be destroyed.
/// One notifier per fd and context. Movable at any time; a moved-from one can only be assigned to
/// or destroyed.
/// A wait is work of the context: io_context::run() does not return before it ends. An AsyncCq
/// waits as long as somebody waits for it, a Router always; an AsyncCq also goes on when the last
/// who waited was destroyed, not stopped: until the next completion, or until it is destroyed.
template <class Executor = detail::net::any_io_executor>
class AsioNotifier {
public:
    using executor_type = Executor; ///< As in Asio's I/O objects.

    /// Registers `fd`. Throws std::system_error that names stream_descriptor::assign:
    /// bad_file_descriptor; file_exists for an fd that is registered already; too_many_files_open
    /// if the context has none that it waits for yet, and cannot create an epoll.
    AsioNotifier(const Executor& executor, int fd)
        : watch_(detail::AsioWatch<Executor>::create(executor, fd)) {}

    AsioNotifier(AsioNotifier&&) noexcept = default;

    /// Destroys the notifier that was here before.
    AsioNotifier& operator=(AsioNotifier&& other) noexcept {
        AsioNotifier(std::move(other)).watch_.swap(watch_); // the temporary closes the old one
        return *this;
    }
    ~AsioNotifier() {
        if (watch_) watch_->close();
    }

    /// An awaitable of std::error_code: {} when the fd is readable, has an error or was hung up;
    /// errc::operation_canceled when `stop` was requested first, from any thread, or the notifier
    /// was destroyed; errc::device_or_resource_busy when another readable() is outstanding; else
    /// Asio's error, such as operation_not_supported for a regular file. A wake may be spurious.
    ///
    /// Destroying the suspended coroutine cancels the wait. A wait costs an epoll_ctl, by which
    /// Asio looks whether the fd is readable already, and no allocation, nor does a stop. A bound
    /// costs what Asio allocates for a handler; an any_io_executor may allocate by itself.
    [[nodiscard]] detail::AsioReadable<Executor> readable(std::stop_token stop = {}) {
        assert(watch_ && "asyncverbs: a moved-from AsioNotifier");
        return {watch_, detail::Deadline<OnUse>::never, std::move(stop)};
    }

    /// The same, with errc::timed_out when `max_wait` has passed since the call. Zero or less comes
    /// back after one turn of the executor, with {} if the fd is readable then.
    [[nodiscard]] detail::AsioReadable<Executor> readable(std::stop_token stop,
                                                          std::chrono::nanoseconds max_wait) {
        assert(watch_ && "asyncverbs: a moved-from AsioNotifier");
        return {watch_, detail::Deadline<OnUse>::after(max_wait), std::move(stop)};
    }

private:
    std::shared_ptr<detail::AsioWatch<Executor>> watch_;
};

} // namespace asyncverbs::inline ASYNCVERBS_ASIO_FLAVOUR
