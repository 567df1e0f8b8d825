// SPDX-License-Identifier: MIT
// The handshake of ibv_rc_pingpong: the two ends exchange the addresses of their queue pairs over
// a TCP connection. It blocks the thread, since nothing else runs yet, but never beyond a deadline.
#pragma once

#include "../terminal.hpp"

#include <asyncverbs/verbs/queue_pair_options.hpp>

#include <asio.hpp>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace pingpong {

using asio::ip::tcp;
using asyncverbs::QueuePairAddress;

/// The size of an address on the wire: LID, queue pair number, PSN and GID in hexadecimal, and a
/// zero byte.
constexpr std::size_t wire_size = sizeof "0000:000000:000000:00000000000000000000000000000000";

/// The client's last message: it has the server's address.
constexpr std::string_view done_message("done", sizeof "done");

[[noreturn]] inline void fail(const std::string& what, std::error_code error = {}) {
    throw std::runtime_error(error ? what + ": " + error.message() : what);
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
    std::string text = message;
    text.resize(wire_size);
    std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::tolower(c); });
    const auto number = [&text](std::size_t at, std::size_t digits, auto& value) {
        std::from_chars(&text[at], &text[at + digits], value, 16);
    };
    QueuePairAddress address;
    number(0, 4, address.lid);
    number(5, 6, address.qp_num);
    number(12, 6, address.psn);
    for (std::size_t i = 0; i < sizeof address.gid.raw; ++i) {
        number(19 + 2 * i, 2, address.gid.raw[i]);
    }
    if (message.size() == wire_size && to_wire(address) == text) return address;
    fail("malformed handshake: the peer sent \"" + terminal::printable(message) +
         "\" instead of LID:QPN:PSN:GID in 4, 6, 6 and 32 hexadecimal digits");
}

/// Limits all that is sent and received from now on to `timeout` together; 0: no limit.
inline void set_deadline(tcp::iostream& peer, std::chrono::seconds timeout) {
    using Clock = std::chrono::steady_clock;
    peer.expires_at(timeout.count() == 0 ? Clock::time_point::max() : Clock::now() + timeout);
}

/// Tries one address after the other by the deadline of `peer`; one that does not answer leaves
/// time to the next. Returns the error of the last.
inline std::error_code connect_to_any(tcp::iostream& peer,
                                      const std::vector<tcp::endpoint>& addresses) {
    std::error_code error;
    const auto deadline = peer.expiry();
    auto left = static_cast<int>(addresses.size());
    for (const tcp::endpoint& address : addresses) {
        const auto now = std::chrono::steady_clock::now();
        peer.expires_at(now + (deadline - now) / left--);
        peer.rdbuf()->connect(address);
        error = peer.error();
        // Asio takes a connection that was not made in time for one that was made.
        if (!error) peer.socket().remote_endpoint(error);
        if (!error) break;
    }
    return error == asio::error::not_connected ? asio::error::timed_out : error;
}

/// Connects to a server by the deadline of `peer`, at any address of `host`, IPv4 or IPv6. Throws
/// std::runtime_error that names the host.
inline void connect(tcp::iostream& peer, const std::string& host, std::uint16_t port) {
    asio::io_context io;
    std::error_code error;
    const auto found = tcp::resolver(io).resolve(host, std::to_string(port), error);
    if (error) fail("cannot find the host \"" + host + "\"", error);
    error = connect_to_any(peer, {found.begin(), found.end()});
    if (!error) return;
    const bool no_interface = error == asio::error::invalid_argument && host.starts_with("fe80:");
    fail("cannot connect to " + host + ", TCP port " + std::to_string(port) +
             (no_interface ? " (a link-local address needs %INTERFACE, as in fe80::1%eth0)" : ""),
         error);
}

/// Throws std::runtime_error if the peer does not take the bytes by the deadline.
inline void send(tcp::iostream& peer, std::string_view bytes) {
    peer.write(bytes.data(), static_cast<std::streamsize>(bytes.size())).flush();
    if (!peer) fail("handshake: cannot send to the peer", peer.error());
}

/// Throws std::runtime_error, with what has come, if the peer does not send `count` bytes by the
/// deadline.
inline std::string receive(tcp::iostream& peer, std::size_t count) {
    std::string bytes(count, '\0');
    if (peer.read(bytes.data(), static_cast<std::streamsize>(count))) return bytes;
    const std::string progress =
        std::to_string(peer.gcount()) + " of " + std::to_string(count) + " bytes";
    if (peer.error() == asio::error::eof) {
        fail("handshake: the peer closed the connection after " + progress);
    }
    fail("handshake: the peer sent only " + progress, peer.error());
}

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

/// Exchanges the addresses; returns the peer's. A server is then ready to receive, since it learns
/// the client's address first, and the client knows it. Throws std::runtime_error that says how far
/// the handshake got.
inline QueuePairAddress shake_hands(tcp::iostream& peer, bool is_client,
                                    const QueuePairAddress& local, const OnRemote& on_remote) {
    if (is_client) send(peer, to_wire(local));
    const QueuePairAddress remote = from_wire(receive(peer, wire_size));
    on_remote(remote); // first: a client may send as soon as it has the address
    if (is_client) {
        send(peer, done_message);
        return remote;
    }
    send(peer, to_wire(local));
    const std::string answer = receive(peer, done_message.size());
    if (answer == done_message) return remote;
    fail("malformed handshake: the peer ended it with \"" + terminal::printable(answer) +
         "\" instead of \"done\"");
}

} // namespace pingpong
