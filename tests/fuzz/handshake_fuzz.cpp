// SPDX-License-Identifier: MIT
// Reads the address that a peer of rc_pingpong sends, from arbitrary bytes. Either they are an
// address, and writing it gives the same bytes, or std::runtime_error is thrown. Its text contains
// only characters that a terminal can show.
#include "handshake.hpp"

#include "fuzz/require.hpp"

#include <asyncverbs/verbs/device.hpp>

#include <arpa/inet.h>

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <typeinfo>

using asyncverbs::fuzz::require;

namespace {

bool is_printable(std::string_view text) {
    return std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

std::string lower(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return text;
}

void check_gid_text(const ibv_gid& gid) {
    ibv_gid read{};
    require(::inet_pton(AF_INET6, asyncverbs::gid_text(gid).c_str(), read.raw) == 1 &&
                std::memcmp(gid.raw, read.raw, sizeof gid.raw) == 0,
            "the text of a GID is read back");
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string message(reinterpret_cast<const char*>(data), size);
    try {
        const pingpong::QueuePairAddress address = pingpong::from_wire(message);
        const std::string written = pingpong::to_wire(address);
        require(written == lower(message), "what was read is written the same");
        require(pingpong::from_wire(written) == address, "what was written is read the same");
        check_gid_text(address.gid);
    } catch (const std::runtime_error& error) {
        require(typeid(error) == typeid(std::runtime_error), "the documented exception");
        require(is_printable(error.what()), "an error that a terminal can show");
    }
    return 0;
}
