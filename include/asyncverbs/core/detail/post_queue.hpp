// SPDX-License-Identifier: MIT
// Work handed to a loop from any thread, without a lock. The one atomic word also says whether the
// loop sleeps, so that of many posts only the first one has to wake it.
#pragma once

#include <atomic>

#include <asyncverbs/core/detail/ready_node.hpp>

namespace asyncverbs::detail {

// Of the posting threads push() and wake(), of the loop's thread sleep() and take().
//
// On a cache line of its own: threads that post take that line from the loop, and no other.
//
//   head_ = &asleep_   the loop sleeps or does not run: whoever changes this wakes it
//   head_ = nullptr    it runs, or was woken, and will look before it sleeps
//   else               as nullptr, with a stack of nodes, the newest first
template <class Use>
class alignas(64) PostQueue {
public:
    /// True: the loop sleeps and is to be woken. `node` may be gone when this returns.
    bool push(ReadyNode<Use>& node) noexcept {
        ReadyNode<Use>* head = head_.load(std::memory_order_relaxed);
        do {
            node.next_posted = head == &asleep_ ? nullptr : head;
        } while (!head_.compare_exchange_weak(head, &node, std::memory_order_seq_cst,
                                              std::memory_order_relaxed));
        return head == &asleep_;
    }

    /// True: the loop sleeps and is to be woken. Sequentially consistent with sleep(): a flag that
    /// is set before wake() is seen by a loop that reads it after sleep().
    bool wake() noexcept {
        ReadyNode<Use>* expected = &asleep_;
        return head_.compare_exchange_strong(expected, nullptr);
    }

    /// False: something was posted, do not sleep.
    bool sleep() noexcept {
        ReadyNode<Use>* expected = nullptr;
        return head_.compare_exchange_strong(expected, &asleep_) || expected == &asleep_;
    }

    /// Moves what was posted to the end of `ready`, in the order of posting.
    void take(IntrusiveList<ReadyNode<Use>>& ready) noexcept { move_to(ready, nullptr); }

    /// The same for a loop that does not run: the next post wakes it again.
    void take_asleep(IntrusiveList<ReadyNode<Use>>& ready) noexcept { move_to(ready, &asleep_); }

private:
    void move_to(IntrusiveList<ReadyNode<Use>>& ready, ReadyNode<Use>* next_head) noexcept {
        ReadyNode<Use>* newest = head_.exchange(next_head);
        if (newest == &asleep_) return;
        ReadyNode<Use>* oldest = nullptr;
        while (newest != nullptr) {
            ReadyNode<Use>* const older = newest->next_posted;
            newest->next_posted = oldest;
            oldest = newest;
            newest = older;
        }
        while (oldest != nullptr) {
            ReadyNode<Use>& node = *oldest;
            oldest = node.next_posted;
            ready.push_back(node);
        }
    }

    ReadyNode<Use> asleep_{nullptr};
    std::atomic<ReadyNode<Use>*> head_{&asleep_};
};

} // namespace asyncverbs::detail
