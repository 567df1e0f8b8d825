// SPDX-License-Identifier: MIT
// GIDs, the addresses of InfiniBand and RoCE ports: their text form and their kinds.
#pragma once

#include <asyncverbs/requirements.hpp>

#include <arpa/inet.h>
#include <infiniband/verbs.h>
#include <netinet/in.h>

#include <array>
#include <cstring>
#include <string>

namespace asyncverbs {

/// The GID as inet_ntop(3) writes an IPv6 address: "::ffff:10.7.0.1", "fe80::1".
[[nodiscard]] inline std::string gid_text(const ibv_gid& gid) {
    std::array<char, INET6_ADDRSTRLEN> text{};
    inet_ntop(AF_INET6, gid.raw, text.data(), static_cast<socklen_t>(text.size()));
    return text.data();
}

/// Whether all bytes are zero: an unused entry of a port's GID table.
[[nodiscard]] inline bool is_empty_gid(const ibv_gid& gid) noexcept {
    constexpr ibv_gid empty{};
    return std::memcmp(gid.raw, empty.raw, sizeof gid.raw) == 0;
}

/// Whether the GID holds an IPv4 address, as "::ffff:10.7.0.1" does.
[[nodiscard]] inline bool is_ipv4_mapped_gid(const ibv_gid& gid) noexcept {
    constexpr ibv_gid prefix{{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}};
    return std::memcmp(gid.raw, prefix.raw, 12) == 0; // the other 4 bytes are the address
}

} // namespace asyncverbs
