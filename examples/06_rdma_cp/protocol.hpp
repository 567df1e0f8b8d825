// SPDX-License-Identifier: MIT
// The messages of the two ends. One connection carries one file:
//
//     sender:    Offer            Block Block Block …         Finish
//     receiver:        Grant           Credit Credit …               Done
//
// A Block follows an RDMA write to its slot, one of the receiver's blocks. (iWARP has no immediate
// data, which would make the write announce itself.) The slots are used in turn; a Credit returns
// the oldest of them. If the receiver cannot continue, it sends a Refusal instead.
//
// A message is its index in the variant, then its members: numbers big-endian, a text last.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

namespace rdma_cp {

constexpr std::size_t block_size = std::size_t{256} * 1024;
constexpr std::uint32_t block_count = 16;
constexpr std::size_t max_text = 255;
constexpr std::size_t max_message = 1 + 2 * 8 + max_text;

using Bytes = std::span<const std::byte>;
using Digest = std::array<std::byte, 16>;

struct Offer {
    std::string name;
    std::uint64_t size = 0;
    std::uint64_t modified = 0; // a file with another size or time is another file
    auto members() { return std::tie(size, modified, name); }
};
struct Grant {
    std::uint64_t offset = 0; // the receiver has the bytes before it
    std::uint64_t address = 0;
    std::uint32_t rkey = 0;
    auto members() { return std::tie(offset, address, rkey); }
};
struct Block {
    std::uint32_t slot = 0;
    std::uint32_t length = 0;
    auto members() { return std::tie(slot, length); }
};
struct Credit {
    auto members() { return std::tie(); }
};
struct Finish {
    Digest digest; // of the whole file
    auto members() { return std::tie(digest); }
};
struct Done {
    auto members() { return std::tie(); }
};
struct Refusal {
    bool for_now = false;
    std::string reason;
    auto members() { return std::tie(for_now, reason); }
};
using Message = std::variant<Offer, Grant, Block, Credit, Finish, Done, Refusal>;

/// Whether a terminal can show the text.
inline bool is_plain(const std::string& text) {
    return std::ranges::none_of(text, [](unsigned char c) { return c < ' ' || c == 127; });
}

namespace detail {

void put(std::vector<std::byte>& out, std::integral auto value) {
    for (std::size_t i = sizeof value; i-- > 0;) {
        out.push_back(static_cast<std::byte>(std::uint64_t{value} >> (8 * i)));
    }
}
inline void put(std::vector<std::byte>& out, const Digest& digest) {
    out.insert(out.end(), digest.begin(), digest.end());
}
inline void put(std::vector<std::byte>& out, const std::string& text) {
    const Bytes bytes = std::as_bytes(std::span(text).first(std::min(text.size(), max_text)));
    out.insert(out.end(), bytes.begin(), bytes.end());
}

// Each takes a value off the front of `in`.
inline Bytes take(Bytes& in, std::size_t count) {
    if (in.size() < count) throw std::runtime_error("the peer sent a message that is too short");
    const Bytes taken = in.first(count);
    in = in.subspan(count);
    return taken;
}
void get(Bytes& in, std::integral auto& value) {
    std::uint64_t all = 0;
    for (const std::byte byte : take(in, sizeof value)) {
        all = all << 8 | std::to_integer<unsigned>(byte);
    }
    value = static_cast<std::remove_reference_t<decltype(value)>>(all);
}
inline void get(Bytes& in, Digest& digest) {
    std::ranges::copy(take(in, digest.size()), digest.begin());
}
inline void get(Bytes& in, std::string& text) {
    if (in.size() > max_text) throw std::runtime_error("the peer sent a text that is too long");
    text.assign(reinterpret_cast<const char*>(in.data()), in.size());
    in = {};
    if (!is_plain(text)) throw std::runtime_error("the peer sent a text with control characters");
}

template <std::size_t... I>
Message empty_message(std::size_t type, std::index_sequence<I...>) {
    Message message;
    const bool known = ((type == I && (message.emplace<I>(), true)) || ...);
    if (!known) throw std::runtime_error("the peer sent a message of an unknown type");
    return message;
}

} // namespace detail

/// At most max_message bytes; longer texts are cut.
inline std::vector<std::byte> encode(Message message) {
    std::vector<std::byte> out{static_cast<std::byte>(message.index())};
    const auto put_all = [&out](auto&... members) { (detail::put(out, members), ...); };
    std::visit([&](auto& each) { std::apply(put_all, each.members()); }, message);
    return out;
}

/// Throws std::runtime_error if the bytes are not a message, or a text in it is not plain.
inline Message decode(Bytes in) {
    std::uint8_t type = 0;
    detail::get(in, type);
    Message message =
        detail::empty_message(type, std::make_index_sequence<std::variant_size_v<Message>>());
    const auto get_all = [&in](auto&... members) { (detail::get(in, members), ...); };
    std::visit([&](auto& each) { std::apply(get_all, each.members()); }, message);
    if (!in.empty()) throw std::runtime_error("the peer sent a message that is too long");
    return message;
}

} // namespace rdma_cp
