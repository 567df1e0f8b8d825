// SPDX-License-Identifier: MIT
// An IPv4 or IPv6 address with its port, as the connection manager takes and gives it.
#pragma once

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <string>

namespace asyncverbs {

/// A value. Default-constructed it is no address: port() is 0, text() is empty.
class SocketAddress {
public:
    SocketAddress() noexcept = default; ///< No address.

    /// Copies `address`. It is no address if it is of another family than IPv4 and IPv6.
    explicit SocketAddress(const sockaddr& address) noexcept {
        if (const socklen_t length = length_of(address.sa_family)) {
            std::memcpy(&storage_, &address, length);
        }
    }

    /// 0 is what a listener uses for "any".
    [[nodiscard]] std::uint16_t port() const noexcept {
        // At the same place in both families.
        return ntohs(reinterpret_cast<const sockaddr_in&>(storage_).sin_port);
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

    /// The same, for calls that forget to say const.
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

} // namespace asyncverbs
