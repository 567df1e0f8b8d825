// SPDX-License-Identifier: MIT
#pragma once

#include "support/catch.hpp"

#include <sys/epoll.h>
#include <unistd.h>

#include <cstdint>

namespace asyncverbs::support {

// The events that epoll reports for one descriptor.
class Epoll {
public:
    explicit Epoll(int fd, std::uint32_t flags = 0) : epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
        epoll_event event{};
        event.events = EPOLLIN | flags;
        REQUIRE(::epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) == 0);
    }
    ~Epoll() { ::close(epoll_); }
    Epoll(const Epoll&) = delete;
    Epoll& operator=(const Epoll&) = delete;

    std::uint32_t events(int timeout_ms = 0) {
        epoll_event event{};
        return ::epoll_wait(epoll_, &event, 1, timeout_ms) == 1 ? std::uint32_t{event.events} : 0u;
    }

private:
    int epoll_;
};

} // namespace asyncverbs::support
