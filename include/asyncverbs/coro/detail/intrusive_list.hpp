// SPDX-License-Identifier: MIT
// A list of nodes that live in their owners: no allocation, and a node that is destroyed has
// left its list.
#pragma once

namespace asyncverbs::detail {

class ListNode {
public:
    ListNode() noexcept = default;
    ListNode(const ListNode&) = delete;
    ListNode& operator=(const ListNode&) = delete;
    ~ListNode() { unlink(); }

    bool linked() const noexcept { return next_ != nullptr; }

    /// Does nothing for a node that is in no list.
    void unlink() noexcept {
        if (linked()) leave();
    }

    /// Enters the list of `other`, which is in one, where that is, and that leaves it.
    void take_place_of(ListNode& other) noexcept {
        prev_ = other.prev_;
        next_ = other.next_;
        prev_->next_ = next_->prev_ = this;
        other.prev_ = other.next_ = nullptr;
    }

private:
    template <class T>
    friend class IntrusiveList;

    void leave() noexcept {
        prev_->next_ = next_;
        next_->prev_ = prev_;
        prev_ = next_ = nullptr;
    }

    ListNode* prev_ = nullptr;
    ListNode* next_ = nullptr;
};

/// First in, first out. T derives from ListNode. Destroying the list detaches what is left.
template <class T>
class IntrusiveList {
public:
    IntrusiveList() noexcept { ring_.prev_ = ring_.next_ = &ring_; }
    ~IntrusiveList() {
        while (!empty()) take_front();
    }

    bool empty() const noexcept { return ring_.next_ == &ring_; }
    T& front() noexcept { return static_cast<T&>(*ring_.next_); }
    T& take_front() noexcept {
        T& first = front();
        static_cast<ListNode&>(first).leave();
        return first;
    }

    void push_back(T& item) noexcept {
        ListNode& node = item;
        node.prev_ = ring_.prev_;
        node.next_ = &ring_;
        node.prev_->next_ = &node;
        ring_.prev_ = &node;
    }

    /// Moves the items of `other` behind those of this list, keeping their order.
    void append(IntrusiveList& other) noexcept { splice(*ring_.prev_, other); }

    /// Moves the items of `other` before those of this list, keeping their order.
    void prepend(IntrusiveList& other) noexcept { splice(ring_, other); }

    template <class Function>
    void for_each(Function function) {
        for (ListNode* node = ring_.next_; node != &ring_; node = node->next_) {
            function(static_cast<T&>(*node));
        }
    }

    /// The first item that `wanted` holds for, or null.
    template <class Predicate>
    T* find_if(Predicate wanted) noexcept {
        for (ListNode* node = ring_.next_; node != &ring_; node = node->next_) {
            if (T& item = static_cast<T&>(*node); wanted(item)) return &item;
        }
        return nullptr;
    }

    /// Appends the items that `wanted` holds for to `other`, in order.
    template <class Predicate>
    void move_if(IntrusiveList& other, Predicate wanted) noexcept {
        for (ListNode* node = ring_.next_; node != &ring_;) {
            T& item = static_cast<T&>(*node);
            node = node->next_;
            if (!wanted(item)) continue;
            item.unlink();
            other.push_back(item);
        }
    }

private:
    void splice(ListNode& before, IntrusiveList& other) noexcept {
        if (other.empty()) return;
        ListNode& first = *other.ring_.next_;
        ListNode& last = *other.ring_.prev_;
        other.ring_.prev_ = other.ring_.next_ = &other.ring_;
        first.prev_ = &before;
        last.next_ = before.next_;
        last.next_->prev_ = &last;
        before.next_ = &first;
    }

    ListNode ring_;
};

} // namespace asyncverbs::detail
