// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <system_error>

namespace asyncverbs {

/// Options of resolve().
struct ResolveOptions {
    std::chrono::milliseconds timeout{2000}; ///< for the address, and again for the route
};

/// Options of connect() and OutgoingConnection::connect().
struct ConnectOptions {
    std::span<const std::byte> private_data{}; ///< for the peer, up to 56 bytes
    std::uint8_t responder_resources = 255; ///< RDMA reads and atomics of the peer that are served
                                            ///< at a time, at most what device and peer can do
    std::uint8_t initiator_depth = 255;     ///< the same for reads and atomics of this end
    std::uint8_t retry_count = 7;           ///< of both ends, as retry_cnt in RtsOptions
    std::uint8_t rnr_retry_count = 7;       ///< of the peer, as rnr_retry in RtsOptions
    std::uint8_t min_rnr_timer = 12;        ///< as in RtrOptions
    std::chrono::milliseconds timeout{10'000}; ///< until a peer has accepted or rejected
    ResolveOptions resolve{};                  ///< of connect(), which begins with resolve()
};

/// Options of IncomingConnection::accept().
struct AcceptOptions {
    std::span<const std::byte> private_data{}; ///< for the peer, up to 196 bytes
    std::uint8_t responder_resources = 255;    ///< as in ConnectOptions; at most what was requested
    std::uint8_t initiator_depth = 255;        ///< likewise
    std::uint8_t rnr_retry_count = 7;          ///< of the peer, as rnr_retry in RtsOptions
    std::uint8_t min_rnr_timer = 12;           ///< as in RtrOptions
    std::chrono::milliseconds timeout{10'000}; ///< until the peer has confirmed
};

/// Options of a Listener.
struct ListenerOptions {
    int backlog = 128; ///< requests that are kept until accept() takes them; further ones are
                       ///< dropped, and the peer asks again after some seconds
};

namespace detail {

// The private data of an event of the connection manager. A fixed array: if copying an event needed
// memory and failed, the event could not be acknowledged either.
class PrivateData {
public:
    PrivateData() noexcept = default;
    PrivateData(const void* data, std::uint8_t size) noexcept : size_(data == nullptr ? 0 : size) {
        if (size_ != 0) std::memcpy(bytes_.data(), data, size_);
    }

    std::span<const std::byte> bytes() const noexcept { return {bytes_.data(), size_}; }

private:
    std::uint8_t size_ = 0;
    std::array<std::byte, 255> bytes_; // the maximum of the interface
};

} // namespace detail

/// Thrown by connect() and OutgoingConnection::connect(). Its code() is errc::connection_refused
/// for every reason.
class ConnectionRejected : public std::system_error {
public:
    /// The reason() on InfiniBand and RoCE if the peer's program has rejected. On iWARP it depends
    /// on the device: -ECONNRESET or -ECONNREFUSED.
    static constexpr int by_program = 28;

    /// The reason() on InfiniBand and RoCE if no listener exists.
    static constexpr int no_listener = 8;

    /// Used by the connection manager: the answer to `call`.
    ConnectionRejected(const std::string& call, int reason, const detail::PrivateData& data)
        : std::system_error(std::make_error_code(std::errc::connection_refused),
                            call + ": rejected (" + text(reason) + ")"),
          reason_(reason), private_data_(data) {}

    /// The status of the event: a reason defined by the transport, on iWARP a negative errno.
    [[nodiscard]] int reason() const noexcept { return reason_; }

    /// The peer's private data; on InfiniBand and RoCE padded with zeros.
    [[nodiscard]] std::span<const std::byte> private_data() const noexcept {
        return private_data_.bytes();
    }

private:
    static std::string text(int reason) {
        if (reason == by_program) return "by the peer's program";
        if (reason == no_listener) return "nobody listens";
        if (reason < 0) return std::generic_category().message(-reason);
        return "reason " + std::to_string(reason);
    }

    int reason_;
    detail::PrivateData private_data_;
};

} // namespace asyncverbs
