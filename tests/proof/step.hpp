// SPDX-License-Identifier: MIT
//
// The steps of the explorer. The actor of a step decides at which points it can be taken.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace asyncverbs::proof {

enum class Actor : std::uint8_t {
    // The device and the kernel: at any moment. Their steps become visible by calls of verbs and by
    // the descriptor, so two moments without either in between are the same.
    device,
    // Another thread: at any moment.
    thread,
    // The program, on the thread of the loop: between two actions of the loop, and in a coroutine
    // that was resumed.
    program,
};

enum class Step : std::uint8_t {
    complete,
    spurious_event,
    duplicate_event,
    foreign_event,
    false_readiness,
    drop_event,
    interrupt_read,
    fail_read,
    fail_poll,
    fail_arm,
    pass_time,
    cancel,
    stop_loop,
    start,
    destroy_waiter,
    destroy_cq,
    destroy_channel,
};
inline constexpr std::size_t step_count = static_cast<std::size_t>(Step::destroy_channel) + 1;

struct StepInfo {
    Step step;
    Actor actor;
    std::string_view name; // in the name of a configuration; empty: every configuration has it
    std::string_view text; // in the log of a replay
};

inline constexpr std::array<StepInfo, step_count> all_steps{{
    {Step::complete, Actor::device, "", "completion {} arrives"},
    {Step::spurious_event, Actor::device, "spurious", "an event arrives that no arm asked for"},
    {Step::duplicate_event, Actor::device, "duplicate", "the next event will be queued twice"},
    {Step::foreign_event, Actor::device, "foreign", "an event of another CQ arrives"},
    {Step::false_readiness, Actor::device, "false", "the channel is readable, but for no event"},
    {Step::drop_event, Actor::device, "drop", "the next event will be dropped"},
    {Step::interrupt_read, Actor::device, "eintr", "a signal will interrupt the next read"},
    {Step::fail_read, Actor::device, "read-fails", "the next ibv_get_cq_event will fail"},
    {Step::fail_poll, Actor::device, "poll-fails", "the next ibv_poll_cq will fail"},
    {Step::fail_arm, Actor::device, "arm-fails", "the next ibv_req_notify_cq will fail"},
    {Step::pass_time, Actor::thread, "time", "the longest wait has passed"},
    {Step::cancel, Actor::thread, "cancel", "waiter {} is cancelled"},
    {Step::stop_loop, Actor::thread, "stop", "the loop is stopped"},
    {Step::start, Actor::program, "", "waiter {} starts"},
    {Step::destroy_waiter, Actor::program, "destroy-waiter", "waiter {} is destroyed"},
    {Step::destroy_cq, Actor::program, "destroy-cq", "the AsyncCq is destroyed"},
    {Step::destroy_channel, Actor::program, "destroy-channel", "the SharedChannel is destroyed"},
}};

constexpr const StepInfo& info(Step step) { return all_steps[static_cast<std::size_t>(step)]; }

constexpr bool steps_are_in_order() {
    for (std::size_t index = 0; index < step_count; ++index) {
        if (all_steps[index].step != static_cast<Step>(index)) return false;
    }
    return true;
}
static_assert(steps_are_in_order());

} // namespace asyncverbs::proof
