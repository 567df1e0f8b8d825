// SPDX-License-Identifier: MIT
// What the CQs of a SharedChannel share: one pump, which waits for the channel while any of them
// does, reads its events, credits each to the CQ that it names, and resumes who waits for that.
#pragma once

#include <infiniband/verbs.h>

#include <chrono>
#include <coroutine>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <stop_token>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/coro/detail/deadline.hpp>
#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/cq/cq_poller.hpp>
#include <asyncverbs/cq/detail/wait_loop.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/detail/handle.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

// What the hub sees of a CQ. In a list while `waiting` waits.
struct ChannelSubscriber : ListNode {
    explicit ChannelSubscriber(ibv_cq* native) noexcept : cq(native) {}

    ibv_cq* const cq;
    unsigned events = 0; // read, and not yet taken over
    std::coroutine_handle<> waiting;
    std::stop_token stop;
    typename Deadline::Clock::time_point deadline = Deadline::never;
};

template <bool timed>
class SharedChannelState {
    using Node = ChannelSubscriber;
    using Time = typename Deadline::Clock::time_point;

public:
    explicit SharedChannelState(Handle<ibv_comp_channel> channel) : channel_(std::move(channel)) {}

    // --- for its CQs ---

    /// Events that name `node.cq` are counted there from now on. Throws std::system_error
    /// (device_or_resource_busy) if there is one for that CQ.
    void add(Node& node) {
        if (find(node.cq) != nullptr) {
            throw_error(std::errc::device_or_resource_busy,
                        "the completion queue has a notifier already");
        }
        nodes_.insert(place_of(node.cq), &node);
    }
    void remove(Node& node) noexcept {
        node.unlink();
        nodes_.erase(place_of(node.cq));
    }

    /// Puts a CQ that has no event in line, and returns what runs next: the pump, if it was idle.
    std::coroutine_handle<> wait(Node& node) noexcept;

    /// Makes the pump look for those that are to stop. From any thread.
    void interrupt() noexcept { wake_source_.wake(); }

    /// Why no event will come any more, if so.
    const std::optional<std::system_error>& failure() const noexcept { return failure_; }

    /// The last that referred to it has gone.
    void close() noexcept {
        closed_ = true;
        wait_loop.close();
    }

    // --- for the pump ---

    WaitLoopState wait_loop;

    bool idle() const noexcept { return waiting_.empty(); }
    bool may_wait() const noexcept { return true; } // each of the CQs that wait may
    bool must_yield() noexcept {
        wait_until_ = next_deadline();
        return wait_until_ == Deadline::next_iteration;
    }
    std::chrono::nanoseconds wait_bound() const noexcept;
    bool closed() const noexcept { return closed_; }
    bool finished() const noexcept { return closed_ || failure_; }
    std::stop_token stop_token() const noexcept { return wake_source_.token(); }
    void turn(std::error_code result, bool yielded);
    void escaped() noexcept {} // it concerns one CQ, whose own pump has seen to it
    void fail() noexcept;
    void dismiss_all() noexcept;

private:
    // Where in nodes_ that of `cq` is, or belongs.
    auto place_of(const ibv_cq* cq) noexcept {
        const auto address = [](const ibv_cq* of) { return reinterpret_cast<std::uintptr_t>(of); };
        auto first = nodes_.begin();
        for (auto count = nodes_.end() - first; count > 0;) {
            const auto half = count / 2;
            const bool before = address(first[half]->cq) < address(cq);
            if (before) first += half + 1;
            count = before ? count - half - 1 : half;
        }
        return first;
    }
    Node* find(const ibv_cq* cq) noexcept {
        const auto place = place_of(cq);
        return place != nodes_.end() && (*place)->cq == cq ? *place : nullptr;
    }
    Time next_deadline() noexcept;
    void read_events();
    void find_ready(bool interrupted);
    void resume_ready();

    Handle<ibv_comp_channel> channel_;
    std::vector<Node*> nodes_; // by the address of their CQ
    IntrusiveList<Node> waiting_;
    IntrusiveList<Node> ready_; // about to be resumed
    bool timed_ = false;        // one that waits may have a deadline
    Time wait_until_ = Deadline::never;
    WakeSource wake_source_;
    bool closed_ = false;
    std::optional<std::system_error> failure_;
};

template <bool timed>
inline std::coroutine_handle<> SharedChannelState<timed>::wait(Node& node) noexcept {
    waiting_.push_back(node);
    timed_ |= node.deadline != Deadline::never;
    if (wait_loop.idle) return wait_loop.handle;
    if (!wait_loop.running && node.deadline < wait_until_) interrupt(); // it has to wait for less
    return std::noop_coroutine();
}

template <bool timed>
inline auto SharedChannelState<timed>::next_deadline() noexcept -> Time {
    Time next = Deadline::never;
    if (timed_) {
        waiting_.for_each([&](Node& node) {
            if (node.deadline < next) next = node.deadline;
        });
    }
    timed_ = next != Deadline::never;
    return next;
}

template <bool timed>
inline std::chrono::nanoseconds SharedChannelState<timed>::wait_bound() const noexcept {
    if (wait_until_ == Deadline::never) return std::chrono::nanoseconds(0);
    const std::chrono::nanoseconds left = wait_until_ - Deadline::Clock::now();
    return left.count() > 0 ? left : std::chrono::nanoseconds(1);
}

template <bool timed>
inline void SharedChannelState<timed>::turn(std::error_code result, bool) {
    bool interrupted = false;
    try {
        if (!result) {
            read_events();
        } else if (result != std::errc::timed_out && result != std::errc::operation_canceled) {
            throw std::system_error(result, "CqNotifier::readable");
        }
        interrupted = wake_source_.pending();
        if (interrupted) wake_source_.reset();
    } catch (...) {
        fail();
    }
    find_ready(interrupted);
    resume_ready();
}

/// All that are there: several CQs may have fired on one edge (I3).
template <bool timed>
inline void SharedChannelState<timed>::read_events() {
    while (ibv_cq* const source = get_cq_event(channel_.get())) {
        Node* const node = find(source);
        if (node == nullptr) {
            ibv_ack_cq_events(source, 1); // nobody's any more, or not yet (I4)
            continue;
        }
        if (++node->events > 1 || !node->waiting) continue;
        node->unlink();
        ready_.push_back(*node);
    }
}

template <bool timed>
inline void SharedChannelState<timed>::find_ready(bool interrupted) {
    if (failure_) return ready_.append(waiting_);
    if (!interrupted && !timed_) return;
    const Time now = timed_ ? Deadline::Clock::now() : Deadline::next_iteration;
    waiting_.move_if(ready_, [&](const Node& node) {
        return node.deadline <= now || node.stop.stop_requested();
    });
}

template <bool timed>
inline void SharedChannelState<timed>::resume_ready() {
    std::exception_ptr first;
    while (!ready_.empty()) { // who leaves is unlinked
        Node& node = ready_.take_front();
        try {
            std::exchange(node.waiting, nullptr).resume();
        } catch (...) {
            if (!first) first = std::current_exception(); // one can leave; the others wait on
        }
    }
    if (first) std::rethrow_exception(std::move(first));
}

template <bool timed>
inline void SharedChannelState<timed>::fail() noexcept {
    if (!failure_) failure_.emplace(current_failure());
}

template <bool timed>
inline void SharedChannelState<timed>::dismiss_all() noexcept {
    find_ready(true);
    try {
        resume_ready();
    } catch (...) {
    }
}

// One CQ of a SharedChannel: the events that were read for it, and the coroutine, the pump of its
// AsyncCq, that waits for one.

template <bool timed>
class ChannelSubscription : public ChannelSubscriber {
    using Node = ChannelSubscriber;
    using Node::deadline, Node::events, Node::stop, Node::waiting;

public:
    ChannelSubscription(std::shared_ptr<SharedChannelState<timed>> hub, Handle<ibv_cq> owned)
        : Node(owned.get()), hub_(std::move(hub)), cq_(std::move(owned)) {
        hub_->add(*this);
    }
    ~ChannelSubscription() {
        on_stop_.reset();
        hub_->remove(*this);
        // What nobody took over is acked here, before the CQ goes (I4).
        if (const unsigned unclaimed = take_events()) ibv_ack_cq_events(cq_.get(), unclaimed);
    }

    unsigned take_events() noexcept { return std::exchange(events, 0u); }

    /// Whether there is no need to wait.
    bool ready(const std::stop_token& stop_token) const noexcept {
        return events > 0 || stop_token.stop_requested() || hub_->failure();
    }

    /// Lets `coroutine` wait, and returns what runs next.
    std::coroutine_handle<> wait(std::coroutine_handle<> coroutine, std::stop_token stop_token,
                                 typename Deadline::Clock::time_point until) {
        waiting = coroutine;
        deadline = until;
        // Registering a callback costs more than the rest of a wait. It stays, for the next wait
        // with the same token, and says nothing while nobody waits.
        if (stop_token != stop) {
            on_stop_.reset();
            stop = std::move(stop_token);
            if (stop.stop_possible()) on_stop_.emplace(stop, OnStop{*hub_});
        }
        return hub_->wait(*this);
    }

    /// Whoever waits does so no more.
    void leave() noexcept {
        this->unlink();
        waiting = nullptr;
    }

    /// How the wait has ended. Throws the failure of the channel.
    std::error_code result(const std::stop_token& stop_token) const {
        if (events > 0) return {};
        if (hub_->failure()) throw *hub_->failure();
        if (stop_token.stop_requested()) return std::make_error_code(std::errc::operation_canceled);
        return std::make_error_code(std::errc::timed_out);
    }

private:
    struct OnStop {
        SharedChannelState<timed>& hub;
        void operator()() const noexcept { hub.interrupt(); }
    };

    std::shared_ptr<SharedChannelState<timed>> hub_;
    Handle<ibv_cq> cq_;
    std::optional<std::stop_callback<OnStop>> on_stop_;
};

// The notifier of one CQ of a SharedChannel: "readable" is an event that names this CQ.

template <bool timed>
class ChannelReadable {
public:
    ChannelReadable(ChannelSubscription<timed>& member, std::stop_token stop,
                    typename Deadline::Clock::time_point deadline) noexcept
        : member_(member), stop_(std::move(stop)), deadline_(deadline) {}
    ChannelReadable(const ChannelReadable&) = delete;
    ChannelReadable& operator=(const ChannelReadable&) = delete;
    ~ChannelReadable() { member_.leave(); }

    bool await_ready() const noexcept { return member_.ready(stop_); }
    std::coroutine_handle<> await_suspend(std::coroutine_handle<> coroutine) {
        return member_.wait(coroutine, stop_, deadline_);
    }
    std::error_code await_resume() const { return member_.result(stop_); }

private:
    ChannelSubscription<timed>& member_;
    std::stop_token stop_;
    typename Deadline::Clock::time_point deadline_;
};

/// Models CqNotifier, and if `timed` TimedCqNotifier. Reads the events itself: see take_events().
template <bool timed>
class ChannelNotifier {
public:
    ChannelNotifier(std::shared_ptr<SharedChannelState<timed>> hub, Handle<ibv_cq> cq)
        : member_(std::make_unique<ChannelSubscription<timed>>(std::move(hub), std::move(cq))) {}

    ChannelReadable<timed> readable(std::stop_token stop) {
        return {*member_, std::move(stop), Deadline::never};
    }
    ChannelReadable<timed> readable(std::stop_token stop, std::chrono::nanoseconds max_wait)
        requires timed
    {
        return {*member_, std::move(stop), Deadline::after(max_wait)};
    }

    bool is_of(const CompletionQueue& cq) const noexcept {
        return member_->cq == cq.native_handle();
    }

    /// How many events of the CQ were read since the last call. The caller acks them.
    unsigned take_events() noexcept { return member_->take_events(); }

private:
    std::unique_ptr<ChannelSubscription<timed>> member_; // the hub refers to it by address
};

} // namespace asyncverbs::detail
