// SPDX-License-Identifier: MIT
// Lifetimes as a matrix: in every state of a wait, every owner is destroyed, from every place where
// that is allowed. A destroyed coroutine is never resumed, the others get their completions,
// nothing leaks, and no completion is lost.
#include <asyncverbs/asyncverbs.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>

#include "support/catch.hpp"
#include "support/coroutine.hpp"

using namespace asyncverbs;
using namespace asyncverbs::simulated;
using asyncverbs::support::Coroutine;

namespace {

enum class State { idle, waiting, completed, more_than_wanted, stopped, unreadable, removed };
constexpr std::array state_names{"no waiters",
                                 "waiting",
                                 "a completion and its event have arrived",
                                 "more completions than slots have arrived",
                                 "a stop is requested",
                                 "the event cannot be read",
                                 "the device was removed"};

enum class Victim { one_waiter, waiters, cq, cq_then_waiters, waiters_then_cq, executor, all };
constexpr std::array victim_names{"one waiter",
                                  "the waiters",
                                  "the AsyncCq",
                                  "the AsyncCq, then the waiters",
                                  "the waiters, then the AsyncCq",
                                  "the executor",
                                  "the executor, then the AsyncCq, then the waiters"};

enum class Place {
    outside,
    stopped_run,
    other_coroutine,
    own_coroutine,
    unwinding,
    first_in_stop,
    last_in_stop
};
constexpr std::array place_names{"between two iterations of the loop",
                                 "after a run that was stopped while the resume was queued",
                                 "another coroutine, while the resume is queued",
                                 "a coroutine that it resumed",
                                 "a destructor, while a coroutine that it resumed unwinds",
                                 "request_stop(), before the callbacks of the waiters",
                                 "request_stop(), after the callbacks of the waiters"};

// The result of a waiting coroutine.
struct Wait {
    int resumed = 0;
    std::size_t delivered = 0;
    bool destroyed = false;
    Coroutine coroutine;
};

using Action = std::function<void()>;

struct Thrown : std::runtime_error {
    using std::runtime_error::runtime_error;
};

Coroutine wait_for_any(AsyncCq& cq, Wait& wait, std::stop_token stop, Action then = {}) {
    std::array<ibv_wc, 1> wcs{};
    std::error_code error;
    const std::span<ibv_wc> done = co_await cq.poll(wcs, error, stop);
    ++wait.resumed;
    wait.delivered += done.size();
    if (then) then();
}

Coroutine wait_for_one(AsyncCq& cq, Wait& wait, std::uint64_t wr_id, std::stop_token stop) {
    std::error_code error;
    const ibv_wc wc = co_await cq.poll_wr_id(wr_id, error, stop);
    ++wait.resumed;
    if (!error) wait.delivered += wc.wr_id == wr_id ? 1u : 100u;
}

Coroutine wait_and_unwind(AsyncCq& cq, Wait& wait, std::stop_token stop, Action then) {
    struct Unwinding {
        explicit Unwinding(const Action& a) : action(a) {}
        ~Unwinding() {
            if (armed) action();
        }
        const Action& action;
        bool armed = false;
    };
    Unwinding unwinding(then);
    std::array<ibv_wc, 1> wcs{};
    std::error_code error;
    const std::span<ibv_wc> done = co_await cq.poll(wcs, error, stop);
    ++wait.resumed;
    wait.delivered += done.size();
    unwinding.armed = true;
    throw Thrown("a coroutine that throws");
}

// An AsyncCq with three waiters, the second for one wr_id, and a neighbour on the same executor.
class Scenario {
public:
    Scenario(const ProviderModel& provider, State state, Victim victim, Place place)
        : sim_(provider), state_(state), victim_(victim), place_(place) {}

    void play() {
        if (place_ == Place::last_in_stop) destroy_in_stop();
        if (state_ != State::idle) start_waiters();
        neighbour_wait_.coroutine = wait_for_any(*neighbour_, neighbour_wait_, {}, [this] {
            if (place_ == Place::stopped_run) executor_->stop();
            if (place_ == Place::other_coroutine) destroy();
        });
        if (place_ == Place::first_in_stop) destroy_in_stop();

        complete(*neighbour_, 1); // first, so that it is resumed first
        enter_state();
        reach_place();
        CHECK(destroyed_);
        settle();
    }

private:
    bool by_own_coroutine() const {
        return place_ == Place::own_coroutine || place_ == Place::unwinding;
    }

    void start_waiters() {
        Wait& first = waits_[0];
        const std::stop_token stop = stop_.get_token();
        if (place_ == Place::unwinding) {
            first.coroutine = wait_and_unwind(*cq_, first, stop, [this] { destroy(); });
        } else if (place_ == Place::own_coroutine) {
            first.coroutine = wait_for_any(*cq_, first, stop, [this] { destroy(); });
        } else {
            first.coroutine = wait_for_any(*cq_, first, stop);
        }
        waits_[1].coroutine = wait_for_one(*cq_, waits_[1], wanted_by_one, stop);
        waits_[2].coroutine = wait_for_any(*cq_, waits_[2], {});
    }

    void destroy_in_stop() {
        on_stop_.emplace(stop_.get_token(), [this] { destroy(); });
    }

    void complete(AsyncCq& cq, std::uint64_t wr_id) { sim_.complete(cq.native_handle(), wr_id); }
    void complete_some(std::uint64_t first, int count) {
        for (int i = 0; i < count; ++i) complete(*cq_, first + static_cast<std::uint64_t>(i));
        pushed_ += static_cast<std::size_t>(count);
    }

    void enter_state() {
        switch (state_) {
        case State::idle:
            break;
        case State::waiting: // a completion only if the place needs one
            if (by_own_coroutine()) complete_some(1, 1);
            break;
        case State::completed:
            complete_some(1, 1);
            break;
        case State::more_than_wanted:
            complete_some(1, 5);
            break;
        case State::stopped:
            stop_.request_stop();
            break;
        case State::unreadable:
            sim_.fail("ibv_get_cq_event", {.nth = 2}); // the first is the neighbour's
            complete_some(1, 1);
            break;
        case State::removed:
            sim_.disassociate(context_.native_handle());
            break;
        }
    }

    void reach_place() {
        switch (place_) {
        case Place::outside:
            destroy();
            break;
        case Place::stopped_run:
            executor_->run();
            destroy();
            break;
        case Place::first_in_stop:
        case Place::last_in_stop:
            stop_.request_stop();
            break;
        default:
            for (int i = 0; i < 10 && !destroyed_; ++i) executor_->run_once();
        }
    }

    void destroy() {
        if (std::exchange(destroyed_, true)) return;
        if (place_ == Place::other_coroutine || place_ == Place::stopped_run) {
            for (const Wait& wait : waits_) CHECK(wait.resumed == 0); // only queued
        }
        switch (victim_) {
        case Victim::one_waiter:
            destroy(waits_[1]);
            break;
        case Victim::waiters:
            destroy_waiters();
            break;
        case Victim::cq:
            cq_.reset();
            break;
        case Victim::cq_then_waiters:
            cq_.reset();
            destroy_waiters();
            break;
        case Victim::waiters_then_cq:
            destroy_waiters();
            cq_.reset();
            break;
        case Victim::executor:
            executor_.reset();
            break;
        case Victim::all:
            executor_.reset();
            cq_.reset();
            destroy_waiters();
            break;
        }
        for (std::size_t i = 0; i < waits_.size(); ++i) resumed_before_[i] = waits_[i].resumed;
    }

    void destroy_waiters() {
        // A coroutine must not destroy itself while it runs.
        for (std::size_t i = by_own_coroutine() ? 1 : 0; i < waits_.size(); ++i) destroy(waits_[i]);
    }
    static void destroy(Wait& wait) {
        wait.coroutine.destroy();
        wait.destroyed = true;
    }

    void settle() {
        sim_.clear_failures();
        // Completions that end the remaining waits, if they still can end.
        if (cq_ && state_ != State::removed) {
            complete_some(wanted_by_one, 1);
            complete_some(10, 3);
        }
        if (executor_) {
            for (int i = 0; i < 50; ++i) executor_->run_once();
        }

        const bool may_resume = cq_ && executor_;
        std::size_t delivered = 0;
        for (std::size_t i = 0; i < waits_.size(); ++i) {
            const Wait& wait = waits_[i];
            INFO("waiter " << i);
            CHECK(wait.resumed <= 1);
            if (wait.destroyed || !may_resume) CHECK(wait.resumed == resumed_before_[i]);
            if (!wait.destroyed && may_resume && state_ != State::idle) CHECK(wait.resumed == 1);
            delivered += wait.delivered;
        }
        if (executor_) CHECK(neighbour_wait_.resumed == 1);
        if (cq_) CHECK(delivered + left_in_queue() == pushed_);
    }

    std::size_t left_in_queue() {
        for (Wait& wait : waits_) wait.coroutine.destroy(); // waiters come before try_poll()
        std::array<ibv_wc, 4> wcs{};
        std::size_t left = 0;
        while (const std::size_t count = cq_->try_poll(wcs).size()) left += count;
        return left;
    }

    static constexpr std::uint64_t wanted_by_one = 1000;

    SimulatedVerbs sim_;
    const State state_;
    const Victim victim_;
    const Place place_;

    Context context_ = Context::open();
    std::unique_ptr<EpollExecutor> executor_ = std::make_unique<EpollExecutor>();
    std::optional<AsyncCq> neighbour_ = AsyncCq::create(context_, 16, *executor_);
    std::optional<AsyncCq> cq_ = AsyncCq::create(context_, 16, *executor_);
    std::stop_source stop_;
    std::optional<std::stop_callback<Action>> on_stop_;
    std::array<Wait, 3> waits_;
    std::array<int, 3> resumed_before_{};
    Wait neighbour_wait_;
    std::size_t pushed_ = 0;
    bool destroyed_ = false;
};

bool is_possible(State state, Victim victim, Place place) {
    const bool inside_a_run = place != Place::outside && place != Place::stopped_run;
    const bool executor_too = victim == Victim::executor || victim == Victim::all;
    // The executor must not be destroyed by code that it runs. (It does not run request_stop().)
    if (executor_too && inside_a_run && place != Place::first_in_stop &&
        place != Place::last_in_stop) {
        return false;
    }
    const bool needs_waiter = place == Place::own_coroutine || place == Place::unwinding;
    return state != State::idle || !needs_waiter;
}

} // namespace

TEST_CASE("lifetimes: every owner is destroyed in every state, from every place (I8, I12)",
          "[proof][lifetimes][field-41][field-43][I8][I12]") {
    int cells = 0;
    for (const ProviderModel& provider : {rxe, mlx5}) {
        for (std::size_t state = 0; state < state_names.size(); ++state) {
            for (std::size_t victim = 0; victim < victim_names.size(); ++victim) {
                for (std::size_t place = 0; place < place_names.size(); ++place) {
                    const auto s = static_cast<State>(state);
                    const auto v = static_cast<Victim>(victim);
                    const auto p = static_cast<Place>(place);
                    if (!is_possible(s, v, p)) continue;
                    INFO(victim_names[victim] << " destroyed by: " << place_names[place]
                                              << "; state: " << state_names[state]);
                    Scenario(provider, s, v, p).play();
                    ++cells;
                }
            }
        }
    }
    std::cout << "lifetimes: " << cells << " combinations of state, victim and place\n";
    CHECK(cells > 500);
}
