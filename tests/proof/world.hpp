// SPDX-License-Identifier: MIT
//
// One AsyncCq on a simulated device, under a loop, with its waiters; and everything that the
// explorer can make happen to it, at every point where that can happen.
#pragma once

#include <asyncverbs/core/async_cq.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/context.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string_view>
#include <system_error>
#include <vector>

#include "proof/configuration.hpp"
#include "proof/loop.hpp"
#include "proof/properties.hpp"
#include "proof/run.hpp"
#include "support/coroutine.hpp"
#include "support/simulated_verbs.hpp"

namespace asyncverbs::proof {

class World : private Watcher {
public:
    World(const Configuration& configuration, Run& run, simulated::SimulatedVerbs& sim);
    ~World();
    World(const World&) = delete;
    World& operator=(const World&) = delete;

    // Runs one schedule to its end.
    void explore();

private:
    struct Waiter {
        int number = 0;
        WrId wanted = 0;    // by its first poll; 0: any completion
        bool again = false; // polls on and on
        bool finished = false;
        std::stop_source stop;
        support::Coroutine coroutine;
    };

    // A step that can be taken now, and its object: a waiter or a completion.
    struct Option {
        Step step = Step::start;
        int number = 0;
    };
    struct Options {
        std::array<Option, 24> list;
        std::size_t count = 0;
        void add(Step step, int number = 0) { list[count++] = {step, number}; }
    };

    enum class Place { anywhere, program };

    // --- the points where steps are taken, and the steps ---

    void point(Place place, std::string_view where);
    bool step_at_rest();
    Options options(bool device, bool program);
    void add_options(Options& to, Step step);
    void take(const Option& option, std::string_view where);
    void take_device_step(const Option& option);
    void start(int number);
    void stopped();

    // --- waiters ---

    static support::Coroutine poll(World& world, Waiter& self);
    void begins(const Waiter& waiter);
    void ends(const Waiter& waiter, std::span<const ibv_wc> completions,
              const std::error_code& error);
    Waiter& waiter(int number) { return waiters_[static_cast<std::size_t>(number) - 1]; }

    // --- what is watched ---

    void on_call(const simulated::Call& call);
    void before_call(const simulated::Call& call);
    void after_call(const simulated::Call& call);
    void observed();
    void wait_begins() override;
    void wait_suspended() override;
    void wait_ends(const std::error_code& result) override;
    void loop_looked() override { point(Place::program, "before the loop resumes"); }
    std::size_t choose(std::size_t options) override { return run_.choose(options); }
    void not_deregistered(int error) override;

    void tear_down();
    void drain();

    const Configuration& configuration_;
    Run& run_;
    simulated::SimulatedVerbs& sim_;
    Properties properties_;
    Context context_;
    std::optional<CompletionQueue> foreign_; // on the same channel
    std::unique_ptr<Loop> loop_;
    std::optional<AsyncCq> cq_;
    ibv_cq* native_ = nullptr; // null once it was destroyed
    ibv_comp_channel* channel_ = nullptr;
    std::vector<Waiter> waiters_;

    std::array<std::uint8_t, step_count> left_; // of the budget
    int started_ = 0;
    int arrived_ = 0;
    bool exploring_ = false;
    bool stopped_ = false;
    bool ended_ = false;
    std::uint64_t events_read_ = 0;
    unsigned observations_ = 0;    // of verbs and looks, by which the device is seen
    unsigned device_declined_ = 0; // the number of observations when its steps were declined
};

} // namespace asyncverbs::proof
