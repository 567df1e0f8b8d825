// SPDX-License-Identifier: MIT
// A request for a connection that was turned down, by the peer's program or by its system.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <system_error>

#include <asyncverbs/cm/detail/private_data.hpp>

namespace asyncverbs {

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
