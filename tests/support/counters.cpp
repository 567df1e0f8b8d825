// SPDX-License-Identifier: MIT
// The wrapped symbols behind counters.hpp. The linker turns a call of f in a test's own object
// files, the library's headers included, into one of __wrap_f, and a call of __real_f into one of
// f. Not replaced and not interposed, so that those of the sanitizers stay in place.
#include "support/counters.hpp"

#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <new>

namespace asyncverbs::support {
namespace {

thread_local Counters count;
thread_local int interruptions = 0;
thread_local std::size_t until_failure = 0; // 0: no failure

void count_allocation() {
    ++count.allocations;
    if (until_failure != 0 && --until_failure == 0) throw std::bad_alloc();
}

} // namespace

Counters counters() noexcept { return count; }
void interrupt_epoll_wait(int times) noexcept { interruptions = times; }
void fail_allocation(std::size_t skip) noexcept { until_failure = skip + 1; }

} // namespace asyncverbs::support

using asyncverbs::support::count;
using asyncverbs::support::count_allocation;
using asyncverbs::support::interruptions;

extern "C" {

int __real_epoll_wait(int fd, epoll_event* events, int size, int timeout);
int __real_epoll_ctl(int epoll, int operation, int fd, epoll_event* event);
ssize_t __real_read(int fd, void* buffer, std::size_t size);
ssize_t __real_write(int fd, const void* buffer, std::size_t size);
int __real_timerfd_settime(int fd, int flags, const itimerspec* setting, itimerspec* old);

int __wrap_epoll_wait(int fd, epoll_event* events, int size, int timeout) {
    ++count.epoll_wait;
    if (interruptions > 0) {
        --interruptions;
        errno = EINTR;
        return -1;
    }
    return __real_epoll_wait(fd, events, size, timeout);
}

int __wrap_epoll_ctl(int epoll, int operation, int fd, epoll_event* event) {
    ++count.epoll_ctl;
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

} // extern "C"

// C++ functions, by the names of their symbols.
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
    try {
        count_allocation();
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
    return real_new_nothrow(size, nothrow);
}
