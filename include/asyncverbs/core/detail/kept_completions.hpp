// SPDX-License-Identifier: MIT
// Completions that were polled while somebody waited for one wr_id, and that did not match: kept
// in order for whoever polls next, so that waiting for one loses none of the others.
#pragma once

#include <infiniband/verbs.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace asyncverbs::detail {

class KeptCompletions {
public:
    bool empty() const noexcept { return kept_.empty(); }

    /// Moves the oldest ones whose wr_id `may_take` holds for to the front of `wcs`, their
    /// timestamps to `timestamps` unless that is null, and returns how many.
    template <class Predicate>
    std::size_t take(std::span<ibv_wc> wcs, std::uint64_t* timestamps,
                     Predicate may_take) noexcept {
        std::size_t taken = 0;
        std::size_t left = 0;
        for (const Kept& kept : kept_) {
            if (taken == wcs.size() || !may_take(kept.wc.wr_id)) {
                kept_[left++] = kept;
                continue;
            }
            if (timestamps) timestamps[taken] = kept.timestamp;
            wcs[taken++] = kept.wc;
        }
        kept_.resize(left);
        return taken;
    }

    /// Adds what `poll(span, timestamps)` delivers and returns how many. Makes room first: what has
    /// left the CQ cannot be lost to a failing allocation.
    template <class Poll>
    std::size_t add(Poll poll) {
        constexpr std::size_t batch = 16;
        ibv_wc wcs[batch];
        std::uint64_t timestamps[batch] = {};
        kept_.reserve(kept_.size() + batch);
        const std::size_t count = poll(std::span<ibv_wc>(wcs, batch), timestamps);
        for (std::size_t i = 0; i < count; ++i) kept_.push_back({wcs[i], timestamps[i]});
        return count;
    }

private:
    struct Kept {
        ibv_wc wc;
        std::uint64_t timestamp;
    };
    std::vector<Kept> kept_;
};

} // namespace asyncverbs::detail
