// SPDX-License-Identifier: MIT
// Completions that were polled while somebody waited for one wr_id, and that did not match: kept
// in order for whoever polls next, so that waiting for one loses none of the others.
#pragma once

#include <infiniband/verbs.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace asyncverbs::detail {

class KeptCompletions {
public:
    bool empty() const noexcept { return kept_.empty(); }

    /// Moves the oldest ones whose wr_id `may_take` holds for to the front of `wcs` and returns how
    /// many.
    template <class Predicate>
    std::size_t take(std::span<ibv_wc> wcs, Predicate may_take) noexcept {
        std::size_t count = 0;
        std::erase_if(kept_, [&](const ibv_wc& wc) {
            if (count == wcs.size() || !may_take(wc.wr_id)) return false;
            wcs[count++] = wc;
            return true;
        });
        return count;
    }

    /// Takes the oldest one with this wr_id, if there is one.
    std::optional<ibv_wc> take(std::uint64_t wr_id) noexcept {
        const auto matches = [=](const ibv_wc& wc) { return wc.wr_id == wr_id; };
        const auto match = std::find_if(kept_.begin(), kept_.end(), matches);
        if (match == kept_.end()) return std::nullopt;
        const ibv_wc wc = *match;
        kept_.erase(match);
        return wc;
    }

    /// Adds what `poll(span)` delivers and returns how many. Makes room first: what has left the
    /// CQ cannot be lost to a failing allocation.
    template <class Poll>
    std::size_t add(Poll poll) {
        constexpr std::size_t batch = 16;
        const std::size_t size = kept_.size();
        kept_.resize(size + batch);
        std::size_t count = 0;
        try {
            count = poll(std::span(kept_).subspan(size));
        } catch (...) {
            kept_.resize(size);
            throw;
        }
        kept_.resize(size + count);
        return count;
    }

private:
    std::vector<ibv_wc> kept_;
};

} // namespace asyncverbs::detail
