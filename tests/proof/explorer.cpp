// SPDX-License-Identifier: MIT
//
// Runs AsyncCq through every interleaving of its waiters, its device, its loop and other threads,
// up to a number of steps, and checks the properties in each. See step.hpp for the steps,
// configuration.hpp for their combinations, and properties.hpp for the checks.
#include <asyncverbs/simulation/simulated_verbs.hpp>

#include "proof/allocations.hpp"
#include "proof/clock.hpp"
#include "proof/configuration.hpp"
#include "proof/properties.hpp"
#include "proof/run.hpp"
#include "proof/schedule.hpp"

#include <signal.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace asyncverbs::proof {

namespace {

constexpr int most_steps = 6;

constexpr const char* usage =
    R"(Explores every interleaving of AsyncCq with its waiters, device and loop.

usage: explorer [--steps N] [--filter TEXT]
       explorer --replay SCHEDULE

  --steps N          the bound on steps per schedule, 1 to 6, without the starts of waiters
  --filter TEXT      only configurations whose name contains TEXT; a name is
                     ARM-MODEL/TRIGGER/WAITERSxSPAN/SCENARIO/STEPS
  --replay SCHEDULE  runs one schedule, as printed by a failure, with a log
  --help             this text

Exit status: 0 all schedules passed, 1 one failed, 2 bad usage.
)";

struct Options {
    int steps = 3;
    std::string_view filter;
    std::string_view replay;
};

// The run in progress, for the report of a crash.
const Run* current = nullptr;

void crashed(int signal) {
    sigset_t set;
    ::sigemptyset(&set);
    ::sigaddset(&set, signal);
    ::sigprocmask(SIG_UNBLOCK, &set, nullptr);
    std::signal(signal, SIG_DFL);
    current->violated("the program does not crash", ::sigabbrev_np(signal));
}

void audit(const Run& schedule, simulated::SimulatedVerbs& sim) {
    sim.audit();
    for (const std::string& problem : sim.take_problems()) {
        const bool about_acks = problem.find("acknowledged") != std::string::npos;
        const bool leaked = problem.starts_with("leaked");
        schedule.violated(about_acks ? property::acks
                          : leaked   ? property::leak
                                     : property::verbs,
                          problem);
    }
}

void run_one(const Configuration& configuration, Schedule& choices, std::uint64_t number) {
    Run schedule(configuration, choices, number);
    current = &schedule;
    restart_clock();
    const long before = live_allocations();
    try {
        simulated::SimulatedVerbs sim(simulated::ProviderModel{
            .arm_model = configuration.arm_model,
            .loses_arm_without_poll = configuration.setting == Setting::lossy});
        run_in_world(configuration, schedule, sim);
        audit(schedule, sim);
    } catch (const std::exception& error) {
        schedule.violated("only documented exceptions are thrown", error.what());
    }
    if (const long left = live_allocations() - before; left != 0) {
        schedule.violated(property::leak, std::to_string(left) + " allocations");
    }
}

// --- exploring ---

using Counts = std::map<std::string, std::array<std::uint64_t, trigger_names.size()>>;

// Continues to count the schedules from `count`.
std::uint64_t explore(const Configuration& configuration, std::uint64_t count) {
    Schedule choices;
    do {
        run_one(configuration, choices, ++count);
    } while (choices.next());
    return count;
}

void print(const Counts& counts) {
    std::printf("%-40s", "waiters, scenario, arm model");
    for (const std::string_view name : trigger_names) {
        std::printf("%13.*s", static_cast<int>(name.size()), name.data());
    }
    std::printf("\n");
    for (const auto& [row, columns] : counts) {
        std::printf("%-40s", row.c_str());
        for (const std::uint64_t count : columns) {
            std::printf("%13llu", static_cast<unsigned long long>(count));
        }
        std::printf("\n");
    }
}

int explore(const Options& options) {
    const auto begin =
        std::chrono::system_clock::now(); // the steady clock is that of the explored code
    Counts counts;
    std::uint64_t total = 0;
    std::size_t explored = 0;
    for (const Configuration& configuration : configurations(options.steps)) {
        if (configuration.name.find(options.filter) == std::string::npos) continue;
        const std::uint64_t before = std::exchange(total, explore(configuration, total));
        const std::string row =
            std::to_string(configuration.waiters) + " " + configuration.scenario + ", " +
            (configuration.arm_model == simulated::ArmModel::flag ? "flag" : "index");
        counts[row][static_cast<std::size_t>(configuration.trigger)] += total - before;
        ++explored;
    }
    if (explored == 0) throw std::invalid_argument("no configuration has such a name");
    print(counts);
    const std::chrono::duration<double> taken = std::chrono::system_clock::now() - begin;
    std::printf(
        "\n%llu schedules of up to %d steps, in %zu configurations, all passed, in %.0f s\n",
        static_cast<unsigned long long>(total), options.steps, explored, taken.count());
    return EXIT_SUCCESS;
}

int replay(std::string_view text) {
    const std::size_t colon = text.find(':');
    const std::string_view name = text.substr(0, colon);
    for (int steps = 1; steps <= most_steps; ++steps) {
        const auto all = configurations(steps);
        const auto found = std::ranges::find(all, name, &Configuration::name);
        if (found == all.end()) continue;
        Schedule choices(colon == std::string_view::npos ? "" : text.substr(colon + 1));
        run_one(*found, choices, 0);
        std::printf("\npassed\n");
        return EXIT_SUCCESS;
    }
    throw std::invalid_argument("--replay: there is no configuration " + std::string(name));
}

// --- the command line ---

int parse_steps(const std::string& text) {
    if (text.size() == 1 && text[0] >= '1' && text[0] <= '0' + most_steps) return text[0] - '0';
    throw std::invalid_argument("--steps: a number from 1 to " + std::to_string(most_steps) +
                                " is needed, not '" + text + "'");
}

Options parse(int argc, char** argv) {
    Options options;
    for (int index = 1; index < argc; index += 2) {
        const std::string_view name = argv[index];
        if (name != "--steps" && name != "--filter" && name != "--replay") {
            throw std::invalid_argument("unknown option '" + std::string(name) + "'");
        }
        if (index + 1 == argc) throw std::invalid_argument(std::string(name) + " needs a value");
        const char* const value = argv[index + 1];
        if (name == "--steps") options.steps = parse_steps(value);
        if (name == "--filter") options.filter = value;
        if (name == "--replay") options.replay = value;
    }
    return options;
}

} // namespace

} // namespace asyncverbs::proof

// run_one() takes all problems before.
void asyncverbs::simulated::report_problem(const std::string& problem) {
    std::fprintf(stderr, "explorer: %s\n", problem.c_str());
    std::abort();
}

int main(int argc, char** argv) {
    using namespace asyncverbs::proof;
    if (argc == 2 && std::string_view(argv[1]) == "--help") {
        std::fputs(usage, stdout);
        return 0;
    }
    for (const int signal : {SIGSEGV, SIGABRT, SIGBUS}) std::signal(signal, crashed);
    try {
        const Options options = parse(argc, argv);
        return options.replay.empty() ? explore(options) : replay(options.replay);
    } catch (const std::invalid_argument& error) {
        std::fprintf(stderr, "explorer: %s\n\n%s", error.what(), usage);
        return 2;
    }
}
