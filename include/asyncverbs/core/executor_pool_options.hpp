// SPDX-License-Identifier: MIT
// How many executors an ExecutorPool has, and whether their threads stay where they are.
#pragma once

#include <cstddef>

namespace asyncverbs {

/// What an ExecutorPool is made with.
struct ExecutorPoolOptions {
    /// How many executors, each with a thread; 0: one for each CPU that the thread which makes the
    /// pool may run on (sched_getaffinity(2)), which heeds the CPU set of a container, not its
    /// quota of CPU time.
    std::size_t size = 0;

    /// Keeps each thread on one of these CPUs: the first on the first, and so on, again from the
    /// first where there are more threads than CPUs. False: they may run on all of them, for a
    /// program that shares its CPUs with others.
    bool pin = true;
};

} // namespace asyncverbs
