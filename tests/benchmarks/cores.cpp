// SPDX-License-Identifier: MIT
// What a completion costs when one core awaits completions, and when all do, each on a CQ of its
// own: on the simulated verbs, whose devices are as fast as the library, and whose queues do not
// wait for each other. Fails where the others make a core slower than they may.
#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/executor/executor_pool.hpp>

#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/simulation/simulation.hpp"

using namespace asyncverbs;
using asyncverbs::simulated::SimulatedVerbs;

// There are no tests that a problem of the simulation could fail.
void asyncverbs::simulated::report_problem(const std::string& problem) {
    std::fprintf(stderr, "error: %s\n", problem.c_str());
    std::exit(1);
}

namespace {

// CPU time of a completion beside others, relative to alone. Two CPUs may be two threads of one.
constexpr double limit = 1.6;

constexpr std::size_t batch = 16;
constexpr std::size_t batches = 40000;
constexpr int repetitions = 3;

struct Cost {
    double cpu = 0;   // nanoseconds per completion, of the core
    double wall = 0;  // the same, of the clock
    double waits = 0; // times that the core had to wait for something, per million completions
};

Cost now() {
    rusage usage{};
    ::getrusage(RUSAGE_THREAD, &usage);
    const auto nanoseconds = [](const timeval& time) {
        return 1e9 * static_cast<double>(time.tv_sec) + 1e3 * static_cast<double>(time.tv_usec);
    };
    const auto clock = std::chrono::steady_clock::now().time_since_epoch();
    return {nanoseconds(usage.ru_utime) + nanoseconds(usage.ru_stime),
            std::chrono::duration<double, std::nano>(clock).count(),
            static_cast<double>(usage.ru_nvcsw)};
}

// The completions are there when they are polled for.
Task<> poll_ready(SimulatedVerbs& sim, AsyncCq& cq, EpollExecutor&) {
    std::array<ibv_wc, batch> wcs;
    for (std::size_t i = 0; i < batches; ++i) {
        for (std::size_t j = 0; j < batch; ++j) sim.complete(cq.native_handle(), j);
        co_await cq.poll(wcs);
    }
}

// Each batch comes while the coroutine waits for an event.
Task<> complete_late(SimulatedVerbs& sim, ibv_cq* cq, EpollExecutor& executor) {
    for (std::size_t i = 0; i < batches; ++i) {
        for (std::size_t j = 0; j < batch; ++j) sim.complete(cq, j);
        co_await executor.schedule();
    }
}

Task<> poll_late(SimulatedVerbs& sim, AsyncCq& cq, EpollExecutor& executor) {
    std::array<ibv_wc, batch> wcs;
    Scope scope;
    scope.spawn(complete_late(sim, cq.native_handle(), executor));
    for (std::size_t polled = 0; polled < batches * batch;) {
        polled += (co_await cq.poll(wcs)).size();
    }
    co_await scope.join();
}

using Workload = Task<>(SimulatedVerbs&, AsyncCq&, EpollExecutor&);

// The mean of all cores.
Cost measure(Workload& workload, std::size_t cores) {
    SimulatedVerbs sim;
    const Context context = Context::open();
    ExecutorPool pool({.size = cores});
    std::vector<Cost> costs(cores);
    std::atomic<std::size_t> ready = 0;
    std::atomic<std::size_t> ended = 0;
    const auto wait_for_all = [cores](std::atomic<std::size_t>& arrived) {
        for (++arrived; arrived < cores;) std::this_thread::yield();
    };
    pool.run([&](EpollExecutor& executor, std::size_t index) -> Task<> {
        const int vector = static_cast<int>(index) % context.num_comp_vectors();
        CompletionQueue queue(context, 2 * batch, vector);
        AsyncCq cq = AsyncCq::create(std::move(queue), executor);
        wait_for_all(ready);
        const Cost start = now();
        co_await workload(sim, cq, executor);
        const Cost end = now();
        constexpr double completions = batch * batches;
        costs[index] = {(end.cpu - start.cpu) / completions, (end.wall - start.wall) / completions,
                        1e6 * (end.waits - start.waits) / completions};
        wait_for_all(ended); // none is destroyed while others work
    });
    Cost mean;
    for (const Cost& cost : costs) {
        mean.cpu += cost.cpu / static_cast<double>(cores);
        mean.wall += cost.wall / static_cast<double>(cores);
        mean.waits += cost.waits / static_cast<double>(cores);
    }
    return mean;
}

// The least disturbed of several.
Cost measure_best(Workload& workload, std::size_t cores) {
    Cost best = measure(workload, cores);
    for (int i = 1; i < repetitions; ++i) {
        const Cost cost = measure(workload, cores);
        best = {std::min(best.cpu, cost.cpu), std::min(best.wall, cost.wall),
                std::min(best.waits, cost.waits)};
    }
    return best;
}

bool compare(const char* name, Workload& workload, std::size_t most) {
    std::printf("%s\n%6s %18s %18s %8s %22s\n", name, "cores", "ns of CPU time", "million/s a core",
                "ratio", "waits per million");
    const Cost alone = measure_best(workload, 1);
    bool good = true;
    for (std::size_t cores = 1;; cores = std::min(2 * cores, most)) {
        const Cost cost = cores == 1 ? alone : measure_best(workload, cores);
        const double ratio = cost.cpu / alone.cpu;
        std::printf("%6zu %18.1f %18.2f %8.2f %22.1f\n", cores, cost.cpu, 1e3 / cost.wall, ratio,
                    cost.waits);
        good = good && ratio <= limit;
        if (cores == most) return good;
    }
}

} // namespace

// The number of cores is an argument: at most this many, by default the CPUs.
int main(int argc, char** argv) try {
    const std::size_t cpus = ExecutorPool().size();
    const std::size_t most = argc > 1 ? std::max(1UL, std::strtoul(argv[1], nullptr, 10)) : cpus;
    if (most > cpus) std::printf("note: %zu cores on %zu CPUs take turns\n", most, cpus);
    const bool ready = compare("Completions that are there:", poll_ready, most);
    const bool late = compare("Completions that are waited for, 16 at a time:", poll_late, most);
    std::printf("beside others at most %.1f of the CPU time alone: %s\n", limit,
                ready && late ? "good" : "TOO MUCH");
    return ready && late ? 0 : 1;
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
