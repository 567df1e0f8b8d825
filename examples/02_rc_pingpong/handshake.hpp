// SPDX-License-Identifier: MIT
// The handshake of ibv_rc_pingpong: the two ends exchange the addresses of their queue pairs over
// a TCP connection. It blocks the thread, since nothing else runs yet, but never beyond a deadline.
#pragma once

#include <asyncverbs/verbs/queue_pair_options.hpp>

#include <asio.hpp>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace pingpong {

using asio::ip::tcp;
using asyncverbs::QueuePairAddress;

/// An address on the wire: LID, queue pair number, PSN and GID in hexadecimal, and a zero byte.
constexpr char wire_format[] = "0000:000000:000000:00000000000000000000000000000000";
constexpr std::size_t wire_size = sizeof wire_format;

/// The client's last message: it has the server's address.
constexpr std::string_view done_message("done", sizeof "done");

[[noreturn]] inline void fail(const std::string& what, std::error_code error = {}) {
    throw std::runtime_error(error ? what + ": " + error.message() : what);
}

/// Bytes of the peer, fit for a terminal.
inline std::string printable(std::string text) {
    std::replace_if(text.begin(), text.end(), [](char c) { return c < ' ' || c > '~'; }, '.');
    return text;
}

/// The address as `wire_size` bytes to send.
inline std::string to_wire(const QueuePairAddress& address) {
    char text[wire_size];
    std::snprintf(text, sizeof text, "%04x:%06x:%06x:", address.lid & 0xffffu,
                  address.qp_num & 0xffffffu, address.psn & 0xffffffu);
    char* gid = text + sizeof "0000:000000:000000";
    for (const std::uint8_t byte : address.gid.raw) gid += std::snprintf(gid, 3, "%02x", byte);
    return {text, sizeof text};
}

/// Reads what to_wire() wrote. Throws std::runtime_error that shows the malformed message.
inline QueuePairAddress from_wire(const std::string& message) {
    const auto fits = [](char c, char format) {
        return format == '0' ? std::isxdigit(static_cast<unsigned char>(c)) != 0 : c == format;
    };
    if (!std::equal(message.begin(), message.end(), std::begin(wire_format), std::end(wire_format),
                    fits)) {
        fail("malformed handshake: the peer sent \"" + printable(message) +
             "\" instead of LID:QPN:PSN:GID in 4, 6, 6 and 32 hexadecimal digits");
    }
    const auto number = [&message](std::size_t at, std::size_t digits) {
        return static_cast<std::uint32_t>(std::stoul(message.substr(at, digits), nullptr, 16));
    };
    QueuePairAddress address;
    address.lid = static_cast<std::uint16_t>(number(0, 4));
    address.qp_num = number(5, 6);
    address.psn = number(12, 6);
    for (std::size_t i = 0; i < sizeof address.gid.raw; ++i) {
        address.gid.raw[i] = static_cast<std::uint8_t>(number(19 + 2 * i, 2));
    }
    return address;
}

/// A TCP connection to the peer. Every operation blocks; all of them together may take `timeout`,
/// 0 for no limit. They throw std::runtime_error that says how far the handshake got.
class Connection {
public:
    /// Takes over a connected socket.
    Connection(asio::io_context& io, tcp::socket socket, std::chrono::seconds timeout)
        : io_(io), socket_(std::move(socket)), timeout_(timeout) {
        restart_deadline();
    }

    /// Connects to a server within `timeout`. Tries each address of `host`, IPv4 and IPv6.
    static Connection open(asio::io_context& io, const std::string& host, std::uint16_t port,
                           std::chrono::seconds timeout) {
        std::error_code error;
        const auto endpoints = tcp::resolver(io).resolve(host, std::to_string(port), error);
        if (error) fail("cannot find the host \"" + host + "\"", error);
        Connection connection(io, timeout);
        error = connection.run(
            [&](auto handler) { asio::async_connect(connection.socket_, endpoints, handler); });
        if (error) fail("cannot connect to " + host + ", TCP port " + std::to_string(port), error);
        connection.restart_deadline();
        return connection;
    }

    void send(std::string_view bytes) {
        const std::error_code error = run([&](auto handler) {
            asio::async_write(socket_, asio::buffer(bytes.data(), bytes.size()), handler);
        });
        if (error == asio::error::timed_out) {
            fail("handshake: the peer took no data for " + std::to_string(timeout_.count()) + " s");
        }
        if (error) fail("handshake: cannot send to the peer", error);
    }

    std::string receive(std::size_t count) {
        std::string bytes;
        const std::error_code error = run([&](auto handler) {
            asio::async_read(socket_, asio::dynamic_buffer(bytes, count),
                             asio::transfer_exactly(count), handler);
        });
        const std::string progress =
            std::to_string(bytes.size()) + " of " + std::to_string(count) + " bytes";
        if (error == asio::error::eof) {
            fail("handshake: the peer closed the connection after " + progress);
        }
        if (error == asio::error::timed_out) {
            fail("handshake: the peer sent only " + progress + " within " +
                 std::to_string(timeout_.count()) + " s");
        }
        if (error) fail("handshake: cannot receive from the peer, which sent " + progress, error);
        return bytes;
    }

    /// Waits until the peer closes its end, at most `timeout` from now. Until then the peer may
    /// still need this end's queue pair, for example to repeat an acknowledgment that was lost.
    void wait_until_closed() {
        restart_deadline();
        [[maybe_unused]] const std::error_code error =
            run([&](auto handler) { socket_.async_wait(tcp::socket::wait_read, handler); });
    }

private:
    using Clock = std::chrono::steady_clock;

    Connection(asio::io_context& io, std::chrono::seconds timeout)
        : io_(io), socket_(io), timeout_(timeout) {
        restart_deadline();
    }

    void restart_deadline() {
        deadline_ = timeout_.count() == 0 ? Clock::time_point::max() : Clock::now() + timeout_;
    }

    // Runs the operation that `start(handler)` starts on the socket. At the deadline, closes the
    // socket, which cancels the operation; its handler must have run before this returns.
    template <class Start>
    std::error_code run(Start start) {
        std::error_code result;
        start([&result](std::error_code error, const auto&...) { result = error; });
        io_.restart();
        io_.run_until(deadline_);
        if (io_.stopped()) return result;
        socket_.close();
        io_.run();
        return asio::error::timed_out;
    }

    asio::io_context& io_;
    tcp::socket socket_;
    std::chrono::seconds timeout_;
    Clock::time_point deadline_;
};

/// Listens on a TCP port, on IPv6 and IPv4. Throws std::runtime_error that names the port.
inline tcp::acceptor listen(asio::io_context& io, std::uint16_t port) {
    std::error_code error;
    for (const tcp protocol : {tcp::v6(), tcp::v4()}) { // v4: the kernel may have no IPv6
        try {
            tcp::acceptor acceptor(io, protocol);
            acceptor.set_option(tcp::acceptor::reuse_address(true));
            if (protocol == tcp::v6()) acceptor.set_option(asio::ip::v6_only(false));
            acceptor.bind({protocol, port});
            acceptor.listen(1);
            return acceptor;
        } catch (const std::system_error& failure) {
            error = failure.code();
            if (error == asio::error::address_in_use) break;
        }
    }
    const std::string name = "TCP port " + std::to_string(port);
    if (error == asio::error::address_in_use) fail(name + " is in use; choose another (--port)");
    fail("cannot listen on " + name, error);
}

/// Called with the peer's address as soon as it is known, to connect the queue pair to it.
using OnRemote = std::function<void(const QueuePairAddress&)>;

/// The client's part of the handshake; returns the server's address. The server is then ready to
/// receive.
inline QueuePairAddress shake_hands_as_client(Connection& server, const QueuePairAddress& local,
                                              const OnRemote& on_remote) {
    server.send(to_wire(local));
    const QueuePairAddress remote = from_wire(server.receive(wire_size));
    on_remote(remote);
    server.send(done_message);
    return remote;
}

/// The server's part of the handshake; returns the client's address.
inline QueuePairAddress shake_hands_as_server(Connection& client, const QueuePairAddress& local,
                                              const OnRemote& on_remote) {
    const QueuePairAddress remote = from_wire(client.receive(wire_size));
    on_remote(remote); // first: the client may send as soon as it has the address
    client.send(to_wire(local));
    const std::string answer = client.receive(done_message.size());
    if (answer != done_message) {
        fail("malformed handshake: the peer ended it with \"" + printable(answer) +
             "\" instead of \"done\"");
    }
    return remote;
}

} // namespace pingpong
