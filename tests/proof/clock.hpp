// SPDX-License-Identifier: MIT
//
// The steady clock of the explored code: it advances by a nanosecond with each reading, so that a
// schedule that depends on the time is repeatable.
#pragma once

#include <chrono>

namespace asyncverbs::proof {

void restart_clock() noexcept;
void advance_clock(std::chrono::nanoseconds time) noexcept;

} // namespace asyncverbs::proof
