// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <system_error>
#include <vector>

#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs {

/// An IPv4 or IPv6 address with its port. Default-constructed it is no address: port() is 0, text()
/// is empty.
class SocketAddress {
public:
    SocketAddress() noexcept = default; ///< No address.

    /// Copies `address`. The result is no address if the family is neither IPv4 nor IPv6.
    explicit SocketAddress(const sockaddr& address) noexcept {
        if (const socklen_t length = length_of(address.sa_family)) {
            std::memcpy(&storage_, &address, length);
        }
    }

    /// A listener uses 0 for any port.
    [[nodiscard]] std::uint16_t port() const noexcept {
        // The same offset in both families.
        return ntohs(reinterpret_cast<const sockaddr_in&>(storage_).sin_port);
    }

    /// Must be an address.
    void set_port(std::uint16_t port) noexcept {
        reinterpret_cast<sockaddr_in&>(storage_).sin_port = htons(port);
    }

    /// "10.7.0.1:7471", or "[fe80::1%eth0]:7471".
    [[nodiscard]] std::string text() const {
        std::array<char, NI_MAXHOST> host{};
        const socklen_t length = length_of(storage_.ss_family);
        if (length == 0 ||
            getnameinfo(native_handle(), length, host.data(), static_cast<socklen_t>(host.size()),
                        nullptr, 0, NI_NUMERICHOST) != 0) {
            return {};
        }
        const std::string port_text = ":" + std::to_string(port());
        if (storage_.ss_family == AF_INET) return host.data() + port_text;
        return "[" + std::string(host.data()) + "]" + port_text;
    }

    /// For getsockopt-like calls; its family is AF_UNSPEC if it is no address.
    [[nodiscard]] const sockaddr* native_handle() const noexcept {
        return reinterpret_cast<const sockaddr*>(&storage_);
    }

    /// The same, for calls whose parameter lacks const.
    [[nodiscard]] sockaddr* native_handle() noexcept {
        return reinterpret_cast<sockaddr*>(&storage_);
    }

private:
    static socklen_t length_of(sa_family_t family) noexcept {
        if (family == AF_INET) return sizeof(sockaddr_in);
        return family == AF_INET6 ? sizeof(sockaddr_in6) : 0;
    }

    sockaddr_storage storage_{};
};

namespace detail {

inline const std::error_category& getaddrinfo_category() noexcept {
    class GetaddrinfoCategory final : public std::error_category {
    public:
        const char* name() const noexcept override { return "getaddrinfo"; }
        std::string message(int code) const override { return gai_strerror(code); }
    };
    static const GetaddrinfoCategory category;
    return category;
}

// Looks up the addresses of `host` and `service`; blocks meanwhile. Returns at least one. An empty
// host is any address, first that of IPv6, which accepts IPv4 as well; an empty service is any
// port.
inline std::vector<SocketAddress> find_addresses(const std::string& host,
                                                 const std::string& service) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE;
    addrinfo* found = nullptr;
    // The system would truncate a larger number to 16 bits.
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
    std::vector<SocketAddress> addresses;
    for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
        const bool first = host.empty() && each->ai_family == AF_INET6;
        addresses.emplace(first ? addresses.begin() : addresses.end(), *each->ai_addr);
    }
    return addresses;
}

// Throws std::system_error (invalid_argument) for a link-local IPv6 address without its interface,
// which the kernel rejects by EINVAL alone.
inline void check_scope(const SocketAddress& address) {
    if (address.native_handle()->sa_family != AF_INET6) return;
    const auto& ipv6 = reinterpret_cast<const sockaddr_in6&>(*address.native_handle());
    if (!IN6_IS_ADDR_LINKLOCAL(&ipv6.sin6_addr) || ipv6.sin6_scope_id != 0) return;
    throw_error(std::errc::invalid_argument,
                address.text() +
                    " is a link-local address, which needs its interface, as in fe80::1%eth0");
}

} // namespace detail
} // namespace asyncverbs
