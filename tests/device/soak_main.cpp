// SPDX-License-Identifier: MIT
// asyncverbs_soak: the soak as a program, for long runs. Start it with cmake/soft-roce/run.
#include "device/soak.hpp"

#include <getopt.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <stdexcept>
#include <string>

namespace {

using asyncverbs::CqStatistics;
using asyncverbs::device::SoakOptions;
using asyncverbs::device::SoakResult;

constexpr const char* help = R"(Usage: asyncverbs_soak [OPTION...]

Sends and receives over one connection with bursts, idle gaps and cancelled waits at random
moments. Fails when a completion is lost, wrong or out of order, when events and acks do not add
up, or when nothing has completed for 30 s.

  --completions N   of sends and receives together (10000000)
  --seed N          of the random choices (a random one, which is printed)
  --help            print this text
)";

std::uint64_t number(const char* option, const char* text, std::uint64_t high) {
    char* end = nullptr;
    const std::uint64_t value = std::strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0' || value > high) {
        throw std::runtime_error(std::string(option) + " takes a number, not \"" + text + '"');
    }
    return value;
}

SoakOptions parse_options(int argc, char** argv) {
    SoakOptions options;
    options.completions = 10'000'000;
    options.seed = std::random_device()();
    const option known[] = {{"completions", required_argument, nullptr, 'c'},
                            {"seed", required_argument, nullptr, 's'},
                            {"help", no_argument, nullptr, 'h'},
                            {}};
    for (int value; (value = getopt_long(argc, argv, "", known, nullptr)) != -1;) {
        switch (value) {
        case 'c':
            options.completions = number("--completions", optarg, std::uint64_t{1} << 62);
            break;
        case 's':
            options.seed = static_cast<std::uint32_t>(number("--seed", optarg, UINT32_MAX));
            break;
        case 'h':
            std::fputs(help, stdout);
            std::exit(0);
        default:
            std::exit(1); // getopt_long has printed the reason
        }
    }
    if (optind < argc) throw std::runtime_error(std::string("unexpected: ") + argv[optind]);
    return options;
}

void print(const char* name, const CqStatistics& counts) {
    std::printf("%-8s  %lu polls, %lu arms, %lu wakes, %lu events\n", name, counts.polls,
                counts.arms, counts.wakes, counts.events);
}

} // namespace

int main(int argc, char** argv) try {
    using Clock = std::chrono::steady_clock;
    SoakOptions options = parse_options(argc, argv);
    const bool on_terminal = ::isatty(STDERR_FILENO) == 1;
    if (on_terminal) {
        options.progress = [&](std::uint64_t done) {
            std::fprintf(stderr, "\r%lu of %lu completions\033[K", done, options.completions);
        };
    }
    std::printf("seed      %u\n", options.seed);
    std::fflush(stdout);
    const Clock::time_point start = Clock::now();
    const SoakResult result = asyncverbs::device::soak(options);
    const std::chrono::duration<double> elapsed = Clock::now() - start;
    if (on_terminal) std::fputs("\r\033[K", stderr);
    std::printf("%lu completions in %.0f s, none lost; %lu waits cancelled, %lu completions "
                "selected by wr_id\n",
                result.completions, elapsed.count(), result.cancelled, result.selected);
    print("sends", result.sends);
    print("receives", result.receives);
    std::printf("memory    %+td bytes of heap, %+td resident, since the first tenth\n",
                result.heap_growth, result.resident_growth);
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
