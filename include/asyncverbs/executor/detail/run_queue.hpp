// SPDX-License-Identifier: MIT
// A piece of work in an executor's queues: a coroutine to resume or a function to call. The node
// is embedded in the awaiter or allocated with the function, so queueing never allocates.
#pragma once

#include <atomic>
#include <concepts>
#include <memory>
#include <utility>

#include <asyncverbs/coro/detail/intrusive_list.hpp>

namespace asyncverbs::detail {

struct WorkItem : ListNode {
    using Action = void (*)(WorkItem&);

    explicit WorkItem(Action on_run, Action on_discard = nullptr) noexcept
        : run(on_run), discard(on_discard) {}

    Action run;
    Action discard; // destroys a node that its queue owns; null: the awaiter owns it
    WorkItem* next_posted = nullptr;
};

// A function on its way to an executor. The node and the function are one allocation.

template <class Function>
class PostedFunction : public WorkItem {
public:
    template <class F>
        requires std::constructible_from<Function, F>
    explicit PostedFunction(F&& function)
        : WorkItem(&call, &drop), function_(std::forward<F>(function)) {}

private:
    static void call(WorkItem& node) {
        const std::unique_ptr<PostedFunction> self(static_cast<PostedFunction*>(&node));
        self->function_();
    }
    static void drop(WorkItem& node) { delete static_cast<PostedFunction*>(&node); }

    Function function_;
};

// Work handed to a loop from any thread, without a lock. The one atomic word also says whether the
// loop sleeps, so that of many posts only the first one has to wake it.

// Of the posting threads push() and wake(), of the loop's thread sleep() and take().
//
// On a cache line of its own: threads that post take that line from the loop, and no other.
//
//   head_ = &asleep_   the loop sleeps or does not run: whoever changes this wakes it
//   head_ = nullptr    it runs, or was woken, and will look before it sleeps
//   else               as nullptr, with a stack of nodes, the newest first
class alignas(64) RemoteQueue {
public:
    /// True: the loop sleeps and is to be woken. `node` may be gone when this returns.
    bool push(WorkItem& node) noexcept {
        WorkItem* head = head_.load(std::memory_order_relaxed);
        do {
            node.next_posted = head == &asleep_ ? nullptr : head;
        } while (!head_.compare_exchange_weak(head, &node, std::memory_order_seq_cst,
                                              std::memory_order_relaxed));
        return head == &asleep_;
    }

    /// True: the loop sleeps and is to be woken. Sequentially consistent with sleep(): a flag that
    /// is set before wake() is seen by a loop that reads it after sleep().
    bool wake() noexcept {
        WorkItem* expected = &asleep_;
        return head_.compare_exchange_strong(expected, nullptr);
    }

    /// False: something was posted, do not sleep.
    bool sleep() noexcept {
        WorkItem* expected = nullptr;
        return head_.compare_exchange_strong(expected, &asleep_) || expected == &asleep_;
    }

    /// Moves what was posted to the end of `ready`, in the order of posting.
    void take(IntrusiveList<WorkItem>& ready) noexcept { move_to(ready, nullptr); }

    /// The same for a loop that does not run: the next post wakes it again.
    void take_asleep(IntrusiveList<WorkItem>& ready) noexcept { move_to(ready, &asleep_); }

private:
    void move_to(IntrusiveList<WorkItem>& ready, WorkItem* next_head) noexcept {
        WorkItem* newest = head_.exchange(next_head);
        if (newest == &asleep_) return;
        WorkItem* oldest = nullptr;
        while (newest != nullptr) {
            WorkItem* const older = newest->next_posted;
            newest->next_posted = oldest;
            oldest = newest;
            newest = older;
        }
        while (oldest != nullptr) {
            WorkItem& node = *oldest;
            oldest = node.next_posted;
            ready.push_back(node);
        }
    }

    WorkItem asleep_{nullptr};
    std::atomic<WorkItem*> head_{&asleep_};
};

} // namespace asyncverbs::detail
