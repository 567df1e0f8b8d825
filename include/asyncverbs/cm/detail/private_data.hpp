// SPDX-License-Identifier: MIT
// What a peer's program has to say with an event of the connection manager. In place: an event that
// could not be copied for want of memory could not be acknowledged either.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

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
