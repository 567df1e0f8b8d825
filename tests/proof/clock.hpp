// SPDX-License-Identifier: MIT
//
// The time that the code under exploration sees: it does not flow, but passes by a nanosecond with
// each look at a steady clock, so that a schedule that depends on it repeats itself.
#pragma once

#include <chrono>

namespace asyncverbs::proof {

void restart_clock() noexcept;
void advance_clock(std::chrono::nanoseconds time) noexcept;

} // namespace asyncverbs::proof
