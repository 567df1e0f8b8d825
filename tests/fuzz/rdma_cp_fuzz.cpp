// SPDX-License-Identifier: MIT
// Decodes a message of rdma_cp from arbitrary bytes. Either they are a message, and encoding it
// gives the same bytes, or std::runtime_error is thrown.
#include "protocol.hpp"

#include "fuzz/require.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <vector>

using asyncverbs::fuzz::require;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        const std::vector<std::byte> bytes =
            rdma_cp::encode(rdma_cp::decode(std::as_bytes(std::span(data, size))));
        require(bytes.size() <= rdma_cp::max_message, "a message has a bound");
        require(rdma_cp::encode(rdma_cp::decode(bytes)) == bytes,
                "a message is encoded as it was decoded");
    } catch (const std::runtime_error&) {
    }
    return 0;
}
