// SPDX-License-Identifier: MIT
// Three operations of a queue pair, and everything that may happen to them, in every order:
// completions, stops, destroyed coroutines, drain, the queue pair and the router destroyed. With
// and without an iteration of the loop after each, while one operation waits for room; and all in
// one batch of the router, which has gathered the operations.
#include "proof/interleavings.hpp"
#include "rdma/fixture.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <iostream>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

using namespace asyncverbs;
using namespace asyncverbs::support;

namespace {

enum Step {
    deliver,
    deliver_again,
    deliver_third,
    stop_send,
    stop_receive,
    stop_waiting,
    destroy_send,
    destroy_receive,
    destroy_waiting,
    drain,
    destroy_queue_pair,
    destroy_router,
    steps
};

const char* name(Step step) {
    constexpr const char* names[] = {"deliver",      "deliver",         "deliver",
                                     "stop send",    "stop receive",    "stop waiting",
                                     "destroy send", "destroy receive", "destroy waiting",
                                     "drain",        "destroy QP",      "destroy router"};
    return names[step];
}

using Schedule = std::vector<Step>;

bool contains_step(const Schedule& schedule, Step step) {
    return std::find(schedule.begin(), schedule.end(), step) != schedule.end();
}

enum class Loop { waits, iterates, delivers };

// What is wrong with this schedule; "" if nothing is.
std::string play(const simulated::ProviderModel& provider, const Schedule& schedule, Loop loop) {
    constexpr std::size_t count = 3;
    const bool in_batch = loop == Loop::delivers;
    RouterFixture f(provider, {.max_send_wr = in_batch ? 3u : 1u, .max_recv_wr = 4});
    f.write(0, "from the sender");
    f.sim.hold_delivery();
    std::vector<Operation> peer;
    for (std::size_t i = 0; i < 3; ++i) peer.push_back(f.b->recv(f.slice(256 + 8 * i, 8)));
    peer.push_back(f.b->send(f.slice(0, 5)));

    std::array<std::stop_source, count> stops;
    std::array<Awaited, count> outcomes;
    std::array<std::optional<Coroutine>, count> waiters;
    std::optional<Operation> receive;
    Awaited drained;
    std::optional<Coroutine> drainer;

    const auto post = [&] {
        waiters[0] = await(f.a->send(f.slice(0, 8)), outcomes[0], stops[0].get_token());
        receive.emplace(f.a->recv(f.slice(128, 8)));
        waiters[1] = await<Operation&>(*receive, outcomes[1], stops[1].get_token());
        waiters[2] = await(f.a->send(f.slice(8, 8)), outcomes[2], stops[2].get_token());
        f.region.reset(); // the operations keep it
    };
    const auto take = [&](Step step) {
        switch (step) {
        case deliver:
        case deliver_again:
        case deliver_third:
            f.sim.deliver(1);
            break;
        case stop_send:
        case stop_receive:
        case stop_waiting:
            stops[step - stop_send].request_stop();
            break;
        case destroy_send:
        case destroy_receive:
        case destroy_waiting:
            waiters[step - destroy_send].reset();
            break;
        case drain:
            if (f.a) drainer = await_drain(*f.a, drained);
            break;
        case destroy_queue_pair:
            f.a.reset();
            break;
        default:
            f.router.reset();
        }
    };
    const auto iterate = [&](Step step) -> std::string {
        f.run();
        if (!f.router) return "";
        for (std::size_t i = 0; i < count; ++i) {
            const bool ends = step == destroy_queue_pair || step == stop_send + static_cast<int>(i);
            if (ends && waiters[i] && !outcomes[i].done()) return "not resumed at once";
        }
        if (step == destroy_queue_pair && drainer && !drained.done()) return "drain still waits";
        return "";
    };
    if (in_batch) {
        f.run_in_batch([&] {
            post();
            for (const Step step : schedule) take(step);
        });
    } else {
        post();
        for (const Step step : schedule) {
            take(step);
            if (loop == Loop::waits) continue;
            if (const std::string problem = iterate(step); !problem.empty()) return problem;
        }
    }
    f.sim.release_delivery();
    f.run();

    const bool kept =
        !contains_step(schedule, drain) && !contains_step(schedule, destroy_queue_pair);
    if (kept && in_batch && f.read(256, 15) != "from the sender") return "a send is lost";

    const bool routed = !contains_step(schedule, destroy_router);
    for (std::size_t i = 0; i < count; ++i) {
        const bool destroyed = contains_step(schedule, static_cast<Step>(destroy_send + i));
        const bool stopped = contains_step(schedule, static_cast<Step>(stop_send + i));
        const Awaited& outcome = outcomes[i];
        if (routed && !destroyed && !outcome.done()) return "operation left behind";
        if (!outcome.done()) continue;
        const bool undisturbed = !stopped && kept;
        if (routed && undisturbed && !outcome.completion) return "operation failed";
        if (outcome.completion && outcome.completion->status() != IBV_WC_SUCCESS) {
            return "success with an error status";
        }
        if (outcome.code() == std::errc::operation_canceled && undisturbed && routed) {
            return "cancelled without a stop";
        }
    }
    if (routed && drainer && !drained.done()) return "drain left behind";
    if (drainer && drained.completion && f.a) {
        if (f.sim.posted_sends(f.a->queue_pair().native_handle()) != 0) return "drained too early";
    }
    drainer.reset();
    for (auto& waiter : waiters) waiter.reset();
    receive.reset();
    peer.clear();
    f.a.reset();
    f.b.reset();
    if (f.sim.calls("ibv_dereg_mr") != 1) return "a region is never released";
    f.router.reset();
    for (const std::string& problem : f.sim.take_problems()) return problem;
    return "";
}

// Each step is taken once, the three equal deliveries in order.
std::vector<Step> next_steps(const Schedule& schedule) {
    std::vector<Step> next;
    for (int i = 0; i < steps; ++i) {
        const auto step = static_cast<Step>(i);
        const bool is_later_delivery = step == deliver_again || step == deliver_third;
        if (contains_step(schedule, step)) continue;
        if (is_later_delivery && !contains_step(schedule, static_cast<Step>(i - 1))) continue;
        next.push_back(step);
    }
    return next;
}

} // namespace

TEST_CASE("Operations: every interleaving", "[rdma][I7][I8][I12]") {
    std::size_t schedules = 0;
    for (const auto& provider : {simulated::rxe, simulated::mlx5}) {
        for (const Loop loop : {Loop::waits, Loop::iterates, Loop::delivers}) {
            schedules += proof::for_each_schedule<Step>(4, [&](const Schedule& schedule) {
                const std::string problem = play(provider, schedule, loop);
                if (!problem.empty()) {
                    constexpr const char* loops[] = {"without iterations", "with iterations",
                                                     "in one batch"};
                    FAIL_CHECK(problem << ", " << loops[static_cast<int>(loop)] << ": "
                                       << proof::to_text(schedule, name));
                }
                return next_steps(schedule);
            });
        }
    }
    CHECK(schedules > 30000);
    std::cout << schedules << " schedules of three operations\n";
}
