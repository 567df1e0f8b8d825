// SPDX-License-Identifier: MIT
// The distribution of any number of times in a bounded amount of memory: times with the same
// leading bits are counted together. Eleven bits give the percentiles to one part in a thousand,
// four bits the rows of the drawing.
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

namespace pingpong {

class Histogram {
public:
    void record(std::chrono::nanoseconds sample) {
        const auto time = static_cast<std::uint64_t>(sample.count());
        ++buckets_[greatest_alike(time, 11)];
        ++count_;
        min_ = std::min(min_, time);
        max_ = std::max(max_, time);
    }

    /// The smallest time in nanoseconds that `percent` of the samples do not exceed;
    /// 0 <= percent <= 100. Zero if there are no samples.
    std::uint64_t percentile(double percent) const {
        const double share = percent / 100 * static_cast<double>(count_);
        // 99.9 % of 1,000 are 999 samples, although 99.9 has no exact representation.
        auto left = static_cast<std::int64_t>(std::ceil(share * (1 - 1e-12)));
        for (const auto& [time, samples] : buckets_) {
            left -= static_cast<std::int64_t>(samples);
            if (left <= 0) return std::clamp(time, min_, max_);
        }
        return 0;
    }

    /// One line for each range of times that occurred: its end, the number of samples in it, a bar
    /// of at most `width` characters; below them the percentiles. Eight ranges double the time.
    std::string draw(std::size_t width = 40) const {
        if (count_ == 0) return "  no round trips\n";
        std::map<std::uint64_t, std::uint64_t> rows;
        std::uint64_t longest = 1; // a row has at least one sample
        for (const auto& [time, samples] : buckets_) {
            std::uint64_t& row = rows[greatest_alike(time, 4)];
            longest = std::max(longest, row += samples);
        }
        std::string text;
        for (const auto& [time, samples] : rows) {
            char numbers[40];
            std::snprintf(numbers, sizeof numbers, " %10llu %6.2f %%  ",
                          static_cast<unsigned long long>(samples),
                          100. * static_cast<double>(samples) / static_cast<double>(count_));
            // The bar is rounded up: every sample is visible.
            text += in_unit("  up to %6.4g %-2s", time) + numbers +
                    std::string((samples * width + longest - 1) / longest, '#') + '\n';
        }
        return text + in_unit("  min %.4g %s, ", min_) + in_unit("p50 %.4g %s, ", percentile(50)) +
               in_unit("p90 %.4g %s, ", percentile(90)) + in_unit("p99 %.4g %s, ", percentile(99)) +
               in_unit("p99.9 %.4g %s, ", percentile(99.9)) + in_unit("max %.4g %s\n", max_);
    }

private:
    // The greatest time with the same `leading` bits, which are followed by ones.
    static std::uint64_t greatest_alike(std::uint64_t time, int leading) {
        const int others = static_cast<int>(std::bit_width(time)) - leading;
        return others <= 0 ? time : time | ((std::uint64_t{1} << others) - 1);
    }

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

    std::map<std::uint64_t, std::uint64_t> buckets_; // samples by their greatest time
    std::uint64_t count_ = 0;
    std::uint64_t min_ = UINT64_MAX;
    std::uint64_t max_ = 0;
};

} // namespace pingpong
