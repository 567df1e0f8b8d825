// SPDX-License-Identifier: MIT
// Completions that were polled while somebody waited for one wr_id, and that did not match: kept
// in order for whoever polls next, so that waiting for one loses none of the others.
#pragma once

#include <infiniband/verbs.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
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
        std::size_t count = 0;
        std::erase_if(kept_, [&](const Kept& kept) {
            if (count == wcs.size() || !may_take(kept.wc.wr_id)) return false;
            if (timestamps) timestamps[count] = kept.timestamp;
            wcs[count++] = kept.wc;
            return true;
        });
        return count;
    }

    /// Takes the oldest one with this wr_id, if there is one.
    std::optional<ibv_wc> take(std::uint64_t wr_id) noexcept {
        const auto matches = [=](const Kept& kept) { return kept.wc.wr_id == wr_id; };
        const auto match = std::find_if(kept_.begin(), kept_.end(), matches);
        if (match == kept_.end()) return std::nullopt;
        const ibv_wc wc = match->wc;
        kept_.erase(match);
        return wc;
    }

    /// Adds what `poll(span, timestamps)` delivers and returns how many. Makes room first: what has
    /// left the CQ cannot be lost to a failing allocation.
    template <class Poll>
    std::size_t add(Poll poll) {
        std::array<ibv_wc, 16> wcs;
        std::array<std::uint64_t, 16> timestamps{};
        kept_.reserve(kept_.size() + wcs.size());
        const std::size_t count = poll(std::span(wcs), timestamps.data());
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
