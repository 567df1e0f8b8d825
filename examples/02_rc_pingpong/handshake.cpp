// SPDX-License-Identifier: MIT
#include "handshake.hpp"

#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <system_error>

namespace pingpong {

namespace {

// What the client says when it has the server's address; with its terminating zero.
constexpr std::string_view done_message("done", sizeof "done");

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

[[noreturn]] void fail(const std::string& what, int error) {
    fail(what + ": " + std::generic_category().message(error));
}

// What a peer sent, fit for a terminal.
std::string printable(std::string_view bytes) {
    std::string text(bytes);
    std::replace_if(text.begin(), text.end(), [](char c) { return c < ' ' || c > '~'; }, '.');
    return text;
}

constexpr int hex_digit(char c) noexcept {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

// Takes fields off the front of a message; what is not as expected makes it bad.
class WireReader {
public:
    explicit WireReader(std::string_view rest) noexcept : rest_(rest) {}

    std::uint32_t number(std::size_t digits) noexcept {
        std::uint32_t value = 0;
        for (std::size_t i = 0; i < digits; ++i) {
            const int digit = hex_digit(next());
            if (digit < 0) good_ = false;
            value = value << 4 | (static_cast<std::uint32_t>(digit) & 0xf);
        }
        return value;
    }
    void expect(char c) noexcept {
        if (next() != c) good_ = false;
    }
    bool good() const noexcept { return good_ && rest_.empty(); }

private:
    char next() noexcept {
        if (rest_.empty()) {
            good_ = false;
            return '?';
        }
        const char c = rest_.front();
        rest_.remove_prefix(1);
        return c;
    }

    std::string_view rest_;
    bool good_ = true;
};

using AddressList = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

AddressList resolve(const std::string& host, std::uint16_t port) {
    addrinfo hints{};
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    const int error = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
    if (error != 0) {
        const char* reason = error == EAI_SYSTEM ? std::strerror(errno) : ::gai_strerror(error);
        fail("cannot find the host \"" + host + "\": " + reason);
    }
    return AddressList(found, &::freeaddrinfo);
}

// 0 or the errno of the step that failed.
int listen_on_all(const Socket& socket, const sockaddr* address, socklen_t size) {
    constexpr int on = 1;
    ::setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (::bind(socket.fd(), address, size) != 0 || ::listen(socket.fd(), 1) != 0) return errno;
    return 0;
}

int listen_v6(const Socket& socket, std::uint16_t port) {
    if (socket.fd() < 0) return EAFNOSUPPORT;
    constexpr int off = 0;
    if (::setsockopt(socket.fd(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) != 0) return errno;
    sockaddr_in6 any{};
    any.sin6_family = AF_INET6;
    any.sin6_port = htons(port);
    return listen_on_all(socket, reinterpret_cast<const sockaddr*>(&any), sizeof any);
}

int listen_v4(const Socket& socket, std::uint16_t port) {
    if (socket.fd() < 0) return EAFNOSUPPORT;
    sockaddr_in any{};
    any.sin_family = AF_INET;
    any.sin_port = htons(port);
    return listen_on_all(socket, reinterpret_cast<const sockaddr*>(&any), sizeof any);
}

Socket make_socket(int family) {
    return Socket(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

} // namespace

std::string to_wire(const QueuePairAddress& address) {
    std::array<char, wire_size> text{};
    int length = std::snprintf(text.data(), text.size(), "%04x:%06x:%06x:", address.lid & 0xffffu,
                               address.qp_num & 0xffffffu, address.psn & 0xffffffu);
    for (const std::uint8_t byte : address.gid.raw) {
        const auto used = static_cast<std::size_t>(length);
        length += std::snprintf(text.data() + used, text.size() - used, "%02x", byte);
    }
    return std::string(text.data(), text.size());
}

QueuePairAddress from_wire(std::string_view message) {
    WireReader reader(message);
    QueuePairAddress address;
    address.lid = static_cast<std::uint16_t>(reader.number(4));
    reader.expect(':');
    address.qp_num = reader.number(6);
    reader.expect(':');
    address.psn = reader.number(6);
    reader.expect(':');
    for (std::uint8_t& byte : address.gid.raw) byte = static_cast<std::uint8_t>(reader.number(2));
    reader.expect('\0');
    if (!reader.good()) {
        fail("malformed handshake: the peer sent \"" + printable(message) +
             "\" instead of LID:QPN:PSN:GID in 4, 6, 6 and 32 hexadecimal digits");
    }
    return address;
}

Socket::~Socket() {
    if (fd_ >= 0) ::close(fd_);
}

Connection::Connection(Socket socket, std::chrono::seconds timeout)
    : socket_(std::move(socket)), timeout_(timeout), deadline_(deadline_in(timeout)) {}

Connection::Deadline Connection::deadline_in(std::chrono::seconds timeout) {
    if (timeout.count() == 0) return std::nullopt;
    return std::chrono::steady_clock::now() + timeout;
}

// False: the time has passed.
bool Connection::wait(const Socket& socket, short events, Deadline deadline) {
    for (;;) {
        int milliseconds = -1;
        if (deadline) {
            const auto left = std::chrono::ceil<std::chrono::milliseconds>(
                *deadline - std::chrono::steady_clock::now());
            milliseconds = static_cast<int>(std::clamp<std::int64_t>(left.count(), 0, 1 << 30));
        }
        pollfd waited{socket.fd(), events, 0};
        const int count = ::poll(&waited, 1, milliseconds);
        if (count > 0) return true;
        if (count < 0 && errno != EINTR) fail("poll", errno);
        if (count == 0) return false;
    }
}

// Nothing but the end is to come.
void Connection::wait_until_closed() const { wait(socket_, POLLIN, deadline_in(timeout_)); }

Connection Connection::open(const std::string& host, std::uint16_t port,
                            std::chrono::seconds timeout) {
    const AddressList addresses = resolve(host, port);
    const Deadline deadline = deadline_in(timeout);
    int error = EADDRNOTAVAIL;
    for (const addrinfo* address = addresses.get(); address != nullptr;
         address = address->ai_next) {
        Socket socket = make_socket(address->ai_family);
        if (socket.fd() < 0) {
            error = errno;
            continue;
        }
        error = 0;
        if (::connect(socket.fd(), address->ai_addr, address->ai_addrlen) != 0) error = errno;
        if (error == EINPROGRESS) {
            socklen_t size = sizeof error;
            if (!wait(socket, POLLOUT, deadline)) {
                error = ETIMEDOUT;
            } else if (::getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &size) != 0) {
                error = errno;
            }
        }
        if (error == 0) return Connection(std::move(socket), timeout);
    }
    fail("cannot connect to " + host + ", TCP port " + std::to_string(port), error);
}

void Connection::send(std::string_view bytes) {
    while (!bytes.empty()) {
        const ssize_t sent = ::send(socket_.fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (sent > 0) {
            bytes.remove_prefix(static_cast<std::size_t>(sent));
        } else if (sent < 0 && errno == EAGAIN) {
            if (!wait(socket_, POLLOUT, deadline_)) {
                fail("handshake: the peer took no data for " + std::to_string(timeout_.count()) +
                     " s");
            }
        } else if (sent < 0 && errno != EINTR) {
            fail("handshake: cannot send to the peer", errno);
        }
    }
}

std::string Connection::receive(std::size_t count) {
    std::string bytes(count, '\0');
    std::size_t got = 0;
    const auto progress = [&] {
        return std::to_string(got) + " of " + std::to_string(count) + " bytes";
    };
    while (got < count) {
        const ssize_t received = ::recv(socket_.fd(), bytes.data() + got, count - got, 0);
        if (received > 0) {
            got += static_cast<std::size_t>(received);
        } else if (received == 0) {
            fail("handshake: the peer closed the connection after " + progress());
        } else if (errno == EAGAIN) {
            if (!wait(socket_, POLLIN, deadline_)) {
                fail("handshake: the peer sent only " + progress() + " within " +
                     std::to_string(timeout_.count()) + " s");
            }
        } else if (errno != EINTR) {
            fail("handshake: cannot receive from the peer, which sent " + progress(), errno);
        }
    }
    return bytes;
}

Listener::Listener(std::uint16_t port) : socket_(make_socket(AF_INET6)) {
    int error = listen_v6(socket_, port);
    if (error == EAFNOSUPPORT || error == EADDRNOTAVAIL) { // a kernel without IPv6
        socket_ = make_socket(AF_INET);
        error = listen_v4(socket_, port);
    }
    if (error == EADDRINUSE) {
        fail("TCP port " + std::to_string(port) + " is in use; choose another one (--port)");
    }
    if (error != 0) fail("cannot listen on TCP port " + std::to_string(port), error);
}

Connection Listener::accept(std::chrono::seconds timeout) {
    for (;;) {
        pollfd waited{socket_.fd(), POLLIN, 0};
        ::poll(&waited, 1, -1);
        Socket socket(::accept4(socket_.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        if (socket.fd() >= 0) return Connection(std::move(socket), timeout);
        if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) fail("accept", errno);
    }
}

QueuePairAddress shake_hands_as_client(Connection& server, const QueuePairAddress& local,
                                       const OnRemote& on_remote) {
    server.send(to_wire(local));
    const QueuePairAddress remote = from_wire(server.receive(wire_size));
    on_remote(remote);
    server.send(done_message);
    return remote;
}

QueuePairAddress shake_hands_as_server(Connection& client, const QueuePairAddress& local,
                                       const OnRemote& on_remote) {
    const QueuePairAddress remote = from_wire(client.receive(wire_size));
    // Before the client learns the address, for then it may send at once.
    on_remote(remote);
    client.send(to_wire(local));
    const std::string answer = client.receive(done_message.size());
    if (answer != done_message) {
        fail("malformed handshake: the peer ended it by \"" + printable(answer) +
             "\" instead of \"done\"");
    }
    return remote;
}

} // namespace pingpong
