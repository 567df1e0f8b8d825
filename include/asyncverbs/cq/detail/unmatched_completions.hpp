// SPDX-License-Identifier: MIT
#pragma once

#include <infiniband/verbs.h>

#include <cstddef>
#include <cstdint>
#include <list>
#include <span>

namespace asyncverbs::detail {

// Completions that were polled for a poll_wr_id() and did not match, in order, for the next poll.
class UnmatchedCompletions {
public:
    bool empty() const noexcept { return unmatched_.empty(); }

    /// Moves the oldest ones whose wr_id `may_take` accepts to the front of `wcs`, their timestamps
    /// to `timestamps` unless that is null, and returns their number.
    template <class Predicate>
    std::size_t take(std::span<ibv_wc> wcs, std::uint64_t* timestamps,
                     Predicate may_take) noexcept {
        std::size_t taken = 0;
        for (auto next = unmatched_.begin(); next != unmatched_.end() && taken < wcs.size();) {
            const auto item = next++;
            if (!may_take(item->wc.wr_id)) continue;
            if (timestamps) timestamps[taken] = item->timestamp;
            wcs[taken++] = item->wc;
            spare_.splice(spare_.begin(), unmatched_, item);
        }
        return taken;
    }

    /// Adds what `poll(span, timestamps)` delivers and returns the number. Allocates first: a
    /// completion that has left the CQ cannot be lost to a failing allocation.
    template <class Poll>
    std::size_t add(Poll poll) {
        constexpr std::size_t batch = 16;
        ibv_wc wcs[batch];
        std::uint64_t timestamps[batch] = {};
        while (spare_.size() < batch) spare_.emplace_back();
        const std::size_t count = poll(std::span<ibv_wc>(wcs, batch), timestamps);
        for (std::size_t i = 0; i < count; ++i) {
            spare_.front() = {wcs[i], timestamps[i]};
            unmatched_.splice(unmatched_.end(), spare_, spare_.begin());
        }
        return count;
    }

private:
    struct Item {
        ibv_wc wc;
        std::uint64_t timestamp;
    };
    std::list<Item> unmatched_;
    std::list<Item> spare_; // nodes to reuse
};

} // namespace asyncverbs::detail
