// SPDX-License-Identifier: MIT
//
// What is explored: the setting, the device, the loop, the waiters, and the steps to interleave.
#pragma once

#include <asyncverbs/simulation/simulated_verbs.hpp>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "proof/step.hpp"

namespace asyncverbs::proof {

// How the loop learns that the channel is readable, all by real epoll: level-triggered; by edges,
// reported in the next iteration; by edges, where a wait does not suspend if there was an edge
// before; or EpollExecutor.
enum class Trigger : std::uint8_t { level, edge, edge_at_once, executor };
inline constexpr std::array<std::string_view, 4> trigger_names = {"level", "edge", "edge-at-once",
                                                                  "executor"};

// Variations of one AsyncCq that has a channel to itself.
enum class Setting : std::uint8_t {
    plain,
    shared,    // two AsyncCqs on a SharedChannel; the second is created with its waiter
    held,      // the same, and the CQs outlive their AsyncCqs, as with a queue pair
    handler,   // the last waiter is a completion handler, as a Router installs one
    busy,      // an empty CQ is polled for a while before it is armed
    adaptive,  // the same, with BusyPoll::adaptive
    solicited, // armed for solicited completions only
    lossy,     // the device loses an arm if nothing was polled since the previous one
};
inline constexpr std::array<std::string_view, 8> setting_names = {
    "", "shared", "held", "handler", "busy", "adaptive", "solicited", "lossy"};

struct Configuration {
    simulated::ArmModel arm_model = simulated::ArmModel::flag;
    Trigger trigger = Trigger::level;
    Setting setting = Setting::plain;
    int waiters = 1;
    int span = 1;      // completions that a poll has room for
    int selective = 0; // waiters that poll by wr_id first: for the last completion, the one before
    std::array<std::uint8_t, step_count> budget{}; // how many times each step is taken
    std::string scenario;                          // the steps by name
    std::string name;

    int count(Step step) const { return budget[static_cast<std::size_t>(step)]; }
    bool shares() const { return setting == Setting::shared || setting == Setting::held; }
    int queues() const { return shares() ? 2 : 1; }
};

// All configurations for a bound on the steps of a schedule; the starts of waiters do not count.
std::vector<Configuration> configurations(int bound);

} // namespace asyncverbs::proof
