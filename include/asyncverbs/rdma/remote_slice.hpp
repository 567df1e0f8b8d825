// SPDX-License-Identifier: MIT
// A part of a peer's memory region, with all that RDMA needs to name it.
// It travels from the peer, who knows the address and the key, in a message of the application's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs {

/// `length` bytes at `address` of the peer, in the memory region of `rkey`. A plain value.
struct RemoteSlice {
    std::uint64_t address = 0; ///< at the peer
    std::size_t length = 0;    ///< in bytes
    std::uint32_t rkey = 0;    ///< of its memory region

    /// The slice's bytes from `offset` on. Throws as slice(offset, count) does.
    [[nodiscard]] RemoteSlice slice(std::size_t offset) const {
        return slice(offset, offset <= length ? length - offset : 0);
    }

    /// The `count` bytes at `offset`. Throws std::system_error (invalid_argument) that says offset,
    /// length and size where they are not all inside this slice.
    [[nodiscard]] RemoteSlice slice(std::size_t offset, std::size_t count) const {
        if (offset > length || count > length - offset) {
            detail::throw_error(std::errc::invalid_argument,
                                "a slice of length " + std::to_string(count) + " at offset " +
                                    std::to_string(offset) + " is outside the peer's of size " +
                                    std::to_string(length));
        }
        return {address + offset, count, rkey};
    }
};

} // namespace asyncverbs
