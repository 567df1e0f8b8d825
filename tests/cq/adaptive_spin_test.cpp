// SPDX-License-Identifier: MIT
#include <asyncverbs/cq/cq_poller.hpp>

#include <chrono>

#include "support/catch.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using asyncverbs::detail::AdaptiveSpin;

namespace {

// A sleep that ended `idle` after the CQ was found empty.
void sleep(AdaptiveSpin& spin, std::chrono::nanoseconds idle) {
    const auto now = AdaptiveSpin::Clock::time_point(1h);
    spin.sleep_begins(now);
    spin.sleep_ended(now + idle);
}

} // namespace

TEST_CASE("AdaptiveSpin: disabled without a limit") {
    const AdaptiveSpin spin({});
    CHECK_FALSE(spin.enabled());
    CHECK(spin.length() == 0ns);
}

TEST_CASE("AdaptiveSpin: the fixed length is the limit, regardless of the sleeps") {
    AdaptiveSpin spin({.limit = 80us});
    CHECK(spin.enabled());
    sleep(spin, 1us);
    sleep(spin, 1s);
    CHECK(spin.length() == 80us);
}

TEST_CASE("AdaptiveSpin: the adaptive length follows the sleeps") {
    AdaptiveSpin spin({.limit = 80us, .adaptive = true});
    CHECK(spin.length() == 0us);
    sleep(spin, 81us);
    CHECK(spin.length() == 0us);
    sleep(spin, 80us);
    CHECK(spin.length() == 10us);
    sleep(spin, 5us);
    CHECK(spin.length() == 20us);
    for (int i = 0; i < 5; ++i) sleep(spin, 5us);
    CHECK(spin.length() == 80us);
    sleep(spin, 1s);
    CHECK(spin.length() == 40us);
    for (int i = 0; i < 3; ++i) sleep(spin, 1s);
    CHECK(spin.length() == 0us);
}

TEST_CASE("AdaptiveSpin: an event without a sleep has no effect") {
    AdaptiveSpin spin({.limit = 80us, .adaptive = true});
    const auto now = AdaptiveSpin::Clock::time_point(1h);
    spin.sleep_ended(now);
    CHECK(spin.length() == 0us);
    spin.sleep_begins(now);
    spin.sleep_avoided(); // found by the poll after the arm
    spin.sleep_ended(now + 1us);
    CHECK(spin.length() == 0us);
}

TEST_CASE("AdaptiveSpin: a sleep that timed out counts as longer than the limit") {
    AdaptiveSpin spin({.limit = 80us, .adaptive = true});
    sleep(spin, 5us);
    sleep(spin, 5us);
    CHECK(spin.length() == 20us);
    spin.sleep_timed_out(); // no sleep in progress
    CHECK(spin.length() == 20us);
    for (const auto length : {10us, 0us}) {
        spin.sleep_begins(AdaptiveSpin::Clock::time_point(1h));
        spin.sleep_timed_out();
        CHECK(spin.length() == length);
    }
    AdaptiveSpin fixed({.limit = 80us});
    fixed.sleep_begins(AdaptiveSpin::Clock::time_point(1h));
    fixed.sleep_timed_out();
    CHECK(fixed.length() == 80us);
}
