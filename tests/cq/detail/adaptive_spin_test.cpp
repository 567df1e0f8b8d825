// SPDX-License-Identifier: MIT
#include <asyncverbs/cq/cq_poller.hpp>

#include <chrono>

#include "support/catch.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using asyncverbs::detail::AdaptiveSpin;

namespace {

// A sleep that ended so long after the CQ was found empty.
void sleep(AdaptiveSpin& window, std::chrono::nanoseconds idle) {
    const auto now = AdaptiveSpin::Clock::time_point(1h);
    window.sleep_begins(now);
    window.sleep_ended(now + idle);
}

} // namespace

TEST_CASE("AdaptiveSpin: without a limit there is none") {
    const AdaptiveSpin window({});
    CHECK_FALSE(window.enabled());
    CHECK(window.length() == 0ns);
}

TEST_CASE("AdaptiveSpin: a fixed one is the limit, whatever sleeps took") {
    AdaptiveSpin window({.limit = 80us});
    CHECK(window.enabled());
    sleep(window, 1us);
    sleep(window, 1s);
    CHECK(window.length() == 80us);
}

TEST_CASE("AdaptiveSpin: an adaptive one follows what sleeps take") {
    AdaptiveSpin window({.limit = 80us, .adaptive = true});
    CHECK(window.length() == 0us);
    sleep(window, 81us);
    CHECK(window.length() == 0us);
    sleep(window, 80us);
    CHECK(window.length() == 10us);
    sleep(window, 5us);
    CHECK(window.length() == 20us);
    for (int i = 0; i < 5; ++i) sleep(window, 5us);
    CHECK(window.length() == 80us);
    sleep(window, 1s);
    CHECK(window.length() == 40us);
    for (int i = 0; i < 3; ++i) sleep(window, 1s);
    CHECK(window.length() == 0us);
}

TEST_CASE("AdaptiveSpin: an event that no sleep has waited for says nothing") {
    AdaptiveSpin window({.limit = 80us, .adaptive = true});
    const auto now = AdaptiveSpin::Clock::time_point(1h);
    window.sleep_ended(now);
    CHECK(window.length() == 0us);
    window.sleep_begins(now);
    window.sleep_avoided(); // found by the poll after the arm
    window.sleep_ended(now + 1us);
    CHECK(window.length() == 0us);
}

TEST_CASE("AdaptiveSpin: a sleep that is given up counts as one that took longer") {
    AdaptiveSpin window({.limit = 80us, .adaptive = true});
    sleep(window, 5us);
    sleep(window, 5us);
    CHECK(window.length() == 20us);
    window.sleep_timed_out(); // nobody sleeps
    CHECK(window.length() == 20us);
    for (const auto length : {10us, 0us}) {
        window.sleep_begins(AdaptiveSpin::Clock::time_point(1h));
        window.sleep_timed_out();
        CHECK(window.length() == length);
    }
    AdaptiveSpin fixed({.limit = 80us});
    fixed.sleep_begins(AdaptiveSpin::Clock::time_point(1h));
    fixed.sleep_timed_out();
    CHECK(fixed.length() == 80us);
}
