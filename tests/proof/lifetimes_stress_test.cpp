// SPDX-License-Identifier: MIT
// Completions and stops from another thread, at any moment, while the loop destroys waiters and
// AsyncCqs. Every completion is delivered once, and the thread sanitizer finds no race.
#include <asyncverbs/asyncverbs.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <stop_token>
#include <system_error>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"

using namespace asyncverbs;
using namespace asyncverbs::simulated;
using asyncverbs::support::Coroutine;

namespace {

// A thread that makes the completions of each round, and requests the round's stop in between.
class Adversary {
public:
    Adversary(SimulatedVerbs& sim, std::size_t rounds)
        : sim_(sim), stops_(rounds), thread_([this] { run(); }) {}
    ~Adversary() { thread_.join(); }

    std::stop_token begin(std::size_t round, ibv_cq* cq) {
        cq_ = cq;
        begun_ = round + 1;
        return stops_[round].get_token();
    }
    // Returns when the thread no longer uses the CQ of the round.
    void await_end(std::size_t round) const {
        while (ended_ <= round) std::this_thread::yield();
    }

    static constexpr std::uint64_t completions = 4; // per round

private:
    void run() {
        for (std::size_t round = 0; round < stops_.size(); ++round) {
            while (begun_ <= round) std::this_thread::yield();
            const std::size_t stop_after = round % (completions + 1);
            for (std::size_t i = 0; i < completions; ++i) {
                if (i == stop_after) stops_[round].request_stop();
                sim_.complete(cq_, round * completions + i);
            }
            stops_[round].request_stop();
            ended_ = round + 1;
        }
    }

    SimulatedVerbs& sim_;
    std::vector<std::stop_source> stops_;
    std::atomic<ibv_cq*> cq_{nullptr};
    std::atomic<std::size_t> begun_{0};
    std::atomic<std::size_t> ended_{0};
    std::thread thread_;
};

// Checks that completions are delivered in order, over all waiters.
struct Account {
    std::uint64_t next = 0;
    bool in_order = true;

    void deliver(std::span<const ibv_wc> wcs) {
        for (const ibv_wc& wc : wcs) in_order = in_order && wc.wr_id == next++;
    }
};

Coroutine consume(AsyncCq& cq, Account& account, std::stop_token stop, int& resumed) {
    std::array<ibv_wc, 2> wcs{};
    std::error_code error;
    do {
        account.deliver(co_await cq.poll(wcs, error, stop));
        ++resumed;
    } while (!error);
}

// Runs `code` on another thread, and pauses it once: after it has unlocked mutexes `nth` times. Not
// for code that locks in a stop callback: the thread that resets the callback waits for the paused
// thread.
class PausedThread {
public:
    template <class Code>
    PausedThread(std::size_t nth, Code code)
        : thread_([this, nth, code] {
              support::on_unlock([this, left = nth]() mutable {
                  if (left > 0 && --left == 0) pause();
              });
              code();
              support::on_unlock(nullptr);
              report(ended);
          }) {}
    ~PausedThread() { finish(); }

    // Waits until it is paused; false: it has ended.
    bool await_pause() {
        state_.wait(running);
        return state_ == paused;
    }
    std::thread::id id() const { return thread_.get_id(); }
    // Continues it, and waits for its end.
    void finish() {
        go_ = true;
        go_.notify_one();
        if (thread_.joinable()) thread_.join();
    }

private:
    enum State : int { running, paused, ended };

    void report(State state) {
        state_ = state;
        state_.notify_one();
    }
    void pause() {
        report(paused);
        go_.wait(false);
    }

    std::atomic<State> state_{running};
    std::atomic<bool> go_{false};
    std::thread thread_; // last: it uses the others
};

Task<> read_event(DeviceEvents<EpollNotifier>& events) { co_await events.next(); }

} // namespace

TEST_CASE("stress: an AsyncCq is destroyed by its own thread, whenever another one reports its "
          "failure (I8)",
          "[proof][lifetimes][stress][I8]") {
    bool was_paused = true;
    for (std::size_t nth = 1; was_paused; ++nth) {
        CAPTURE(nth);
        SimulatedVerbs sim;
        const Context context = Context::open();
        EpollExecutor executor;
        std::optional<AsyncCq> cq = AsyncCq::create(context, 16, executor);
        Account account;
        int resumed = 0;
        const Coroutine waiter = consume(*cq, account, {}, resumed);
        sim.break_cq(cq->native_handle());
        PausedThread device(nth, [&context] {
            EpollExecutor own;
            DeviceEvents events(context, own.notifier(context.native_handle()->async_fd));
            own.run(read_event(events));
        });
        was_paused = device.await_pause();
        // ibv_destroy_cq waits until the event was acked.
        std::vector<std::thread::id> destroyed_by;
        sim.on_call([&](const Call& call) {
            if (call.verb != "ibv_destroy_cq" || call.moment != Call::Moment::before) return;
            destroyed_by.push_back(std::this_thread::get_id());
            if (destroyed_by.back() != device.id()) device.finish();
        });
        cq.reset();
        device.finish();
        sim.on_call(nullptr);
        REQUIRE(destroyed_by == std::vector{std::this_thread::get_id()});
    }
}

TEST_CASE("stress: stops from another thread and destroyed waiters lose no completion (I7)",
          "[proof][lifetimes][stress][I7]") {
    constexpr std::size_t rounds = 2000;
    SimulatedVerbs sim;
    const Context context = Context::open();
    EpollExecutor executor;
    AsyncCq cq = AsyncCq::create(context, 64, executor);
    Account account;
    Adversary adversary(sim, rounds);
    std::minstd_rand random(29);
    for (std::size_t round = 0; round < rounds; ++round) {
        std::array<Coroutine, 3> waiters;
        int resumed = 0;
        const std::stop_token stop = adversary.begin(round, cq.native_handle());
        for (Coroutine& each : waiters) each = consume(cq, account, stop, resumed);
        Coroutine& victim = waiters[random() % waiters.size()];
        for (auto i = random() % 4; i > 0; --i) executor.run_once();
        if (round % 2 == 0) {
            victim.destroy();
            victim = consume(cq, account, stop, resumed);
        }
        adversary.await_end(round);
        for (const Coroutine& each : waiters) {
            for (int i = 0; i < 1000 && !each.done(); ++i) executor.run_once();
            REQUIRE(each.done());
        }
        std::array<ibv_wc, 8> wcs{};
        account.deliver(cq.try_poll(wcs));
        REQUIRE(account.in_order);
        REQUIRE(account.next == (round + 1) * Adversary::completions);
    }
}

TEST_CASE("stress: an AsyncCq is destroyed while another thread stops its waiters (I8)",
          "[proof][lifetimes][stress][I8]") {
    constexpr std::size_t rounds = 1500;
    SimulatedVerbs sim;
    const Context context = Context::open();
    EpollExecutor executor;
    std::vector<std::stop_source> stops(rounds);
    std::atomic<std::size_t> begun{0};
    std::thread stopper([&] {
        for (std::size_t round = 0; round < rounds; ++round) {
            while (begun <= round) std::this_thread::yield();
            stops[round].request_stop();
        }
    });
    for (std::size_t round = 0; round < rounds; ++round) {
        std::optional<AsyncCq> cq = AsyncCq::create(context, 16, executor);
        Account account;
        std::array<Coroutine, 3> waiters;
        int resumed = 0;
        const std::stop_token stop = stops[round].get_token();
        for (Coroutine& each : waiters) each = consume(*cq, account, stop, resumed);
        begun = round + 1;
        for (std::size_t i = 0; i < round % 3; ++i) executor.run_once();
        const int before = resumed;
        cq.reset();
        for (int i = 0; i < 3; ++i) executor.run_once();
        REQUIRE(resumed == before);
    }
    stopper.join();
}

TEST_CASE("stress: the executor is stopped from another thread at any moment (I8)",
          "[proof][lifetimes][stress][I8]") {
    constexpr std::size_t rounds = 1000;
    SimulatedVerbs sim;
    const Context context = Context::open();
    for (std::size_t round = 0; round < rounds; ++round) {
        auto executor = std::make_unique<EpollExecutor>();
        AsyncCq cq = AsyncCq::create(context, 16, *executor);
        Account account;
        int resumed = 0;
        Coroutine waiter = consume(cq, account, {}, resumed);
        std::thread other([&, device = cq.native_handle()] {
            sim.complete(device, 0);
            if (round % 2 == 0) std::this_thread::yield();
            executor->stop();
        });
        executor->run();
        other.join();
        if (round % 3 == 0) executor.reset();
        waiter.destroy();
        std::array<ibv_wc, 2> wcs{};
        account.deliver(cq.try_poll(wcs));
        REQUIRE(account.in_order);
        REQUIRE(account.next == 1);
    }
}
