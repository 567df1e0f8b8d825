// SPDX-License-Identifier: MIT
//
// The number of live allocations by operator new, coroutine frames included.
#pragma once

namespace asyncverbs::proof {

long live_allocations();

} // namespace asyncverbs::proof
