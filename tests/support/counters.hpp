// SPDX-License-Identifier: MIT
// Counts allocations by operator new and aligned_alloc, the system calls of an event loop, readings
// of the clock and locked mutexes, and makes them fail. The linker redirects them: link
// asyncverbs_counters.
#pragma once

#include <cstddef>
#include <functional>

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
    std::size_t sched_yield = 0;

    std::size_t system_calls() const {
        return epoll_wait + epoll_ctl + read + write + timerfd_settime;
    }
};

// The counts of the calling thread. Subtract two values.
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
    difference.sched_yield = a.sched_yield - b.sched_yield;
    return difference;
}

// The next `times` calls of epoll_wait on this thread fail with EINTR.
void interrupt_epoll_wait(int times) noexcept;

// The allocation of this thread after the next `skip` ones throws std::bad_alloc.
void fail_allocation(std::size_t skip) noexcept;

// All allocations after the next `skip` ones throw, on all threads.
void run_out_of_memory(std::size_t skip) noexcept;

// As fail_allocation() for the system calls that can fail (epoll_create1, eventfd, timerfd_create,
// fcntl, epoll_ctl except EPOLL_CTL_DEL, epoll_wait): it returns -1 with EIO.
void fail_system_call(std::size_t skip) noexcept;

// Cancels all of these. Returns whether a call failed.
bool stop_failing() noexcept;

// The nth pthread_setaffinity_np from now, on any thread, fails with EINVAL.
void fail_pinning(int nth) noexcept;

// The name of the system call that failed since fail_system_call(), "" if none.
const char* failed_system_call() noexcept;

// Calls `hook` whenever this thread has unlocked a mutex and holds no other one: a test lets other
// threads run there. An empty function ends it.
void on_unlock(std::function<void()> hook);

// While one exists, no call of this thread fails or counts towards the failing one: for code of the
// test that runs inside the code under test.
class FailureShelter {
public:
    FailureShelter() noexcept;
    FailureShelter(const FailureShelter&) = delete;
    FailureShelter& operator=(const FailureShelter&) = delete;
    ~FailureShelter();
};

} // namespace asyncverbs::support
