// SPDX-License-Identifier: MIT
#include "histogram.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>

namespace pingpong {

namespace {

constexpr std::uint64_t even_rows = 12; // from the minimum to the 99th percentile, about

// Times of which the 99th percentile is more than so many times the minimum get rows that grow.
constexpr std::uint64_t wide_spread = 8;

// A unit in which `time` is a number of one to three digits before the point.
struct Unit {
    const char* name;
    double nanoseconds;
};

Unit unit_for(std::uint64_t time) {
    if (time < 1'000) return {"ns", 1};
    if (time < 1'000'000) return {"us", 1e3};
    if (time < 1'000'000'000) return {"ms", 1e6};
    return {"s", 1e9};
}

template <class... Args>
std::string format(const char* pattern, Args... args) {
    std::array<char, 160> text{};
    std::snprintf(text.data(), text.size(), pattern, args...);
    return text.data();
}

// In nine characters.
std::string time_text(std::uint64_t time) {
    const Unit unit = unit_for(time);
    return format("%6.4g %-2s", static_cast<double>(time) / unit.nanoseconds, unit.name);
}

// The least of 1, 2, 5, 10, 20, 50 ... that is not below `value`.
std::uint64_t round_up_nicely(std::uint64_t value) {
    for (std::uint64_t decade = 1;; decade *= 10) {
        for (const std::uint64_t factor : {1u, 2u, 5u}) {
            if (decade * factor >= value) return decade * factor;
        }
    }
}

// 1, 1.5, 2, 3, 5, 7 and 10 times each power of ten.
std::vector<std::uint64_t> growing_limits(std::uint64_t low, std::uint64_t high) {
    std::vector<std::uint64_t> limits{0};
    for (std::uint64_t decade = 10; limits.back() <= high; decade *= 10) {
        for (const std::uint64_t factor : {10u, 15u, 20u, 30u, 50u, 70u}) {
            const std::uint64_t limit = decade / 10 * factor;
            if (limit <= low)
                limits.back() = limit;
            else if (limits.back() <= high)
                limits.push_back(limit);
        }
    }
    return limits;
}

// Equal steps up to `most`, and beyond it steps that double.
std::vector<std::uint64_t> even_limits(std::uint64_t low, std::uint64_t most, std::uint64_t high) {
    // A row of only a few buckets would show their borders rather than the samples.
    const std::uint64_t least_step = most >> (Histogram::precision_bits - 3);
    std::uint64_t step =
        round_up_nicely(std::max({(most - low) / even_rows, least_step, std::uint64_t{1}}));
    std::vector<std::uint64_t> limits{low / step * step};
    while (limits.back() <= most) limits.push_back(limits.back() + step);
    while (limits.back() <= high) {
        step *= 2;
        limits.push_back(limits.back() + step);
    }
    return limits;
}

} // namespace

void Histogram::record(Time time) {
    const auto value = static_cast<std::uint64_t>(std::max(time.count(), Time::rep{0}));
    const std::size_t bucket = bucket_of(value);
    if (bucket >= buckets_.size()) buckets_.resize(bucket + 1);
    ++buckets_[bucket];
    ++count_;
    min_ = std::min(min_, time);
    max_ = std::max(max_, time);
}

std::size_t Histogram::bucket_of(std::uint64_t time) noexcept {
    const auto bits = static_cast<unsigned>(std::bit_width(time));
    if (bits <= precision_bits) return time;
    // Below the leading bit, which is always set, precision_bits bits count.
    const unsigned shift = bits - 1 - precision_bits;
    return (std::size_t{shift} << precision_bits) + (time >> shift);
}

std::uint64_t Histogram::bucket_start(std::size_t bucket) noexcept {
    constexpr std::size_t octave = std::size_t{1} << precision_bits;
    if (bucket < 2 * octave) return bucket;
    const std::size_t shift = bucket / octave - 1;
    return (bucket - shift * octave) << shift;
}

Histogram::Time Histogram::percentile(double percent) const {
    const double share = percent / 100 * static_cast<double>(count_);
    // 99.9 % of 1,000 are 999 samples, and not one more because 99.9 has no exact representation.
    const auto wanted = static_cast<std::uint64_t>(std::ceil(share * (1 - 1e-12)));
    std::uint64_t seen = 0;
    for (std::size_t bucket = 0; bucket < buckets_.size(); ++bucket) {
        seen += buckets_[bucket];
        if (seen >= wanted && seen > 0) {
            const Time last(static_cast<Time::rep>(bucket_start(bucket + 1) - 1));
            return std::clamp(last, min_, max_);
        }
    }
    return Time::zero();
}

// The limits between rows, ascending; the first is not above the minimum, the last above the
// maximum.
std::vector<std::uint64_t> Histogram::row_limits() const {
    const auto low = static_cast<std::uint64_t>(min_.count());
    const auto most = static_cast<std::uint64_t>(percentile(99).count());
    const auto high = static_cast<std::uint64_t>(max_.count());
    return most / wide_spread > low ? growing_limits(low, high) : even_limits(low, most, high);
}

std::string Histogram::draw(std::size_t width) const {
    if (count_ == 0) return "  no round trips\n";
    const std::vector<std::uint64_t> limits = row_limits();
    std::vector<std::uint64_t> rows(limits.size() - 1);
    for (std::size_t bucket = 0; bucket < buckets_.size(); ++bucket) {
        if (buckets_[bucket] == 0) continue;
        const auto above = std::upper_bound(limits.begin(), limits.end(), bucket_start(bucket));
        const auto row = std::max<std::ptrdiff_t>(above - limits.begin() - 1, 0);
        rows[static_cast<std::size_t>(row)] += buckets_[bucket];
    }
    const std::uint64_t longest = *std::max_element(rows.begin(), rows.end());
    std::string text;
    for (std::size_t row = 0; row < rows.size(); ++row) {
        text += "  " + time_text(limits[row]) + " - " + time_text(limits[row + 1]);
        text += format(" %10llu %6.2f %%", static_cast<unsigned long long>(rows[row]),
                       100. * static_cast<double>(rows[row]) / static_cast<double>(count_));
        // What is there at all is seen.
        const std::uint64_t bar = (rows[row] * width + longest - 1) / longest;
        if (bar > 0) text += "  " + std::string(bar, '#');
        text += '\n';
    }
    const auto add = [&](const char* name, Time time) {
        const auto value = static_cast<std::uint64_t>(time.count());
        const Unit unit = unit_for(value);
        text +=
            format("%s %.4g %s", name, static_cast<double>(value) / unit.nanoseconds, unit.name);
    };
    add("  min", min());
    add(", p50", percentile(50));
    add(", p90", percentile(90));
    add(", p99", percentile(99));
    add(", p99.9", percentile(99.9));
    add(", max", max());
    return text + '\n';
}

} // namespace pingpong
