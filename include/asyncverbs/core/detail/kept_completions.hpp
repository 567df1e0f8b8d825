// SPDX-License-Identifier: MIT
// Completions that were polled while somebody waited for one wr_id, and that did not match: kept
// in order for whoever polls next, so that waiting for one loses none of the others.
#pragma once

#include <infiniband/verbs.h>

#include <cstddef>
#include <cstdint>
#include <list>
#include <span>

#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs::detail {

template <class Use>
class KeptCompletions {
public:
    bool empty() const noexcept { return kept_.empty(); }

    /// Moves the oldest ones whose wr_id `may_take` holds for to the front of `wcs`, their
    /// timestamps to `timestamps` unless that is null, and returns how many.
    template <class Predicate>
    std::size_t take(std::span<ibv_wc> wcs, std::uint64_t* timestamps,
                     Predicate may_take) noexcept {
        std::size_t taken = 0;
        for (auto next = kept_.begin(); next != kept_.end() && taken < wcs.size();) {
            const auto kept = next++;
            if (!may_take(kept->wc.wr_id)) continue;
            if (timestamps) timestamps[taken] = kept->timestamp;
            wcs[taken++] = kept->wc;
            spare_.splice(spare_.begin(), kept_, kept);
        }
        return taken;
    }

    /// Adds what `poll(span, timestamps)` delivers and returns how many. Makes room first: what has
    /// left the CQ cannot be lost to a failing allocation.
    template <class Poll>
    std::size_t add(Poll poll) {
        constexpr std::size_t batch = 16;
        ibv_wc wcs[batch];
        std::uint64_t timestamps[batch] = {};
        while (spare_.size() < batch) spare_.emplace_back();
        const std::size_t count = poll(std::span<ibv_wc>(wcs, batch), timestamps);
        for (std::size_t i = 0; i < count; ++i) {
            spare_.front() = {wcs[i], timestamps[i]};
            kept_.splice(kept_.end(), spare_, spare_.begin());
        }
        return count;
    }

private:
    struct Kept {
        ibv_wc wc;
        std::uint64_t timestamp;
    };
    using List = Used<std::list<Kept>, Use>;

    List kept_;
    List spare_; // room for more: nothing is allocated once there were as many before
};

} // namespace asyncverbs::detail
