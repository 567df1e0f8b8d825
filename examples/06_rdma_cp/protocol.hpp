// SPDX-License-Identifier: MIT
// The messages of the two ends. One connection carries one file:
//
//     sender:    offer       start block block block …         finish
//     receiver:        grant             credit credit …              done
//
// The receiver grants what it has of the file; the sender compares, and starts there or at 0.
// Before a block, the sender writes its bytes to the next of the receiver's blocks, which are used
// in turn; a credit returns the oldest of them. If the receiver cannot continue, it sends a refusal
// instead. A file that the receiver has already is answered, too: the sender may have missed done.
#pragma once

#include "../terminal.hpp"

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace rdma_cp {

constexpr std::size_t block_size = std::size_t{256} * 1024;
constexpr std::uint32_t block_count = 16;
constexpr std::size_t max_text = 1000;

using Bytes = std::span<const std::byte>;
using Digest = std::array<std::byte, 16>;

/// An error of a file, at either end, worded for a person. Trying again helps only if the file is
/// busy.
struct FileError : std::runtime_error {
    explicit FileError(const std::string& text, bool is_busy = false)
        : runtime_error(text), busy(is_busy) {}
    bool busy;
};

enum class Type : std::uint8_t { offer, grant, start, block, credit, finish, done, refusal };

struct Message {
    // Not an aggregate: GCC 12 destroys aggregates twice in expressions that await.
    explicit Message(Type which, std::uint64_t value = 0, std::string words = {})
        : type(which), number(value), text(std::move(words)) {}

    Type type;
    std::uint64_t number;      // offer: size; grant, start: offset; block: length; refusal: for now
    std::uint64_t address = 0; // grant: of the receiver's blocks
    std::uint32_t rkey = 0;
    Digest digest{};  // grant: of the bytes before the offset; finish: of the whole file
    std::string text; // offer: name; refusal: reason
};

// On the wire: the members in this order, numbers big-endian, the text last.
constexpr std::size_t head_size = 1 + 8 + 8 + 4 + sizeof(Digest);
constexpr std::size_t max_message = head_size + max_text;

/// At most max_message bytes; a longer text is cut.
inline std::vector<std::byte> encode(const Message& message) {
    std::vector<std::byte> out;
    const auto put = [&out](std::integral auto value) {
        for (std::size_t i = sizeof value; i-- > 0;) {
            out.push_back(static_cast<std::byte>(std::uint64_t{value} >> (8 * i)));
        }
    };
    put(static_cast<std::uint8_t>(message.type));
    put(message.number);
    put(message.address);
    put(message.rkey);
    out.insert(out.end(), message.digest.begin(), message.digest.end());
    const Bytes text = std::as_bytes(std::span(message.text));
    const std::size_t length = terminal::whole_characters(message.text, max_text);
    out.insert(out.end(), text.begin(), text.begin() + static_cast<std::ptrdiff_t>(length));
    return out;
}

/// Throws std::runtime_error if the bytes are not a message, or a terminal cannot show its text.
inline Message decode(Bytes in) {
    if (in.size() < head_size) throw std::runtime_error("the peer sent too short a message");
    if (in.size() > max_message) throw std::runtime_error("the peer sent too long a message");
    const auto get = [&in](std::integral auto& value) {
        std::uint64_t all = 0;
        for (const std::byte byte : in.first(sizeof value)) {
            all = all << 8 | std::to_integer<unsigned>(byte);
        }
        value = static_cast<std::remove_reference_t<decltype(value)>>(all);
        in = in.subspan(sizeof value);
    };
    std::uint8_t type = 0;
    get(type);
    if (type > static_cast<std::uint8_t>(Type::refusal)) {
        throw std::runtime_error("the peer sent a message of an unknown type");
    }
    Message message(static_cast<Type>(type));
    get(message.number);
    get(message.address);
    get(message.rkey);
    std::ranges::copy(in.first(sizeof(Digest)), message.digest.begin());
    in = in.subspan(sizeof(Digest));
    message.text.assign(reinterpret_cast<const char*>(in.data()), in.size());
    if (terminal::is_plain(message.text)) return message;
    throw std::runtime_error("the peer sent a text with control characters");
}

} // namespace rdma_cp
