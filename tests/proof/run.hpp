// SPDX-License-Identifier: MIT
//
// One schedule while it runs: its choices, its log, and the report if a property does not hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "proof/configuration.hpp"
#include "proof/schedule.hpp"

namespace asyncverbs::simulated {
class SimulatedVerbs;
}

namespace asyncverbs::proof {

class Run {
public:
    // Schedule `number` of an exploration; 0: a replay, with a log.
    Run(const Configuration& configuration, Schedule& schedule, std::uint64_t number)
        : configuration_(configuration), schedule_(schedule), number_(number) {}

    std::size_t choose(std::size_t options) { return schedule_.choose(options); }

    bool narrated() const { return number_ == 0; }
    // A line of the log; `level` is its indentation.
    void tell(int level, const std::string& line) const;

    // Replays the schedule with a log, then ends the process with status 1.
    [[noreturn]] void violated(std::string_view property, std::string_view detail) const;

    // The argument of --replay.
    std::string text() const { return configuration_.name + ':' + schedule_.text(); }

private:
    const Configuration& configuration_;
    Schedule& schedule_;
    std::uint64_t number_;
};

// Runs the schedule to its end, in a new World on `sim`.
void run_in_world(const Configuration& configuration, Run& run, simulated::SimulatedVerbs& sim);

} // namespace asyncverbs::proof
