// SPDX-License-Identifier: MIT
// A file descriptor in an epoll set, and who waits for it. It is registered once and stays so while
// nobody waits: a wait costs no system call.
#pragma once

#include <sys/epoll.h>

#include <cerrno>
#include <cstdint>
#include <system_error>
#include <utility>

#include <asyncverbs/core/detail/ready_node.hpp>
#include <asyncverbs/core/detail/timer_heap.hpp>

namespace asyncverbs::detail {

template <class Use>
class EpollEntry;

// What the loop has to know of an awaiter that sleeps or waits for a file descriptor.
template <class Use>
struct EpollWaiter : ReadyNode<Use>, TimerNode<Use> {
    EpollWaiter(typename ReadyNode<Use>::Action on_decided, int error_after_timeout) noexcept
        : ReadyNode<Use>(on_decided), timeout_error(error_after_timeout) {}

    std::error_code result() const noexcept {
        if (error == 0) return {};
        return std::make_error_code(static_cast<std::errc>(error));
    }

    EpollEntry<Use>* entry = nullptr; // the one that it is attached to
    int error = 0;                    // an errno value; may change as long as the node is queued
    int timeout_error;                // what `error` becomes when the time has passed
};

/// What wakes: that something can be read, or that something new came. The kernel need not look
/// again after an edge, but whoever waits has to read all that he does not want to be without.
enum class EpollTrigger : std::uint32_t { level = EPOLLIN, edge = EPOLLIN | EPOLLET };

template <class Use>
class EpollEntry {
public:
    EpollEntry(int epoll_fd, int fd, EpollTrigger trigger)
        : epoll_fd_(epoll_fd), fd_(fd), trigger_(trigger) {
        if (const int error = control(EPOLL_CTL_ADD, wanted())) {
            throw std::system_error(error, std::system_category(), "epoll_ctl(EPOLL_CTL_ADD)");
        }
    }
    EpollEntry(const EpollEntry&) = delete;
    EpollEntry& operator=(const EpollEntry&) = delete;
    ~EpollEntry() {
        if (interest_ != Interest::unregistered) control(EPOLL_CTL_DEL, 0);
    }

    /// 0, or the errno that says why `waiter` cannot wait.
    int attach(EpollWaiter<Use>& waiter) noexcept {
        if (waiter_ != nullptr) return EBUSY;
        if (interest_ != Interest::readable) {
            const int operation = interest_ == Interest::nothing ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
            if (const int error = control(operation, wanted())) return error;
            interest_ = Interest::readable;
        }
        waiter_ = &waiter;
        waiter.entry = this;
        return 0;
    }

    /// Somebody is attached. An edge that he was to be told of is the next one's.
    void detach() noexcept {
        EpollWaiter<Use>& waiter = *std::exchange(waiter_, nullptr);
        waiter.entry = nullptr;
        if (waiter.linked() && waiter.error == 0) missed_edge_ = trigger_ == EpollTrigger::edge;
    }

    /// Whether an edge came while nobody was attached. Asked once.
    bool take_missed_edge() noexcept {
        const bool missed = missed_edge_;
        missed_edge_ = false;
        return missed;
    }

    /// Returns whom the event is for. An edge for nobody is remembered. A level for nobody is kept
    /// from coming again at once, for ever: EPOLLIN is masked; EPOLLERR and EPOLLHUP cannot be, so
    /// the fd leaves the set. The next attach() undoes either, and finds the fd as it is then.
    EpollWaiter<Use>* on_event(std::uint32_t events) noexcept {
        if (waiter_ != nullptr) return waiter_;
        if (trigger_ == EpollTrigger::edge) {
            missed_edge_ = true;
            return nullptr;
        }
        const bool masked = (events & (EPOLLERR | EPOLLHUP)) == 0 && control(EPOLL_CTL_MOD, 0) == 0;
        if (!masked) control(EPOLL_CTL_DEL, 0);
        interest_ = masked ? Interest::nothing : Interest::unregistered;
        return nullptr;
    }

    EpollWaiter<Use>* waiter() const noexcept { return waiter_; }
    int fd() const noexcept { return fd_; }

private:
    enum class Interest { readable, nothing, unregistered };

    std::uint32_t wanted() const noexcept { return static_cast<std::uint32_t>(trigger_); }

    int control(int operation, std::uint32_t events) noexcept {
        epoll_event event{};
        event.events = events;
        event.data.ptr = this;
        return ::epoll_ctl(epoll_fd_, operation, fd_, &event) == 0 ? 0 : errno;
    }

    const int epoll_fd_;
    const int fd_;
    const EpollTrigger trigger_;
    bool missed_edge_ = false;
    Interest interest_ = Interest::readable;
    EpollWaiter<Use>* waiter_ = nullptr;
};

} // namespace asyncverbs::detail
