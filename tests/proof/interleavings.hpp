// SPDX-License-Identifier: MIT
//
// Every order of steps up to a bound, for a test that has its own kinds of steps. The explorer,
// with its points inside of the library's calls, is for AsyncCq; see schedule.hpp.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace asyncverbs::proof {

// Calls `run(schedule)` for every schedule of at most `longest` steps, each after its prefixes.
// `run` performs the steps in order, from a fresh start, and returns the steps that may come next.
// Returns the number of schedules.
template <class Step, class Run>
std::size_t for_each_schedule(std::size_t longest, const Run& run) {
    struct Search {
        void extend() {
            const std::vector<Step> next = run(schedule);
            ++count;
            if (schedule.size() == longest) return;
            for (const Step step : next) {
                schedule.push_back(step);
                extend();
                schedule.pop_back();
            }
        }
        const std::size_t longest;
        const Run& run;
        std::vector<Step> schedule{};
        std::size_t count = 0;
    };
    Search search{longest, run};
    search.extend();
    return search.count;
}

// The steps of a failing schedule, by `name(step)`.
template <class Step, class Name>
std::string to_text(const std::vector<Step>& schedule, const Name& name) {
    std::string text;
    for (const Step step : schedule) text += (text.empty() ? "" : ", ") + std::string(name(step));
    return text;
}

} // namespace asyncverbs::proof
