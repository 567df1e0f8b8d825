// SPDX-License-Identifier: MIT
// The handshake of rc_pingpong with itself, and with peers that violate the protocol.
#include "handshake.hpp"

#include "support/catch.hpp"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <future>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

using namespace pingpong;
using namespace std::chrono_literals;
using asyncverbs::support::contains;

namespace {

QueuePairAddress address_of(std::uint16_t lid, std::uint32_t qp_num, std::uint32_t psn,
                            const char* gid) {
    QueuePairAddress address;
    address.lid = lid;
    address.qp_num = qp_num;
    address.psn = psn;
    inet_pton(AF_INET6, gid, address.gid.raw);
    return address;
}

const QueuePairAddress alice = address_of(0, 0x11, 0x6b907d, "::ffff:10.7.0.1");
const QueuePairAddress bob = address_of(0x1234, 0xabcdef, 0, "fe80::1");

std::string with_zero(std::string_view text) { return std::string(text) + '\0'; }
const std::string alice_text = with_zero("0000:000011:6b907d:00000000000000000000ffff0a070001");
const std::string bob_text = with_zero("1234:abcdef:000000:fe800000000000000000000000000001");
const std::string done = with_zero("done");

void ignore(const QueuePairAddress&) {}

// A connection, and the peer's end of it as a descriptor.
struct Ends {
    explicit Ends(std::chrono::seconds timeout) : connection(make_pair()) {
        set_deadline(connection, timeout);
    }
    ~Ends() { ::close(peer); }

    tcp::socket make_pair() {
        int fds[2];
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
        peer = fds[1];
        return tcp::socket(io, tcp::v4(), fds[0]);
    }

    void peer_sends(std::string_view bytes) const {
        REQUIRE(::send(peer, bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
                static_cast<ssize_t>(bytes.size()));
    }

    asio::io_context io;
    int peer = -1;
    tcp::iostream connection;
};

// The kernel chooses a port, which is free again when this returns.
std::uint16_t free_port() {
    asio::io_context io;
    return tcp::acceptor(io, tcp::endpoint(tcp::v6(), 0)).local_endpoint().port();
}

// The error if the peer sends `bytes` and then closes its end, or stays silent.
enum Then { closes, stays_silent };
std::string error_of(bool is_client, std::string_view bytes, Then then) {
    Ends ends(1s);
    ends.peer_sends(bytes);
    if (then == closes) ::shutdown(ends.peer, SHUT_WR);
    try {
        shake_hands(ends.connection, is_client, alice, ignore);
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "no error";
}

} // namespace

TEST_CASE("an address is written as ibv_rc_pingpong writes it, and read back") {
    CHECK(to_wire(alice) == alice_text);
    CHECK(to_wire(bob) == bob_text);
    CHECK(from_wire(alice_text) == alice);
    CHECK(from_wire(bob_text) == bob);
    CHECK(from_wire(with_zero("1234:ABCDEF:000000:FE800000000000000000000000000001")) == bob);
}

TEST_CASE("a malformed address is rejected and shown") {
    const auto changed = [](std::size_t at, char c) {
        std::string text = alice_text;
        text[at] = c;
        return text;
    };
    for (const std::string& text :
         {std::string(), alice_text.substr(1), alice_text.substr(0, wire_size - 1),
          alice_text + '0', changed(0, 'g'), changed(0, ' '), changed(0, '-'), changed(4, '0'),
          changed(5, 'x'), changed(11, '.'), changed(18, '\0'), changed(19, ':'), changed(50, '\n'),
          changed(51, '0'), std::string(wire_size, '\0'), std::string(wire_size, '\xff')}) {
        CAPTURE(text);
        CHECK_THROWS_WITH(from_wire(text), contains("malformed handshake"));
    }
    CHECK_THROWS_WITH(from_wire("\033[2J\x01 GET / HTTP/1.1\r\n"),
                      contains("\".[2J. GET / HTTP/1.1..\""));
}

TEST_CASE("two ends exchange their addresses, over IPv4 and IPv6, on a port that is free again") {
    const std::uint16_t port = free_port();
    for (const char* host : {"127.0.0.1", "::1", "localhost"}) {
        CAPTURE(host);
        asio::io_context io;
        tcp::acceptor acceptor = listen(io, port);
        CHECK_THROWS_WITH(listen(io, port),
                          contains("TCP port " + std::to_string(port) + " is in use"));
        tcp::iostream connection;
        set_deadline(connection, 5s);
        connect(connection, host, port);
        auto server = std::async(std::launch::async, [&] {
            tcp::iostream client(acceptor.accept());
            set_deadline(client, 5s);
            return shake_hands(client, false, alice, ignore);
        });
        bool connected = false;
        const auto on_remote = [&](const QueuePairAddress& remote) { connected = remote == alice; };
        CHECK(shake_hands(connection, true, bob, on_remote) == alice);
        CHECK(connected);
        CHECK(server.get() == bob); // the server closes first: its side lingers in TIME_WAIT
    }
}

TEST_CASE("the server's queue pair is connected before the client learns its address") {
    Ends ends(5s);
    ends.peer_sends(bob_text + done);
    bool sent_too_early = true;
    const auto on_remote = [&](const QueuePairAddress&) {
        char byte;
        sent_too_early = ::recv(ends.peer, &byte, 1, MSG_DONTWAIT | MSG_PEEK) >= 0;
    };
    CHECK(shake_hands(ends.connection, false, alice, on_remote) == bob);
    CHECK_FALSE(sent_too_early);
    std::array<char, 2 * wire_size> sent{};
    REQUIRE(::recv(ends.peer, sent.data(), sent.size(), MSG_DONTWAIT) == wire_size);
    CHECK(std::string(sent.data(), wire_size) == alice_text);
}

TEST_CASE("a message may come in pieces") {
    Ends ends(5s);
    std::thread slow([&ends] {
        for (const char c : bob_text + done) {
            ::send(ends.peer, &c, 1, MSG_NOSIGNAL);
            std::this_thread::yield();
        }
    });
    CHECK(shake_hands(ends.connection, false, alice, ignore) == bob);
    slow.join();
}

TEST_CASE("the error names what the peer did wrong") {
    struct Case {
        bool is_client;
        std::string bytes;
        Then then;
        const char* error;
    };
    constexpr bool server = false;
    constexpr bool client = true;
    for (const Case& each : {
             Case{server, "", closes, "closed the connection after 0 of 52 bytes"},
             {server, bob_text.substr(0, 20), closes, "after 20 of 52 bytes"},
             {server, "", stays_silent, "sent only 0 of 52 bytes: Connection timed out"},
             {server, bob_text.substr(0, 51), stays_silent, "only 51 of 52 bytes"},
             {server, std::string(1000, 'x'), stays_silent, "malformed handshake"},
             {server, bob_text, closes, "after 0 of 5 bytes"},
             {server, bob_text, stays_silent, "sent only 0 of 5 bytes"},
             {server, bob_text + bob_text, stays_silent, "\"1234:\" instead of \"done\""},
             {client, "", closes, "closed the connection after 0 of 52 bytes"},
             {client, bob_text.substr(0, 51), closes, "after 51 of 52 bytes"},
             {client, "", stays_silent, "sent only 0 of 52 bytes: Connection timed out"},
             {client, std::string(52, 'x'), stays_silent, "malformed handshake"},
         }) {
        CHECK_THAT(error_of(each.is_client, each.bytes, each.then), contains(each.error));
    }
}

TEST_CASE("a failure to connect the queue pair ends the handshake, also for the peer") {
    Ends ends(5s);
    ends.peer_sends(bob_text);
    const auto no_path = [](const QueuePairAddress&) { throw std::runtime_error("no path"); };
    CHECK_THROWS_WITH(shake_hands(ends.connection, false, alice, no_path), "no path");
    char byte;
    CHECK(::recv(ends.peer, &byte, 1, MSG_DONTWAIT) == -1); // nothing was sent
}

TEST_CASE("a link-local address without an interface is explained") {
    tcp::iostream connection;
    CHECK_THROWS_WITH(connect(connection, "fe80::1", 1), contains("needs %INTERFACE"));
}

TEST_CASE("an address that does not answer leaves time to the next") {
    // A listener whose backlog is full ignores further connections.
    asio::io_context io;
    tcp::acceptor silent(io);
    silent.open(tcp::v6());
    silent.set_option(asio::ip::v6_only(true));
    silent.bind({asio::ip::address_v6::loopback(), 0});
    silent.listen(0);
    const std::uint16_t port = silent.local_endpoint().port();
    tcp::acceptor answering(io, {asio::ip::address_v4::loopback(), port});
    std::vector<tcp::socket> waiting;
    for (int i = 0; i < 4; ++i) {
        tcp::socket& socket = waiting.emplace_back(io, tcp::v6());
        socket.native_non_blocking(true);
        const tcp::endpoint to = silent.local_endpoint();
        ::connect(socket.native_handle(), to.data(), static_cast<socklen_t>(to.size()));
    }
    const bool is_ipv4 = GENERATE(false, true); // the only address, or the second of two
    tcp::iostream connection;
    connection.expires_after(400ms);
    const std::vector<tcp::endpoint> addresses{silent.local_endpoint(), answering.local_endpoint()};
    if (is_ipv4) {
        CHECK_FALSE(connect_to_any(connection, addresses));
        CHECK(connection.socket().remote_endpoint() == answering.local_endpoint());
    } else {
        CHECK(connect_to_any(connection, {addresses[0]}) == asio::error::timed_out);
    }
}

TEST_CASE("a silent peer is waited for until the deadline") {
    Ends ends(1s);
    ends.connection.peek();
    CHECK(ends.connection.error() == asio::error::timed_out);
}
