// SPDX-License-Identifier: MIT
//
// Counts what was allocated by operator new and not yet deleted: a coroutine frame that is left
// behind counts, and so does everything else.
#pragma once

namespace asyncverbs::proof {

long live_allocations();

} // namespace asyncverbs::proof
