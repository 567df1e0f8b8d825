// SPDX-License-Identifier: MIT
// AsyncCq on simulated verbs under real epoll: the built-in executor, and an edge-triggered
// notifier of a loop of the test's own.
#include <asyncverbs/cq/async_cq.hpp>

#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/coro/when_all.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/verbs/device.hpp>

#include <sys/epoll.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <memory>
#include <random>
#include <stop_token>
#include <system_error>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"
#include "support/simulated_verbs.hpp"

using namespace asyncverbs;
using namespace asyncverbs::simulated;
using namespace std::chrono_literals;
using asyncverbs::support::Coroutine;
using asyncverbs::support::counters;
using asyncverbs::support::Counters;

namespace {

Task<std::uint64_t> next_wr_id(AsyncCq& cq, std::stop_token stop = {}) {
    std::array<ibv_wc, 1> wcs{};
    const std::span<ibv_wc> done = co_await cq.poll(wcs, stop);
    co_return done[0].wr_id;
}

Task<> consume(AsyncCq& cq, std::vector<std::uint64_t>& got, std::size_t count) {
    std::array<ibv_wc, 3> wcs{};
    while (got.size() < count) {
        for (const ibv_wc& wc : co_await cq.poll(wcs)) got.push_back(wc.wr_id);
    }
}

// An edge-triggered loop: an edge is reported once and remembered until somebody waits.
class EdgeLoop {
public:
    EdgeLoop() : epoll_(::epoll_create1(EPOLL_CLOEXEC)) { REQUIRE(epoll_ >= 0); }
    ~EdgeLoop() { ::close(epoll_); }

    struct State {
        bool ready = false;
        std::coroutine_handle<> waiting;
    };

    struct Readable {
        explicit Readable(State& s) : state(s) {}
        ~Readable() { state.waiting = nullptr; }
        bool await_ready() const noexcept { return state.ready; }
        void await_suspend(std::coroutine_handle<> handle) const noexcept {
            state.waiting = handle;
        }
        std::error_code await_resume() const noexcept {
            state.ready = false;
            return {};
        }
        State& state;
    };

    class Notifier {
    public:
        Notifier(int epoll, int fd) : state_(std::make_unique<State>()) {
            epoll_event event{};
            event.events = EPOLLIN | EPOLLET;
            event.data.ptr = state_.get();
            REQUIRE(::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
        }
        Readable readable(std::stop_token) { return Readable(*state_); }

    private:
        std::unique_ptr<State> state_;
    };

    Notifier notifier(int fd) { return Notifier(epoll_, fd); }

    void turn() {
        epoll_event event{};
        if (::epoll_wait(epoll_, &event, 1, 0) != 1) return;
        State& state = *static_cast<State*>(event.data.ptr);
        state.ready = true;
        if (state.waiting) std::exchange(state.waiting, nullptr).resume();
    }

private:
    int epoll_;
};

Coroutine consume_on_edge(AsyncCq& cq, std::vector<std::uint64_t>& got, std::size_t count) {
    std::array<ibv_wc, 2> wcs{};
    while (got.size() < count) {
        for (const ibv_wc& wc : co_await cq.poll(wcs)) got.push_back(wc.wr_id);
    }
}

} // namespace

TEST_CASE("AsyncCq on EpollExecutor: waits for a completion that another thread makes") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    EpollExecutor executor;
    AsyncCq cq = AsyncCq::create(context, 16, executor);
    std::thread device([&] {
        while (!sim.armed(cq.native_handle())) std::this_thread::yield();
        sim.complete(cq.native_handle(), 42);
    });
    CHECK(executor.run(next_wr_id(cq)) == 42);
    device.join();
}

TEST_CASE("AsyncCq on EpollExecutor: a ready poll costs no system call and no allocation") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    EpollExecutor executor;
    AsyncCq cq = AsyncCq::create(context, 1024, executor);
    for (std::uint64_t id = 0; id < 1000; ++id) sim.complete(cq.native_handle(), id);
    struct Local {
        static Task<Counters> run(AsyncCq& queue) {
            std::array<ibv_wc, 1> wcs{};
            const Counters before = counters();
            for (int i = 0; i < 1000; ++i) co_await queue.poll(wcs);
            co_return counters() - before;
        }
    };
    const Counters cost = executor.run(Local::run(cq));
    CHECK(cost.system_calls() == 0);
    CHECK(cost.allocations == 0);
    CHECK(cq.statistics().polls == 1000);
    CHECK(cq.statistics().arms == 0);
}

TEST_CASE("AsyncCq on EpollExecutor: a sleeping poll costs one epoll_wait and no allocation") {
    // What the verbs cost on a real device is counted on one: tests/device.
    SimulatedVerbs sim;
    const Context context = Context::open();
    EpollExecutor executor;
    AsyncCq cq = AsyncCq::create(context, 16, executor);
    std::vector<std::uint64_t> got;
    got.reserve(200);
    bool posted = false;
    std::vector<Counters> at_arm;
    at_arm.reserve(200);
    // Each arm is followed by a completion: the consumer always sleeps, and never for long.
    sim.on_call([&](const Call& call) {
        if (call.verb != "ibv_poll_cq" || call.moment != Call::Moment::after) return;
        if (!sim.armed(cq.native_handle())) {
            posted = false;
        } else if (!posted && cq.statistics().polls % 3 != 0) {
            posted = true;
            at_arm.push_back(counters());
            sim.complete(cq.native_handle(), 1);
        }
    });
    executor.run(consume(cq, got, 100));
    sim.on_call(nullptr);
    CHECK(cq.statistics().wakes == 100);
    CHECK(cq.statistics().arms == 100);
    const Counters total = at_arm.back() - at_arm.front();
    CHECK(total.epoll_wait == at_arm.size() - 1);
    CHECK(total.epoll_ctl == 0);
}

TEST_CASE("AsyncCq: nothing is lost under level- and edge-triggered epoll (I3)", "[field-13][I3]") {
    const auto model = GENERATE(ArmModel::flag, ArmModel::index);
    const auto stale = GENERATE(0, 1, 3);
    const bool duplicates = GENERATE(false, true);
    SimulatedVerbs sim(ProviderModel{.arm_model = model});
    const Context context = Context::open();
    EdgeLoop edge;
    EpollExecutor level;
    const bool edge_triggered = GENERATE(false, true);
    AsyncCq cq = edge_triggered ? AsyncCq::create(context, 1024, edge)
                                : AsyncCq::create(context, 1024, level);
    std::minstd_rand random(17);
    std::vector<std::uint64_t> got;
    const std::size_t count = 500;
    const Coroutine consumer = consume_on_edge(cq, got, count);
    std::uint64_t next = 0;
    while (next < count) {
        if (stale > 0 && random() % 4 == 0) sim.push_events(cq.native_handle(), stale);
        if (duplicates && random() % 4 == 0) sim.duplicate_events(cq.native_handle());
        for (auto burst = random() % 5; burst > 0 && next < count; --burst) {
            sim.complete(cq.native_handle(), next++);
        }
        if (edge_triggered) {
            edge.turn();
        } else {
            level.run_once();
        }
    }
    for (int turns = 0; turns < 2000 && !consumer.done(); ++turns) {
        edge.turn();
        level.run_once();
    }
    REQUIRE(consumer.done());
    for (std::size_t i = 0; i < count; ++i) REQUIRE(got[i] == i);
}

TEST_CASE("AsyncCq on EpollExecutor: a busy CQ starves neither a timer nor a neighbour (I9)",
          "[field-47][I9]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    EpollExecutor executor;
    AsyncCq busy = AsyncCq::create(context, 1024, executor);
    AsyncCq quiet = AsyncCq::create(context, 16, executor);
    struct Local {
        static Task<> keep_busy(SimulatedVerbs& sim, AsyncCq& cq, const int& others) {
            std::array<ibv_wc, 1> wcs{};
            while (others > 0) { // for ever, if they starve
                sim.complete(cq.native_handle(), 1);
                co_await cq.poll(wcs);
            }
        }
        static Task<> other(AsyncCq& cq, int& others) {
            co_await next_wr_id(cq);
            --others;
        }
        static Task<> timer(EpollExecutor& loop, int& others) {
            co_await loop.sleep_for(1ms);
            --others;
        }
        static Task<> run(SimulatedVerbs& sim, EpollExecutor& loop, AsyncCq& busy_cq,
                          AsyncCq& quiet_cq) {
            int others = 2;
            Scope scope;
            scope.spawn(other(quiet_cq, others));
            scope.spawn(timer(loop, others));
            sim.complete(quiet_cq.native_handle(), 1);
            scope.spawn(keep_busy(sim, busy_cq, others));
            co_await scope.join();
        }
    };
    executor.run(Local::run(sim, executor, busy, quiet));
}

TEST_CASE("AsyncCq on EpollExecutor: max_wait finds what a dropped event announced", "[I3]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    EpollExecutor executor;
    AsyncCq cq = AsyncCq::create(context, 16, executor, {.max_wait = 2ms});
    sim.drop_events(cq.native_handle());
    executor.post([&] {
        REQUIRE(sim.armed(cq.native_handle()));
        sim.complete(cq.native_handle(), 5);
    });
    CHECK(executor.run(next_wr_id(cq)) == 5);
    CHECK(cq.statistics().events == 0);
}

TEST_CASE("AsyncCq on EpollExecutor: a stop from another thread, while others get theirs", "[I7]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    EpollExecutor executor;
    AsyncCq cq = AsyncCq::create(context, 1024, executor);
    struct Local {
        static Task<> cancellable(AsyncCq& queue, std::stop_token stop, std::size_t& delivered,
                                  std::size_t& ended) {
            std::array<ibv_wc, 1> wcs{};
            std::error_code error;
            while (!error) delivered += (co_await queue.poll(wcs, error, stop)).size();
            REQUIRE(error == std::errc::operation_canceled);
            ++ended;
        }
        static Task<> run(EpollExecutor& loop, AsyncCq& queue, SimulatedVerbs& sim) {
            for (int round = 0; round < 100; ++round) {
                std::stop_source stop;
                std::size_t delivered = 0;
                std::size_t ended = 0;
                Scope scope;
                for (int i = 0; i < 3; ++i) {
                    scope.spawn(cancellable(queue, stop.get_token(), delivered, ended));
                }
                std::thread other([&sim, &stop, cq = queue.native_handle()] {
                    for (int i = 0; i < 4; ++i) sim.complete(cq, 1);
                    stop.request_stop();
                });
                co_await scope.join();
                other.join();
                std::array<ibv_wc, 8> wcs{};
                delivered += queue.try_poll(wcs).size();
                REQUIRE(delivered == 4);
                REQUIRE(ended == 3);
                co_await loop.schedule();
            }
        }
    };
    executor.run(Local::run(executor, cq, sim));
}

TEST_CASE("AsyncCq on EpollExecutor: a device that vanishes fails every waiter and spins nothing",
          "[field-20][I5]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    EpollExecutor executor;
    AsyncCq cq = AsyncCq::create(context, 16, executor);
    struct Local {
        static Task<std::error_code> wait(AsyncCq& queue) {
            std::array<ibv_wc, 1> wcs{};
            std::error_code error;
            co_await queue.poll(wcs, error);
            co_return error;
        }
    };
    executor.post([&] { sim.disassociate(context.native_handle()); });
    const auto [first, second] = executor.run(when_all(Local::wait(cq), Local::wait(cq)));
    CHECK(first == std::errc::io_error);
    CHECK(second == std::errc::io_error);
    while (executor.run_once()) {
    }
    const Counters before = counters();
    CHECK_FALSE(executor.run_once());
    CHECK((counters() - before).system_calls() == 1);
}

TEST_CASE("AsyncCq: the executor may be destroyed while coroutines wait, and before the CQ",
          "[field-43][I8]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    auto executor = std::make_unique<EpollExecutor>();
    AsyncCq cq = AsyncCq::create(context, 16, *executor);
    std::vector<std::uint64_t> got;
    const Coroutine consumer = consume_on_edge(cq, got, 1);
    sim.complete(cq.native_handle(), 1);
    executor.reset();
    CHECK_FALSE(consumer.done());
}
