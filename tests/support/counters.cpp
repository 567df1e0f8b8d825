// SPDX-License-Identifier: MIT
// The replaced operator new and the wrapped symbols behind counters.hpp.
// Wrapped by the linker and not interposed, so that the interceptors of the sanitizers stay.
#include "support/counters.hpp"

#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <new>

namespace asyncverbs::support {
namespace {

thread_local Counters count;
thread_local int interruptions = 0;
thread_local std::size_t until_failure = 0; // 0: no failure

void* allocate(std::size_t size, std::size_t alignment) {
    ++count.allocations;
    if (until_failure != 0 && --until_failure == 0) throw std::bad_alloc();
    void* memory = nullptr;
    if (alignment <= alignof(std::max_align_t)) {
        memory = std::malloc(size == 0 ? 1 : size);
    } else {
        memory = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
    }
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}

} // namespace

Counters counters() noexcept { return count; }
void interrupt_epoll_wait(int times) noexcept { interruptions = times; }
void fail_allocation(std::size_t skip) noexcept { until_failure = skip + 1; }

} // namespace asyncverbs::support

using asyncverbs::support::allocate;
using asyncverbs::support::count;
using asyncverbs::support::interruptions;

void* operator new(std::size_t size) { return allocate(size, 1); }
void* operator new[](std::size_t size) { return allocate(size, 1); }
void* operator new(std::size_t size, std::align_val_t alignment) {
    return allocate(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment) {
    return allocate(size, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
    try {
        return allocate(size, 1);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}
void* operator new[](std::size_t size, const std::nothrow_t& nothrow) noexcept {
    return operator new(size, nothrow);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

// The linker turns a call of f into one of __wrap_f, and one of __real_f into one of f.
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

// A C++ function, named by its symbol.
std::chrono::steady_clock::time_point
real_now() __asm__("__real__ZNSt6chrono3_V212steady_clock3nowEv");
std::chrono::steady_clock::time_point
wrapped_now() __asm__("__wrap__ZNSt6chrono3_V212steady_clock3nowEv");

std::chrono::steady_clock::time_point wrapped_now() {
    ++count.steady_clock_now;
    return real_now();
}
