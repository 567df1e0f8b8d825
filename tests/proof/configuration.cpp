// SPDX-License-Identifier: MIT
#include "proof/configuration.hpp"

#include <algorithm>
#include <utility>

namespace asyncverbs::proof {

namespace {

using simulated::ArmModel;

constexpr int most_waiters = 3;
constexpr int longest_span = 4;

// The steps beside the starts of the waiters and the completions.
struct Scenario {
    int selective = 0;
    std::vector<Step> steps;
    Setting setting = Setting::plain;
};

const std::vector<Scenario>& scenarios() {
    using enum Step;
    using enum Setting;
    static const std::vector<Scenario> all = {
        {0, {}},
        {0, {cancel}},
        {0, {cancel, cancel}},
        {0, {destroy_waiter}},
        {0, {destroy_cq}},
        {0, {stop_loop}},
        {0, {spurious_event}},
        {0, {duplicate_event}},
        {0, {foreign_event}},
        {0, {false_readiness}},
        {0, {interrupt_read}},
        {0, {drop_event}},
        {0, {drop_event, pass_time}},
        {0, {fail_read}},
        {0, {fail_poll}},
        {0, {fail_arm}},
        {0, {cancel, destroy_waiter}},
        {0, {cancel, destroy_cq}},
        {0, {cancel, spurious_event}},
        {0, {cancel, foreign_event}},
        {0, {cancel, fail_poll}},
        {1, {}},
        {1, {cancel}},
        {1, {destroy_waiter}},
        {2, {}},

        {0, {}, shared},
        {0, {cancel}, shared},
        {0, {destroy_waiter}, shared},
        {0, {destroy_cq}, shared},
        {0, {destroy_channel}, shared},
        {0, {stop_loop}, shared},
        {0, {spurious_event}, shared},
        {0, {duplicate_event}, shared},
        {0, {foreign_event}, shared},
        {0, {false_readiness}, shared},
        {0, {interrupt_read}, shared},
        {0, {drop_event}, shared},
        {0, {drop_event, pass_time}, shared},
        {0, {fail_read}, shared},
        {0, {fail_poll}, shared},
        {0, {fail_arm}, shared},
        {0, {cancel, destroy_cq}, shared},
        {0, {destroy_cq, destroy_cq}, shared},
        {0, {destroy_cq, destroy_channel}, shared},
        {0, {destroy_cq}, held},

        {0, {}, handler},
        {0, {cancel}, handler},
        {0, {destroy_cq}, handler},
        {0, {cancel, destroy_cq}, handler},
        {0, {spurious_event}, handler},
        {0, {fail_read}, handler},
        {0, {fail_poll}, handler},
        {0, {fail_arm}, handler},
        {0, {fail_poll, destroy_cq}, handler},

        {0, {}, busy},
        {0, {cancel}, busy},
        {0, {destroy_cq}, busy},
        {0, {fail_poll}, busy},
        {0, {}, adaptive},
        {0, {cancel}, adaptive},
        {0, {}, solicited},
        {0, {cancel}, solicited},
        {0, {}, lossy},
        {0, {spurious_event}, lossy},
        {0, {spurious_event, cancel}, lossy},
        {0, {duplicate_event}, lossy},
        {0, {false_readiness}, lossy},
    };
    return all;
}

std::string name_of(const Scenario& scenario) {
    std::string name(setting_names[static_cast<std::size_t>(scenario.setting)]);
    for (const Step step : scenario.steps) {
        if (!name.empty()) name += '+';
        name += info(step).name;
    }
    if (scenario.selective == 0) return name.empty() ? "plain" : name;
    const std::string selective = scenario.selective == 1 ? "wr-id" : "wr-ids";
    return name.empty() ? selective : selective + '+' + name;
}

bool shares(const Scenario& scenario) {
    return scenario.setting == Setting::shared || scenario.setting == Setting::held;
}

// Whether the number of points for a step requires a limit of one completion: two CQs, or many
// polls, together with a step that is not the program's.
bool among_many(const Scenario& scenario) {
    return scenario.setting != Setting::plain && scenario.setting != Setting::handler &&
           scenario.steps.size() == 1 && info(scenario.steps.front()).actor != Actor::program;
}

// The number of completions: the bound less the steps of the scenario. The plain scenario with one
// waiter gets one more; with a third waiter there is one less, unless the scenario is about
// waiters.
int completions_for(int bound, int waiters, const Scenario& scenario) {
    const int left = bound - static_cast<int>(scenario.steps.size());
    const bool plain = scenario.selective == 0 && scenario.steps.empty();
    if (shares(scenario) && scenario.steps.empty()) return std::min(left, 2); // one for each
    if (among_many(scenario)) return std::min(left, 1);
    if (scenario.setting != Setting::plain) return left;
    if (plain) return left + (waiters == 1 ? 1 : 0);
    const bool about_waiters =
        scenario.selective == 0 && scenario.steps.size() == 1 &&
        (scenario.steps.front() == Step::cancel || scenario.steps.front() == Step::destroy_waiter);
    return left - (waiters == most_waiters && !about_waiters ? 1 : 0);
}

// Not every combination is tried: only the simple loops have two other steps at once, or one with
// many waiters; a wait that does not suspend is the same for many waiters as for one.
bool left_out(const Scenario& scenario, int waiters, Trigger trigger) {
    const std::size_t others = scenario.steps.size();
    if (shares(scenario) && waiters != 2) return true; // one for each CQ
    if (scenario.setting != Setting::plain && waiters == most_waiters) return true;
    // The executor's time cannot be made to pass.
    const bool timed = scenario.setting == Setting::lossy ||
                       std::ranges::count(scenario.steps, Step::drop_event) > 0;
    switch (trigger) {
    case Trigger::level:
    case Trigger::edge:
        return false;
    case Trigger::edge_at_once:
        return others > 1 || (others == 1 && waiters > 1);
    case Trigger::executor:
        return others > 1 || (others == 1 && waiters == most_waiters) || timed;
    }
    return false;
}

void add(std::vector<Configuration>& all, Configuration base, const Scenario& scenario, int bound) {
    const int completions = completions_for(bound, base.waiters, scenario);
    if (scenario.selective > std::min(base.waiters, completions)) return;
    if (completions < 1 || left_out(scenario, base.waiters, base.trigger)) return;
    base.setting = scenario.setting;
    base.selective = scenario.selective;
    base.scenario = name_of(scenario);
    const auto set = [&](Step step, int count) {
        base.budget[static_cast<std::size_t>(step)] = static_cast<std::uint8_t>(count);
    };
    for (const Step step : scenario.steps) set(step, base.count(step) + 1);
    set(Step::start, base.waiters);
    set(Step::complete, completions);
    for (base.span = 1; base.span <= longest_span; ++base.span) {
        // More room than there are completions changes nothing.
        if (base.span > 1 && base.span > completions) break;
        if (base.span > 1 && base.waiters == most_waiters && !scenario.steps.empty()) break;
        if (base.span > 1 && scenario.setting != Setting::plain) break;
        base.name = base.arm_model == ArmModel::flag ? "flag" : "index";
        base.name += '/';
        base.name += trigger_names[static_cast<std::size_t>(base.trigger)];
        base.name += '/' + std::to_string(base.waiters) + "x" + std::to_string(base.span);
        base.name += '/' + base.scenario + '/' + std::to_string(bound);
        all.push_back(base);
    }
}

} // namespace

std::vector<Configuration> configurations(int bound) {
    using enum Trigger;
    std::vector<Configuration> all;
    for (int waiters = 1; waiters <= most_waiters; ++waiters) {
        for (const Scenario& scenario : scenarios()) {
            for (const ArmModel model : {ArmModel::flag, ArmModel::index}) {
                for (const Trigger trigger : {level, edge, edge_at_once, executor}) {
                    Configuration base;
                    base.arm_model = model;
                    base.trigger = trigger;
                    base.waiters = waiters;
                    add(all, base, scenario, bound);
                }
            }
        }
    }
    return all;
}

} // namespace asyncverbs::proof
