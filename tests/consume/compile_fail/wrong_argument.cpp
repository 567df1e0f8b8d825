// SPDX-License-Identifier: MIT
// Does not compile: a queue pair connects to an address, not to a queue pair.
#include <asyncverbs/asyncverbs.hpp>

void connect(asyncverbs::QueuePair& one, asyncverbs::QueuePair& other);

void connect(asyncverbs::QueuePair& one, asyncverbs::QueuePair& other) { one.connect(other); }
