// SPDX-License-Identifier: MIT
// The whole handshake of rc_pingpong with a peer that sends arbitrary bytes and closes. The first
// byte chooses the end. Either the peer follows the protocol and the result is the address that it
// sent, or the handshake throws std::runtime_error. It never waits indefinitely.
#include "handshake.hpp"

#include "fuzz/require.hpp"

#include <sys/socket.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <typeinfo>

using asyncverbs::fuzz::require;
using namespace pingpong;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
    const bool as_server = data[0] % 2 == 0;
    const std::string_view sent(reinterpret_cast<const char*>(data) + 1, size - 1);

    int fds[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) return 0;
    asio::io_context io;
    const tcp::socket peer(io, tcp::v4(), fds[1]);
    tcp::iostream connection(tcp::socket(io, tcp::v4(), fds[0]));
    set_deadline(connection, std::chrono::seconds(5));
    ::send(fds[1], sent.data(), sent.size(), MSG_NOSIGNAL);
    ::shutdown(fds[1], SHUT_WR);

    bool connected = false;
    const auto on_remote = [&](const QueuePairAddress&) { connected = true; };
    try {
        const QueuePairAddress remote = shake_hands(connection, !as_server, {}, on_remote);
        require(connected, "connected before the end");
        require(from_wire(std::string(sent.substr(0, wire_size))) == remote,
                "the address that the peer sent");
        if (as_server)
            require(sent.substr(wire_size).starts_with("done"), "the peer sent \"done\"");
    } catch (const std::runtime_error& error) {
        require(typeid(error) == typeid(std::runtime_error), "the documented exception");
        require(std::string_view(error.what()).find("handshake") != std::string_view::npos,
                "an error that says where it happened");
    }
    return 0;
}
