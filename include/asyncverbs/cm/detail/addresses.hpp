// SPDX-License-Identifier: MIT
// From a host and a service, as people write them, to addresses.
#pragma once

#include <netdb.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdlib>
#include <string>
#include <system_error>
#include <vector>

#include <asyncverbs/cm/socket_address.hpp>

namespace asyncverbs::detail {

inline const std::error_category& getaddrinfo_category() noexcept {
    class GetaddrinfoCategory final : public std::error_category {
    public:
        const char* name() const noexcept override { return "getaddrinfo"; }
        std::string message(int code) const override { return gai_strerror(code); }
    };
    static const GetaddrinfoCategory category;
    return category;
}

// At least one. No host means any address, IPv6 first, which takes IPv4 as well; no service means
// any port. Blocks while the system looks up a name.
template <class Address = SocketAddress>
std::vector<Address> find_addresses(const std::string& host, const std::string& service) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE;
    addrinfo* found = nullptr;
    // Of a number that is no port the system would take the lower bits.
    const bool no_port = std::strtoul(service.c_str(), nullptr, 10) > 65'535;
    const int result = no_port
                           ? EAI_SERVICE
                           : getaddrinfo(host.empty() ? nullptr : host.c_str(),
                                         service.empty() ? "0" : service.c_str(), &hints, &found);
    if (result != 0) {
        const std::error_code error = result == EAI_SYSTEM
                                          ? std::error_code(errno, std::system_category())
                                          : std::error_code(result, getaddrinfo_category());
        throw std::system_error(error, "getaddrinfo " + host + ":" + service);
    }
    struct Owner {
        addrinfo* list;
        ~Owner() { freeaddrinfo(list); }
    } const owner{found};
    std::vector<Address> addresses;
    for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
        const bool first = host.empty() && each->ai_family == AF_INET6;
        addresses.emplace(first ? addresses.begin() : addresses.end(), *each->ai_addr);
    }
    return addresses;
}

} // namespace asyncverbs::detail
