// SPDX-License-Identifier: MIT
// What can be chosen for each step of a connection. Every default works between two hosts of one
// network.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <asyncverbs/verbs/detail/chrono.hpp>

namespace asyncverbs {

/// Finding the way to a host.
struct ResolveOptions {
    std::chrono::milliseconds timeout{2000}; ///< for the address, and once more for the route
};

/// Asking a peer for a connection.
struct ConnectOptions {
    std::span<const std::byte> private_data{}; ///< for the peer; InfiniBand, RoCE: up to 56 bytes
    std::uint8_t responder_resources = 255; ///< RDMA reads and atomics of the peer that are served
                                            ///< at a time, at most what device and peer can do
    std::uint8_t initiator_depth = 255;     ///< own ones, likewise
    std::uint8_t retry_count = 7;           ///< of both ends, as retry_cnt in RtsOptions
    std::uint8_t rnr_retry_count = 7;       ///< of the peer, as rnr_retry there
    std::uint8_t min_rnr_timer = 12;        ///< as in RtrOptions
    std::chrono::milliseconds timeout{10'000}; ///< until the peer has accepted or rejected
    ResolveOptions resolve{};                  ///< of connect(), which begins with it
};

/// Accepting a connection.
struct AcceptOptions {
    std::span<const std::byte> private_data{}; ///< for the peer; InfiniBand, RoCE: up to 196 bytes
    std::uint8_t responder_resources = 255;    ///< as in ConnectOptions; never more than was asked
    std::uint8_t initiator_depth = 255;        ///< likewise
    std::uint8_t rnr_retry_count = 7;          ///< of the peer, as rnr_retry in RtsOptions
    std::uint8_t min_rnr_timer = 12;           ///< as in RtrOptions
    std::chrono::milliseconds timeout{10'000}; ///< until the peer has confirmed
};

/// Waiting for peers.
struct ListenerOptions {
    int backlog = 128; ///< requests that are kept for want of an accept(); what comes beyond that
                       ///< is dropped, and the peer asks again after some seconds
};

} // namespace asyncverbs
