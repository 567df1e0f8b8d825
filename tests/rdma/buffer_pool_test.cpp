// SPDX-License-Identifier: MIT
#include <asyncverbs/rdma/buffer_pool.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/coro/when_all.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/executor/with_timeout.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/router.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>

#include "proof/interleavings.hpp"
#include "rdma/fixture.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"
#include "verbs/failure.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using simulated::SimulatedVerbs;
using support::contains;
using support::Coroutine;
using support::failure_text;

using Pool = BufferPool<EpollExecutor>;

static_assert(!std::is_copy_constructible_v<Pool>);
static_assert(std::is_nothrow_move_constructible_v<Pool>);
// A slice of a temporary would be of a buffer that is back in the pool.
static_assert(std::is_convertible_v<const PooledBuffer&, Slice>);
static_assert(!std::is_convertible_v<PooledBuffer, Slice>);

namespace {

struct BufferPoolFixture {
    explicit BufferPoolFixture(std::size_t count)
        : pool(std::in_place, executor, domain, count, 100) {}

    // Why a pool cannot be made.
    std::string refusal(std::size_t count, std::size_t size, int access = IBV_ACCESS_LOCAL_WRITE) {
        return failure_text(std::errc::invalid_argument,
                            [&] { const Pool refused(executor, domain, count, size, access); });
    }

    // Everything that is ready.
    void run() {
        while (executor.run_once()) {
        }
    }

    SimulatedVerbs verbs;
    ProtectionDomain domain{Context::open("sim0")};
    EpollExecutor executor;
    std::optional<Pool> pool;
};

// A coroutine that acquires a buffer, and its outcome.
struct Waiter {
    template <class Loop>
    explicit Waiter(BufferPool<Loop>& pool) : coroutine(acquire(pool, *this)) {}
    Waiter(const Waiter&) = delete;
    Waiter& operator=(const Waiter&) = delete;

    bool delivered() const { return buffer.has_value(); }
    bool waits() const { return !coroutine.done(); }
    std::string error() const {
        return failure_text(std::errc::operation_canceled, [&] { coroutine.get(); });
    }

    template <class Loop>
    static Coroutine acquire(BufferPool<Loop>& pool, Waiter& self) {
        self.buffer = co_await pool.acquire(self.stop.get_token());
    }

    std::stop_source stop;
    std::optional<PooledBuffer> buffer;
    Coroutine coroutine;
};

} // namespace

TEST_CASE("BufferPool: each buffer is acquired once", "[rdma][buffer_pool]") {
    BufferPoolFixture f(3);
    CHECK(f.pool->count() == 3);
    CHECK(f.pool->buffer_size() == 100);
    CHECK(f.pool->available() == 3);
    std::vector<PooledBuffer> buffers;
    while (std::optional<PooledBuffer> buffer = f.pool->try_acquire()) {
        const std::span<std::byte> bytes = buffer->bytes();
        CHECK(reinterpret_cast<std::uintptr_t>(bytes.data()) % 64 == 0);
        CHECK(std::ranges::count(bytes, std::byte{0}) == 100);
        std::ranges::fill(bytes, std::byte{1});
        buffers.push_back(std::move(*buffer));
        CHECK(f.pool->available() == 3 - buffers.size());
    }
    CHECK(buffers.size() == 3);
    std::byte* const last = buffers.back().bytes().data();
    buffers.pop_back();
    const Waiter waiter(*f.pool);
    REQUIRE(waiter.delivered()); // without the loop
    CHECK(waiter.buffer->bytes().data() == last);
    CHECK(f.pool->region().bytes().data() == buffers.front().bytes().data());
}

TEST_CASE("BufferPool: the slices of a buffer", "[rdma][buffer_pool]") {
    BufferPoolFixture f(2);
    const std::optional<PooledBuffer> other = f.pool->try_acquire();
    std::optional<PooledBuffer> buffer = f.pool->try_acquire();
    const Slice whole = buffer->slice();
    CHECK(whole.address == other->slice().address + 128);
    CHECK(whole.length == 100);
    CHECK(whole.lkey == f.pool->region().lkey());
    CHECK(buffer->slice(10, 20).slice(5).address == whole.address + 15);
    CHECK(buffer->slice(90).length == 10);
    CHECK_THROWS_WITH(buffer->slice(90, 11), contains("outside its region of size 100"));

    PooledBuffer moved(std::move(*buffer));
    CHECK(buffer->slice().length == 0);
    CHECK(buffer->bytes().empty());
    buffer.reset();
    CHECK(f.pool->available() == 0);
    moved = PooledBuffer();
    CHECK(f.pool->available() == 1);
}

TEST_CASE("BufferPool: what it cannot be made of", "[rdma][buffer_pool]") {
    BufferPoolFixture f(1);
    constexpr std::size_t most = std::numeric_limits<std::size_t>::max();
    CHECK_THAT(f.refusal(0, 64), contains("a pool of 0 buffers of 64 bytes cannot be"));
    CHECK_THAT(f.refusal(2, 0), contains("a pool of 2 buffers of 0 bytes cannot be"));
    CHECK_THAT(f.refusal(1, most), contains("cannot be"));
    CHECK_THAT(f.refusal(most, 1), contains("cannot be"));
    CHECK_THAT(f.refusal(2, most / 2), contains("cannot be"));
    CHECK_THAT(f.refusal(most / 64 + 1, 1), contains("cannot be"));
    CHECK(f.verbs.calls("ibv_reg_mr") == 1); // the fixture's
    // The access is passed on: a remote write without a local one is refused.
    CHECK(f.refusal(1, 64, IBV_ACCESS_REMOTE_WRITE) == "ibv_reg_mr: Invalid argument");
}

TEST_CASE("BufferPool: waiters are served in order, by the loop", "[rdma][buffer_pool]") {
    BufferPoolFixture f(1);
    std::optional<PooledBuffer> held = f.pool->try_acquire();
    Waiter first(*f.pool);
    Waiter second(*f.pool);
    Waiter third(*f.pool);
    f.run();
    CHECK(first.waits());
    held.reset();
    CHECK_FALSE(first.delivered()); // not inside the destructor of the buffer
    CHECK_FALSE(f.pool->try_acquire());
    f.run();
    REQUIRE(first.delivered());
    CHECK(second.waits());
    first.buffer.reset();
    f.run();
    REQUIRE(second.delivered());
    second.buffer.reset();
    f.run();
    REQUIRE(third.delivered());
    third.buffer.reset();
    CHECK(f.pool->available() == 1);
}

TEST_CASE("BufferPool: acquiring allocates nothing", "[rdma][buffer_pool]") {
    BufferPoolFixture f(1);
    struct Local {
        static Coroutine acquire(Pool& pool, std::stop_token stop, int times) {
            for (int i = 0; i < times; ++i) const PooledBuffer buffer = co_await pool.acquire(stop);
        }
    };
    const std::stop_source stop;
    std::optional<PooledBuffer> held = f.pool->try_acquire();
    const support::Counters before = support::counters();
    const Coroutine coroutine = Local::acquire(*f.pool, stop.get_token(), 10);
    held.reset();
    f.run();
    const support::Counters cost = support::counters() - before;
    CHECK(coroutine.done());
    CHECK(cost.allocations == 1); // the coroutine
}

TEST_CASE("BufferPool: many waiters need no stack", "[rdma][buffer_pool]") {
    BufferPoolFixture f(1);
    constexpr int waiters = 20000;
    struct Local {
        static Task<> acquire(Pool& pool, int& served) {
            const PooledBuffer buffer = co_await pool.acquire();
            ++served;
        }
    };
    int served = 0;
    Scope scope;
    std::optional<PooledBuffer> held = f.pool->try_acquire();
    for (int i = 0; i < waiters; ++i) scope.spawn(Local::acquire(*f.pool, served));
    held.reset();
    f.run();
    CHECK(served == waiters);
}

TEST_CASE("BufferPool: an acquisition can be moved until it is awaited", "[rdma][buffer_pool]") {
    BufferPoolFixture f(2);
    struct Local {
        static Task<std::size_t> both(Pool& pool) {
            auto [first, second] = co_await when_all(pool.acquire(), pool.acquire());
            co_return pool.available();
        }
    };
    CHECK(f.executor.run(Local::both(*f.pool)) == 0);
    CHECK(f.pool->available() == 2);
}

// --- cancellation ---

TEST_CASE("BufferPool: a stop before there is a buffer cancels", "[rdma][buffer_pool]") {
    BufferPoolFixture f(1);
    std::optional<PooledBuffer> held = f.pool->try_acquire();
    Waiter first(*f.pool);
    Waiter second(*f.pool);
    first.stop.request_stop();
    CHECK(first.waits()); // not inside request_stop()
    f.run();
    CHECK_THAT(first.error(), contains("BufferPool::acquire"));
    CHECK(second.waits());
    held.reset();
    f.run();
    CHECK(second.delivered());
}

TEST_CASE("BufferPool: a token that was stopped before cancels at once", "[rdma][buffer_pool]") {
    BufferPoolFixture f(1);
    struct Local {
        static Coroutine acquire(Pool& pool, std::stop_token stop) {
            const PooledBuffer buffer = co_await pool.acquire(stop);
        }
    };
    std::stop_source stop;
    stop.request_stop();
    const Coroutine coroutine = Local::acquire(*f.pool, stop.get_token());
    REQUIRE(coroutine.done());
    (void)failure_text(std::errc::operation_canceled, [&] { coroutine.get(); });
    CHECK(f.pool->available() == 1);
}

TEST_CASE("BufferPool: a buffer that returns after a stop goes to the next waiter",
          "[rdma][buffer_pool]") {
    BufferPoolFixture f(1);
    std::optional<PooledBuffer> held = f.pool->try_acquire();
    Waiter first(*f.pool);
    Waiter second(*f.pool);
    first.stop.request_stop();
    held.reset();
    f.run();
    (void)first.error();
    REQUIRE(second.delivered());

    Waiter alone(*f.pool);
    alone.stop.request_stop();
    second.buffer.reset();
    CHECK(f.pool->available() == 1);
    f.run();
    (void)alone.error();
    CHECK(f.pool->available() == 1);
}

TEST_CASE("BufferPool: a buffer that was assigned before a stop is delivered",
          "[rdma][buffer_pool]") {
    BufferPoolFixture f(1);
    std::optional<PooledBuffer> held = f.pool->try_acquire();
    Waiter first(*f.pool);
    Waiter second(*f.pool);
    held.reset();
    first.stop.request_stop();
    f.run();
    CHECK(first.delivered());
    CHECK(second.waits());
}

// --- lifetimes ---

TEST_CASE("BufferPool: a coroutine that waits for a buffer may be destroyed",
          "[rdma][buffer_pool]") {
    BufferPoolFixture f(1);
    std::optional<PooledBuffer> held = f.pool->try_acquire();
    Waiter first(*f.pool);
    Waiter second(*f.pool);
    SECTION("while it waits") {
        first.coroutine.destroy();
        held.reset();
    }
    SECTION("after a buffer was assigned to it") {
        held.reset();
        first.coroutine.destroy();
    }
    SECTION("stopped") {
        first.stop.request_stop();
        first.coroutine.destroy();
        held.reset();
    }
    SECTION("and its stop comes later") {
        first.coroutine.destroy();
        first.stop.request_stop();
        held.reset();
    }
    f.run();
    REQUIRE(second.delivered());
    CHECK_FALSE(first.delivered());
    second.buffer.reset();
    CHECK(f.pool->available() == 1);
}

TEST_CASE("BufferPool: buffers and waiters outlive the pool", "[rdma][buffer_pool]") {
    BufferPoolFixture f(2);
    std::optional<PooledBuffer> first = f.pool->try_acquire();
    std::optional<PooledBuffer> second = f.pool->try_acquire();
    Waiter served(*f.pool);
    Waiter stopped(*f.pool);
    Waiter destroyed(*f.pool);
    f.pool.reset();
    CHECK(f.verbs.calls("ibv_dereg_mr") == 0);
    first->bytes().front() = std::byte{1};
    first.reset();
    stopped.stop.request_stop();
    f.run();
    REQUIRE(served.delivered());
    served.buffer->bytes().front() = std::byte{2};
    (void)stopped.error();
    served.buffer.reset();
    destroyed.coroutine.destroy();
    CHECK(f.verbs.calls("ibv_dereg_mr") == 0);
    second.reset();
    CHECK(f.verbs.calls("ibv_dereg_mr") == 1);
    CHECK(f.verbs.live_objects() == 2); // the domain and its device
}

TEST_CASE("BufferPool: a pool that was moved is the same pool", "[rdma][buffer_pool]") {
    BufferPoolFixture f(1);
    std::optional<PooledBuffer> held = f.pool->try_acquire();
    Waiter waiter(*f.pool);
    Pool moved(std::move(*f.pool));
    f.pool.reset();
    held.reset();
    f.run();
    CHECK(waiter.delivered());
    waiter.buffer.reset();
    CHECK(moved.available() == 1);
}

TEST_CASE("BufferPool: a waiting coroutine may outlive the executor", "[rdma][buffer_pool]") {
    SimulatedVerbs verbs;
    const ProtectionDomain domain(Context::open("sim0"));
    std::optional<EpollExecutor> executor(std::in_place);
    Pool pool(*executor, domain, 1, 64);
    std::optional<PooledBuffer> held = pool.try_acquire();
    Waiter first(pool);
    Waiter second(pool);
    Waiter third(pool);
    held.reset();
    second.stop.request_stop();
    executor.reset();
    CHECK(first.waits());
    first.coroutine.destroy();
    second.coroutine.destroy();
    third.coroutine.destroy();
    CHECK(pool.available() == 1);
}

TEST_CASE("BufferPool: a resumed coroutine may destroy other waiters and the pool",
          "[rdma][buffer_pool]") {
    BufferPoolFixture f(2);
    std::optional<PooledBuffer> first = f.pool->try_acquire();
    std::optional<PooledBuffer> second = f.pool->try_acquire();
    struct Local {
        static Coroutine destroy(BufferPoolFixture& fixture, std::optional<Waiter>& other) {
            const PooledBuffer buffer = co_await fixture.pool->acquire();
            other.reset();
            fixture.pool.reset();
        }
    };
    std::optional<Waiter> other;
    const Coroutine coroutine = Local::destroy(f, other);
    other.emplace(*f.pool);
    SECTION("which waits") { first.reset(); }
    SECTION("which a buffer was assigned to") {
        first.reset();
        second.reset();
    }
    f.run();
    REQUIRE(coroutine.done());
    CHECK_NOTHROW(coroutine.get());
    CHECK_FALSE(other);
}

// --- what operations hold ---

TEST_CASE("BufferPool: the buffer of a destroyed operation returns after its completion",
          "[rdma][buffer_pool]") {
    support::RouterFixture ends;
    EpollExecutor executor;
    Pool pool(executor, ends.domain, 3, 64);
    {
        std::vector<PooledBuffer> buffers;
        std::vector<Slice> scattered;
        while (std::optional<PooledBuffer> buffer = pool.try_acquire()) {
            scattered.push_back(buffer->slice(0, 2));
            buffers.push_back(std::move(*buffer));
        }
        const Operation forgotten = ends.b->post_recv(scattered);
    }
    CHECK(pool.available() == 0);
    ends.write(0, "hello");
    const Operation sent = ends.a->send(ends.slice(0, 5));
    ends.run();
    CHECK(sent.done());
    CHECK(pool.available() == 3);
}

TEST_CASE("BufferPool: the buffer of a read that timed out returns after its completion",
          "[rdma][buffer_pool][with_timeout]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    const ProtectionDomain domain(context);
    EpollExecutor loop;
    Router router = Router::create(context, 64, loop);
    AsyncQp a(router, domain, {.max_send_wr = 2}); // one of the reads has to wait for room
    AsyncQp b(router, domain);
    for (AsyncQp* qp : {&a, &b}) qp->queue_pair().init({.access = support::all_access});
    a.queue_pair().connect(b.queue_pair().local_address());
    b.queue_pair().connect(a.queue_pair().local_address());
    const MemoryRegion source = MemoryRegion::allocate(domain, 8, support::all_access);
    source.bytes()[0] = std::byte{42};
    const RemoteSlice remote = source.remote_slice();
    Pool pool(loop, domain, 3, 64);
    const auto read = [&](std::chrono::milliseconds time) -> Task<std::byte> {
        co_return co_await with_timeout(loop, time, [&](std::stop_token stop) -> Task<std::byte> {
            const PooledBuffer buffer = co_await pool.acquire(stop);
            co_await a.read(buffer.slice(0, 8), remote, {}, stop);
            co_return buffer.bytes()[0];
        });
    };
    sim.hold_delivery();
    for (int i = 0; i < 10; ++i) {
        CHECK_THROWS_WITH(loop.run(read(1ms)), contains("timed out"));
    }
    CHECK(pool.available() == 1); // that of the read that was not posted
    sim.release_delivery();
    CHECK(loop.run(read(1h)) == std::byte{42});
    while (loop.run_once()) {
    }
    CHECK(pool.available() == 3);
}

TEST_CASE("BufferPool: a buffer that is acquired again stays while its owner exists",
          "[rdma][buffer_pool]") {
    support::RouterFixture ends;
    EpollExecutor executor;
    Pool pool(executor, ends.domain, 1, 64);
    for (int i = 0; i < 2; ++i) {
        const std::optional<PooledBuffer> buffer = pool.try_acquire();
        const Operation written = ends.a->write(buffer->slice(0, 8), ends.remote(200, 8));
        ends.run();
        CHECK(written.done());
        CHECK(pool.available() == 0);
    }
    CHECK(pool.available() == 1);
}

TEST_CASE("BufferPool: a buffer returns after its last request and its owner, in any order",
          "[rdma][buffer_pool]") {
    support::RouterFixture ends;
    EpollExecutor executor;
    Pool pool(executor, ends.domain, 1, 64);
    std::optional<PooledBuffer> buffer = pool.try_acquire();
    const int count = GENERATE(2, 6); // there is room for four
    ends.sim.hold_delivery();
    std::vector<Operation> writes;
    for (int i = 0; i < count; ++i) {
        writes.push_back(ends.a->write(buffer->slice(0, 8), ends.remote(200, 8)));
    }
    SECTION("the owner is first") {
        buffer.reset();
        writes.clear(); // what waits for room is not posted any more
        CHECK(pool.available() == 0);
        ends.sim.deliver(1);
        ends.run();
        CHECK(pool.available() == 0);
    }
    SECTION("the owner is in the middle") {
        ends.sim.deliver(1);
        ends.run();
        buffer.reset();
        CHECK(pool.available() == 0);
    }
    SECTION("the owner is last") {
        ends.sim.release_delivery();
        ends.run();
        CHECK(pool.available() == 0);
        buffer.reset();
        CHECK(pool.available() == 1);
    }
    ends.sim.release_delivery();
    ends.run();
    CHECK(pool.available() == 1);
    CHECK(pool.try_acquire().has_value()); // and may be used again
    CHECK(pool.available() == 1);
}

TEST_CASE("BufferPool: requests keep the memory of a pool that was destroyed",
          "[rdma][buffer_pool]") {
    support::RouterFixture ends;
    EpollExecutor executor;
    std::optional<Pool> pool(std::in_place, executor, ends.domain, 2, 64);
    for (int i = 0; i < 2; ++i) (void)ends.b->post_recv(pool->try_acquire()->slice());
    pool.reset();
    CHECK(ends.sim.calls("ibv_dereg_mr") == 0);
    ends.write(0, "hello");
    (void)ends.a->send(ends.slice(0, 5));
    ends.run();
    CHECK(ends.sim.calls("ibv_dereg_mr") == 0);
    SECTION("until the last of them has completed") { (void)ends.a->send(ends.slice(0, 5)); }
    SECTION("until the queue pair is destroyed") { ends.b.reset(); }
    ends.run();
    CHECK(ends.sim.calls("ibv_dereg_mr") == 1);
}

TEST_CASE("BufferPool: a buffer returns when its queue pair is destroyed", "[rdma][buffer_pool]") {
    support::RouterFixture ends;
    EpollExecutor executor;
    Pool pool(executor, ends.domain, 1, 64);
    Operation receive = ends.b->post_recv(pool.try_acquire()->slice());
    CHECK(pool.available() == 0);
    ends.b.reset();
    CHECK(pool.available() == 1);
}

// --- any loop ---

namespace {

// The simplest loop: a list of coroutines, which cannot be cancelled.
struct ListLoop {
    struct Awaiter {
        bool await_ready() const noexcept { return false; }
        void await_suspend(std::coroutine_handle<> coroutine) const {
            loop.ready.push_back(coroutine);
        }
        void await_resume() const noexcept { ++loop.resumed; }
        ListLoop& loop;
    };
    Awaiter schedule() noexcept { return {*this}; }

    void run() {
        while (!ready.empty()) {
            const std::coroutine_handle<> next = ready.front();
            ready.pop_front();
            next.resume();
        }
    }

    std::deque<std::coroutine_handle<>> ready;
    int resumed = 0;
};

} // namespace

TEST_CASE("BufferPool: works on any loop", "[rdma][buffer_pool]") {
    SimulatedVerbs verbs;
    const ProtectionDomain domain(Context::open("sim0"));
    ListLoop loop;
    BufferPool pool(loop, domain, 1, 64);
    std::optional<PooledBuffer> held = pool.try_acquire();
    Waiter first(pool);
    Waiter second(pool);
    held.reset();
    second.stop.request_stop();
    CHECK(first.waits());
    CHECK(second.waits());
    loop.run();
    CHECK(first.delivered());
    (void)second.error();
    CHECK(loop.resumed == 2);
}

// --- every interleaving ---

namespace {

// One buffer, which the test holds, and three coroutines that come one after the other.
struct World {
    static constexpr std::size_t waiters = 3;
    enum Step : int { arrive, release, run, stop_first, destroy_first = stop_first + waiters };
    static constexpr int step_kinds = destroy_first + waiters;

    explicit World(BufferPoolFixture& fixture) : f(fixture), held(f.pool->try_acquire()) {}

    std::vector<int> next_steps() {
        std::vector<int> steps{run};
        if (arrived < waiters) steps.push_back(arrive);
        if (holder() != nullptr) steps.push_back(release);
        for (int step = stop_first; step < step_kinds; ++step) {
            const std::optional<Waiter>& waiter = all[index(step)];
            const bool stops = step < destroy_first;
            if (!waiter || !waiter->waits()) continue;
            if (!stops || !waiter->stop.stop_requested()) steps.push_back(step);
        }
        return steps;
    }

    void take(int step) {
        if (step == arrive) {
            all[arrived++].emplace(*f.pool);
        } else if (step == release) {
            note_deliveries();
            holder()->reset();
        } else if (step == run) {
            run_loop();
        } else if (step < destroy_first) {
            all[index(step)]->stop.request_stop();
        } else {
            all[index(step)].reset();
        }
    }

    // Nobody waits while a buffer is free, buffers are delivered in order, and a stop cancels a
    // waiter that has none.
    bool settles() {
        run_loop();
        bool good = in_order;
        for (std::size_t i = 0; i < waiters; ++i) {
            if (served[i] || !all[i]) continue;
            const bool stopped = all[i]->stop.stop_requested();
            good = good && all[i]->waits() != stopped;
            good = good && (stopped || f.pool->available() == 0);
        }
        return good;
    }

private:
    static std::size_t index(int step) {
        return static_cast<std::size_t>(step - stop_first) % waiters;
    }

    std::optional<PooledBuffer>* holder() {
        if (held) return &held;
        for (std::optional<Waiter>& waiter : all) {
            if (waiter && waiter->delivered()) return &waiter->buffer;
        }
        return nullptr;
    }

    void run_loop() {
        f.run();
        note_deliveries();
    }

    void note_deliveries() {
        for (std::size_t i = 0; i < waiters; ++i) {
            if (served[i] || !all[i] || !all[i]->delivered()) continue;
            served[i] = true;
            in_order = in_order && i >= next;
            next = i + 1;
        }
    }

    BufferPoolFixture& f;
    std::optional<PooledBuffer> held;
    std::array<std::optional<Waiter>, waiters> all;
    std::size_t arrived = 0;
    std::array<bool, waiters> served{};
    std::size_t next = 0; // behind the one that was served last
    bool in_order = true;
};

} // namespace

TEST_CASE("BufferPool: no buffer is lost in any order of events", "[rdma][buffer_pool][proof]") {
    BufferPoolFixture f(1);
    const auto play = [&](const std::vector<int>& schedule) {
        std::vector<int> next;
        bool good = true;
        {
            World world(f);
            for (const int step : schedule) world.take(step);
            next = world.next_steps();
            good = world.settles();
        }
        f.run();
        if (!good || f.pool->available() != 1) {
            const auto name = [](int step) { return std::to_string(step); };
            FAIL("after the steps " << proof::to_text(schedule, name));
        }
        return next;
    };
    CHECK(proof::for_each_schedule<int>(8, play) > 50000);
}

TEST_CASE("BufferPool: stops from another thread lose no buffer", "[rdma][buffer_pool][stress]") {
    constexpr int rounds = 2000;
    constexpr std::size_t workers = 4;
    struct Targets {
        std::stop_token renew(std::size_t worker) {
            const std::lock_guard lock(mutex);
            sources[worker] = std::stop_source();
            return sources[worker].get_token();
        }
        void stop(std::size_t worker) {
            std::stop_source source{std::nostopstate};
            {
                const std::lock_guard lock(mutex);
                source = sources[worker];
            }
            source.request_stop();
        }
        std::mutex mutex;
        std::array<std::stop_source, workers> sources;
    };
    struct Local {
        static Task<> work(BufferPoolFixture& f, Targets& targets, std::size_t self, int& ends) {
            for (int i = 0; i < rounds; ++i) {
                const std::stop_token stop = targets.renew(self);
                try {
                    const PooledBuffer buffer = co_await f.pool->acquire(stop);
                    co_await f.executor.schedule();
                } catch (const std::system_error&) {
                }
                ++ends;
            }
        }
        static Task<> join(Scope& scope) { co_await scope.join(); }
    };
    BufferPoolFixture f(2);
    Targets targets;
    std::atomic<bool> finished = false;
    std::thread stopper([&] {
        for (std::size_t i = 0; !finished; ++i) targets.stop(i % workers);
    });
    int ends = 0;
    {
        Scope scope;
        for (std::size_t i = 0; i < workers; ++i) scope.spawn(Local::work(f, targets, i, ends));
        f.executor.run(Local::join(scope));
    }
    finished = true;
    stopper.join();
    CHECK(ends == rounds * static_cast<int>(workers));
    CHECK(f.pool->available() == 2);
}
