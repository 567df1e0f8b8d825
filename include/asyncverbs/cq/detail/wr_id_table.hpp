// SPDX-License-Identifier: MIT
// What poll_wr_id() needs: tables by wr_id, and the completions that did not match.
#pragma once

#include <infiniband/verbs.h>

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <utility>

#include <asyncverbs/coro/detail/intrusive_list.hpp>

namespace asyncverbs::detail {

// A hash table of items by wr_id, which need not be unique. The entries are members of the items,
// so adding one cannot fail: without memory the table does not grow, and is only slower.
template <class T>
class WrIdTable {
public:
    // A destroyed entry leaves its table.
    class Entry : public ListNode {
    public:
        explicit Entry(T& item) noexcept : item_(item) {}

    private:
        friend class WrIdTable;
        T& item_;
        std::uint64_t wr_id_ = 0;
    };

    WrIdTable() noexcept = default;
    WrIdTable(const WrIdTable&) = delete;
    WrIdTable& operator=(const WrIdTable&) = delete;

    void add(Entry& entry, std::uint64_t wr_id) noexcept {
        if (crowded_) grow();
        entry.wr_id_ = wr_id;
        bucket(wr_id).push_back(entry);
    }

    /// The item with this wr_id that was added first, or null.
    T* find(std::uint64_t wr_id) noexcept {
        std::size_t passed = 0;
        const auto matches = [&](const Entry& entry) {
            return entry.wr_id_ == wr_id || (++passed, false);
        };
        Entry* const found = bucket(wr_id).find_if(matches);
        if (passed > 8) crowded_ = true;
        return found != nullptr ? &found->item_ : nullptr;
    }

private:
    using Bucket = IntrusiveList<Entry>;

    Bucket& bucket(std::uint64_t wr_id) noexcept {
        constexpr std::uint64_t golden_ratio = 0x9e3779b97f4a7c15;
        return buckets_[wr_id * golden_ratio >> 32 & (count_ - 1)];
    }

    void grow() noexcept {
        constexpr std::size_t most = 65'536;
        crowded_ = false;
        if (count_ == most) return;
        std::unique_ptr<Bucket[]> more(new (std::nothrow) Bucket[4 * count_]);
        if (!more) return;
        const std::span<Bucket> before(buckets_, count_);
        buckets_ = more.get();
        count_ *= 4;
        for (Bucket& old : before) {
            while (!old.empty()) {
                Entry& entry = old.take_front();
                bucket(entry.wr_id_).push_back(entry);
            }
        }
        more_ = std::move(more);
    }

    Bucket first_;
    std::unique_ptr<Bucket[]> more_;
    Bucket* buckets_ = &first_;
    std::size_t count_ = 1; // a power of 4
    bool crowded_ = false;
};

// Completions that were polled for a poll_wr_id() and did not match, in order.
class UnmatchedCompletions {
public:
    bool empty() const noexcept { return seen_.empty() && unseen_.empty(); }

    /// Moves the oldest ones whose wr_id `may_take` accepts to the front of `wcs`, their timestamps
    /// to `timestamps` unless that is null, and returns their number.
    template <class Predicate>
    std::size_t take(std::span<ibv_wc> wcs, std::uint64_t* timestamps,
                     Predicate may_take) noexcept {
        const auto takes = [&](const Item& item) { return may_take(item.wc.wr_id); };
        std::size_t taken = 0;
        for (IntrusiveList<Item>* const list : {&seen_, &unseen_}) {
            while (taken < wcs.size()) {
                Item* const item = list->find_if(takes);
                if (item == nullptr) break;
                if (timestamps) timestamps[taken] = item->timestamp;
                wcs[taken++] = release(*item);
            }
        }
        return taken;
    }

    /// Takes the oldest one with this wr_id.
    std::optional<ibv_wc> take(std::uint64_t wr_id) noexcept {
        Item* const item = by_wr_id_.find(wr_id);
        if (item == nullptr) return std::nullopt;
        return release(*item);
    }

    /// The wr_id of the next one, in order, that this function has not returned yet.
    std::optional<std::uint64_t> next_unseen() noexcept {
        if (unseen_.empty()) return std::nullopt;
        Item& item = unseen_.take_front();
        seen_.push_back(item);
        return item.wc.wr_id;
    }

    /// Adds what `poll(span, timestamps)` delivers and returns the number. Allocates first: a
    /// completion that has left the CQ cannot be lost to a failing allocation.
    template <class Poll>
    std::size_t add(Poll poll) {
        constexpr std::size_t batch = 16;
        ibv_wc wcs[batch];
        std::uint64_t timestamps[batch] = {};
        for (; spares_ < batch; ++spares_) spare_.push_back(items_.emplace_back());
        const std::size_t count = poll(std::span<ibv_wc>(wcs, batch), timestamps);
        for (std::size_t i = 0; i < count; ++i) {
            --spares_;
            Item& item = spare_.take_front();
            item.wc = wcs[i];
            item.timestamp = timestamps[i];
            unseen_.push_back(item);
            by_wr_id_.add(item.by_wr_id, item.wc.wr_id);
        }
        return count;
    }

private:
    struct Item : ListNode {
        ibv_wc wc{};
        std::uint64_t timestamp = 0;
        WrIdTable<Item>::Entry by_wr_id{*this};
    };

    const ibv_wc& release(Item& item) noexcept {
        item.by_wr_id.unlink();
        item.unlink();
        spare_.push_back(item);
        ++spares_;
        return item.wc;
    }

    WrIdTable<Item> by_wr_id_;
    IntrusiveList<Item> seen_; // all of them older than the unseen ones
    IntrusiveList<Item> unseen_;
    IntrusiveList<Item> spare_;
    std::size_t spares_ = 0;
    std::list<Item> items_; // of all three lists; destroyed first
};

} // namespace asyncverbs::detail
