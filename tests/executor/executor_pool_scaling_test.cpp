// SPDX-License-Identifier: MIT
// One AsyncCq per core of an ExecutorPool: a core makes the same calls whatever the others do, and
// no core waits for another one. tests/benchmarks/cores.cpp measures how it scales.
#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/executor/executor_pool.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/router.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/verbs/memory.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/counters.hpp"

using namespace asyncverbs;
using asyncverbs::support::Counters;
using asyncverbs::support::counters;

namespace {

constexpr std::size_t batch = 16;
constexpr std::size_t batches = 2000;

// What one core did from when all were ready until its end.
struct Work {
    Counters cost;
    CqStatistics statistics;
    std::size_t completions = 0;
};

// The device writes a batch in each iteration of the loop.
Task<> complete(simulated::SimulatedVerbs& sim, ibv_cq* cq, EpollExecutor& executor) {
    for (std::size_t i = 0; i < batches; ++i) {
        for (std::size_t j = 0; j < batch; ++j) sim.complete(cq, i * batch + j);
        co_await executor.schedule();
    }
}

Task<> consume(AsyncCq& cq, std::size_t& completions) {
    std::array<ibv_wc, batch> wcs;
    while (completions < batches * batch) {
        for (const ibv_wc& wc : co_await cq.poll(wcs)) {
            if (wc.wr_id != completions++) throw std::logic_error("not in order");
        }
    }
}

std::vector<Work> work_on(std::size_t cores) {
    simulated::SimulatedVerbs sim;
    const Context context = Context::open();
    context.native_handle()->num_comp_vectors = 4;
    ExecutorPool pool({.size = cores});
    // They outlive the run, so that none is destroyed while others work.
    std::vector<std::optional<AsyncCq>> cqs(cores);
    std::vector<Work> works(cores);
    std::atomic<std::size_t> ready = 0;
    pool.run([&](EpollExecutor& executor, std::size_t index) -> Task<> {
        const int vector = static_cast<int>(index) % context.num_comp_vectors();
        AsyncCq& cq = cqs[index].emplace(
            AsyncCq::create(CompletionQueue(context, 2 * batch, vector), executor));
        sim.complete(cq.native_handle(), 0); // a thread's first calls take a lock
        co_await cq.poll_wr_id(0);
        for (++ready; ready < cores;) std::this_thread::yield();

        Work& work = works[index];
        const Counters before = counters();
        Scope scope;
        scope.spawn(consume(cq, work.completions));
        scope.spawn(complete(sim, cq.native_handle(), executor));
        co_await scope.join();
        work.cost = counters() - before;
        work.statistics = cq.statistics();
    });
    return works;
}

} // namespace

TEST_CASE("scaling: a core makes the same calls beside others as alone", "[executor_pool]") {
    const Work alone = work_on(1).front();
    CHECK(alone.completions == batches * batch);
    CHECK(alone.statistics.events >= batches); // it sleeps after each batch
    for (const Work& work : work_on(4)) {
        CHECK(work.completions == alone.completions);
        CHECK(work.statistics.polls == alone.statistics.polls);
        CHECK(work.statistics.arms == alone.statistics.arms);
        CHECK(work.statistics.wakes == alone.statistics.wakes);
        CHECK(work.statistics.acks == alone.statistics.acks);
        CHECK(work.cost.system_calls() == alone.cost.system_calls());
        CHECK(work.cost.write == 0); // no core wakes another one
        CHECK(work.cost.mutex_lock == 0);
    }
}

TEST_CASE("scaling: operations of a queue pair take no lock", "[executor_pool]") {
    simulated::SimulatedVerbs sim;
    const ProtectionDomain domain(Context::open());
    const MemoryRegion memory = MemoryRegion::allocate(domain, 128);
    ExecutorPool pool({.size = 1});
    Counters creation; // this locks: AsyncCqs are registered
    Counters cost;
    pool.run([&](EpollExecutor& executor, std::size_t) -> Task<> {
        const Counters start = counters();
        Router router = Router::create(domain.context(), 128, executor);
        AsyncQp a(router, domain);
        AsyncQp b(router, domain);
        a.queue_pair().connect(b.queue_pair().local_address());
        b.queue_pair().connect(a.queue_pair().local_address());
        creation = counters() - start;
        Counters before;
        for (int i = 0; i < 100; ++i) {
            if (i == 1) before = counters();
            Operation receive = b.post_recv(memory.slice(64, 64));
            co_await a.send(memory.slice(0, 64));
            co_await receive;
        }
        cost = counters() - before;
    });
    CHECK(creation.mutex_lock > 0);
    CHECK(cost.mutex_lock == 0);
    CHECK(cost.write == 0);
}
