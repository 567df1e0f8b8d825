// SPDX-License-Identifier: MIT
// Lack of memory: each allocation fails once, and all of them from the n-th on. Each operation
// completes or reports an error, no coroutine is left behind, and the queues are usable afterwards.
#include "rdma/fixture.hpp"

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/rdma/async_srq.hpp>
#include <asyncverbs/rdma/buffer_pool.hpp>
#include <asyncverbs/rdma/stream.hpp>

#include <array>
#include <cerrno>
#include <cstddef>
#include <exception>
#include <initializer_list>
#include <new>
#include <optional>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <system_error>
#include <utility>
#include <vector>

#include "support/counters.hpp"

using namespace asyncverbs;
using namespace asyncverbs::support;

namespace {

constexpr QueuePairOptions small{.max_send_wr = 2,
                                 .max_recv_wr = 2,
                                 .max_send_sge = 2,
                                 .max_recv_sge = 2,
                                 .max_inline_data = 16};
constexpr QueuePairOptions datagrams{
    .type = IBV_QPT_UD, .max_send_wr = 2, .max_recv_wr = 2, .max_send_sge = 2, .max_recv_sge = 2};

// Allocations of the simulated device do not fail.
struct RdmaNoMemoryFixture : RouterFixture {
    explicit RdmaNoMemoryFixture(const QueuePairOptions& options)
        : RouterFixture(simulated::rxe, options) {
        sim.on_call([this](const simulated::Call& call) {
            if (call.moment == simulated::Call::Moment::before) {
                shelter.emplace();
            } else {
                shelter.reset();
            }
        });
    }
    ~RdmaNoMemoryFixture() { sim.on_call(nullptr); }

    template <class Function>
    void with_memory(Function function) {
        const FailureShelter sheltered;
        function();
    }
    std::array<Slice, 2> two(std::size_t at) const { return {slice(at, 4), slice(at + 4, 4)}; }

    // Everything that is posted completes: a send whose receive was not posted for lack of memory
    // is flushed.
    void settle() {
        run();
        a->queue_pair().to_error();
        b->queue_pair().to_error();
        run();
    }

    std::optional<FailureShelter> shelter;
};

// The outcome of an operation whose error has to be reported even if there is no memory.
struct Outcome {
    std::error_code error;
    bool done = false;
};

// Refers to the operation. Its frame is made while there is memory, as that of a service that
// waits already.
Coroutine watch(Operation& operation, Outcome& outcome, std::stop_token stop = {}) {
    co_await operation.wait(outcome.error, std::move(stop));
    outcome.done = true;
}

// Waits for all of them. The last request of a queue pair may have been rejected.
Coroutine finish_all(std::span<Operation> operations) {
    for (Operation& operation : operations) {
        std::error_code error;
        co_await operation.wait(error);
    }
}

void expect_done(std::initializer_list<const Coroutine*> coroutines) {
    for (const Coroutine* each : coroutines) {
        if (!each->done()) throw std::logic_error("a coroutine was left behind");
    }
    for (const Coroutine* each : coroutines) each->get();
}

Coroutine write(Stream& stream) {
    const std::array<std::byte, 64> data{};
    co_await stream.write_all(data);
    co_await stream.shutdown_write();
}

Coroutine read(Stream& stream) {
    std::array<std::byte, 64> data;
    std::size_t count = 1;
    while (count > 0) {
        count = co_await stream.read_some(data);
    }
    co_await stream.close();
}

Coroutine take_twice(BufferPool<EpollExecutor>& pool, std::stop_token stop) {
    for (int i = 0; i < 2; ++i) {
        const PooledBuffer buffer = co_await pool.acquire(stop);
    }
}

struct Sweep {
    const char* name;
    void (*run)(RdmaNoMemoryFixture&);
    const QueuePairOptions& options = small;
    bool breaks_queue = false; // the completion queue or the queue pair
};

const auto sweeps = std::to_array<Sweep>({
    {"a queue pair",
     [](RdmaNoMemoryFixture& f) {
         AsyncQp qp(*f.router, f.domain, small);
         qp.queue_pair().init();
         const Operation receive = qp.recv(f.two(0));
     }},
    {"send and receive",
     [](RdmaNoMemoryFixture& f) {
         std::array<Operation, 2> operations{f.b->recv(f.two(100)), f.a->send(f.two(0))};
         const Coroutine all = finish_all(operations);
         f.run();
         expect_done({&all});
     }},
    {"write, read and atomics",
     [](RdmaNoMemoryFixture& f) {
         std::array<Operation, 4> operations{
             f.a->write(f.two(0), f.remote(200, 8)), f.a->read(f.two(8), f.remote(200, 8)),
             f.a->fetch_and_add(f.slice(16, 8), f.remote(208, 8), 1),
             f.a->compare_and_swap(f.slice(24, 8), f.remote(208, 8), 1, 2)};
         const Coroutine all = finish_all(operations);
         f.run();
         expect_done({&all});
     }},
    {"more than there is room for",
     [](RdmaNoMemoryFixture& f) {
         std::array<Operation, 10> operations;
         const Coroutine all = [](RdmaNoMemoryFixture& g,
                                  std::span<Operation> posted) -> Coroutine {
             for (std::size_t i = 0; i < posted.size(); i += 2) {
                 posted[i] = g.b->recv(g.two(100));
                 posted[i + 1] = g.a->send(g.two(0), {.signaled = false});
             }
             for (Operation& operation : posted) co_await operation;
         }(f, operations);
         f.run();
         if (!all.done()) f.settle();
         expect_done({&all});
     }},
    {"a chain that is too long",
     [](RdmaNoMemoryFixture& f) {
         std::array<Operation, 5> operations;
         const std::array<Slice, 2> slices = f.two(0);
         const std::vector<SendRequest> requests(
             operations.size(), SendRequest::write(slices, f.remote(200, 8), {.signaled = false}));
         const auto posts = f.sim.calls("ibv_post_send");
         try {
             f.a->post(requests, operations);
         } catch (const std::bad_alloc&) {
             if (f.sim.calls("ibv_post_send") != posts) throw std::logic_error("it was posted");
             for (const Operation& operation : operations) {
                 if (operation.done()) throw std::logic_error("it has completed");
             }
             throw;
         }
         Operation last = f.a->write(slices, f.remote(200, 8));
         const Coroutine all = finish_all(operations);
         f.run();
         expect_done({&all});
     }},
    {"a chain that is rejected in the middle",
     [](RdmaNoMemoryFixture& f) {
         std::array<Operation, 4> operations;
         const std::array<Slice, 2> slices = f.two(0);
         const std::array<SendRequest, 4> requests{
             SendRequest::write(slices, f.remote(200, 8)),
             SendRequest::write(f.slice(0, 100), f.remote(200, 100), {.inline_data = true}),
             SendRequest::write(slices, f.remote(200, 8)),
             SendRequest::write(slices, f.remote(200, 8))};
         f.a->post(requests, operations);
         std::array<Outcome, 4> outcomes;
         const Coroutine watched[] = {
             watch(operations[0], outcomes[0]), watch(operations[1], outcomes[1]),
             watch(operations[2], outcomes[2]), watch(operations[3], outcomes[3])};
         f.run();
         if (!outcomes[0].done || outcomes[0].error) throw std::logic_error("it was posted");
         for (std::size_t i = 1; i < 4; ++i) {
             if (outcomes[i].error != std::errc::invalid_argument) throw std::logic_error("why");
         }
     }},
    {"requests that are rejected",
     [](RdmaNoMemoryFixture& f) {
         f.with_memory([&] {
             f.sim.fail("ibv_post_send", {.error = EINVAL});
             f.sim.fail("ibv_post_recv", {.error = EINVAL});
         });
         Operation operations[] = {f.a->send(f.two(0)), f.a->recv(f.two(0))};
         std::array<Outcome, 2> outcomes;
         const Coroutine watched[] = {watch(operations[0], outcomes[0]),
                                      watch(operations[1], outcomes[1])};
         for (const Outcome& outcome : outcomes) {
             if (outcome.error != std::errc::invalid_argument) throw std::logic_error("why");
         }
     }},
    {"requests that are rejected when there is room",
     [](RdmaNoMemoryFixture& f) {
         f.with_memory([&] { f.sim.hold_delivery(); });
         std::array<Operation, 4> operations;
         for (Operation& operation : operations) {
             operation = f.a->write(f.slice(0, 8), f.remote(200, 8));
         }
         std::array<Outcome, 2> outcomes;
         const Coroutine watched[] = {watch(operations[2], outcomes[0]),
                                      watch(operations[3], outcomes[1])};
         f.with_memory([&] {
             f.sim.fail("ibv_post_send", {.error = EINVAL, .times = 2});
             f.sim.release_delivery();
         });
         f.run();
         for (const Outcome& outcome : outcomes) {
             if (outcome.error != std::errc::invalid_argument) throw std::logic_error("why");
         }
     }},
    {"a datagram",
     [](RdmaNoMemoryFixture& f) {
         const AddressHandle peer(f.domain, f.a->queue_pair(), f.b->queue_pair().local_address());
         std::array<Operation, 2> operations{
             f.b->recv(f.slice(100, 100)),
             f.a->send_to(f.slice(0, 8), peer, f.b->queue_pair().qp_num(), 0x11111111)};
         const Coroutine all = finish_all(operations);
         f.run();
         expect_done({&all});
     },
     datagrams},
    {"a request that fails, and those behind it",
     [](RdmaNoMemoryFixture& f) {
         f.with_memory([&] { f.sim.hold_delivery(); });
         std::array<Operation, 4> operations;
         for (Operation& operation : operations) operation = f.a->send(f.slice(0, 8));
         Outcome outcome;
         const Coroutine watched = watch(operations[1], outcome);
         const Coroutine thrown = [](Operation& failed) -> Coroutine {
             co_await failed;
         }(operations[3]);
         f.with_memory([&] { f.sim.time_out(); });
         f.run();
         if (outcome.error != make_wc_error(IBV_WC_RETRY_EXC_ERR)) throw std::logic_error("why");
         expect_done({&watched, &thrown});
     },
     small, true},
    {"a completion queue that fails",
     [](RdmaNoMemoryFixture& f) {
         Operation receive = f.b->recv(f.slice(100, 8));
         Outcome outcome;
         const Coroutine watched = watch(receive, outcome);
         f.with_memory([&] { f.sim.fail("ibv_poll_cq"); });
         f.run();
         if (!outcome.error) throw std::logic_error("why");
         expect_done({&watched});
     },
     small, true},
    {"drain",
     [](RdmaNoMemoryFixture& f) {
         std::array<Operation, 2> operations{
             f.a->recv(f.two(0)), f.a->write(f.two(0), f.remote(200, 8), {.signaled = false})};
         const Coroutine drain = [](AsyncQp& qp) -> Coroutine { co_await qp.drain(); }(*f.a);
         f.run();
         if (drain.done()) drain.get();
         expect_done({&drain});
     },
     small, true},
    {"a stop",
     [](RdmaNoMemoryFixture& f) {
         std::optional<std::stop_source> stop;
         f.with_memory([&] { stop.emplace(); });
         Operation receive = f.b->recv(f.slice(100, 8));
         Outcome outcome;
         const Coroutine watched = watch(receive, outcome, stop->get_token());
         stop->request_stop();
         f.run();
         if (!outcome.error) throw std::logic_error("why");
         expect_done({&watched});
     },
     small, true}, // the wait after a stop needs memory
    {"a queue pair that is destroyed",
     [](RdmaNoMemoryFixture& f) {
         std::optional<AsyncQp> qp(std::in_place, *f.router, f.domain, small);
         qp->queue_pair().init();
         Operation receive = qp->recv(f.slice(100, 8));
         Outcome outcome;
         const Coroutine watched = watch(receive, outcome);
         qp.reset();
         f.run();
         if (outcome.error != std::errc::operation_canceled) {
             // The router may have failed instead, as it was woken for this.
             if (!outcome.error) throw std::logic_error("why");
         }
         expect_done({&watched});
     },
     small, true},
    {"receives that queue pairs share",
     [](RdmaNoMemoryFixture& f) {
         AsyncSrq srq(*f.router, f.domain, {.max_wr = 2, .max_sge = 2});
         AsyncQp receiver(*f.router, f.domain, srq, small);
         AsyncQp sender(*f.router, f.domain, small);
         receiver.queue_pair().init();
         sender.queue_pair().connect(receiver.queue_pair().local_address());
         receiver.queue_pair().connect(sender.queue_pair().local_address());
         std::array<Operation, 6> operations;
         const Coroutine all = [](AsyncSrq& from, AsyncQp& qp, RdmaNoMemoryFixture& g,
                                  std::span<Operation> posted) -> Coroutine {
             for (std::size_t i = 0; i < posted.size(); i += 2) {
                 posted[i] = from.recv(g.two(100));
                 posted[i + 1] = qp.send(g.two(0));
             }
             for (Operation& operation : posted) co_await operation;
         }(srq, sender, f, operations);
         f.run();
         expect_done({&all});
     }},
    {"a stream",
     [](RdmaNoMemoryFixture& f) {
         constexpr StreamOptions options{.buffer_size = 16, .buffers = 2};
         AsyncQp qps[] = {AsyncQp(*f.router, f.domain, Stream::queue_pair_options(options)),
                          AsyncQp(*f.router, f.domain, Stream::queue_pair_options(options))};
         qps[0].queue_pair().init();
         qps[1].queue_pair().init();
         std::optional<Stream> from(std::in_place, std::move(qps[0]), f.domain, options);
         std::optional<Stream> to(std::in_place, std::move(qps[1]), f.domain, options);
         from->queue_pair().connect(to->queue_pair().local_address());
         to->queue_pair().connect(from->queue_pair().local_address());
         const Coroutine writing = write(*from);
         const Coroutine reading = read(*to);
         f.run();
         f.run();
         if (writing.done()) writing.get();
         if (reading.done()) reading.get();
         expect_done({&writing, &reading});
     },
     small, true},
    {"a stream that breaks",
     [](RdmaNoMemoryFixture& f) {
         constexpr StreamOptions options{.buffer_size = 16, .buffers = 2};
         AsyncQp qp(*f.router, f.domain, Stream::queue_pair_options(options));
         qp.queue_pair().init();
         Stream stream(std::move(qp), f.domain, options);
         const Coroutine reading = read(stream);
         const Coroutine writing = write(stream);
         stream = Stream(AsyncQp(*f.router, f.domain, Stream::queue_pair_options(options)),
                         f.domain, options);
         f.run();
         expect_done({&reading, &writing});
     },
     small, true},
    {"buffers of a pool",
     [](RdmaNoMemoryFixture& f) {
         std::optional<EpollExecutor> executor;
         std::optional<std::stop_source> stop;
         f.with_memory([&] {
             executor.emplace();
             stop.emplace();
         });
         BufferPool pool(*executor, f.domain, 1, 64);
         std::optional<PooledBuffer> held = pool.try_acquire();
         const Coroutine waiters[] = {take_twice(pool, {}), take_twice(pool, stop->get_token()),
                                      take_twice(pool, {})};
         held.reset();
         stop->request_stop();
         for (int i = 0; i < 20; ++i) executor->run_once();
         if (!waiters[1].done()) throw std::logic_error("a coroutine was left behind");
         expect_done({&waiters[0], &waiters[2]});
         if (pool.available() != 1) throw std::logic_error("a buffer was lost");
     }},
});

// Only a lack of memory may end it, or the failure that the sweep causes.
void attempt(const Sweep& sweep, RdmaNoMemoryFixture& f) {
    try {
        sweep.run(f);
    } catch (const std::bad_alloc&) {
    } catch (const std::system_error& error) {
        if (!sweep.breaks_queue) throw;
    }
}

void check_usable(RdmaNoMemoryFixture& f) {
    std::vector<Operation> receives;
    for (std::size_t i = 0; i < 8; ++i) receives.push_back(f.b->recv(f.slice(100, 64)));
    Operation last; // the others may take receives that the sweep has abandoned
    for (int i = 0; i < 4; ++i) {
        if (f.a->queue_pair().options().type == IBV_QPT_UD) {
            const AddressHandle peer(f.domain, f.a->queue_pair(),
                                     f.b->queue_pair().local_address());
            last = f.a->send_to(f.slice(0, 8), peer, f.b->queue_pair().qp_num(), 0x11111111);
        } else {
            last = f.a->send(f.slice(0, 8));
        }
    }
    const Awaiting sent(std::move(last));
    f.run();
    CHECK(sent.completion);
    CHECK(receives.front().done());
}

void check_drains(RdmaNoMemoryFixture& f) {
    const Draining a(*f.a);
    const Draining b(*f.b);
    f.run();
    CHECK(a.done());
    CHECK(b.done());
}

} // namespace

TEST_CASE("no memory: operations of queue pairs", "[rdma][no_memory]") {
    const bool once = GENERATE(true, false);
    for (const Sweep& sweep : sweeps) {
        bool failed = true;
        std::size_t skip = 0;
        for (; failed; ++skip) {
            INFO(sweep.name << (once ? ": only allocation " : ": all from allocation ") << skip);
            RdmaNoMemoryFixture f(sweep.options);
            once ? fail_allocation(skip) : run_out_of_memory(skip);
            std::exception_ptr wrong;
            try {
                attempt(sweep, f);
            } catch (...) {
                wrong = std::current_exception();
            }
            failed = stop_failing();
            if (wrong) std::rethrow_exception(wrong);
            f.sim.clear_failures();
            f.sim.release_delivery();
            if (!sweep.breaks_queue) check_usable(f);
            check_drains(f);
            REQUIRE(skip < 1000);
        }
        CHECK(skip > 1);
    }
}
