// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <infiniband/verbs.h>

#include <cerrno>
#include <memory>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/cq/cq_notifier.hpp>
#include <asyncverbs/cq/detail/cq_registry.hpp>
#include <asyncverbs/verbs/detail/native.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs {

/// The asynchronous events of a device, awaited: ports that go up and down, queue pairs that fail,
/// completion queues that were overrun.
///
///     DeviceEvents events(context, executor.notifier(context.native_handle()->async_fd));
///     for (;;) {
///         const ibv_async_event event = co_await events.next();
///         log(ibv_event_type_str(event.event_type));
///     }
///
/// A program that reads them also keeps AsyncCqs from waiting for completions that will never
/// arrive (invariant I10): IBV_EVENT_CQ_ERR fails the AsyncCq of that completion queue,
/// IBV_EVENT_DEVICE_FATAL the AsyncCqs of all queues of the device's Context, on any thread. The
/// completions in the queue are still delivered; then each waiter and each later poll gets
/// std::errc::io_error, with a text that names the event.
///
/// Takes the Context's asynchronous events over: no other code may read them.
/// Thread: that of the notifier's loop. Lifetime: keeps the device open; must outlive the tasks
/// that it returned. See ibv_get_async_event(3).
template <CqNotifier N>
class DeviceEvents {
public:
    /// `notifier` waits for the Context's `async_fd`, on which O_NONBLOCK is set. Throws
    /// std::system_error naming fcntl.
    DeviceEvents(const Context& context, N notifier)
        : context_(detail::checked(context.shared_handle(), "Context")),
          notifier_(std::move(notifier)) {
        detail::set_non_blocking(context_->async_fd);
    }

    /// The next event; one call at a time. It is acknowledged already, so the object in `element`
    /// can be destroyed at any time: only compare its address. Throws std::system_error:
    /// operation_canceled if `stop` is requested, from any thread; else naming ibv_get_async_event
    /// (EIO once the device is gone), or with the error of the notifier.
    Task<ibv_async_event> next(std::stop_token stop = {}) {
        for (;;) {
            ibv_async_event event{};
            errno = 0;
            const int result = ibv_get_async_event(context_.get(), &event);
            if (result == 0) {
                detail::CqRegistry::instance().report(context_.get(), event);
                ibv_ack_async_event(&event);
                co_return event;
            }
            const int failure = detail::verb_errno(result);
            if (failure == EINTR) continue;
            if (failure != EAGAIN) throw_verb_error("ibv_get_async_event", failure);
            const std::error_code error = co_await notifier_.readable(stop);
            if (error) throw std::system_error(error, "CqNotifier::readable");
        }
    }

private:
    std::shared_ptr<ibv_context> context_;
    N notifier_; // destroyed first: it leaves its loop before the fd is closed (I12)
};

} // namespace asyncverbs
