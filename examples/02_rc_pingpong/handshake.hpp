// SPDX-License-Identifier: MIT
// The handshake of ibv_rc_pingpong: the two ends tell each other their queue pair's address over
// one TCP connection. Blocking, as nothing else goes on yet, but no peer can block it for ever.
#pragma once

#include <asyncverbs/verbs/queue_pair_options.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace pingpong {

using asyncverbs::QueuePairAddress;

/// LID, queue pair number, PSN and GID in hexadecimal, and the terminating zero.
inline constexpr std::size_t wire_size =
    sizeof "0000:000000:000000:00000000000000000000000000000000";

/// The address as it is sent, `wire_size` bytes.
std::string to_wire(const QueuePairAddress& address);

/// Reads what to_wire() wrote. Throws std::runtime_error that shows what came instead.
QueuePairAddress from_wire(std::string_view message);

/// Owns a file descriptor.
class Socket {
public:
    explicit Socket(int fd) noexcept : fd_(fd) {}
    Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Socket& operator=(Socket&& other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    ~Socket();
    int fd() const noexcept { return fd_; }

private:
    int fd_;
};

/// A TCP connection to the peer. From its beginning, `timeout` bounds all that is done with it;
/// zero: no bound. Failures are std::runtime_error, and say how far the handshake had come.
class Connection {
public:
    Connection(Socket socket, std::chrono::seconds timeout);

    /// Tries each address of `host`, IPv4 and IPv6.
    static Connection open(const std::string& host, std::uint16_t port,
                           std::chrono::seconds timeout);

    void send(std::string_view bytes);
    std::string receive(std::size_t count);

    /// Waits, no longer than the timeout, until the peer closes its end: until then it may need
    /// this end's queue pair, be it for an acknowledgment that was lost.
    void wait_until_closed() const;

private:
    using Deadline = std::optional<std::chrono::steady_clock::time_point>;

    static Deadline deadline_in(std::chrono::seconds timeout);
    static bool wait(const Socket& socket, short events, Deadline deadline);

    Socket socket_;
    std::chrono::seconds timeout_;
    Deadline deadline_;
};

/// Listens on a TCP port, IPv6 and IPv4 alike. Clients that come from now on are not refused.
class Listener {
public:
    /// Throws std::runtime_error that names the port.
    explicit Listener(std::uint16_t port);

    /// Waits for one client, however long that takes.
    Connection accept(std::chrono::seconds timeout);

private:
    Socket socket_;
};

/// Called with the peer's address when it is known, to connect the queue pair to it.
using OnRemote = std::function<void(const QueuePairAddress&)>;

/// Each end's part of the handshake; returns the peer's address. The client knows when it returns
/// that the server is ready to receive.
QueuePairAddress shake_hands_as_client(Connection& server, const QueuePairAddress& local,
                                       const OnRemote& on_remote);
QueuePairAddress shake_hands_as_server(Connection& client, const QueuePairAddress& local,
                                       const OnRemote& on_remote);

} // namespace pingpong
