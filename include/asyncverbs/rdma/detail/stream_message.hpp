// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <system_error>

#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

// The messages between the two ends of a stream. Messages of the peer are checked here, and, where
// validity depends on earlier messages, in StreamState::accept().
//
//     byte 0     1    2         4
//     ┌────────┬───┬─────────┬──────────────────────────────────────────────────────┐
//     │ kind   │ 0 │ credits │ data: bytes of the stream                            │
//     └────────┴───┴─────────┤ hello: "avs1", buffers, bytes that each takes        │
//                            └──────────────────────────────────────────────────────┘
// Numbers are big-endian. The header is part of the message because iWARP has no immediate data.

enum class StreamKind : std::uint8_t {
    hello = 1, // the first message of each end
    data,
    credits, // only credits; all messages but hello may carry some
    end,     // no more data will be sent
    goodbye, // nor will anything be read
};

struct StreamMessage {
    StreamKind kind;
    std::uint32_t credits; // the number of data messages that may be sent in addition
    std::span<const std::byte> payload;
};

// The receives of the end that sends it.
struct StreamHello {
    std::uint32_t buffers;     // posted for data
    std::uint32_t buffer_size; // bytes of payload that each takes
};

constexpr std::size_t stream_header_size = 4;
constexpr std::size_t stream_hello_size = 12; // of the payload
constexpr std::uint32_t max_stream_buffers = 0xffff;
constexpr std::array<char, 4> stream_magic{'a', 'v', 's', '1'};

[[noreturn]] inline void throw_protocol_error(const std::string& what) {
    throw_error(std::errc::protocol_error, "the peer of a stream sent " + what);
}

inline void put_big_endian(std::byte* to, std::size_t bytes, std::uint32_t value) noexcept {
    for (std::size_t i = bytes; i-- > 0; value >>= 8) to[i] = static_cast<std::byte>(value);
}

inline std::uint32_t get_big_endian(const std::byte* from, std::size_t bytes) noexcept {
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < bytes; ++i) value = value << 8 | static_cast<std::uint8_t>(from[i]);
    return value;
}

inline void write_header(std::span<std::byte> message, StreamKind kind,
                         std::uint32_t credits) noexcept {
    message[0] = static_cast<std::byte>(kind);
    message[1] = std::byte{0};
    put_big_endian(message.data() + 2, 2, credits);
}

inline void write_hello(std::span<std::byte> payload, const StreamHello& hello) noexcept {
    std::memcpy(payload.data(), stream_magic.data(), stream_magic.size());
    put_big_endian(payload.data() + 4, 4, hello.buffers);
    put_big_endian(payload.data() + 8, 4, hello.buffer_size);
}

// Throws std::system_error (protocol_error) for a message that no stream sends.
inline StreamMessage read_message(std::span<const std::byte> bytes) {
    if (bytes.size() < stream_header_size) {
        throw_protocol_error("a message of " + std::to_string(bytes.size()) + " bytes");
    }
    const auto kind = static_cast<unsigned>(bytes[0]);
    const StreamMessage message{static_cast<StreamKind>(bytes[0]),
                                get_big_endian(bytes.data() + 2, 2),
                                bytes.subspan(stream_header_size)};
    if (kind < static_cast<unsigned>(StreamKind::hello) ||
        kind > static_cast<unsigned>(StreamKind::goodbye) || bytes[1] != std::byte{0}) {
        throw_protocol_error("a message of unknown kind " + std::to_string(kind));
    }
    const bool has_payload = message.kind == StreamKind::data || message.kind == StreamKind::hello;
    if (has_payload == message.payload.empty()) {
        throw_protocol_error("a message of kind " + std::to_string(kind) + " with " +
                             std::to_string(message.payload.size()) + " bytes");
    }
    return message;
}

// Throws as read_message().
inline StreamHello read_hello(std::span<const std::byte> payload) {
    if (payload.size() != stream_hello_size ||
        std::memcmp(payload.data(), stream_magic.data(), stream_magic.size()) != 0) {
        throw_protocol_error("no hello of this version");
    }
    const StreamHello hello{get_big_endian(payload.data() + 4, 4),
                            get_big_endian(payload.data() + 8, 4)};
    if (hello.buffers == 0 || hello.buffers > max_stream_buffers || hello.buffer_size == 0) {
        throw_protocol_error("a hello of " + std::to_string(hello.buffers) + " buffers of " +
                             std::to_string(hello.buffer_size) + " bytes");
    }
    return hello;
}

} // namespace asyncverbs::detail
