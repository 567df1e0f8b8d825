// SPDX-License-Identifier: MIT
// What a device has to say that is no completion: ports that come and go, queue pairs that break,
// completion queues that were overrun.
#pragma once

#include <infiniband/verbs.h>

#include <cerrno>
#include <memory>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/cq/cq_notifier.hpp>
#include <asyncverbs/cq/detail/cq_state.hpp>
#include <asyncverbs/verbs/detail/handle.hpp>
#include <asyncverbs/verbs/detail/verb_call.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs {

/// The asynchronous events of a device, awaited.
///
///     DeviceEvents events(context, executor.notifier(context.native_handle()->async_fd));
///     for (;;) {
///         const ibv_async_event event = co_await events.next();
///         log(ibv_event_type_str(event.event_type));
///     }
///
/// Whoever reads them also keeps AsyncCq from waiting for what will never come (invariant I10):
/// IBV_EVENT_CQ_ERR fails the AsyncCq of that completion queue, IBV_EVENT_DEVICE_FATAL those of all
/// queues of the device's Context, on whatever threads they live: what is in the queue is still
/// delivered, then each waiter and each later poll gets std::errc::io_error, which names the event.
///
/// Takes the Context's asynchronous events over: nobody else may read them.
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

    /// The next event. It is acknowledged already, so the object that it names can be destroyed at
    /// any time: use `element` to tell whom it concerns. One at a time. Throws std::system_error:
    /// operation_canceled if `stop` is requested, from any thread; else "ibv_get_async_event" (EIO
    /// once the device is gone) or what the notifier reports.
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
    N notifier_; // destroyed first: it leaves its loop before the fd is closed
};

} // namespace asyncverbs
