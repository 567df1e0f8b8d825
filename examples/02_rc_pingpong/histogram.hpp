// SPDX-License-Identifier: MIT
// How times are distributed: any number of samples in a fixed amount of memory, every time known to
// one part in a thousand, and drawn as bars.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace pingpong {

class Histogram {
public:
    using Time = std::chrono::nanoseconds;

    /// Times are counted in buckets whose width is their power of two divided by 2 to this power.
    static constexpr unsigned precision_bits = 10;

    void record(Time time);

    std::uint64_t count() const noexcept { return count_; }
    Time min() const noexcept { return min_; }
    Time max() const noexcept { return max_; }

    /// The least time that `percent` of the samples do not exceed; 0 < percent <= 100. Zero if
    /// there are no samples.
    Time percentile(double percent) const;

    /// One line per range of times: the range, how many samples fell into it, a bar of at most
    /// `width` characters; below it the percentiles. The ranges are equally wide up to the 99th
    /// percentile and then grow, so that the tail is there but does not flatten the rest; where
    /// times differ widely, they grow from the start.
    std::string draw(std::size_t width = 40) const;

private:
    static std::size_t bucket_of(std::uint64_t time) noexcept;
    static std::uint64_t bucket_start(std::size_t bucket) noexcept;

    std::vector<std::uint64_t> row_limits() const;

    std::vector<std::uint64_t> buckets_;
    std::uint64_t count_ = 0;
    Time min_ = Time::max();
    Time max_ = Time::zero();
};

} // namespace pingpong
