// SPDX-License-Identifier: MIT
#include "options.hpp"

#include <getopt.h>

#include <array>
#include <cctype>
#include <cstdlib>
#include <limits>

namespace pingpong {

namespace {

enum LongOnly : int { histogram_option = 256, timeout_option };

// getopt_long of libc needs no dependency and reads a command line just as ibv_rc_pingpong does.
constexpr auto long_options = std::to_array<option>({
    {"port", required_argument, nullptr, 'p'},
    {"ib-dev", required_argument, nullptr, 'd'},
    {"ib-port", required_argument, nullptr, 'i'},
    {"size", required_argument, nullptr, 's'},
    {"mtu", required_argument, nullptr, 'm'},
    {"rx-depth", required_argument, nullptr, 'r'},
    {"iters", required_argument, nullptr, 'n'},
    {"sl", required_argument, nullptr, 'l'},
    {"events", no_argument, nullptr, 'e'},
    {"gid-idx", required_argument, nullptr, 'g'},
    {"chk", no_argument, nullptr, 'c'},
    {"histogram", no_argument, nullptr, histogram_option},
    {"timeout", required_argument, nullptr, timeout_option},
    {"help", no_argument, nullptr, 'h'},
    {nullptr, 0, nullptr, 0},
});

// "--size", or "-x" for a letter that is no option.
std::string option_name(int value) {
    for (const option& known : long_options) {
        if (known.name != nullptr && known.val == value) return std::string("--") + known.name;
    }
    return {'-', static_cast<char>(value)};
}

bool is_known(int value) { return option_name(value).starts_with("--"); }

std::uint64_t parse_number(int option, const char* text, std::uint64_t low, std::uint64_t high) {
    // strtoull itself would take blanks and signs, and gives its maximum for what is too much for
    // it. Base 0, as in ibv_rc_pingpong: 0x10 is 16.
    const bool starts_well = std::isdigit(static_cast<unsigned char>(text[0])) != 0;
    char* end = nullptr;
    const std::uint64_t value = starts_well ? std::strtoull(text, &end, 0) : 0;
    if (!starts_well || *end != '\0' || value < low || value > high) {
        throw UsageError(option_name(option) + " takes a number from " + std::to_string(low) +
                         " to " + std::to_string(high) + ", not \"" + text + "\"");
    }
    return value;
}

template <class T>
T parse_number_as(int option, const char* text, std::uint64_t low,
                  std::uint64_t high = std::numeric_limits<T>::max()) {
    return static_cast<T>(parse_number(option, text, low, high));
}

ibv_mtu parse_mtu(const char* text) {
    const std::string given = text;
    for (const ibv_mtu mtu : {IBV_MTU_256, IBV_MTU_512, IBV_MTU_1024, IBV_MTU_2048, IBV_MTU_4096}) {
        if (given == std::to_string(mtu_bytes(mtu))) return mtu;
    }
    throw UsageError("--mtu takes 256, 512, 1024, 2048 or 4096, not \"" + given + "\"");
}

[[noreturn]] void reject_option(const std::string& argument) {
    if (optopt == 0) throw UsageError("unknown or ambiguous option " + argument);
    if (is_known(optopt)) throw UsageError(option_name(optopt) + " takes no value");
    throw UsageError("unknown option " + option_name(optopt));
}

void apply(Options& options, int value) {
    switch (value) {
    case 'p':
        options.port = parse_number_as<std::uint16_t>(value, optarg, 1);
        break;
    case 'd':
        options.device = optarg;
        if (options.device.empty()) throw UsageError("--ib-dev takes a name, not an empty text");
        break;
    case 'i':
        options.ib_port = parse_number_as<int>(value, optarg, 1, 255);
        break;
    case 's':
        options.size = parse_number_as<std::uint32_t>(value, optarg, 1);
        break;
    case 'm':
        options.mtu = parse_mtu(optarg);
        break;
    case 'r':
        options.rx_depth = parse_number_as<std::uint32_t>(value, optarg, 1, 1u << 30);
        break;
    case 'n':
        options.iterations = parse_number_as<std::uint32_t>(value, optarg, 1);
        break;
    case 'l':
        options.service_level = parse_number_as<std::uint8_t>(value, optarg, 0, 15);
        break;
    case 'e':
        break; // always on
    case 'g':
        options.gid_index = parse_number_as<int>(value, optarg, 0, 255);
        break;
    case 'c':
        options.check = true;
        break;
    case histogram_option:
        options.histogram = true;
        break;
    case timeout_option:
        options.timeout = std::chrono::seconds(parse_number(value, optarg, 0, 1'000'000));
        break;
    case 'h':
        options.help = true;
        break;
    }
}

} // namespace

Options parse_options(int argc, char** argv) {
    Options options;
    optind = 0; // glibc: start afresh, for getopt keeps its state in globals
    opterr = 0;
    for (;;) {
        const int value =
            getopt_long(argc, argv, ":p:d:i:s:m:r:n:l:eg:ch", long_options.data(), nullptr);
        if (value == -1) break;
        if (value == '?') reject_option(argv[optind - 1]);
        if (value == ':') throw UsageError(option_name(optopt) + " takes a value");
        apply(options, value);
    }
    if (argc - optind > 1) {
        throw UsageError(std::string("one host at most, not \"") + argv[optind] + "\" and \"" +
                         argv[optind + 1] + "\"");
    }
    if (optind < argc) {
        options.host = argv[optind];
        if (options.host.empty()) throw UsageError("the host is empty; for a server, name none");
    }
    return options;
}

std::string help_text(const std::string& program) {
    return "Usage: " + program + R"( [OPTION...]        start a server and wait for one client
       )" + program +
           R"( [OPTION...] HOST   be the client of the server on HOST

Sends messages to and fro over one reliable connection and awaits every completion; nothing
spins. Options, handshake and output are those of libibverbs' ibv_rc_pingpong, which may run on
either end. Both ends need the same --size, --mtu and --iters.

  -p, --port=PORT        TCP port of the handshake (18515)
  -d, --ib-dev=NAME      RDMA device (the first one with an active port)
  -i, --ib-port=PORT     port of the device, from 1 (1)
  -s, --size=BYTES       size of a message (4096)
  -m, --mtu=BYTES        path MTU: 256, 512, 1024, 2048 or 4096 (1024)
  -r, --rx-depth=COUNT   receives posted at a time (500)
  -n, --iters=COUNT      messages in each direction (1000)
  -l, --sl=LEVEL         service level, 0 to 15 (0)
  -g, --gid-idx=INDEX    GID of the port (chosen: RoCE v2 with an IPv4 address where there is one)
  -e, --events           sleep until completions come: always so, accepted for compatibility
  -c, --chk              check the last message received; the client needs -c for the server's check

      --histogram        show how the round-trip times are distributed
      --timeout=SECONDS  give up when the peer is silent for so long; 0 never (10)
  -h, --help             print this text
)";
}

} // namespace pingpong
