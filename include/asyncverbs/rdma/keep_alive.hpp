// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <infiniband/verbs.h>

#include <chrono>
#include <memory>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/detail/deadline.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/with_timeout.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/detail/queue_pair_state.hpp>
#include <asyncverbs/rdma/detail/stream_state.hpp>
#include <asyncverbs/rdma/operation.hpp>
#include <asyncverbs/rdma/stream.hpp>
#include <asyncverbs/verbs/detail/native.hpp>
#include <asyncverbs/verbs/error.hpp>
#include <asyncverbs/verbs/memory.hpp>

namespace asyncverbs {

/// Notices that the peer has vanished, also while nothing is sent: after each `interval` it sends
/// an empty RDMA write, which the peer's device answers without its program.
///
///     scope.spawn(keep_alive(loop, qp, 5s, stop.get_token()));
///     co_await qp.recv(slice); // throws OperationError if the peer vanishes
///
/// If no answer comes within another interval, or the device gives up before, the queue pair goes
/// to ERR: all its operations are flushed, and name IBV_WC_RESP_TIMEOUT_ERR, or the failure of the
/// device, as the cause. A Connection has not ended then: call its disconnect().
///
/// The result tells why it ended: timed_out if no answer came; the error of the write, also if the
/// queue pair was in ERR before; operation_canceled if `stop` was requested, from any thread; or
/// the error of the loop. Throws std::system_error (invalid_argument) for an interval that is not
/// above zero, and for a queue pair that is not RC; std::bad_alloc.
///
/// It sends nothing while other sends are in flight: the device notices by them, see
/// RtsOptions::retry_cnt, and a send that waits for a receive of the peer is no failure. Choose an
/// interval that is longer than the network needs to repair a loss. The peer's queue pair must
/// allow writes, as it does by default, see InitOptions::access. On iWARP it sends an empty read,
/// because a write is not answered there; both ends must allow one, as they do by default.
///
/// Loop: as for with_timeout(). Thread: that of the router and of the loop. Lifetime: `qp` is
/// connected, and is neither moved nor destroyed before the task has ended or is destroyed.
template <class Loop, class Rep, class Period>
[[nodiscard]] Task<std::error_code> keep_alive(Loop& loop, AsyncQp& qp,
                                               std::chrono::duration<Rep, Period> interval,
                                               std::stop_token stop = {});

/// The same for a stream, whose calls fail then. The stream may be moved, closed and destroyed; the
/// task ends without an error at its next interval.
template <class Loop, class Rep, class Period>
[[nodiscard]] Task<std::error_code> keep_alive(Loop& loop, Stream& stream,
                                               std::chrono::duration<Rep, Period> interval,
                                               std::stop_token stop = {});

namespace detail {

// The private part of AsyncQp and Stream that keep_alive() needs.
struct KeepAlive {
    using Seconds = std::chrono::duration<double>; // no duration overflows

    static AsyncQp* find(AsyncQp* qp) noexcept { return qp; }
    static AsyncQp* find(const std::shared_ptr<StreamState>& stream) noexcept {
        return stream->qp_ ? &*stream->qp_ : nullptr;
    }
    static const std::shared_ptr<StreamState>& state(const Stream& stream) noexcept {
        return stream.state_;
    }

    static bool sends_nothing(const AsyncQp& qp) noexcept { return !qp.state_->sends.in_flight(); }

    // Soft-iWARP refuses a read without a slice.
    static Operation request(AsyncQp& qp) {
        const bool iwarp = is_iwarp(*qp.queue_pair().native_handle()->context);
        return iwarp ? qp.read(Slice(), {}) : qp.write({}, {});
    }

    // Fails if `sent` has not completed in time.
    template <class Loop>
    static Task<std::error_code> wait_for(Operation& sent, Loop& loop, Seconds time,
                                          std::stop_token stop) {
        const auto answer = [&sent](std::stop_token token) { return sent.wait(std::move(token)); };
        try {
            co_await with_timeout(loop, time, answer, std::move(stop));
        } catch (const std::system_error& failure) {
            co_return failure.code();
        }
        co_return std::error_code();
    }

    static std::error_code give_up(AsyncQp& qp) noexcept {
        ibv_wc failure{};
        failure.status = IBV_WC_RESP_TIMEOUT_ERR;
        qp.state_->sends.note_cause(failure);
        std::error_code error;
        qp.queue_pair().to_error(error);
        return error ? error : std::make_error_code(std::errc::timed_out);
    }

    template <class Loop, class Owner>
    static Task<std::error_code> run(Loop& loop, Owner owner, Seconds interval,
                                     std::stop_token stop) {
        const std::error_code timed_out = std::make_error_code(std::errc::timed_out);
        std::error_code error;
        while (!error) {
            error = co_await sleep_until(loop, Deadline::after(interval), stop);
            AsyncQp* qp = find(owner);
            if (error || qp == nullptr) break;
            if (!sends_nothing(*qp)) continue;
            Operation sent = request(*qp);
            // If the loop was blocked, its time may pass before the router sees the answer, but
            // then the router sees it next. So wait twice.
            error = co_await wait_for(sent, loop, interval / 2, stop);
            if (error == timed_out) error = co_await wait_for(sent, loop, interval / 2, stop);
            qp = find(owner);
            if (qp == nullptr) co_return std::error_code();
            if (error == timed_out) error = give_up(*qp);
        }
        co_return error;
    }

    static void check(const QueuePair& qp, Seconds interval) {
        if (!(interval > Seconds::zero())) {
            throw_error(std::errc::invalid_argument,
                        "keep_alive: the interval must be longer than zero");
        }
        if (qp.options().type != IBV_QPT_RC) {
            throw_error(std::errc::invalid_argument, "keep_alive: the queue pair must be RC");
        }
    }
};

} // namespace detail

template <class Loop, class Rep, class Period>
Task<std::error_code> keep_alive(Loop& loop, AsyncQp& qp,
                                 std::chrono::duration<Rep, Period> interval,
                                 std::stop_token stop) {
    detail::KeepAlive::check(qp.queue_pair(), interval);
    return detail::KeepAlive::run(loop, &qp, interval, std::move(stop));
}

template <class Loop, class Rep, class Period>
Task<std::error_code> keep_alive(Loop& loop, Stream& stream,
                                 std::chrono::duration<Rep, Period> interval,
                                 std::stop_token stop) {
    detail::KeepAlive::check(stream.queue_pair(), interval);
    return detail::KeepAlive::run(loop, detail::KeepAlive::state(stream), interval,
                                  std::move(stop));
}

} // namespace asyncverbs
