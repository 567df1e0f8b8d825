// SPDX-License-Identifier: MIT
//
// The choices of one schedule, and the step to the next schedule: depth first, with the same
// choices up to the last one that has another option.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace asyncverbs::proof {

class Schedule {
public:
    // The first schedule.
    Schedule();
    // The schedule with this text(). Throws std::invalid_argument for any other character.
    explicit Schedule(std::string_view text);

    // The next choice of the run in progress, less than `options`: the same as before, or 0.
    // Throws std::logic_error if the same choice is not possible: the run is not repeatable.
    std::size_t choose(std::size_t options);

    // Moves on for another run; false after the last schedule.
    bool next();

    // The choices of the run in progress, one character each.
    std::string text() const;

private:
    struct Choice {
        std::uint8_t taken = 0;
        std::uint8_t options = 0; // 0: not known yet
    };

    std::vector<Choice> choices_;
    std::size_t position_ = 0; // of the next choice
};

} // namespace asyncverbs::proof
