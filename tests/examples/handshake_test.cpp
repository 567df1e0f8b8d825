// SPDX-License-Identifier: MIT
// The handshake of rc_pingpong with itself, and with peers that get it wrong in every way there is.
#include "handshake.hpp"

#include "support/catch.hpp"

#include <asyncverbs/verbs/queue_pair_options.hpp>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <future>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

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
constexpr const char* alice_text = "0000:000011:6b907d:00000000000000000000ffff0a070001";

std::string with_zero(std::string_view text) { return std::string(text) + '\0'; }

void ignore(const QueuePairAddress&) {}

// The two ends of a stream, without a port.
std::pair<Socket, Socket> make_pair() {
    int fds[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) == 0);
    return {Socket(fds[0]), Socket(fds[1])};
}

void write_all(const Socket& socket, std::string_view bytes) {
    REQUIRE(::send(socket.fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
            static_cast<ssize_t>(bytes.size()));
}

// A port that nobody listens on: the kernel chooses it, and it is free again when this returns.
std::uint16_t free_port() {
    const Socket socket(::socket(AF_INET6, SOCK_STREAM, 0));
    sockaddr_in6 address{};
    address.sin6_family = AF_INET6;
    socklen_t size = sizeof address;
    REQUIRE(::bind(socket.fd(), reinterpret_cast<const sockaddr*>(&address), size) == 0);
    REQUIRE(::getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
    return ntohs(address.sin6_port);
}

// How a server fares with a peer that sends `bytes` and then closes, or else stays.
std::string server_fails_with(std::string_view bytes, bool then_closes) {
    auto [mine, peers] = make_pair();
    write_all(peers, bytes);
    if (then_closes) ::shutdown(peers.fd(), SHUT_WR);
    Connection client(std::move(mine), 1s);
    try {
        shake_hands_as_server(client, alice, ignore);
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "no failure";
}

std::string client_fails_with(std::string_view bytes, bool then_closes) {
    auto [mine, peers] = make_pair();
    write_all(peers, bytes);
    if (then_closes) ::shutdown(peers.fd(), SHUT_WR);
    Connection server(std::move(mine), 1s);
    try {
        shake_hands_as_client(server, alice, ignore);
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "no failure";
}

} // namespace

TEST_CASE("an address is written as ibv_rc_pingpong writes it") {
    CHECK(to_wire(alice) == with_zero(alice_text));
    CHECK(to_wire(bob) == with_zero("1234:abcdef:000000:fe800000000000000000000000000001"));
    CHECK(to_wire(alice).size() == wire_size);
}

TEST_CASE("an address is read back, in either case of letters") {
    CHECK(from_wire(to_wire(alice)) == alice);
    CHECK(from_wire(to_wire(bob)) == bob);
    CHECK(from_wire(with_zero("1234:ABCDEF:000000:FE800000000000000000000000000001")) == bob);
}

TEST_CASE("a malformed address is refused and shown") {
    const std::string good = with_zero(alice_text);
    const auto changed = [&](std::size_t at, char c) {
        std::string text = good;
        text[at] = c;
        return text;
    };
    for (const std::string& text :
         {std::string(), good.substr(1), good.substr(0, wire_size - 1), good + '0', changed(0, 'g'),
          changed(0, ' '), changed(0, '-'), changed(4, '0'), changed(5, 'x'), changed(11, '.'),
          changed(18, '\0'), changed(19, ':'), changed(50, '\n'), changed(51, '0'),
          std::string(wire_size, '\0'), std::string(wire_size, ':'),
          std::string(wire_size, '\xff')}) {
        CAPTURE(text);
        CHECK_THROWS_AS(from_wire(text), std::runtime_error);
        CHECK_THROWS_WITH(from_wire(text), contains("malformed handshake"));
    }
    CHECK_THROWS_WITH(from_wire("\033[2J\x01 GET / HTTP/1.1\r\n"),
                      contains("\".[2J. GET / HTTP/1.1..\""));
}

TEST_CASE("two ends learn each other's address, over IPv4 and IPv6") {
    for (const char* host : {"127.0.0.1", "::1"}) {
        CAPTURE(host);
        const std::uint16_t port = free_port();
        Listener listener(port);
        std::string order;
        Connection connection = Connection::open(host, port, 5s); // accept() waits for ever
        auto server = std::async(std::launch::async, [&] {
            Connection client = listener.accept(5s);
            return shake_hands_as_server(client, alice, ignore);
        });
        bool connected = false;
        const auto connect = [&](const QueuePairAddress& remote) { connected = remote == alice; };
        CHECK(shake_hands_as_client(connection, bob, connect) == alice);
        CHECK(connected);
        CHECK(server.get() == bob);
    }
}

TEST_CASE("the server is connected before the client learns its address") {
    auto [mine, peers] = make_pair();
    write_all(peers, to_wire(bob) + with_zero("done"));
    Connection client(std::move(mine), 1s);
    bool sent_too_early = true;
    const auto connect = [&, fd = peers.fd()](const QueuePairAddress& remote) {
        char byte;
        sent_too_early = ::recv(fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK) >= 0;
        CHECK(remote == bob);
    };
    CHECK(shake_hands_as_server(client, alice, connect) == bob);
    CHECK_FALSE(sent_too_early);
    std::array<char, 2 * wire_size> sent{};
    CHECK(::recv(peers.fd(), sent.data(), sent.size(), MSG_DONTWAIT) ==
          static_cast<ssize_t>(wire_size));
    CHECK(std::string(sent.data(), wire_size) == to_wire(alice));
}

TEST_CASE("a message may come in pieces") {
    auto [mine, peers] = make_pair();
    Connection client(std::move(mine), 5s);
    std::thread slow([fd = peers.fd()] {
        for (const char c : to_wire(bob) + with_zero("done")) {
            ::send(fd, &c, 1, MSG_NOSIGNAL);
            std::this_thread::yield();
        }
    });
    CHECK(shake_hands_as_server(client, alice, ignore) == bob);
    slow.join();
}

TEST_CASE("a peer that gets the handshake wrong is named as the cause") {
    const std::string good = to_wire(bob);
    CHECK_THAT(server_fails_with("", true), contains("closed the connection after 0 of 52 bytes"));
    CHECK_THAT(server_fails_with(good.substr(0, 20), true), contains("after 20 of 52 bytes"));
    CHECK_THAT(server_fails_with("", false), contains("sent only 0 of 52 bytes within 1 s"));
    CHECK_THAT(server_fails_with(good.substr(0, 51), false), contains("only 51 of 52 bytes"));
    CHECK_THAT(server_fails_with(std::string(1000, 'x'), false), contains("malformed handshake"));
    CHECK_THAT(server_fails_with(good, true), contains("after 0 of 5 bytes"));
    CHECK_THAT(server_fails_with(good, false), contains("sent only 0 of 5 bytes"));
    CHECK_THAT(server_fails_with(good + good, false),
               contains("\"1234:\" instead of \"done\"") || contains("instead of \"done\""));
    CHECK_THAT(client_fails_with("", true), contains("closed the connection after 0 of 52 bytes"));
    CHECK_THAT(client_fails_with(good.substr(0, 51), true), contains("after 51 of 52 bytes"));
    CHECK_THAT(client_fails_with("", false), contains("sent only 0 of 52 bytes within 1 s"));
    CHECK_THAT(client_fails_with(std::string(52, 'x'), false), contains("malformed handshake"));
}

TEST_CASE("a failure to connect the queue pair ends the handshake, also for the peer") {
    auto [mine, peers] = make_pair();
    write_all(peers, to_wire(bob));
    {
        Connection client(std::move(mine), 1s);
        const auto fail = [](const QueuePairAddress&) { throw std::runtime_error("no path"); };
        CHECK_THROWS_WITH(shake_hands_as_server(client, alice, fail), "no path");
    }
    char byte;
    CHECK(::recv(peers.fd(), &byte, 1, 0) == 0);
}

TEST_CASE("a port in use is named") {
    const std::uint16_t port = free_port();
    const Listener first(port);
    CHECK_THROWS_WITH(Listener(port), contains("TCP port " + std::to_string(port) + " is in use"));
}

TEST_CASE("a port is free again at once") {
    const std::uint16_t port = free_port();
    for (int i = 0; i < 2; ++i) {
        Listener listener(port);
        Connection connection = Connection::open("127.0.0.1", port, 5s);
        Connection accepted = listener.accept(5s);
        accepted = {Socket(-1), 5s}; // closed first, the server's side lingers in TIME_WAIT
    }
}

TEST_CASE("a server that is not there, and a host that does not exist") {
    const std::uint16_t port = free_port();
    const std::string port_text = std::to_string(port);
    CHECK_THROWS_WITH(Connection::open("127.0.0.1", port, 5s),
                      contains("cannot connect to 127.0.0.1, TCP port " + port_text) &&
                          contains("refused"));
    CHECK_THROWS_WITH(Connection::open("no such host", port, 5s),
                      contains("cannot find the host \"no such host\""));
}

TEST_CASE("The server stays until the client has closed") {
    auto [ours, theirs] = make_pair();
    const Connection client(std::move(ours), 60s);
    std::atomic<bool> closed = false;
    std::thread peer([&closed, socket = std::move(theirs)]() mutable {
        std::this_thread::sleep_for(50ms);
        closed = true;
        const Socket gone = std::move(socket);
    });
    client.wait_until_closed();
    CHECK(closed);
    peer.join();
}

TEST_CASE("The server does not stay for ever") {
    auto [ours, theirs] = make_pair();
    const Connection client(std::move(ours), 1s);
    client.wait_until_closed(); // comes back: that is the test
    CHECK(theirs.fd() >= 0);
}
