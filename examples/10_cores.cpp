// SPDX-License-Identifier: MIT
// cores: one executor and one completion queue per core. The cores form a ring: each sends messages
// to the next one by RDMA, on queue pairs of its own, and shares nothing with the others but the
// device. Where they have to speak to each other, a coroutine goes to the other core, or a function
// is posted to it. An argument says how many cores, instead of all CPUs.
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

// All that belongs to a core, made on its thread. Its completion queue has a vector of its own, so
// that another CPU hears of its completions than of those of its neighbours, and its memory region
// is its own: of one that all share, all would count the references.
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

// Visits the next core: its objects are for its thread alone.
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

// `sum` is of core 0, on which functions are called one after the other: no lock.
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

void run(std::size_t count) {
    const char* device = std::getenv("RDMA_DEVICE");
    const ProtectionDomain domain(Context::open(device != nullptr ? device : ""));
    ExecutorPool pool({.size = count});
    Cores cores(pool.size());
    pool.run([&](EpollExecutor& executor, std::size_t index) {
        return set_up(cores, domain, executor, index);
    });
    std::uint64_t sum = 0;
    pool.run([&](EpollExecutor&, std::size_t index) { return talk(cores, index, sum); });
    std::printf("%llu messages between %zu cores\n", static_cast<unsigned long long>(sum),
                pool.size());
}

} // namespace

int main(int argc, char** argv) try {
    char* end = nullptr;
    const unsigned long count = argc > 1 ? std::strtoul(argv[1], &end, 10) : 0;
    if (argc > 2 || (argc > 1 && (*end != '\0' || count < 1 || count > 1024))) {
        throw std::runtime_error("usage: cores [COUNT], from 1 to 1024");
    }
    run(count);
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
