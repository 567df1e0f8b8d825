// SPDX-License-Identifier: MIT
// The descriptor is one of a pair of datagram sockets: they keep message boundaries, can block, and
// are the only kind of descriptor for which the kernel can report EPOLLERR without EPOLLIN.
#include "event_queue.hpp"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <stdexcept>

namespace asyncverbs::simulated {

namespace {

bool take_token(int fd) {
    char token = 0;
    return ::recv(fd, &token, 1, MSG_DONTWAIT) == 1;
}

} // namespace

EventDescriptor::EventDescriptor() {
    int pair[2] = {-1, -1};
    if (::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair) != 0) {
        throw std::runtime_error("simulated verbs: no socket pair for an event descriptor");
    }
    fd_ = pair[0];
    peer_ = pair[1];
}

EventDescriptor::~EventDescriptor() { close(); }

void EventDescriptor::fill(std::size_t events) {
    const char token = 1;
    while (tokens_ < events && ::send(peer_, &token, 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1) {
        ++tokens_;
    }
}

void EventDescriptor::drain(std::size_t events) {
    while (tokens_ > events && take_token(fd_)) {
        --tokens_;
    }
}

void EventDescriptor::raise_error() {
    // If the peer of a datagram socket disconnects with unread data, the socket gets ECONNRESET and
    // stays open for reading, which epoll reports as EPOLLERR alone. A blocked reader consumes the
    // error, so the peer may have to connect again first, by a name that the kernel chooses.
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    ::bind(fd_, reinterpret_cast<const sockaddr*>(&name), sizeof name.sun_family);
    socklen_t size = sizeof name;
    ::getsockname(fd_, reinterpret_cast<sockaddr*>(&name), &size);
    ::connect(peer_, reinterpret_cast<const sockaddr*>(&name), size);
    const char unread = 1;
    ::send(fd_, &unread, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    sockaddr unspecified{};
    unspecified.sa_family = AF_UNSPEC;
    ::connect(peer_, &unspecified, sizeof unspecified);
}

bool EventDescriptor::close() {
    if (fd_ < 0) {
        return true;
    }
    int error = 0;
    socklen_t size = sizeof error;
    const bool open = ::getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &size) == 0;
    std::size_t left = 0;
    while (open && take_token(fd_)) {
        ++left;
    }
    const bool untouched = open && left == tokens_;
    if (open) {
        ::close(fd_);
    }
    ::close(peer_);
    fd_ = -1;
    peer_ = -1;
    return untouched;
}

int read_token(int fd) {
    char token = 0;
    const ssize_t count = ::recv(fd, &token, 1, 0);
    if (count == 1) {
        return 0;
    }
    return count == 0 || errno == ECONNRESET ? EIO : errno;
}

} // namespace asyncverbs::simulated
