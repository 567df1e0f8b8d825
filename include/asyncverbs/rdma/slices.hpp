// SPDX-License-Identifier: MIT
// The scatter/gather list of an operation: one slice, or any contiguous range of them.
#pragma once

#include <concepts>
#include <span>

#include <asyncverbs/verbs/slice.hpp>

namespace asyncverbs {

/// A view of the slices that a work request gathers from or scatters to, in order. For parameters:
/// it refers to what it was made of, which has to exist until the call returns.
class Slices : public std::span<const Slice> {
public:
    Slices() noexcept = default; ///< None: a message without bytes.

    /// One.
    Slices(const Slice& one) noexcept : span(&one, 1) {}

    /// A std::vector, std::array, std::span of them, or another contiguous range.
    template <class Range>
        requires(!std::same_as<Range, Slices> &&
                 std::constructible_from<std::span<const Slice>, const Range&>)
    Slices(const Range& slices) noexcept : span(slices) {}
};

} // namespace asyncverbs
