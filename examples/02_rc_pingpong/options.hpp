// SPDX-License-Identifier: MIT
// The command line of rc_pingpong: that of libibverbs' ibv_rc_pingpong, and a little more.
// Numbers are checked here, as far as that is possible without a device.
#pragma once

#include <infiniband/verbs.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

namespace pingpong {

struct Options {
    std::string host; // empty: be the server
    std::uint16_t port = 18515;
    std::string device; // empty: the first one with an active port
    int ib_port = 1;
    std::uint32_t size = 4096;
    ibv_mtu mtu = IBV_MTU_1024;
    std::uint32_t rx_depth = 500;
    std::uint32_t iterations = 1000;
    std::uint8_t service_level = 0;
    std::optional<int> gid_index; // none: chosen by the library
    bool check = false;
    bool histogram = false;
    std::chrono::seconds timeout{10}; // zero: none
    bool help = false;

    bool is_client() const noexcept { return !host.empty(); }
};

/// A command line that means nothing; what() says why.
struct UsageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// Reads the command line; reorders argv as getopt_long(3) does. Throws UsageError.
Options parse_options(int argc, char** argv);

std::string help_text(const std::string& program);

/// The size in bytes that an ibv_mtu stands for.
constexpr int mtu_bytes(ibv_mtu mtu) noexcept { return 128 << mtu; }

} // namespace pingpong
