// SPDX-License-Identifier: MIT
// A completion queue to await: `co_await cq.poll(wcs)` gives completions without spinning, on any
// event loop for which there is a CqNotifier.
#pragma once

#include <infiniband/verbs.h>

#include <cstdint>
#include <span>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/core/async_cq_options.hpp>
#include <asyncverbs/core/cq_notifier.hpp>
#include <asyncverbs/core/cq_statistics.hpp>
#include <asyncverbs/core/cq_tracer.hpp>
#include <asyncverbs/core/detail/cq_pump.hpp>
#include <asyncverbs/core/detail/cq_reaper.hpp>
#include <asyncverbs/core/detail/cq_registry.hpp>
#include <asyncverbs/core/detail/loop_notifier.hpp>
#include <asyncverbs/core/poll_operation.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/context.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs {

namespace detail {
template <class Use>
class RouterState;
}

/// A completion queue whose completions are awaited.
///
///     std::array<ibv_wc, 16> wcs;
///     for (const ibv_wc& wc : co_await cq.poll(wcs)) handle(wc);
///
/// It takes the CQ over, with its completion channel, and is the only one that may poll it, arm
/// it or read the channel's events. How it does that is CqPoller's protocol: completions that are
/// there are delivered without a system call, an allocation or a suspension; otherwise the CQ is
/// armed, polled once more, and the notifier waits for the channel.
///
/// Several coroutines may wait at a time: first come, first served. A ready CQ does not return to
/// the loop, except that with a TimedCqNotifier every 1,024th ready poll in a row takes a turn.
///
/// Errors: a failing verb or a failing notifier is final. It is thrown as a std::system_error that
/// names the verb, to all who wait and all who come later; try_poll() still takes what is there. So
/// is an overrun of the CQ or the loss of its device, if somebody reads DeviceEvents.
/// An error *completion* is not an error here: look at `wc.status`; then only wr_id, status, qp_num
/// and vendor_err are valid.
///
/// Thread safety: none, but for stop tokens. Everything happens on the thread that runs the
/// notifier's loop, and a waiting coroutine resumes there.
/// Lifetime: must outlive the operations that it returned. It may be destroyed at any time, also
/// by a coroutine that it has just resumed: events are acked, the fd leaves the loop, and a
/// coroutine that still waits is never resumed but may be destroyed. To destroy a CQ without
/// losing anything, move its queue pairs to the error state, poll until every work request has
/// completed, destroy the queue pairs, and then this.
/// Move-only; only to be destroyed or assigned to when moved from.
template <class Use>
class BasicAsyncCq {
public:
    /// Takes `cq` over. `notifier` waits for `cq.channel()` to become readable.
    /// Throws std::system_error: invalid_argument for an ack batch of 0, a negative duration, or
    /// what SharedChannel::notifier() gave for another CQ, not_supported for a max_wait with a
    /// notifier that is not a TimedCqNotifier.
    /// `tracer` is told of each wait, see CqTracer.
    template <class N, class T = NoTracer>
    BasicAsyncCq(BasicCompletionQueue<Use> cq, N notifier, const AsyncCqOptions& options = {},
                 T tracer = {});

    /// Creates a CQ of at least `depth` entries whose channel `loop` waits for. Loop is an
    /// EpollExecutor or whatever else has `notifier(const CompletionChannel&)` or
    /// `notifier(int fd)` that returns a CqNotifier, and must outlive the AsyncCq unless its
    /// notifiers say otherwise. Or it is a SharedChannel, which the CQ then is on.
    /// Throws std::system_error as CompletionQueue and the notifier do.
    template <class Loop, class T = NoTracer>
    static BasicAsyncCq<Use> create(const BasicContext<Use>& context, int depth, Loop& loop,
                                    const AsyncCqOptions& options = {}, T tracer = {});

    /// The same with a CQ that is there, such as one of another completion vector.
    template <class Loop, class T = NoTracer>
    static BasicAsyncCq<Use> create(BasicCompletionQueue<Use> cq, Loop& loop,
                                    const AsyncCqOptions& options = {}, T tracer = {});

    BasicAsyncCq(BasicAsyncCq&&) noexcept = default;

    /// Closes the AsyncCq that was here before, as its destructor does.
    BasicAsyncCq& operator=(BasicAsyncCq&& other) noexcept {
        BasicAsyncCq old(std::move(other));
        old.reaper_.swap(reaper_); // closes what was here
        return *this;
    }
    ~BasicAsyncCq() {
        if (!reaper_) return;
        detail::CqRegistry<Use>::instance().remove(*reaper_);
        reaper_->close();
    }

    /// Awaits at least one completion; gives the front part of `wcs` that was filled. `wcs` and
    /// what it refers to must stay until then. Throws std::system_error: invalid_argument if
    /// `wcs` is empty, operation_canceled if `stop` is requested (from any thread), else the
    /// fatal error of this CQ. A completion that was taken from the CQ is delivered even if
    /// `stop` was requested meanwhile.
    BasicPollOperation<Use> poll(std::span<ibv_wc> wcs, std::stop_token stop = {}) {
        return {*reaper_, wcs, nullptr, std::move(stop)};
    }

    /// The same without exceptions: clears `error`, or sets it and gives an empty span.
    BasicPollOperation<Use> poll(std::span<ibv_wc> wcs, std::error_code& error,
                                 std::stop_token stop = {}) {
        return {*reaper_, wcs, &error, std::move(stop)};
    }

    /// The same for a CompletionQueue that is extended by timestamps: the timestamp of each
    /// completion goes to the element of `timestamps` with its index, 0 for an error completion.
    /// Throws std::system_error at once: invalid_argument if the spans differ in length,
    /// operation_not_supported if the CQ has no timestamps.
    BasicPollOperation<Use> poll_timestamped(std::span<ibv_wc> wcs,
                                             std::span<std::uint64_t> timestamps,
                                             std::stop_token stop = {}) {
        return {*reaper_, wcs, check(wcs, timestamps), nullptr, std::move(stop)};
    }

    /// The same without exceptions of the wait: clears `error`, or sets it and gives an empty span.
    BasicPollOperation<Use> poll_timestamped(std::span<ibv_wc> wcs,
                                             std::span<std::uint64_t> timestamps,
                                             std::error_code& error, std::stop_token stop = {}) {
        return {*reaper_, wcs, check(wcs, timestamps), &error, std::move(stop)};
    }

    /// Awaits the completion with this `wr_id`. Others that come first are kept, in order, and go
    /// to the next poll() or try_poll(); keeping them is what may allocate. Errors as in poll().
    BasicPollWrIdOperation<Use> poll_wr_id(std::uint64_t wr_id, std::stop_token stop = {}) {
        return {*reaper_, wr_id, nullptr, std::move(stop)};
    }

    /// The same without exceptions: clears `error`, or sets it and gives a zeroed completion.
    BasicPollWrIdOperation<Use> poll_wr_id(std::uint64_t wr_id, std::error_code& error,
                                           std::stop_token stop = {}) {
        return {*reaper_, wr_id, &error, std::move(stop)};
    }

    /// What is there now, without waiting or arming; empty if there is nothing, or while a
    /// coroutine waits, since that one comes first. Throws std::system_error if ibv_poll_cq fails.
    std::span<ibv_wc> try_poll(std::span<ibv_wc> wcs) {
        return wcs.first(wcs.empty() ? 0 : reaper_->try_poll(wcs));
    }

    /// What this CQ has cost so far.
    const CqStatistics& statistics() const noexcept { return reaper_->poller().statistics(); }

    /// For creating queue pairs.
    const BasicCompletionQueue<Use>& completion_queue() const noexcept {
        return reaper_->poller().completion_queue();
    }

    /// The native object, for verbs that this library does not cover; not to be polled or armed.
    ibv_cq* native_handle() const noexcept { return completion_queue().native_handle(); }

private:
    template <class>
    friend class detail::RouterState;

    std::uint64_t* check(std::span<ibv_wc> wcs, std::span<std::uint64_t> timestamps) const {
        if (completion_queue().wc_flags() == 0) {
            detail::throw_error(std::errc::operation_not_supported,
                                "AsyncCq::poll_timestamped: the queue has no timestamps");
        }
        if (wcs.size() != timestamps.size()) {
            detail::throw_error(std::errc::invalid_argument,
                                "AsyncCq::poll_timestamped: the spans differ in length");
        }
        return timestamps.data();
    }

    std::shared_ptr<detail::CqReaper<Use>> reaper_;
};

/// The AsyncCq of programs: compiled only where it is used, but otherwise as a class.
using AsyncCq = BasicAsyncCq<OnUse>;

template <class Use>
template <class N, class T>
BasicAsyncCq<Use>::BasicAsyncCq(BasicCompletionQueue<Use> cq, N notifier,
                                const AsyncCqOptions& options, T tracer) {
    detail::check_cq_notifier<N>();
    static_assert(CqTracer<T>, "AsyncCq: the tracer needs before_wait(const CqStatistics&) and "
                               "after_wait(const CqStatistics&, std::error_code), both noexcept");
    if (options.ack_batch == 0 || options.max_wait.count() < 0 ||
        options.busy_poll.limit.count() < 0) {
        detail::throw_error(std::errc::invalid_argument,
                            "AsyncCqOptions: ack_batch must be at least 1, max_wait and "
                            "busy_poll.limit at least 0");
    }
    if constexpr (detail::reads_events<N>) {
        if (!notifier.is_of(cq)) { // its events would be acked to this one (I4)
            detail::throw_error(std::errc::invalid_argument,
                                "the notifier is that of another completion queue");
        }
    }
    if (options.max_wait.count() > 0 && !TimedCqNotifier<N>) {
        detail::throw_error(std::errc::not_supported,
                            "AsyncCqOptions: max_wait needs a TimedCqNotifier");
    }
    if constexpr (CqNotifier<N> && CqTracer<T>) { // else the error above is the only one
        reaper_ = std::make_shared<detail::CqReaper<Use>>(
            std::move(cq), options, TimedCqNotifier<N>, detail::reads_events<N>);
        detail::start_pump(reaper_, std::move(notifier), std::move(tracer));
        detail::CqRegistry<Use>::instance().add(*reaper_);
    }
}

template <class Use>
template <class Loop, class T>
BasicAsyncCq<Use> BasicAsyncCq<Use>::create(const BasicContext<Use>& context, int depth, Loop& loop,
                                            const AsyncCqOptions& options, T tracer) {
    if constexpr (detail::has_channel<Loop>) {
        return create(BasicCompletionQueue<Use>(context, depth, loop.channel()), loop, options,
                      std::move(tracer));
    } else {
        return create(BasicCompletionQueue<Use>(context, depth), loop, options, std::move(tracer));
    }
}

template <class Use>
template <class Loop, class T>
BasicAsyncCq<Use> BasicAsyncCq<Use>::create(BasicCompletionQueue<Use> cq, Loop& loop,
                                            const AsyncCqOptions& options, T tracer) {
    if constexpr (detail::has_channel<Loop>) {
        auto notifier = loop.notifier(cq);
        return BasicAsyncCq(std::move(cq), std::move(notifier), options, std::move(tracer));
    } else {
        auto notifier = detail::loop_notifier(loop, cq.channel());
        return BasicAsyncCq(std::move(cq), std::move(notifier), options, std::move(tracer));
    }
}

} // namespace asyncverbs
