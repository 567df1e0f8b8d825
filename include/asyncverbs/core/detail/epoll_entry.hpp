// SPDX-License-Identifier: MIT
// A file descriptor in an epoll set, level-triggered, and who waits for it. It is registered once
// and stays so while nobody waits: a wait costs no system call.
#pragma once

#include <sys/epoll.h>

#include <cerrno>
#include <cstdint>
#include <system_error>
#include <utility>

#include <asyncverbs/core/detail/ready_node.hpp>
#include <asyncverbs/core/detail/timer_heap.hpp>

namespace asyncverbs::detail {

class EpollEntry;

// What the loop has to know of an awaiter that sleeps or waits for a file descriptor.
struct EpollWaiter : ReadyNode, TimerNode {
    EpollWaiter(Action on_decided, int error_after_timeout) noexcept
        : ReadyNode(on_decided), timeout_error(error_after_timeout) {}

    std::error_code result() const noexcept {
        if (error == 0) return {};
        return std::make_error_code(static_cast<std::errc>(error));
    }

    EpollEntry* entry = nullptr; // the one that it is attached to
    int error = 0;               // an errno value; may change as long as the node is queued
    int timeout_error;           // what `error` becomes when the time has passed
};

class EpollEntry {
public:
    EpollEntry(int epoll_fd, int fd) : epoll_fd_(epoll_fd), fd_(fd) {
        if (const int error = control(EPOLL_CTL_ADD, EPOLLIN)) {
            throw std::system_error(error, std::system_category(), "epoll_ctl(EPOLL_CTL_ADD)");
        }
    }
    EpollEntry(const EpollEntry&) = delete;
    EpollEntry& operator=(const EpollEntry&) = delete;
    ~EpollEntry() {
        if (interest_ != Interest::unregistered) control(EPOLL_CTL_DEL, 0);
    }

    /// 0, or the errno that says why `waiter` cannot wait.
    int attach(EpollWaiter& waiter) noexcept {
        if (waiter_ != nullptr) return EBUSY;
        if (interest_ != Interest::readable) {
            const int operation = interest_ == Interest::nothing ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
            if (const int error = control(operation, EPOLLIN)) return error;
            interest_ = Interest::readable;
        }
        waiter_ = &waiter;
        waiter.entry = this;
        return 0;
    }

    /// Somebody is attached.
    void detach() noexcept { std::exchange(waiter_, nullptr)->entry = nullptr; }

    /// Returns whom the event is for. An event for nobody is kept from coming again at once, for
    /// ever: EPOLLIN is masked; EPOLLERR and EPOLLHUP cannot be, so the fd leaves the set. The
    /// next attach() undoes either, and finds the fd as it is then.
    EpollWaiter* on_event(std::uint32_t events) noexcept {
        if (waiter_ != nullptr) return waiter_;
        const bool masked = (events & (EPOLLERR | EPOLLHUP)) == 0 && control(EPOLL_CTL_MOD, 0) == 0;
        if (!masked) control(EPOLL_CTL_DEL, 0);
        interest_ = masked ? Interest::nothing : Interest::unregistered;
        return nullptr;
    }

    EpollWaiter* waiter() const noexcept { return waiter_; }
    int fd() const noexcept { return fd_; }

private:
    enum class Interest { readable, nothing, unregistered };

    int control(int operation, std::uint32_t events) noexcept {
        epoll_event event{};
        event.events = events;
        event.data.ptr = this;
        return ::epoll_ctl(epoll_fd_, operation, fd_, &event) == 0 ? 0 : errno;
    }

    const int epoll_fd_;
    const int fd_;
    Interest interest_ = Interest::readable;
    EpollWaiter* waiter_ = nullptr;
};

} // namespace asyncverbs::detail
