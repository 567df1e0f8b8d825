// SPDX-License-Identifier: MIT
// The linker redirects a call of f in the object files of a test, including the headers of the
// library, to __wrap_f, and a call of __real_f to f. f itself is neither replaced nor interposed,
// so that the functions of the sanitizers stay in place.
#include "support/counters.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdarg>
#include <cstddef>
#include <functional>
#include <new>
#include <utility>

namespace asyncverbs::support {
namespace {

thread_local Counters count;
thread_local int interruptions = 0;
thread_local int shelters = 0;

// Counts down to the failing call.
struct Countdown {
    std::size_t left = 0; // 0: no call fails
    bool failed = false;

    bool fails_now() noexcept {
        if (shelters > 0 || left == 0 || --left > 0) return false;
        return failed = true;
    }
};
thread_local Countdown allocations;
thread_local Countdown system_calls;
thread_local const char* failed_call = "";

thread_local int held_mutexes = 0;
thread_local std::function<void()> unlock_hook;

std::atomic<int> pinnings_left = 0; // until the failing one; 0: none fails

constexpr long unlimited = -1;
std::atomic<long> allocations_left = unlimited; // until all fail
std::atomic<bool> out_of_memory = false;        // one has failed

bool no_memory_left() noexcept {
    if (shelters > 0) return false;
    long left = allocations_left.load();
    do {
        if (left == unlimited) return false;
        if (left == 0) {
            out_of_memory = true;
            return true;
        }
    } while (!allocations_left.compare_exchange_weak(left, left - 1));
    return false;
}

bool allocation_fails() noexcept {
    ++count.allocations;
    return allocations.fails_now() || no_memory_left();
}

void count_allocation() {
    if (allocation_fails()) throw std::bad_alloc();
}

bool system_call_fails(const char* name) noexcept {
    if (!system_calls.fails_now()) return false;
    failed_call = name;
    errno = EIO;
    return true;
}

} // namespace

Counters counters() noexcept { return count; }
void interrupt_epoll_wait(int times) noexcept { interruptions = times; }

void fail_allocation(std::size_t skip) noexcept { allocations = {skip + 1, false}; }

void run_out_of_memory(std::size_t skip) noexcept {
    out_of_memory = false;
    allocations_left = static_cast<long>(skip);
}

void fail_system_call(std::size_t skip) noexcept {
    system_calls = {skip + 1, false};
    failed_call = "";
}

bool stop_failing() noexcept {
    allocations_left = unlimited;
    const bool failed = allocations.failed || system_calls.failed || out_of_memory.exchange(false);
    allocations = system_calls = {};
    return failed;
}

const char* failed_system_call() noexcept { return failed_call; }

void fail_pinning(int nth) noexcept { pinnings_left = nth; }

void on_unlock(std::function<void()> hook) { unlock_hook = std::move(hook); }

FailureShelter::FailureShelter() noexcept { ++shelters; }
FailureShelter::~FailureShelter() { --shelters; }

} // namespace asyncverbs::support

using asyncverbs::support::allocation_fails;
using asyncverbs::support::count;
using asyncverbs::support::count_allocation;
using asyncverbs::support::held_mutexes;
using asyncverbs::support::interruptions;
using asyncverbs::support::pinnings_left;
using asyncverbs::support::system_call_fails;
using asyncverbs::support::unlock_hook;

extern "C" {

int __real_epoll_wait(int fd, epoll_event* events, int size, int timeout);
int __real_epoll_ctl(int epoll, int operation, int fd, epoll_event* event);
ssize_t __real_read(int fd, void* buffer, std::size_t size);
ssize_t __real_write(int fd, const void* buffer, std::size_t size);
int __real_timerfd_settime(int fd, int flags, const itimerspec* setting, itimerspec* old);
int __real_sched_yield() noexcept;
int __real_epoll_create1(int flags);
int __real_eventfd(unsigned value, int flags);
int __real_timerfd_create(int clock, int flags);
int __real_fcntl(int fd, int command, ...);
void* __real_aligned_alloc(std::size_t alignment, std::size_t size);
int __real_pthread_mutex_lock(pthread_mutex_t* mutex) noexcept;
int __real_pthread_mutex_trylock(pthread_mutex_t* mutex) noexcept;
int __real_pthread_mutex_unlock(pthread_mutex_t* mutex) noexcept;
int __real_pthread_setaffinity_np(pthread_t thread, std::size_t size, const cpu_set_t* cpus);

void* __wrap_aligned_alloc(std::size_t alignment, std::size_t size) {
    return allocation_fails() ? nullptr : __real_aligned_alloc(alignment, size);
}

int __wrap_epoll_create1(int flags) {
    return system_call_fails("epoll_create1") ? -1 : __real_epoll_create1(flags);
}

int __wrap_eventfd(unsigned value, int flags) {
    return system_call_fails("eventfd") ? -1 : __real_eventfd(value, flags);
}

int __wrap_timerfd_create(int clock, int flags) {
    return system_call_fails("timerfd_create") ? -1 : __real_timerfd_create(clock, flags);
}

int __wrap_fcntl(int fd, int command, ...) {
    if (system_call_fails("fcntl")) return -1;
    if (command == F_GETFL || command == F_GETFD) return __real_fcntl(fd, command);
    std::va_list arguments;
    va_start(arguments, command);
    void* const argument = va_arg(arguments, void*); // an int, or a pointer: gcov locks its files
    va_end(arguments);
    return __real_fcntl(fd, command, argument);
}

int __wrap_pthread_setaffinity_np(pthread_t thread, std::size_t size, const cpu_set_t* cpus) {
    if (pinnings_left > 0 && --pinnings_left == 0) return EINVAL;
    return __real_pthread_setaffinity_np(thread, size, cpus);
}

int __wrap_pthread_mutex_lock(pthread_mutex_t* mutex) noexcept {
    ++count.mutex_lock;
    const int error = __real_pthread_mutex_lock(mutex);
    if (error == 0) ++held_mutexes;
    return error;
}

int __wrap_pthread_mutex_trylock(pthread_mutex_t* mutex) noexcept {
    const int error = __real_pthread_mutex_trylock(mutex);
    if (error == 0) ++held_mutexes;
    return error;
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t* mutex) noexcept {
    const int error = __real_pthread_mutex_unlock(mutex);
    if (--held_mutexes == 0 && unlock_hook) unlock_hook();
    return error;
}

int __wrap_epoll_wait(int fd, epoll_event* events, int size, int timeout) {
    ++count.epoll_wait;
    if (interruptions > 0) {
        --interruptions;
        errno = EINTR;
        return -1;
    }
    if (system_call_fails("epoll_wait")) return -1;
    return __real_epoll_wait(fd, events, size, timeout);
}

int __wrap_epoll_ctl(int epoll, int operation, int fd, epoll_event* event) {
    ++count.epoll_ctl;
    if (operation != EPOLL_CTL_DEL && system_call_fails("epoll_ctl")) return -1;
    return __real_epoll_ctl(epoll, operation, fd, event);
}

ssize_t __wrap_read(int fd, void* buffer, std::size_t size) {
    ++count.read;
    return __real_read(fd, buffer, size);
}

ssize_t __wrap_write(int fd, const void* buffer, std::size_t size) {
    ++count.write;
    return __real_write(fd, buffer, size);
}

int __wrap_timerfd_settime(int fd, int flags, const itimerspec* setting, itimerspec* old) {
    ++count.timerfd_settime;
    return __real_timerfd_settime(fd, flags, setting, old);
}

int __wrap_sched_yield() noexcept {
    ++count.sched_yield;
    return __real_sched_yield();
}

} // extern "C"

// C++ functions, by their symbol names.
using Time = std::chrono::steady_clock::time_point;
Time real_now() __asm__("__real__ZNSt6chrono3_V212steady_clock3nowEv");
Time wrapped_now() __asm__("__wrap__ZNSt6chrono3_V212steady_clock3nowEv");

Time wrapped_now() {
    ++count.steady_clock_now;
    return real_now();
}

void* real_new(std::size_t) __asm__("__real__Znwm");
void* real_new_array(std::size_t) __asm__("__real__Znam");
void* real_new_aligned(std::size_t, std::align_val_t) __asm__("__real__ZnwmSt11align_val_t");
void* real_new_nothrow(std::size_t, const std::nothrow_t&) __asm__("__real__ZnwmRKSt9nothrow_t");
void* wrapped_new(std::size_t) __asm__("__wrap__Znwm");
void* wrapped_new_array(std::size_t) __asm__("__wrap__Znam");
void* wrapped_new_aligned(std::size_t, std::align_val_t) __asm__("__wrap__ZnwmSt11align_val_t");
void* wrapped_new_nothrow(std::size_t, const std::nothrow_t&) __asm__("__wrap__ZnwmRKSt9nothrow_t");

void* wrapped_new(std::size_t size) {
    count_allocation();
    return real_new(size);
}

void* wrapped_new_array(std::size_t size) {
    count_allocation();
    return real_new_array(size);
}

void* wrapped_new_aligned(std::size_t size, std::align_val_t alignment) {
    count_allocation();
    return real_new_aligned(size, alignment);
}

void* wrapped_new_nothrow(std::size_t size, const std::nothrow_t& nothrow) {
    return allocation_fails() ? nullptr : real_new_nothrow(size, nothrow);
}
