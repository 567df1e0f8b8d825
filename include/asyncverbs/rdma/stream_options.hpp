// SPDX-License-Identifier: MIT
// What can be chosen for a stream.
#pragma once

#include <cstddef>
#include <cstdint>

namespace asyncverbs {

/// The memory of one end, registered when it is made: twice `buffers` of `buffer_size`, and a
/// little. The ends may differ: each is told what the other can take.
struct StreamOptions {
    std::size_t buffer_size = 16384; ///< bytes of the stream in one message, at most
    std::uint32_t buffers = 16;      ///< messages on their way, or arrived and not read; each way
};

} // namespace asyncverbs
