// SPDX-License-Identifier: MIT
// Counts what a piece of code costs: allocations by operator new or aligned_alloc, the system calls
// of an event loop, readings of the clock, mutexes. They are redirected by the linker: link
// asyncverbs_counters.
#pragma once

#include <cstddef>

namespace asyncverbs::support {

struct Counters {
    std::size_t allocations = 0;
    std::size_t epoll_wait = 0;
    std::size_t epoll_ctl = 0;
    std::size_t read = 0;
    std::size_t write = 0;
    std::size_t timerfd_settime = 0;
    std::size_t steady_clock_now = 0;
    std::size_t mutex_lock = 0;

    std::size_t system_calls() const {
        return epoll_wait + epoll_ctl + read + write + timerfd_settime;
    }
};

// What the calling thread has done so far. Read it before and after.
Counters counters() noexcept;

inline Counters operator-(const Counters& a, const Counters& b) noexcept {
    Counters difference;
    difference.allocations = a.allocations - b.allocations;
    difference.epoll_wait = a.epoll_wait - b.epoll_wait;
    difference.epoll_ctl = a.epoll_ctl - b.epoll_ctl;
    difference.read = a.read - b.read;
    difference.write = a.write - b.write;
    difference.timerfd_settime = a.timerfd_settime - b.timerfd_settime;
    difference.steady_clock_now = a.steady_clock_now - b.steady_clock_now;
    difference.mutex_lock = a.mutex_lock - b.mutex_lock;
    return difference;
}

// The next epoll_wait of this thread returns EINTR so many times before it does its work.
void interrupt_epoll_wait(int times) noexcept;

// The next allocation of this thread that `skip` others precede throws std::bad_alloc.
void fail_allocation(std::size_t skip) noexcept;

// The same for the system calls that can fail (epoll_create1, eventfd, timerfd_create, fcntl,
// epoll_ctl but for EPOLL_CTL_DEL, epoll_wait): it returns -1 with EIO.
void fail_system_call(std::size_t skip) noexcept;

// Takes back what was asked for by these two. Returns whether one of them did fail.
bool stop_failing() noexcept;

// The nth pthread_setaffinity_np from now, on whichever thread, fails with EINVAL.
void fail_pinning(int nth) noexcept;

// The name of the system call that failed, "" if none did since fail_system_call().
const char* failed_system_call() noexcept;

// As long as one exists, nothing on this thread fails, or counts towards what is to fail: for a
// test's own bookkeeping inside the code that it tests.
class FailureShelter {
public:
    FailureShelter() noexcept;
    FailureShelter(const FailureShelter&) = delete;
    FailureShelter& operator=(const FailureShelter&) = delete;
    ~FailureShelter();
};

} // namespace asyncverbs::support
