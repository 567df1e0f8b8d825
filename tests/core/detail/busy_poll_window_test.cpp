// SPDX-License-Identifier: MIT
#include <asyncverbs/core/detail/busy_poll_window.hpp>

#include <chrono>

#include "support/catch.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using BusyPollWindow = asyncverbs::detail::BusyPollWindow<asyncverbs::OnUse>;

namespace {

// A sleep that ended so long after the CQ was found empty.
void sleep(BusyPollWindow& window, std::chrono::nanoseconds idle) {
    const auto now = BusyPollWindow::Clock::time_point(1h);
    window.begin(now);
    window.woke(now + idle);
}

} // namespace

TEST_CASE("BusyPollWindow: without a limit there is none") {
    const BusyPollWindow window({});
    CHECK_FALSE(window.enabled());
    CHECK(window.length() == 0ns);
}

TEST_CASE("BusyPollWindow: a fixed one is the limit, whatever sleeps took") {
    BusyPollWindow window({.limit = 80us});
    CHECK(window.enabled());
    sleep(window, 1us);
    sleep(window, 1s);
    CHECK(window.length() == 80us);
}

TEST_CASE("BusyPollWindow: an adaptive one follows what sleeps take") {
    BusyPollWindow window({.limit = 80us, .adaptive = true});
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

TEST_CASE("BusyPollWindow: an event that no sleep has waited for says nothing") {
    BusyPollWindow window({.limit = 80us, .adaptive = true});
    const auto now = BusyPollWindow::Clock::time_point(1h);
    window.woke(now);
    CHECK(window.length() == 0us);
    window.begin(now);
    window.end(); // found by the poll after the arm
    window.woke(now + 1us);
    CHECK(window.length() == 0us);
}

TEST_CASE("BusyPollWindow: a sleep that is given up counts as one that took longer") {
    BusyPollWindow window({.limit = 80us, .adaptive = true});
    sleep(window, 5us);
    sleep(window, 5us);
    CHECK(window.length() == 20us);
    window.gave_up(); // nobody sleeps
    CHECK(window.length() == 20us);
    for (const auto length : {10us, 0us}) {
        window.begin(BusyPollWindow::Clock::time_point(1h));
        window.gave_up();
        CHECK(window.length() == length);
    }
    BusyPollWindow fixed({.limit = 80us});
    fixed.begin(BusyPollWindow::Clock::time_point(1h));
    fixed.gave_up();
    CHECK(fixed.length() == 80us);
}
