// SPDX-License-Identifier: MIT
// The timers of a loop: a pairing heap whose nodes live in the sleeping awaiters, because a sleep
// must not allocate. Insertion is O(1), removal O(log n) amortised. Equal deadlines keep order.
#pragma once

#include <cstdint>
#include <utility>

#include <asyncverbs/core/detail/deadline.hpp>

namespace asyncverbs::detail {

template <class Use>
class TimerNode {
public:
    TimerNode() noexcept = default;
    TimerNode(const TimerNode&) = delete;
    TimerNode& operator=(const TimerNode&) = delete;

    typename Deadline<Use>::Clock::time_point deadline; // set before it is inserted

private:
    template <class>
    friend class TimerHeap;

    // Few awaiters ever start a timer: the rest is set when they do.
    std::uint64_t sequence_ = 0; // 0: in no heap
    TimerNode* child_;           // the first of the later timers below this one
    TimerNode* sibling_;         // the next child of the same parent
    TimerNode* back_;            // the previous sibling; of a first child, the parent
};

template <class Use>
class TimerHeap {
public:
    /// The earliest timer, or null.
    TimerNode<Use>* first() const noexcept { return root_; }

    void insert(TimerNode<Use>& node) noexcept {
        node.sequence_ = ++sequence_;
        node.child_ = node.sibling_ = node.back_ = nullptr;
        root_ = root_ == nullptr ? &node : meld(root_, &node);
    }

    /// Does nothing for a node that is not in the heap.
    void remove(TimerNode<Use>& node) noexcept {
        if (node.sequence_ == 0) return;
        TimerNode<Use>* const below = meld_children(node);
        if (&node == root_) {
            root_ = below;
        } else {
            cut(node);
            if (below != nullptr) root_ = meld(root_, below);
        }
        node.sequence_ = 0;
    }

private:
    static bool earlier(const TimerNode<Use>& a, const TimerNode<Use>& b) noexcept {
        return a.deadline != b.deadline ? a.deadline < b.deadline : a.sequence_ < b.sequence_;
    }

    static TimerNode<Use>* meld(TimerNode<Use>* a, TimerNode<Use>* b) noexcept {
        if (earlier(*b, *a)) std::swap(a, b);
        b->sibling_ = a->child_;
        if (b->sibling_ != nullptr) b->sibling_->back_ = b;
        b->back_ = a;
        a->child_ = b;
        return a;
    }

    static void cut(TimerNode<Use>& node) noexcept {
        (node.back_->child_ == &node ? node.back_->child_ : node.back_->sibling_) = node.sibling_;
        if (node.sibling_ != nullptr) node.sibling_->back_ = node.back_;
        node.sibling_ = node.back_ = nullptr;
    }

    // Two passes, which give the amortised bound: pairs from left to right, then all from right to
    // left. Loops, not recursion: a node may have thousands of children.
    static TimerNode<Use>* meld_children(TimerNode<Use>& node) noexcept {
        TimerNode<Use>* pairs = nullptr;
        while (node.child_ != nullptr) {
            TimerNode<Use>* pair = node.child_;
            cut(*pair);
            if (TimerNode<Use>* const second = node.child_) {
                cut(*second);
                pair = meld(pair, second);
            }
            pair->sibling_ = pairs;
            pairs = pair;
        }
        TimerNode<Use>* all = nullptr;
        while (pairs != nullptr) {
            TimerNode<Use>* const pair = pairs;
            pairs = pair->sibling_;
            pair->sibling_ = nullptr;
            all = all == nullptr ? pair : meld(all, pair);
        }
        return all;
    }

    TimerNode<Use>* root_ = nullptr;
    std::uint64_t sequence_ = 0;
};

} // namespace asyncverbs::detail
