// SPDX-License-Identifier: MIT
// The command line of rc_pingpong, one argument a line. Any of them: either it is understood, its
// values are in their documented ranges, and the same options written in full mean the same; or it
// is a UsageError. getopt_long(3) keeps its state in globals: one run must not show in the next.
#include "options.hpp"

#include "fuzz/require.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

using asyncverbs::fuzz::require;
using namespace pingpong;

namespace {

using Arguments = std::vector<std::string>;

Arguments split(const std::string& text) {
    Arguments lines;
    for (std::size_t begin = 0; begin < text.size();) {
        const std::size_t end = text.find('\n', begin);
        // An argument ends at its first zero, whatever a file holds.
        lines.emplace_back(text.substr(begin, end - begin).c_str());
        begin = end == std::string::npos ? end : end + 1;
    }
    return lines;
}

// None: a UsageError.
std::optional<Options> parse(Arguments arguments) {
    arguments.insert(arguments.begin(), "rc_pingpong");
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    try {
        return parse_options(static_cast<int>(arguments.size()), argv.data());
    } catch (const UsageError& error) {
        require(error.what()[0] != '\0', "an error that says something");
        return std::nullopt;
    }
}

bool in_range(const Options& options) {
    const bool mtu = options.mtu >= IBV_MTU_256 && options.mtu <= IBV_MTU_4096;
    const bool gid = !options.gid_index || (*options.gid_index >= 0 && *options.gid_index <= 255);
    return options.port >= 1 && options.ib_port >= 1 && options.ib_port <= 255 &&
           options.size >= 1 && mtu && options.rx_depth >= 1 && options.iterations >= 1 &&
           options.service_level <= 15 && gid && options.timeout.count() >= 0;
}

Arguments written_in_full(const Options& options) {
    Arguments all{"--port=" + std::to_string(options.port),
                  "--ib-port=" + std::to_string(options.ib_port),
                  "--size=" + std::to_string(options.size),
                  "--mtu=" + std::to_string(mtu_bytes(options.mtu)),
                  "--rx-depth=" + std::to_string(options.rx_depth),
                  "--iters=" + std::to_string(options.iterations),
                  "--sl=" + std::to_string(options.service_level),
                  "--timeout=" + std::to_string(options.timeout.count())};
    if (!options.device.empty()) all.push_back("--ib-dev=" + options.device);
    if (options.gid_index) all.push_back("--gid-idx=" + std::to_string(*options.gid_index));
    if (options.check) all.emplace_back("--chk");
    if (options.histogram) all.emplace_back("--histogram");
    if (options.help) all.emplace_back("--help");
    if (options.is_client()) {
        all.emplace_back("--"); // the host may begin with a dash
        all.push_back(options.host);
    }
    return all;
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const Arguments arguments = split(std::string(reinterpret_cast<const char*>(data), size));
    const std::optional<Options> options = parse(arguments);
    require(parse(arguments).has_value() == options.has_value(), "twice is the same");
    if (!options) return 0;
    require(in_range(*options), "values in their ranges");
    const Arguments in_full = written_in_full(*options);
    const std::optional<Options> again = parse(in_full);
    require(again.has_value(), "options written in full are understood");
    require(written_in_full(*again) == in_full, "options written in full mean the same");
    return 0;
}
