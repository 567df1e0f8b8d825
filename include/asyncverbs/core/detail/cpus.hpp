// SPDX-License-Identifier: MIT
// The CPUs that a thread may run on, by number. The kernel's masks have no fixed size: on a machine
// with more CPUs than a cpu_set_t has bits, a mask is an array of them.
#pragma once

#include <pthread.h>
#include <sched.h>

#include <cerrno>
#include <cstddef>
#include <system_error>
#include <vector>

namespace asyncverbs::detail {

// Templates, so that the vectors are compiled only where they are used.

/// Those of the calling thread, at least one. Throws std::system_error naming sched_getaffinity.
template <class Cpu = int, class Set = cpu_set_t>
std::vector<Cpu> usable_cpus() {
    constexpr std::size_t most_sets = 64; // more CPUs than any kernel can be built for
    std::vector<Set> sets(1);
    while (::sched_getaffinity(0, sets.size() * sizeof(Set), sets.data()) != 0) {
        // EINVAL: the kernel's mask is longer.
        if (errno != EINVAL || sets.size() >= most_sets) {
            throw std::system_error(errno, std::system_category(), "sched_getaffinity");
        }
        sets.resize(2 * sets.size());
    }
    const std::size_t bytes = sets.size() * sizeof(Set);
    std::vector<Cpu> cpus;
    for (std::size_t cpu = 0; cpu < 8 * bytes; ++cpu) {
        if (CPU_ISSET_S(cpu, bytes, sets.data())) cpus.push_back(static_cast<Cpu>(cpu));
    }
    return cpus;
}

/// Throws std::system_error naming pthread_setaffinity_np: invalid_argument where the process may
/// not use that CPU any more.
template <class Set = cpu_set_t>
void pin_this_thread(int cpu) {
    const auto index = static_cast<std::size_t>(cpu);
    std::vector<Set> sets(index / CPU_SETSIZE + 1);
    const std::size_t bytes = sets.size() * sizeof(Set);
    CPU_SET_S(index, bytes, sets.data());
    if (const int error = ::pthread_setaffinity_np(::pthread_self(), bytes, sets.data())) {
        throw std::system_error(error, std::system_category(), "pthread_setaffinity_np");
    }
}

} // namespace asyncverbs::detail
