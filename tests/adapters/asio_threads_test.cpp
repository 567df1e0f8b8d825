// SPDX-License-Identifier: MIT
// A queue on a strand of an io_context that several threads run; polls that other threads start,
// and waits that they stop. Nothing may be lost, and the thread sanitizer must find nothing.
#include <asyncverbs/adapters/asio.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>

#include <algorithm>
#include <atomic>
#include <optional>
#include <stop_token>

#include "adapters/asio.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/pipe.hpp"

using namespace asyncverbs;
using namespace asyncverbs::adapters;
using asyncverbs::support::Coroutine;
using asyncverbs::support::Pipe;

namespace {

constexpr std::uint64_t total = 4000;

// Polls in a loop. The strand is the only synchronization.
template <class Cq>
struct Consumer {
    Cq& cq;
    Ids& got;
    std::array<ibv_wc, 3> wcs{};

    void next() {
        async_poll(cq, wcs, [this](const Error& error, std::span<ibv_wc> done) {
            if (error) return;
            for (const ibv_wc& wc : done) got.push_back(wc.wr_id);
            if (got.size() >= total) return cq.cancel();
            next();
        });
    }
};

// Completes `total` work requests of `queue`, and yields after every `burst`.
std::thread run_device(simulated::SimulatedVerbs& sim, ibv_cq* queue, std::uint64_t burst) {
    return std::thread([&sim, queue, burst] {
        for (std::uint64_t id = 0; id < total; ++id) {
            sim.complete(queue, id);
            if (id % burst == 0) std::this_thread::yield();
        }
    });
}

template <class Run>
void on_threads(int count, Run run) {
    std::vector<std::thread> threads;
    for (int i = 0; i < count; ++i) threads.emplace_back(run);
    for (std::thread& thread : threads) thread.join();
}

} // namespace

TEST_CASE("async_poll on a strand of an io_context with three threads", "[stress]") {
    Fixture f;
    AsioCq cq(net::make_strand(*f.io), f.context, total);
    Ids got;
    std::array<Consumer<decltype(cq)>, 3> consumers{{{cq, got}, {cq, got}, {cq, got}}};
    for (auto& consumer : consumers) consumer.next();
    std::thread device = run_device(f.sim, cq.async_cq().native_handle(), 7);
    on_threads(3, [&] { f.io->run(); });
    device.join();
    std::sort(got.begin(), got.end());
    REQUIRE(got.size() == total);
    for (std::uint64_t id = 0; id < total; ++id) REQUIRE(got[id] == id);
}

TEST_CASE("async_poll may be called from any thread, and complete on another", "[stress]") {
    Fixture f;
    auto work = net::make_work_guard(*f.io);
    AsioCq cq(*f.io, f.context, total);
    std::atomic<std::uint64_t> sum{0};
    std::thread loop([&] { f.io->run(); });
    std::thread device = run_device(f.sim, cq.async_cq().native_handle(), 16);
    on_threads(2, [&] {
        for (std::uint64_t i = 0; i < total / 2; ++i) {
            std::array<ibv_wc, 1> wcs;
            std::atomic<bool> done{false};
            const auto handler = [&](const Error& error, std::span<ibv_wc> span) {
                if (!error) sum += span[0].wr_id;
                done = true;
                done.notify_one();
            };
            async_poll(cq, wcs, net::bind_executor(net::system_executor(), handler));
            done.wait(false);
        }
    });
    device.join();
    work.reset();
    loop.join();
    CHECK(sum == total * (total - 1) / 2);
}

TEST_CASE("AsioNotifier: stops from another thread, and events", "[stress]") {
    constexpr std::size_t rounds = 3000;
    const Pipe pipe;
    net::io_context io;
    auto work = net::make_work_guard(io);
    const auto strand = net::make_strand(io);
    AsioNotifier notifier(strand, pipe.reader());
    std::vector<std::stop_source> stops(rounds);
    std::atomic<std::size_t> started{0};
    std::thread other([&] {
        for (std::size_t round = 0; round < rounds; ++round) {
            while (started <= round) std::this_thread::yield();
            round % 3 == 0 ? pipe.put() : void(stops[round].request_stop());
        }
    });
    std::size_t stopped = 0;
    std::optional<Coroutine> coroutine;
    const auto wait = [&]() -> Coroutine {
        for (const std::stop_source& stop : stops) {
            ++started;
            for (bool ended = false; !ended;) {
                const std::error_code error = co_await notifier.readable(stop.get_token());
                if (error == std::errc::operation_canceled) ++stopped;
                ended = error || pipe.take(); // a wake may be spurious
            }
        }
        work.reset();
    };
    net::post(strand, [&] { coroutine = wait(); });
    on_threads(2, [&] { io.run(); });
    other.join();
    CHECK(started == rounds);
    CHECK(stopped == rounds - rounds / 3);
}
