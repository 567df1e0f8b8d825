// SPDX-License-Identifier: MIT
// Percentiles against a sorted list of the same samples, and the drawing.
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

struct Row {
    std::string low; // "40 us"
    std::string high;
    unsigned long long count = 0;
    std::size_t bar = 0;
};

std::vector<Row> rows_of(const std::string& drawing) {
    std::vector<Row> rows;
    std::vector<std::string> lines = lines_of(drawing);
    lines.pop_back(); // the percentiles
    for (const std::string& line : lines) {
        char low_unit[3], high_unit[3];
        double low, high;
        Row row;
        REQUIRE(std::sscanf(line.c_str(), "%lf %2s - %lf %2s %llu", &low, low_unit, &high,
                            high_unit, &row.count) == 5);
        std::ostringstream low_text, high_text;
        low_text << low << ' ' << low_unit;
        high_text << high << ' ' << high_unit;
        row.low = low_text.str();
        row.high = high_text.str();
        row.bar = static_cast<std::size_t>(std::count(line.begin(), line.end(), '#'));
        CHECK((row.bar > 0) == (row.count > 0));
        CHECK_FALSE(line.ends_with(' '));
        if (!rows.empty()) CHECK(rows.back().high == row.low);
        rows.push_back(row);
    }
    return rows;
}

} // namespace

TEST_CASE("an empty histogram says so") {
    CHECK(Histogram().percentile(50) == 0);
    CHECK(Histogram().draw() == "  no round trips\n");
}

TEST_CASE("a single sample is every percentile, and equal samples are one row") {
    const std::uint64_t sample = GENERATE(0u, 1u, 2047u, 2048u, 45'678u, 3'600'000'000'000u);
    Histogram histogram;
    for (int i = 0; i < 100; ++i) histogram.record(std::chrono::nanoseconds(sample));
    for (const double percent : {0., 0.1, 50., 99.9, 100.}) {
        CHECK(histogram.percentile(percent) == sample);
    }
    const std::vector<std::string> lines = lines_of(histogram.draw());
    REQUIRE(lines.size() == 2);
    CHECK_THAT(lines[0], contains(" 100 100.00 %"));
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
    CHECK(histogram.percentile(0) == static_cast<std::uint64_t>(samples.front()));
    CHECK(histogram.percentile(100) == static_cast<std::uint64_t>(samples.back()));
    for (const double percent : {1., 10., 50., 90., 99., 99.9, 99.99, 100.}) {
        const auto rank = static_cast<std::size_t>(std::ceil(percent * 100 - 1e-6));
        const auto exact = static_cast<double>(samples[rank - 1]);
        const auto estimate = static_cast<double>(histogram.percentile(percent));
        CAPTURE(percent);
        CHECK(estimate >= exact);
        CHECK(estimate <= exact * 1.001 + 1);
    }
}

TEST_CASE("99.9 % of a thousand samples leave out the greatest") {
    Histogram histogram;
    for (int i = 1; i <= 1000; ++i) histogram.record(std::chrono::nanoseconds(i));
    CHECK(histogram.percentile(99.9) == 999);
    CHECK(histogram.percentile(50) == 500);
    CHECK(histogram.percentile(0.1) == 1);
}

TEST_CASE("a drawing has every sample, in rows of equal width with a tail that grows") {
    Histogram histogram;
    for (int i = 0; i < 10'000; ++i) {
        histogram.record(std::chrono::nanoseconds(40'000 + 2 * i)); // 40 to 60 us
    }
    histogram.record(5ms);
    const std::string drawing = histogram.draw(30);
    CHECK_THAT(drawing, contains("min 40 us, p50 ") && contains("p99.9 ") && contains("max 5 ms"));
    const std::vector<Row> rows = rows_of(drawing);
    REQUIRE(rows.size() > 10);
    for (std::size_t i = 0; i < 10; ++i) {
        CAPTURE(i);
        CHECK(rows[i].low == std::to_string(40 + 2 * i) + " us");
        CHECK(rows[i].bar >= 29);
        CHECK(rows[i].bar <= 30);
        CHECK(rows[i].count >= 990);
        CHECK(rows[i].count <= 1'010);
    }
    CHECK(rows.size() < 25);
    CHECK(rows.back().count == 1);
    CHECK(rows.back().bar == 1);
    unsigned long long total = 0;
    for (const Row& row : rows) total += row.count;
    CHECK(total == 10'001);
}

TEST_CASE("rows grow above eight times the minimum") {
    Histogram histogram;
    for (int i = 0; i < 90; ++i) histogram.record(120us);
    for (int i = 0; i < 10; ++i) histogram.record(4ms);
    const std::vector<Row> rows = rows_of(histogram.draw());
    REQUIRE(rows.size() == 14);
    CHECK(rows.front().low == "100 us");
    CHECK(rows.front().high == "200 us");
    CHECK(rows.front().count == 90);
    CHECK(rows[9].low == "1 ms");
    CHECK(rows[9].high == "1.2 ms");
    CHECK(rows.back().low == "4 ms");
    CHECK(rows.back().high == "7.2 ms");
    CHECK(rows.back().count == 10);
}

TEST_CASE("times from zero on have rows") {
    Histogram histogram;
    for (int i = 0; i <= 100; ++i) histogram.record(std::chrono::nanoseconds(i));
    const std::vector<Row> rows = rows_of(histogram.draw());
    CHECK(rows.front().low == "0 ns");
    unsigned long long total = 0;
    for (const Row& row : rows) total += row.count;
    CHECK(total == 101);
}
