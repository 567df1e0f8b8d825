// SPDX-License-Identifier: MIT
// The distribution of any number of times in a bounded amount of memory, each known to one part in
// a thousand, and drawn as bars.
#pragma once

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

namespace pingpong {

class Histogram {
public:
    void record(std::chrono::nanoseconds sample) {
        const auto time = static_cast<std::uint64_t>(sample.count());
        // A bucket holds the times with the same ten bits below the leading one, and is named by
        // the largest of them.
        const int rest = std::max(static_cast<int>(std::bit_width(time)) - 11, 0);
        ++buckets_[time | ((std::uint64_t{1} << rest) - 1)];
        ++count_;
        min_ = std::min(min_, time);
        max_ = std::max(max_, time);
    }

    std::uint64_t count() const noexcept { return count_; }

    /// The smallest time in nanoseconds that `percent` of the samples do not exceed;
    /// 0 <= percent <= 100. Zero if there are no samples.
    std::uint64_t percentile(double percent) const {
        if (count_ == 0) return 0;
        const double share = percent / 100 * static_cast<double>(count_);
        // 99.9 % of 1,000 are 999 samples, although 99.9 has no exact representation.
        auto left = static_cast<std::int64_t>(std::ceil(share * (1 - 1e-12)));
        for (const auto& [time, samples] : buckets_) {
            left -= static_cast<std::int64_t>(samples);
            if (left <= 0) return std::clamp(time, min_, max_);
        }
        return max_;
    }

    /// One line per range of times: the range, the number of samples in it, a bar of at most
    /// `width` characters; below them the percentiles. The ranges are equally wide up to the 99th
    /// percentile, but at most up to eight times the minimum. Above that, each is twice as wide as
    /// the previous one, so that the tail does not flatten the rest.
    std::string draw(std::size_t width = 40) const {
        if (count_ == 0) return "  no round trips\n";
        const std::vector<std::uint64_t> limits = row_limits();
        std::vector<std::uint64_t> rows(limits.size() - 1);
        for (const auto& [time, samples] : buckets_) {
            const std::uint64_t inside = std::clamp(time, min_, max_);
            const auto above = std::upper_bound(limits.begin(), limits.end(), inside);
            rows[static_cast<std::size_t>(above - limits.begin()) - 1] += samples;
        }
        const std::uint64_t longest = *std::max_element(rows.begin(), rows.end());
        std::string text;
        for (std::size_t row = 0; row < rows.size(); ++row) {
            char numbers[40];
            std::snprintf(numbers, sizeof numbers, " %10llu %6.2f %%",
                          static_cast<unsigned long long>(rows[row]),
                          100. * static_cast<double>(rows[row]) / static_cast<double>(count_));
            // The bar is rounded up: every sample is visible.
            const std::uint64_t bar = (rows[row] * width + longest - 1) / longest;
            text += "  " + in_unit("%6.4g %-2s", limits[row]) + " - " +
                    in_unit("%6.4g %-2s", limits[row + 1]) + numbers +
                    (bar > 0 ? "  " + std::string(bar, '#') : "") + '\n';
        }
        return text + in_unit("  min %.4g %s, ", min_) + in_unit("p50 %.4g %s, ", percentile(50)) +
               in_unit("p90 %.4g %s, ", percentile(90)) + in_unit("p99 %.4g %s, ", percentile(99)) +
               in_unit("p99.9 %.4g %s, ", percentile(99.9)) + in_unit("max %.4g %s\n", max_);
    }

private:
    // `format` takes the number, one to three digits before the point, and the unit.
    static std::string in_unit(const char* format, std::uint64_t time) {
        const char* unit = "ns";
        auto number = static_cast<double>(time);
        for (const char* larger : {"us", "ms", "s"}) {
            if (number < 1'000) break;
            number /= 1'000;
            unit = larger;
        }
        char text[40];
        std::snprintf(text, sizeof text, format, number, unit);
        return text;
    }

    // The limits between rows, ascending; the first is not above the minimum, the last above the
    // maximum.
    std::vector<std::uint64_t> row_limits() const {
        const std::uint64_t even = std::min(percentile(99), 8 * min_);
        // A row of only a few buckets would show their borders rather than the samples.
        std::uint64_t step = round_up(std::max((even - min_) / 12, even >> 7));
        std::vector<std::uint64_t> limits{min_ / step * step};
        while (limits.back() <= max_) {
            if (limits.back() > even) step *= 2;
            limits.push_back(limits.back() + step);
        }
        return limits;
    }

    // To 1, 2, 5, 10, 20, 50 ...
    static std::uint64_t round_up(std::uint64_t value) {
        for (std::uint64_t decade = 1;; decade *= 10) {
            for (const std::uint64_t factor : {1u, 2u, 5u}) {
                if (decade * factor >= value) return decade * factor;
            }
        }
    }

    std::map<std::uint64_t, std::uint64_t> buckets_; // samples by time in nanoseconds
    std::uint64_t count_ = 0;
    std::uint64_t min_ = UINT64_MAX;
    std::uint64_t max_ = 0;
};

} // namespace pingpong
