// SPDX-License-Identifier: MIT
//
// One schedule while it runs: where its choices come from, what is told of it, and what becomes of
// it when a property does not hold.
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
    // The `number`th of an exploration, or 0: the one that is replayed, with its narration.
    Run(const Configuration& configuration, Schedule& schedule, std::uint64_t number)
        : configuration_(configuration), schedule_(schedule), number_(number) {}

    std::size_t choose(std::size_t options) { return schedule_.choose(options); }

    bool narrated() const { return number_ == 0; }
    // A line of the narration; `level` is how deep in the program it happens.
    void tell(int level, const std::string& line) const;

    // Ends the process with status 1, after the schedule was replayed with its narration.
    [[noreturn]] void violated(std::string_view property, std::string_view detail) const;

    // What --replay takes.
    std::string text() const { return configuration_.name + ':' + schedule_.text(); }

private:
    const Configuration& configuration_;
    Schedule& schedule_;
    std::uint64_t number_;
};

// Runs the schedule to its end, in a world of its own on `sim`.
void run_in_world(const Configuration& configuration, Run& run, simulated::SimulatedVerbs& sim);

} // namespace asyncverbs::proof
