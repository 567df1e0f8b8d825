// SPDX-License-Identifier: MIT
// The histogram against a sorted list of the same samples, and what it draws.
#include "histogram.hpp"

#include "support/catch.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <sstream>
#include <string>
#include <vector>

using namespace pingpong;
using namespace std::chrono_literals;
using asyncverbs::support::contains;

namespace {

std::vector<std::string> lines_of(const std::string& text) {
    std::istringstream stream(text);
    std::vector<std::string> lines;
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    return lines;
}

} // namespace

TEST_CASE("an empty histogram says so") {
    const Histogram histogram;
    CHECK(histogram.count() == 0);
    CHECK(histogram.percentile(50) == 0ns);
    CHECK(histogram.draw() == "  no round trips\n");
}

TEST_CASE("a single sample is every percentile") {
    for (const auto sample : {0ns, 1ns, 2047ns, 2048ns, 45678ns, 3600000000000ns}) {
        Histogram histogram;
        histogram.record(sample);
        for (const double percent : {0.1, 50., 99.9, 100.}) {
            CHECK(histogram.percentile(percent) == sample);
        }
        CHECK(lines_of(histogram.draw()).size() == 2);
    }
}

TEST_CASE("percentiles are right to one part in a thousand") {
    std::mt19937_64 random(1);
    std::lognormal_distribution<double> times(10.7, 1.5); // around 45 us, from 1 us to 10 ms
    std::vector<std::int64_t> samples;
    Histogram histogram;
    for (int i = 0; i < 10'000; ++i) {
        samples.push_back(static_cast<std::int64_t>(times(random)));
        histogram.record(std::chrono::nanoseconds(samples.back()));
    }
    std::sort(samples.begin(), samples.end());
    CHECK(histogram.min().count() == samples.front());
    CHECK(histogram.max().count() == samples.back());
    for (const double percent : {1., 10., 50., 90., 99., 99.9, 99.99, 100.}) {
        const auto rank = static_cast<std::size_t>(std::ceil(percent * 100 - 1e-6));
        const auto exact = static_cast<double>(samples[rank - 1]);
        const auto estimate = static_cast<double>(histogram.percentile(percent).count());
        CAPTURE(percent);
        CHECK(estimate >= exact);
        CHECK(estimate <= exact * 1.001 + 1);
    }
}

TEST_CASE("99.9 % of a thousand samples leave out the greatest") {
    Histogram histogram;
    for (int i = 1; i <= 1000; ++i) histogram.record(std::chrono::nanoseconds(i));
    CHECK(histogram.percentile(99.9) == 999ns);
    CHECK(histogram.percentile(50) == 500ns);
    CHECK(histogram.percentile(0.1) == 1ns);
}

TEST_CASE("a drawing has every sample, one row a range") {
    Histogram histogram;
    std::mt19937 random(2);
    for (int i = 0; i < 5'000; ++i) {
        histogram.record(std::chrono::nanoseconds(40'000 + random() % 20'000));
    }
    histogram.record(5ms); // the tail gets rows, but few
    const std::vector<std::string> lines = lines_of(histogram.draw(30));
    CHECK(lines.size() > 8);
    CHECK(lines.size() < 30);
    std::uint64_t total = 0;
    std::size_t longest = 0;
    for (std::size_t i = 0; i + 1 < lines.size(); ++i) {
        double low = 0;
        double high = 0;
        unsigned long long count = 0;
        REQUIRE(std::sscanf(lines[i].c_str(), "%lf -%lf us %llu", &low, &high, &count) == 3);
        CHECK(low < high);
        total += count;
        const auto bar = static_cast<std::size_t>(std::count(lines[i].begin(), lines[i].end(), '#'));
        CHECK((bar > 0) == (count > 0));
        longest = std::max(longest, bar);
    }
    CHECK(total == 5'001);
    CHECK(longest == 30);
    CHECK_THAT(lines.back(), contains("p50 ") && contains("p99.9 ") && contains("max 5 ms"));
}

TEST_CASE("equal samples are one row") {
    Histogram histogram;
    for (int i = 0; i < 100; ++i) histogram.record(45us);
    const std::vector<std::string> lines = lines_of(histogram.draw());
    REQUIRE(lines.size() == 2);
    CHECK_THAT(lines[0], contains("100.00 %"));
}
