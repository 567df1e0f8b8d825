// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <infiniband/verbs.h>

#include <chrono>
#include <coroutine>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/detail/deadline.hpp>
#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/coro/detail/stop_callback.hpp>
#include <asyncverbs/cq/cq_notifier.hpp>
#include <asyncverbs/cq/cq_poller.hpp>
#include <asyncverbs/cq/detail/wait_loop.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/detail/native.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs {
namespace detail {

class ChannelSubscription;
class SharedChannelState;
template <bool timed>
class ChannelNotifier;

} // namespace detail

/// A completion channel for any number of AsyncCqs.
///
///     SharedChannel channel(context, executor);
///     AsyncCq requests = AsyncCq::create(context, 256, channel);
///     AsyncCq replies = AsyncCq::create(context, 256, channel);
///
/// One file descriptor and one wait of the event loop serve all of them. A wake reads all events of
/// the channel and credits each to the CQ that it names (invariant I4); the waiters of that CQ are
/// resumed, in the order of the events. CQs may be created and destroyed at any time, also while
/// others are awaited, and by a coroutine that was just resumed. Otherwise an AsyncCq behaves as
/// with its own channel, where a wake costs one system call less (here the last read finds
/// nothing).
///
/// Errors: a failing notifier or ibv_get_cq_event(3) is final, for all CQs of the channel. An
/// exception that escapes from a coroutine ends the waiting for its CQ alone; of several in one
/// iteration of the loop, the first one is rethrown to the caller of the loop.
/// Thread safety: none, except for stop tokens: the channel and its CQs are used on the thread that
/// runs the notifier's loop. Lifetime: move-only; its AsyncCqs may outlive it, and keep the
/// channel.
template <class N>
class SharedChannel {
    using State = detail::SharedChannelState;

public:
    /// `notifier` waits for `channel.fd()`.
    SharedChannel(CompletionChannel channel, N notifier)
        : channel_(std::move(channel)), state_(make_state(channel_, std::move(notifier))) {}

    /// Creates the channel. Loop as in AsyncCq::create(). Throws std::system_error as
    /// CompletionChannel and the notifier do.
    template <class Loop>
    SharedChannel(const Context& context, Loop& loop)
        : channel_(context), state_(make_state(channel_, detail::loop_notifier(loop, channel_))) {}

    /// The channel, for creating completion queues. All of them must be awaited through this
    /// object.
    const CompletionChannel& channel() const noexcept { return channel_; }

    /// A notifier for the events of `cq` alone, for one wait at a time; it makes this class a Loop
    /// for AsyncCq::create().
    /// Throws std::system_error: invalid_argument if `cq` is on another channel,
    /// device_or_resource_busy if it has a notifier already.
    detail::ChannelNotifier<TimedCqNotifier<N>> notifier(const CompletionQueue& cq);

private:
    static std::shared_ptr<State> make_state(const CompletionChannel& channel, N notifier);

    CompletionChannel channel_;
    std::shared_ptr<State> state_;
};

/// The notifier is the one that `loop` makes.
template <class Loop>
SharedChannel(const Context&, Loop& loop) -> SharedChannel<detail::loop_notifier_t<Loop>>;

namespace detail {

// What the CQs of a SharedChannel share: one wait loop, which waits for the channel while any of
// their wait loops does. It reads the events, credits each to the CQ that it names, and resumes
// that CQ's wait loop.
class SharedChannelState : public WaitLoopOwner {
    using Time = Deadline::Clock::time_point;

public:
    SharedChannelState(Handle<ibv_comp_channel> channel, ThreadCheck thread);

    const ThreadCheck& thread_check() const noexcept { return thread_; }

    // --- for the CQs ---

    /// From now on, counts events that name the CQ there. Throws std::system_error
    /// (device_or_resource_busy) if there is a subscription for that CQ.
    void add(ChannelSubscription& subscription);
    void remove(ChannelSubscription& subscription) noexcept;

    /// Adds a subscription that has no event and whose coroutine waits, and returns the coroutine
    /// to resume next.
    std::coroutine_handle<> enqueue(ChannelSubscription& subscription) noexcept;

    void on_stop() noexcept { wake(); }

    /// The last object that referred to it, except the wait loop, has been destroyed.
    void close() noexcept { WaitLoopOwner::close(); }

    // --- for the wait loop, see WaitLoopOwner ---

    bool wait_needed() const noexcept { return !waiting_.empty(); }
    std::optional<std::chrono::nanoseconds> begin_wait() noexcept;
    void after_wait(std::error_code result);
    void on_escaped_exception() noexcept {} // concerns one CQ, whose own wait loop has handled it
    void fail_waiters() noexcept;

private:
    Time next_deadline() noexcept;
    void read_events();
    void collect_ready(bool stops);
    void resume_ready();

    Handle<ibv_comp_channel> channel_;
    const ThreadCheck thread_;
    std::map<const ibv_cq*, ChannelSubscription*> subscriptions_;
    IntrusiveList<ChannelSubscription> waiting_;
    IntrusiveList<ChannelSubscription> ready_; // about to be resumed
    bool timed_ = false;                       // one of waiting_ may have a deadline
    Time wait_until_ = Deadline::never;
};

// One CQ of a SharedChannel: the events that were read for it, and the coroutine that waits for
// one, the wait loop of its AsyncCq.
class ChannelSubscription : public ListNode {
    using Time = Deadline::Clock::time_point;

public:
    ChannelSubscription(std::shared_ptr<SharedChannelState> channel, Handle<ibv_cq> cq)
        : channel_(std::move(channel)), cq_(std::move(cq)) {
        channel_->add(*this);
    }
    ~ChannelSubscription() {
        stop_callback_.reset();
        channel_->remove(*this);
        // Ack the events that were not taken before the CQ is destroyed (I4).
        if (const unsigned unclaimed = take_events()) ibv_ack_cq_events(cq_.get(), unclaimed);
    }

    ibv_cq* cq() const noexcept { return cq_.get(); }
    const ThreadCheck& thread_check() const noexcept { return channel_->thread_check(); }
    unsigned take_events() noexcept { return std::exchange(events_, 0u); }

    // Awaits an event of the CQ, a stop, the deadline or the failure of the channel.
    class Readable {
    public:
        Readable(ChannelSubscription& subscription, std::stop_token stop, Time deadline) noexcept
            : subscription_(subscription), stop_(std::move(stop)), deadline_(deadline) {}
        Readable(const Readable&) = delete;
        Readable& operator=(const Readable&) = delete;
        ~Readable() { subscription_.cancel(); }

        bool await_ready() const noexcept { return subscription_.ready(stop_); }
        std::coroutine_handle<> await_suspend(std::coroutine_handle<> coroutine) {
            return subscription_.wait(coroutine, stop_, deadline_);
        }
        std::error_code await_resume() const { return subscription_.result(stop_); }

    private:
        ChannelSubscription& subscription_;
        std::stop_token stop_;
        Time deadline_;
    };

private:
    friend SharedChannelState;

    bool ready(const std::stop_token& stop) const noexcept {
        return events_ > 0 || stop.stop_requested() || channel_->failure();
    }

    std::coroutine_handle<> wait(std::coroutine_handle<> coroutine, const std::stop_token& stop,
                                 Time deadline) {
        waiting_ = coroutine;
        deadline_ = deadline;
        // Registering a callback costs more than the rest of a wait. It stays, for the next wait
        // with the same token; without a waiter it has no effect.
        if (stop != stop_) {
            stop_callback_.reset();
            stop_ = stop;
            stop_callback_.set(stop_, *channel_);
        }
        return channel_->enqueue(*this);
    }

    void cancel() noexcept {
        unlink();
        waiting_ = nullptr;
    }

    std::error_code result(const std::stop_token& stop) const {
        if (events_ > 0) return {};
        if (channel_->failure()) throw *channel_->failure();
        if (stop.stop_requested()) return std::make_error_code(std::errc::operation_canceled);
        return std::make_error_code(std::errc::timed_out);
    }

    std::shared_ptr<SharedChannelState> channel_;
    Handle<ibv_cq> cq_;
    unsigned events_ = 0; // read from the channel, and not yet taken
    std::coroutine_handle<> waiting_;
    std::stop_token stop_;
    Time deadline_ = Deadline::never;
    StopCallback<SharedChannelState> stop_callback_;
};

/// The notifier of one CQ of a SharedChannel: "readable" is an event that names this CQ. Models
/// CqNotifier, and if `timed` TimedCqNotifier. Reads the events itself: see take_events().
template <bool timed>
class ChannelNotifier {
public:
    ChannelNotifier(std::shared_ptr<SharedChannelState> channel, Handle<ibv_cq> cq)
        : subscription_(std::make_unique<ChannelSubscription>(std::move(channel), std::move(cq))) {}

    ChannelSubscription::Readable readable(std::stop_token stop) {
        return {*subscription_, std::move(stop), Deadline::never};
    }
    ChannelSubscription::Readable readable(std::stop_token stop, std::chrono::nanoseconds max_wait)
        requires timed
    {
        return {*subscription_, std::move(stop), Deadline::after(max_wait)};
    }

    bool is_of(const CompletionQueue& cq) const noexcept {
        return subscription_->cq() == cq.native_handle();
    }

    const ThreadCheck& thread_check() const noexcept { return subscription_->thread_check(); }

    /// The number of events of the CQ that were read since the last call. The caller acks them.
    unsigned take_events() noexcept { return subscription_->take_events(); }

private:
    std::unique_ptr<ChannelSubscription> subscription_; // the channel refers to it by address
};

inline SharedChannelState::SharedChannelState(Handle<ibv_comp_channel> channel, ThreadCheck thread)
    : channel_(std::move(channel)), thread_(std::move(thread)) {}

inline void SharedChannelState::add(ChannelSubscription& subscription) {
    if (!subscriptions_.try_emplace(subscription.cq(), &subscription).second) {
        throw_error(std::errc::device_or_resource_busy,
                    "the completion queue has a notifier already");
    }
}

inline void SharedChannelState::remove(ChannelSubscription& subscription) noexcept {
    subscription.unlink();
    subscriptions_.erase(subscription.cq());
}

inline std::coroutine_handle<>
SharedChannelState::enqueue(ChannelSubscription& subscription) noexcept {
    waiting_.push_back(subscription);
    timed_ |= subscription.deadline_ != Deadline::never;
    // A wait in progress may be too long for this one.
    if (waiting() && subscription.deadline_ < wait_until_) wake();
    return start_wait_loop();
}

// --- step 3: wait ---

inline std::optional<std::chrono::nanoseconds> SharedChannelState::begin_wait() noexcept {
    wait_until_ = next_deadline();
    if (wait_until_ == Deadline::never) return std::nullopt;
    if (wait_until_ == Deadline::next_iteration) return std::chrono::nanoseconds(0);
    const std::chrono::nanoseconds left = wait_until_ - Deadline::Clock::now();
    return left.count() > 0 ? left : std::chrono::nanoseconds(1);
}

inline auto SharedChannelState::next_deadline() noexcept -> Time {
    Time next = Deadline::never;
    if (timed_) {
        waiting_.for_each([&](ChannelSubscription& subscription) {
            if (subscription.deadline_ < next) next = subscription.deadline_;
        });
    }
    timed_ = next != Deadline::never;
    return next;
}

// --- step 4: read the events ---

inline void SharedChannelState::after_wait(std::error_code result) {
    bool stops = false;
    try {
        if (!result) {
            read_events();
        } else if (result != std::errc::timed_out && result != std::errc::operation_canceled) {
            throw std::system_error(result, "CqNotifier::readable");
        }
        stops = wake_source_.pending();
        if (stops) wake_source_.reset();
    } catch (...) {
        fail();
    }
    collect_ready(stops);
    resume_ready();
}

// Reads until none is left: several CQs may have fired on one edge (I3).
inline void SharedChannelState::read_events() {
    while (ibv_cq* const source = get_cq_event(channel_.get())) {
        const auto found = subscriptions_.find(source);
        if (found == subscriptions_.end()) {
            ibv_ack_cq_events(source, 1); // of a CQ without a subscription (I4)
            continue;
        }
        ChannelSubscription& subscription = *found->second;
        if (++subscription.events_ > 1 || !subscription.waiting_) continue;
        subscription.unlink();
        ready_.push_back(subscription);
    }
}

inline void SharedChannelState::collect_ready(bool stops) {
    if (failure_) return ready_.append(waiting_);
    if (!stops && !timed_) return;
    const Time now = timed_ ? Deadline::Clock::now() : Deadline::next_iteration;
    waiting_.move_if(ready_, [&](const ChannelSubscription& subscription) {
        return subscription.deadline_ <= now || subscription.stop_.stop_requested();
    });
}

inline void SharedChannelState::resume_ready() {
    std::exception_ptr first;
    while (!ready_.empty()) { // a subscription that is destroyed meanwhile leaves the list
        ChannelSubscription& subscription = ready_.take_front();
        try {
            std::exchange(subscription.waiting_, nullptr).resume();
        } catch (...) {
            if (!first) first = std::current_exception(); // the others are resumed first
        }
    }
    if (first) std::rethrow_exception(std::move(first));
}

inline void SharedChannelState::fail_waiters() noexcept {
    collect_ready(true);
    try {
        resume_ready();
    } catch (...) { // only the first exception is reported
    }
}

} // namespace detail

template <class N>
detail::ChannelNotifier<TimedCqNotifier<N>> SharedChannel<N>::notifier(const CompletionQueue& cq) {
    const auto& native = detail::checked(cq.shared_handle(), "CompletionQueue");
    if (native->channel != channel_.native_handle()) {
        detail::throw_error(std::errc::invalid_argument,
                            "the completion queue is not on this SharedChannel");
    }
    return {state_, native};
}

template <class N>
auto SharedChannel<N>::make_state(const CompletionChannel& channel, N notifier)
    -> std::shared_ptr<State> {
    detail::check_cq_notifier<N>();
    auto state = std::make_shared<State>(channel.shared_handle(), detail::ThreadCheck(notifier));
    if constexpr (CqNotifier<N>) { // otherwise report only the error above
        detail::WaitLoop::start(state, std::move(notifier));
    }
    // The wait loop owns the state, too: close it when the last other reference is released.
    return {state.get(), [state](State*) { state->close(); }};
}

} // namespace asyncverbs
