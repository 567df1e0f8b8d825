// SPDX-License-Identifier: MIT
// What the two ends of a copy say to each other. One connection carries one file:
//
//     sender:    Offer            Block Block Block …         Finish
//     receiver:        Grant           Credit Credit …               Done
//
// A Block is an RDMA write with an immediate, its slot, into one of the receiver's blocks, which
// are used in turn; a Credit gives the oldest of them back. Where the receiver cannot go on, it
// says so by a Refusal instead.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

namespace rdma_cp {

constexpr std::size_t block_size = std::size_t{256} * 1024;
constexpr std::uint32_t block_count = 16;
constexpr std::size_t max_text = 255;
constexpr std::size_t max_message = 1 + 2 * 8 + max_text;

using Digest = std::array<std::byte, 16>;

struct Offer {
    std::string name;
    std::uint64_t size = 0;
    std::uint64_t modified = 0; // with the size, by which a changed file can be told
};
struct Grant {
    std::uint64_t offset = 0; // so much is there already
    std::uint64_t address = 0;
    std::uint32_t rkey = 0;
};
struct Credit {};
struct Finish {
    Digest digest; // of the whole file
};
struct Done {};
struct Refusal {
    bool for_now = false;
    std::string reason;
};
using Message = std::variant<Offer, Grant, Credit, Finish, Done, Refusal>;

/// At most max_message bytes; longer texts are cut.
std::vector<std::byte> encode(const Message& message);

/// Whether a text may be shown on a terminal.
bool is_plain(const std::string& text);

/// Throws std::runtime_error for what is no message, and for a text that is not plain.
Message decode(std::span<const std::byte> bytes);

} // namespace rdma_cp
