// SPDX-License-Identifier: MIT
// The command line: that of libibverbs' ibv_rc_pingpong, --histogram and --timeout. Limits of the
// device are checked later, by open_device().
#pragma once

#include "../program.hpp"

#include <infiniband/verbs.h>

#include <cstdint>
#include <optional>
#include <string>

namespace pingpong {

struct Options {
    std::optional<std::string> host; // none: be the server
    std::uint16_t port = 18515;
    std::string device; // empty: the first one with an active port
    int ib_port = 1;
    std::uint32_t size = 4096;
    std::uint32_t mtu = 1024; // in bytes
    std::uint32_t rx_depth = 500;
    std::uint32_t iterations = 1000;
    int service_level = 0;
    std::optional<int> gid_index; // none: chosen by the library
    bool events = true;
    bool check = false;
    bool histogram = false;
    std::uint32_t timeout = 10; // in seconds; 0: none

    bool is_client() const noexcept { return host.has_value(); }
    ibv_mtu path_mtu() const noexcept {
        for (const ibv_mtu each : {IBV_MTU_256, IBV_MTU_512, IBV_MTU_1024, IBV_MTU_2048}) {
            if (mtu == 128u << each) return each;
        }
        return IBV_MTU_4096;
    }
};

/// Makes `app` parse into `options`, which must outlive it.
inline void add_options(CLI::App& app, Options& options) {
    app.description(
        "Sends messages back and forth and awaits every completion. Without HOST it is the "
        "server.\n"
        "Options, handshake and output are those of libibverbs' ibv_rc_pingpong, which may be at\n"
        "the other end. Both ends need the same --size, --mtu and --iters.");
    constexpr std::uint32_t most = UINT32_MAX;
    app.add_option("HOST", options.host, "Be the client of the server on HOST")
        ->check(program::not_empty, "");
    app.add_option("-p,--port", options.port, "TCP port of the handshake")
        ->check(CLI::Range(1u, 65'535u));
    app.add_option("-d,--ib-dev", options.device,
                   "RDMA device (default: the first one with an active port)")
        ->check(program::not_empty, "");
    app.add_option("-i,--ib-port", options.ib_port, "Port of the device")
        ->check(CLI::Range(1, 255));
    app.add_option("-s,--size", options.size, "Bytes of a message")->check(CLI::Range(1u, most));
    app.add_option("-m,--mtu", options.mtu, "Path MTU in bytes")
        ->check(CLI::IsMember({256, 512, 1024, 2048, 4096}));
    app.add_option("-r,--rx-depth", options.rx_depth, "Receives posted at a time")
        ->check(CLI::Range(1u, 1u << 30));
    app.add_option("-n,--iters", options.iterations, "Messages in each direction")
        ->check(CLI::Range(1u, most));
    app.add_option("-l,--sl", options.service_level, "Service level")->check(CLI::Range(0, 15));
    app.add_option("-g,--gid-idx", options.gid_index,
                   "GID of the port (default: RoCE v2 with an IPv4 address, if there is one)")
        ->check(CLI::Range(0, 255));
    app.add_flag("-e,--events", options.events,
                 "Sleep until completions arrive: always on, accepted for compatibility");
    app.add_flag("-c,--chk", options.check,
                 "Check the last message received; the server's check needs -c at the client too");
    app.add_flag("--histogram", options.histogram, "Show the distribution of round-trip times");
    app.add_option("--timeout", options.timeout,
                   "Seconds after which a silent peer is given up; 0: never")
        ->check(CLI::Range(0u, 1'000'000u));
}

} // namespace pingpong
