// SPDX-License-Identifier: MIT
//
// One AsyncCq, or two on one channel, with its waiters, on a simulated device and an event loop.
// The explorer takes its steps here, at every point where they can happen.
#pragma once

#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/device.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "proof/configuration.hpp"
#include "proof/loop.hpp"
#include "proof/properties.hpp"
#include "proof/recording_handler.hpp"
#include "proof/run.hpp"
#include "support/coroutine.hpp"

namespace asyncverbs::proof {

class World : private Watcher, private HandlerObserver {
public:
    World(const Configuration& configuration, Run& run, simulated::SimulatedVerbs& sim);
    ~World();
    World(const World&) = delete;
    World& operator=(const World&) = delete;

    // Runs one schedule to its end.
    void explore();

private:
    struct Queue {
        Queue(int n, const Configuration& configuration, const Run& run)
            : number(n), properties(configuration, run) {}

        int number;
        Properties properties;
        std::optional<CompletionQueue> not_adopted; // until it becomes an AsyncCq
        std::optional<AsyncCq> cq;
        std::shared_ptr<ibv_cq> held; // as by a queue pair
        ibv_cq* native = nullptr;     // null once it was destroyed
        std::uint64_t events_read = 0;
    };

    struct Waiter {
        int number = 0;
        Queue* queue = nullptr;
        WrId wanted = 0;    // by its first poll; 0: any completion
        bool again = false; // polls until an error
        bool finished = false;
        bool is_handler = false;                   // in the place of a coroutine
        std::shared_ptr<RecordingHandler> handler; // once it is installed
        bool woken = false;                        // and the handler was not called yet
        std::stop_source stop;
        support::Coroutine coroutine;
    };

    // A step that can be taken now, with its waiter or completion, and its CQ.
    struct Option {
        Step step = Step::start;
        int number = 0;
        Queue* queue = nullptr;
        bool quiet = false; // an unsolicited completion
    };
    struct Options {
        std::array<Option, 24> list;
        std::size_t count = 0;
        void add(const Option& option) { list[count++] = option; }
    };

    enum class Place { anywhere, program };

    // --- the points where steps are taken, and the steps ---

    void point(Place place, std::string_view where);
    bool step_at_rest();
    Options options(bool device, bool program);
    void add_options(Options& to, Step step);
    void take(const Option& option, std::string_view where);
    void take_device_step(const Option& option);
    std::string describe(const Option& option) const;
    void start(Waiter& waiter);
    void adopt(Queue& queue);
    bool can_start(const Waiter& waiter) const;
    bool may_cancel(const Waiter& waiter) const;
    bool any_alive() const;
    bool may_miss_events(const ibv_cq* cq) const;
    void stopped();

    // --- waiters ---

    static support::Coroutine poll(World& world, Waiter& self);
    void begins(const Waiter& waiter);
    void ends(const Waiter& waiter, std::span<const ibv_wc> completions,
              const std::error_code& error);
    void on_handled(std::span<const ibv_wc> completions, const std::error_code& error) override;
    Waiter& waiter(int number) { return waiters_[static_cast<std::size_t>(number) - 1]; }

    // --- observations ---

    void on_call(const simulated::Call& call);
    void before_call(const simulated::Call& call);
    void after_call(const simulated::Call& call);
    void observed();
    void failed(const simulated::Call& call);
    Queue* find(const void* native);
    void wait_begins(const ibv_cq* cq) override;
    void wait_suspended(const ibv_cq* cq) override;
    void wait_ends(const ibv_cq* cq, const std::error_code& result) override;
    void loop_polled() override { point(Place::program, "before the loop resumes"); }
    std::size_t choose(std::size_t options) override { return run_.choose(options); }
    void not_deregistered(int error) override;

    void tear_down();
    void drain(Queue& queue);

    const Configuration& configuration_;
    Run& run_;
    simulated::SimulatedVerbs& sim_;
    Context context_;
    std::optional<CompletionQueue> foreign_; // on the same channel
    std::unique_ptr<Loop> loop_;
    std::unique_ptr<Channel> shared_;
    std::vector<Queue> queues_;
    ibv_comp_channel* channel_ = nullptr;
    std::vector<Waiter> waiters_;

    std::array<std::uint8_t, step_count> left_; // of the budget
    int started_ = 0;
    int arrived_ = 0;
    bool exploring_ = false;
    bool stopped_ = false;
    bool ended_ = false;
    unsigned observations_ = 0;    // calls and polls of the loop, which show the device's state
    unsigned device_declined_ = 0; // the value of observations_ when its steps were declined
};

} // namespace asyncverbs::proof
