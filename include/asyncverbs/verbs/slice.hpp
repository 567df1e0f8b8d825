// SPDX-License-Identifier: MIT
// A part of a memory region, with all that a work request needs to name it.
// Made by MemoryRegion::slice(), where it is checked against the region; cutting it further can
// only make it smaller.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>

#include <asyncverbs/verbs/detail/handle.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs {

/// `length` bytes at `address` in the memory region of `lkey`. Keeps the region registered for as
/// long as it, or a copy, exists; whether it keeps the memory as well depends on the region.
/// A slice that was made of an address and a key by hand keeps nothing.
template <class Use>
struct BasicSlice {
    BasicSlice() noexcept = default; ///< Of no memory.

    /// `count` bytes in the region of `key`, which `owner` keeps registered.
    // A constructor: GCC 12 destroys aggregates twice in expressions that await.
    BasicSlice(std::byte* bytes, std::size_t count, std::uint32_t key,
               detail::Handle<ibv_mr, Use> owner = nullptr) noexcept
        : address(bytes), length(count), lkey(key), region(std::move(owner)) {}

    std::byte* address = nullptr;       ///< of the first byte
    std::size_t length = 0;             ///< in bytes
    std::uint32_t lkey = 0;             ///< of the memory region, for local use
    detail::Handle<ibv_mr, Use> region; ///< what is kept registered; nullptr: nothing

    /// The slice's bytes from `offset` on. Throws as slice(offset, length) does.
    [[nodiscard]] BasicSlice slice(std::size_t offset) const {
        return slice(offset, offset <= length ? length - offset : 0);
    }

    /// The `count` bytes at `offset`; `count` may be 0. Throws std::system_error (invalid_argument)
    /// that says offset, length and size where they are not all inside this slice.
    [[nodiscard]] BasicSlice slice(std::size_t offset, std::size_t count) const {
        if (offset > length || count > length - offset) {
            detail::throw_error(std::errc::invalid_argument,
                                "a slice of length " + std::to_string(count) + " at offset " +
                                    std::to_string(offset) + " is outside its region of size " +
                                    std::to_string(length));
        }
        return {address + offset, count, lkey, region};
    }

    /// The memory itself.
    [[nodiscard]] std::span<std::byte> bytes() const noexcept {
        return detail::Used<std::span<std::byte>, Use>(address, length);
    }

    /// The slice as a scatter/gather element. Throws std::system_error (invalid_argument) for more
    /// than 4 GiB - 1, which is all that one element can name.
    [[nodiscard]] ibv_sge sge() const {
        if (length > std::numeric_limits<std::uint32_t>::max()) {
            detail::throw_error(std::errc::invalid_argument,
                                "a slice of " + std::to_string(length) +
                                    " bytes does not fit a scatter/gather element: 4294967295 is "
                                    "its greatest length");
        }
        ibv_sge sge{};
        sge.addr = reinterpret_cast<std::uintptr_t>(address);
        sge.length = static_cast<std::uint32_t>(length);
        sge.lkey = lkey;
        return sge;
    }
};

/// The Slice of programs: compiled only where it is used, but otherwise as a struct.
using Slice = BasicSlice<OnUse>;

} // namespace asyncverbs
