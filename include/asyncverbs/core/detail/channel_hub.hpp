// SPDX-License-Identifier: MIT
// What the CQs of a SharedChannel share: one pump, which waits for the channel while any of them
// does, reads its events, credits each to the CQ that it names, and resumes who waits for that.
#pragma once

#include <infiniband/verbs.h>

#include <coroutine>
#include <cstdint>
#include <exception>
#include <stop_token>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/core/detail/cq_event.hpp>
#include <asyncverbs/core/detail/current_failure.hpp>
#include <asyncverbs/core/detail/deadline.hpp>
#include <asyncverbs/core/detail/interruption.hpp>
#include <asyncverbs/core/detail/intrusive_list.hpp>
#include <asyncverbs/core/detail/maybe.hpp>
#include <asyncverbs/core/detail/pump_state.hpp>
#include <asyncverbs/verbs/detail/chrono.hpp>
#include <asyncverbs/verbs/detail/handle.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

// What the hub sees of a CQ. In a list while `waiting` waits.
template <class Use>
struct ChannelNode : ListNode {
    explicit ChannelNode(ibv_cq* native) noexcept : cq(native) {}

    ibv_cq* const cq;
    unsigned events = 0; // read, and not yet taken over
    std::coroutine_handle<> waiting;
    std::stop_token stop;
    typename Deadline<Use>::Clock::time_point deadline = Deadline<Use>::never;
};

template <bool timed, class Use>
class ChannelHub {
    using Node = ChannelNode<Use>;
    using Time = typename Deadline<Use>::Clock::time_point;

public:
    explicit ChannelHub(Handle<ibv_comp_channel, Use> channel) : channel_(std::move(channel)) {}

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
    void interrupt() noexcept { interruption_.request(); }

    /// Why no event will come any more, if so.
    const Used<Maybe<std::system_error>, Use>& failure() const noexcept { return failure_; }

    /// The last that referred to it has gone.
    void close() noexcept {
        closed_ = true;
        pump.close();
    }

    // --- for the pump ---

    PumpState<Use> pump;

    bool idle() const noexcept { return waiting_.empty(); }
    bool may_wait() const noexcept { return true; } // each of the CQs that wait may
    bool must_yield() noexcept {
        wait_until_ = next_deadline();
        return wait_until_ == Deadline<Use>::next_turn;
    }
    std::chrono::nanoseconds wait_bound() const noexcept;
    bool closed() const noexcept { return closed_; }
    bool finished() const noexcept { return closed_ || failure_; }
    std::stop_token stop_token() const noexcept { return interruption_.token(); }
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

    Handle<ibv_comp_channel, Use> channel_;
    std::vector<Node*> nodes_; // by the address of their CQ
    IntrusiveList<Node> waiting_;
    IntrusiveList<Node> ready_; // about to be resumed
    bool timed_ = false;        // one that waits may have a deadline
    Time wait_until_ = Deadline<Use>::never;
    Interruption<Use> interruption_;
    bool closed_ = false;
    Used<Maybe<std::system_error>, Use> failure_;
};

template <bool timed, class Use>
inline std::coroutine_handle<> ChannelHub<timed, Use>::wait(Node& node) noexcept {
    waiting_.push_back(node);
    timed_ |= node.deadline != Deadline<Use>::never;
    if (pump.idle) return pump.handle;
    if (!pump.running && node.deadline < wait_until_) interrupt(); // it has to wait for less
    return std::noop_coroutine();
}

template <bool timed, class Use>
inline auto ChannelHub<timed, Use>::next_deadline() noexcept -> Time {
    Time next = Deadline<Use>::never;
    if (timed_) {
        waiting_.for_each([&](Node& node) {
            if (node.deadline < next) next = node.deadline;
        });
    }
    timed_ = next != Deadline<Use>::never;
    return next;
}

template <bool timed, class Use>
inline std::chrono::nanoseconds ChannelHub<timed, Use>::wait_bound() const noexcept {
    if (wait_until_ == Deadline<Use>::never) return std::chrono::nanoseconds(0);
    const std::chrono::nanoseconds left = wait_until_ - Deadline<Use>::Clock::now();
    return left.count() > 0 ? left : std::chrono::nanoseconds(1);
}

template <bool timed, class Use>
inline void ChannelHub<timed, Use>::turn(std::error_code result, bool) {
    bool interrupted = false;
    try {
        if (!result) {
            read_events();
        } else if (result != std::errc::timed_out && result != std::errc::operation_canceled) {
            throw std::system_error(result, "CqNotifier::readable");
        }
        interrupted = interruption_.pending();
        if (interrupted) interruption_.renew();
    } catch (...) {
        fail();
    }
    find_ready(interrupted);
    resume_ready();
}

/// All that are there: several CQs may have fired on one edge (I3).
template <bool timed, class Use>
inline void ChannelHub<timed, Use>::read_events() {
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

template <bool timed, class Use>
inline void ChannelHub<timed, Use>::find_ready(bool interrupted) {
    if (failure_) return ready_.append(waiting_);
    if (!interrupted && !timed_) return;
    const Time now = timed_ ? Deadline<Use>::Clock::now() : Deadline<Use>::next_turn;
    waiting_.move_if(ready_, [&](const Node& node) {
        return node.deadline <= now || node.stop.stop_requested();
    });
}

template <bool timed, class Use>
inline void ChannelHub<timed, Use>::resume_ready() {
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

template <bool timed, class Use>
inline void ChannelHub<timed, Use>::fail() noexcept {
    if (!failure_) failure_.emplace(current_failure());
}

template <bool timed, class Use>
inline void ChannelHub<timed, Use>::dismiss_all() noexcept {
    find_ready(true);
    try {
        resume_ready();
    } catch (...) {
    }
}

} // namespace asyncverbs::detail
