// SPDX-License-Identifier: MIT
//
// The choices that make one schedule out of all, and the way from each schedule to the next: depth
// first, by running again with the same choices up to the last one that can be made otherwise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace asyncverbs::proof {

class Schedule {
public:
    // The first of all.
    Schedule();
    // The one that text() wrote. Throws std::invalid_argument for a character that it never writes.
    explicit Schedule(std::string_view text);

    // The next choice of the run in progress, less than `options`: as it was made before, or 0.
    // Throws std::logic_error if it cannot be made as before: the run does not repeat itself.
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
