// SPDX-License-Identifier: MIT
#pragma once

namespace asyncverbs::detail {

/// Base of the items of an IntrusiveList. A node that is destroyed leaves its list.
class ListNode {
public:
    ListNode() noexcept = default;
    ListNode(const ListNode&) = delete;
    ListNode& operator=(const ListNode&) = delete;
    ~ListNode() { unlink(); }

    bool linked() const noexcept { return next_ != nullptr; }

    /// Does nothing if the node is in no list.
    void unlink() noexcept {
        if (!linked()) return;
        prev_->next_ = next_;
        next_->prev_ = prev_;
        prev_ = next_ = nullptr;
    }

    /// Replaces `other`, which must be in a list, at its position in that list.
    void take_place_of(ListNode& other) noexcept {
        prev_ = other.prev_;
        next_ = other.next_;
        prev_->next_ = next_->prev_ = this;
        other.prev_ = other.next_ = nullptr;
    }

private:
    template <class T>
    friend class IntrusiveList;

    ListNode* prev_ = nullptr;
    ListNode* next_ = nullptr;
};

/// A first-in, first-out list of nodes that live in their owners; it allocates nothing. T derives
/// from ListNode. Destroying the list unlinks the remaining items.
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
        first.unlink();
        return first;
    }

    void push_back(T& item) noexcept {
        ListNode& node = item;
        node.prev_ = ring_.prev_;
        node.next_ = &ring_;
        node.prev_->next_ = &node;
        ring_.prev_ = &node;
    }

    /// Moves the items of `other` to the end of this list, in order.
    void append(IntrusiveList& other) noexcept { splice(*ring_.prev_, other); }

    /// Moves the items of `other` to the front of this list, in order.
    void prepend(IntrusiveList& other) noexcept { splice(ring_, other); }

    template <class Function>
    void for_each(Function function) {
        for (ListNode* node = ring_.next_; node != &ring_; node = node->next_) {
            function(static_cast<T&>(*node));
        }
    }

    /// The first item for which `wanted` is true, or null.
    template <class Predicate>
    T* find_if(Predicate wanted) noexcept {
        for (ListNode* node = ring_.next_; node != &ring_; node = node->next_) {
            if (T& item = static_cast<T&>(*node); wanted(item)) return &item;
        }
        return nullptr;
    }

    /// Moves the items for which `wanted` is true to the end of `other`, in order.
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
