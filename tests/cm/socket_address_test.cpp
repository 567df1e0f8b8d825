// SPDX-License-Identifier: MIT
#include <asyncverbs/cm/socket_address.hpp>

#include <sys/un.h>

#include "support/catch.hpp"

using namespace asyncverbs;
using asyncverbs::detail::find_addresses;
using asyncverbs::support::contains;

TEST_CASE("SocketAddress: text() can be looked up again") {
    for (const char* const host : {"10.7.0.1", "2001:db8::1", "fe80::1%lo"}) {
        const auto addresses = find_addresses(host, "7471");
        REQUIRE(addresses.size() == 1);
        CHECK(addresses[0].port() == 7471);
        const bool ipv6 = addresses[0].native_handle()->sa_family == AF_INET6;
        CHECK(addresses[0].text() ==
              (ipv6 ? "[" + std::string(host) + "]:7471" : std::string(host) + ":7471"));
    }
}

TEST_CASE("SocketAddress: a family other than IPv4 and IPv6 is no address") {
    sockaddr_un other{};
    other.sun_family = AF_UNIX;
    for (const SocketAddress& address :
         {SocketAddress(), SocketAddress(reinterpret_cast<const sockaddr&>(other))}) {
        CHECK(address.port() == 0);
        CHECK(address.text().empty());
        CHECK(address.native_handle()->sa_family == AF_UNSPEC);
    }
}

TEST_CASE(
    "find_addresses: an empty host is any address, IPv6 first; an empty service is any port") {
    const auto addresses = find_addresses("", "");
    REQUIRE(addresses.size() >= 1);
    CHECK(addresses.front().port() == 0);
    CHECK(addresses.back().text() == "0.0.0.0:0");
    if (addresses.size() > 1) CHECK(addresses.front().text() == "[::]:0");
}

TEST_CASE("find_addresses: an error names what was not found") {
    CHECK_THROWS_WITH(find_addresses("10.7.0.1", "no-such-service"),
                      contains("getaddrinfo 10.7.0.1:no-such-service"));
    CHECK(find_addresses("10.7.0.1", "65535").front().port() == 65'535);
    CHECK_THROWS_WITH(find_addresses("10.7.0.1", "65536"), contains("getaddrinfo 10.7.0.1:65536"));
    try {
        find_addresses("10.7.0.1.2", "1");
        FAIL("found");
    } catch (const std::system_error& error) {
        CHECK(std::string(error.code().category().name()) == "getaddrinfo");
        CHECK(error.code().value() != 0);
    }
}
