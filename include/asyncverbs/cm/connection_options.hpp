// SPDX-License-Identifier: MIT
// What a peer's program has to say with an event of the connection manager. In place: an event that
// could not be copied for want of memory could not be acknowledged either.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <system_error>

namespace asyncverbs::detail {

class PrivateData {
public:
    PrivateData() noexcept = default;
    PrivateData(const void* data, std::uint8_t size) noexcept : size_(data == nullptr ? 0 : size) {
        if (size_ != 0) std::memcpy(bytes_.data(), data, size_);
    }

    std::span<const std::byte> bytes() const noexcept { return {bytes_.data(), size_}; }

private:
    std::uint8_t size_ = 0;
    std::array<std::byte, 255> bytes_; // as many as the interface can say
};

} // namespace asyncverbs::detail

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

/// Thrown by connect() and OutgoingConnection::connect(). Its code() is errc::connection_refused,
/// whoever refused and why.
class ConnectionRejected : public std::system_error {
public:
    /// The reason() on InfiniBand and RoCE where the peer's program has rejected.
    static constexpr int by_program = 28;

    /// The reason() on InfiniBand and RoCE where nobody listens.
    static constexpr int no_listener = 8;

    /// For the connection manager: the answer to `call`.
    ConnectionRejected(const std::string& call, int reason, const detail::PrivateData& data)
        : std::system_error(std::make_error_code(std::errc::connection_refused),
                            call + ": rejected (" + text(reason) + ")"),
          reason_(reason), private_data_(data) {}

    /// The status of the event: a reason of the transport's own, on iWARP a negative errno.
    [[nodiscard]] int reason() const noexcept { return reason_; }

    /// What the peer's program has to say; on InfiniBand and RoCE padded with zeros.
    [[nodiscard]] std::span<const std::byte> private_data() const noexcept {
        return private_data_.bytes();
    }

private:
    static std::string text(int reason) {
        if (reason == by_program) return "by the peer's program";
        if (reason == no_listener) return "nobody listens";
        return "reason " + std::to_string(reason);
    }

    int reason_;
    detail::PrivateData private_data_;
};

} // namespace asyncverbs
