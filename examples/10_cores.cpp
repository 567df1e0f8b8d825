// SPDX-License-Identifier: MIT
// cores: one executor and one completion queue per core. The cores form a ring: each sends messages
// to the next one by RDMA, on its own queue pairs, and shares only the device with the others. To
// reach another core, a coroutine moves to its executor, or a function is posted there. The
// argument is the number of cores; without it, every CPU is one.
#include "program.hpp"

#include <asyncverbs/executor/executor_pool.hpp>
#include <asyncverbs/rdma.hpp>

#include <sched.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

using namespace asyncverbs;

namespace {

constexpr std::uint64_t messages = 2000;
constexpr std::size_t size = 64;
constexpr QueuePairOptions one_way{.max_send_wr = 1, .max_recv_wr = 2};

// Everything of a core, created on its thread. Its completion queue has its own vector, so that its
// interrupts go to another CPU than those of its neighbours. Its memory region is its own as well:
// on a shared one, all cores would count references.
struct Core {
    Core(EpollExecutor& loop, const ProtectionDomain& domain, std::size_t index)
        : executor(loop), vector(static_cast<int>(index) % domain.context().num_comp_vectors()),
          router(AsyncCq::create(CompletionQueue(domain.context(), 64, vector), loop)),
          memory(MemoryRegion::allocate(domain, 3 * size)), to_next(router, domain, one_way),
          from_previous(router, domain, one_way) {
        from_previous.queue_pair().init();
        for (std::size_t i = 0; i < 2; ++i) receives[i] = post_receive(i);
    }

    Slice slice(std::size_t i) const { return memory.slice(i * size, size); }
    Operation post_receive(std::size_t i) { return from_previous.post_recv(slice(i)); }

    EpollExecutor& executor;
    int vector;
    Router router;
    MemoryRegion memory; // two messages to receive, one to send
    AsyncQp to_next;
    AsyncQp from_previous;
    Operation receives[2];
};

// Moves to the next core and back: only a core's own thread may use its objects.
Task<> connect(Core& here, Core& next) {
    const QueuePairAddress address = here.to_next.queue_pair().local_address();
    co_await next.executor.schedule();
    next.from_previous.queue_pair().connect(address);
    const QueuePairAddress next_address = next.from_previous.queue_pair().local_address();
    co_await here.executor.schedule();
    here.to_next.queue_pair().connect(next_address);
}

Task<> send_all(Core& core) {
    const Slice message = core.slice(2);
    for (std::uint64_t i = 0; i < messages; ++i) {
        std::memcpy(message.address, &i, sizeof i);
        co_await core.to_next.send(message);
    }
}

Task<> receive_all(Core& core) {
    for (std::uint64_t i = 0; i < messages; ++i) {
        Operation& receive = core.receives[i % 2];
        co_await receive;
        std::uint64_t number = 0;
        std::memcpy(&number, core.slice(i % 2).address, sizeof number);
        if (number != i) throw std::runtime_error("a message is lost");
        receive = core.post_receive(i % 2);
    }
}

using Cores = std::vector<std::optional<Core>>;

Task<> set_up(Cores& cores, const ProtectionDomain& domain, EpollExecutor& executor,
              std::size_t index) {
    cores[index].emplace(executor, domain, index);
    co_return;
}

// `sum` belongs to core 0, which calls the posted functions one after the other: no lock.
Task<> talk(Cores& cores, std::size_t index, std::uint64_t& sum) {
    Core& core = *cores[index];
    co_await connect(core, *cores[(index + 1) % cores.size()]);
    co_await when_all(send_all(core), receive_all(core));

    const int cpu = ::sched_getcpu();
    const CqStatistics& cost = core.router.statistics();
    cores[0]->executor.post([&sum, index, cpu, vector = core.vector, wakes = cost.wakes] {
        std::printf("core %zu: CPU %d, completion vector %d: %llu messages, %llu sleeps\n", index,
                    cpu, vector, static_cast<unsigned long long>(messages),
                    static_cast<unsigned long long>(wakes));
        sum += messages;
    });
}

struct Options {
    std::optional<std::size_t> count; // none: every CPU
};

void run(const Options& options) {
    const char* device = std::getenv("RDMA_DEVICE");
    const ProtectionDomain domain(Context::open(device != nullptr ? device : ""));
    ExecutorPool pool({.size = options.count.value_or(0)});
    Cores cores(pool.size());
    pool.run([&](EpollExecutor& executor, std::size_t index) {
        return set_up(cores, domain, executor, index);
    });
    std::uint64_t sum = 0;
    pool.run([&](EpollExecutor&, std::size_t index) { return talk(cores, index, sum); });
    std::printf("%llu messages between %zu cores\n", static_cast<unsigned long long>(sum),
                pool.size());
}

void add_options(CLI::App& app, Options& options) {
    app.description("Cores that send messages to each other by RDMA, in a ring.");
    app.add_option("COUNT", options.count, "The number of cores (default: every CPU)")
        ->check(CLI::Range(1u, 1024u));
}

} // namespace

int main(int argc, char** argv) { return program::main(argc, argv, add_options, run); }
