// SPDX-License-Identifier: MIT
#include <asyncverbs/rdma/buffer_pool.hpp>

#include <algorithm>
#include <array>
#include <atomic>
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

#include "proof/interleavings.hpp"
#include "rdma/fixture.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"
#include "support/simulated_verbs.hpp"
#include "verbs/failure.hpp"

using namespace asyncverbs;
using simulated::SimulatedVerbs;
using support::contains;
using support::Coroutine;
using support::failure_text;

using Pool = BufferPool<EpollExecutor>;

static_assert(!std::is_copy_constructible_v<Pool>);
static_assert(std::is_nothrow_move_constructible_v<Pool>);

namespace {

struct Fixture {
    explicit Fixture(std::size_t count) : pool(std::in_place, executor, domain, count, 100) {}

    // All that is ready.
    void turn() {
        while (executor.run_once()) {
        }
    }

    SimulatedVerbs verbs;
    ProtectionDomain domain{Context::open("sim0")};
    EpollExecutor executor;
    std::optional<Pool> pool;
};

// A coroutine that acquires a buffer, and what came of it.
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
    std::optional<Slice> buffer;
    Coroutine coroutine;
};

} // namespace

TEST_CASE("a pool lends each buffer once", "[rdma][buffer_pool]") {
    Fixture f(3);
    CHECK(f.pool->count() == 3);
    CHECK(f.pool->buffer_size() == 100);
    CHECK(f.pool->available() == 3);
    std::vector<Slice> buffers;
    while (std::optional<Slice> buffer = f.pool->try_acquire()) {
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
    REQUIRE(waiter.delivered()); // without a turn of the loop
    CHECK(waiter.buffer->bytes().data() == last);
    CHECK(f.pool->region().bytes().data() == buffers.front().bytes().data());
}

TEST_CASE("a buffer is lent until the last slice of it is gone", "[rdma][buffer_pool]") {
    Fixture f(2);
    const std::optional<Slice> other = f.pool->try_acquire();
    std::optional<Slice> whole = f.pool->try_acquire();
    CHECK(whole->address == other->address + 128);
    CHECK(whole->length == 100);
    CHECK(whole->lkey == f.pool->region().lkey());
    CHECK(whole->region.get() == f.pool->region().native_handle());
    std::optional<Slice> part = whole->slice(10, 20).slice(5);
    std::shared_ptr<ibv_mr> held_by_request = part->region;
    whole.reset();
    part.reset();
    CHECK(f.pool->available() == 0);
    held_by_request.reset();
    CHECK(f.pool->available() == 1);
}

TEST_CASE("a buffer that is referred to weakly is not lent again yet", "[rdma][buffer_pool]") {
    Fixture f(1);
    std::optional<Slice> buffer = f.pool->try_acquire();
    std::weak_ptr<ibv_mr> weak = buffer->region;
    buffer.reset();
    CHECK(weak.expired());
    CHECK(f.pool->available() == 0);
    weak.reset();
    CHECK(f.pool->available() == 1);
}

TEST_CASE("a pool's memory has the access that was asked for", "[rdma][buffer_pool]") {
    SimulatedVerbs verbs;
    const ProtectionDomain domain(Context::open("sim0"));
    EpollExecutor executor;
    // A remote write needs a local one, too: that this is refused shows that it was asked for.
    CHECK(failure_text(std::errc::invalid_argument, [&] {
              const BufferPool pool(executor, domain, 1, 64, IBV_ACCESS_REMOTE_WRITE);
          }) == "ibv_reg_mr: Invalid argument");
}

TEST_CASE("a pool of nothing, or of too much, is refused", "[rdma][buffer_pool]") {
    SimulatedVerbs verbs;
    const ProtectionDomain domain(Context::open("sim0"));
    EpollExecutor executor;
    constexpr std::size_t most = std::numeric_limits<std::size_t>::max();
    const auto text = [&](std::size_t count, std::size_t size) {
        return failure_text(std::errc::invalid_argument,
                            [&] { const BufferPool pool(executor, domain, count, size); });
    };
    CHECK_THAT(text(0, 64), contains("a pool of 0 buffers of 64 bytes cannot be"));
    CHECK_THAT(text(2, 0), contains("a pool of 2 buffers of 0 bytes cannot be"));
    CHECK_THAT(text(1, most), contains("cannot be"));
    CHECK_THAT(text(most, 1), contains("cannot be"));
    CHECK_THAT(text(2, most / 2), contains("cannot be"));
    CHECK_THAT(text(most / 64 + 1, 1), contains("cannot be"));
    CHECK(verbs.calls("ibv_reg_mr") == 0);
}

TEST_CASE("who waits for a buffer is served in order, by the loop", "[rdma][buffer_pool]") {
    Fixture f(1);
    std::optional<Slice> held = f.pool->try_acquire();
    Waiter first(*f.pool);
    Waiter second(*f.pool);
    Waiter third(*f.pool);
    f.turn();
    CHECK(first.waits());
    held.reset();
    CHECK_FALSE(first.delivered()); // not inside the destructor of the buffer
    CHECK_FALSE(f.pool->try_acquire());
    f.turn();
    REQUIRE(first.delivered());
    CHECK(second.waits());
    first.buffer.reset();
    f.turn();
    REQUIRE(second.delivered());
    second.buffer.reset();
    f.turn();
    REQUIRE(third.delivered());
    third.buffer.reset();
    CHECK(f.pool->available() == 1);
}

TEST_CASE("acquiring allocates nothing", "[rdma][buffer_pool]") {
    Fixture f(1);
    struct Local {
        static Coroutine acquire(Pool& pool, std::stop_token stop, int times) {
            for (int i = 0; i < times; ++i) const Slice buffer = co_await pool.acquire(stop);
        }
    };
    const std::stop_source stop;
    std::optional<Slice> held = f.pool->try_acquire();
    const support::Counters before = support::counters();
    const Coroutine coroutine = Local::acquire(*f.pool, stop.get_token(), 10);
    held.reset();
    f.turn();
    const support::Counters cost = support::counters() - before;
    CHECK(coroutine.done());
    CHECK(cost.allocations == 1); // the coroutine
}

TEST_CASE("many waiters need no stack", "[rdma][buffer_pool]") {
    Fixture f(1);
    constexpr int waiters = 20000;
    struct Local {
        static Task<> acquire(Pool& pool, int& served) {
            const Slice buffer = co_await pool.acquire();
            ++served;
        }
    };
    int served = 0;
    Scope scope;
    std::optional<Slice> held = f.pool->try_acquire();
    for (int i = 0; i < waiters; ++i) scope.spawn(Local::acquire(*f.pool, served));
    held.reset();
    f.turn();
    CHECK(served == waiters);
}

TEST_CASE("an acquisition can be moved until it is awaited", "[rdma][buffer_pool]") {
    Fixture f(2);
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

TEST_CASE("a stop before there is a buffer cancels", "[rdma][buffer_pool]") {
    Fixture f(1);
    std::optional<Slice> held = f.pool->try_acquire();
    Waiter first(*f.pool);
    Waiter second(*f.pool);
    first.stop.request_stop();
    CHECK(first.waits()); // not inside request_stop()
    f.turn();
    CHECK_THAT(first.error(), contains("BufferPool::acquire"));
    CHECK(second.waits());
    held.reset();
    f.turn();
    CHECK(second.delivered());
}

TEST_CASE("a token that was stopped before cancels at once", "[rdma][buffer_pool]") {
    Fixture f(1);
    struct Local {
        static Coroutine acquire(Pool& pool, std::stop_token stop) {
            const Slice buffer = co_await pool.acquire(stop);
        }
    };
    std::stop_source stop;
    stop.request_stop();
    const Coroutine coroutine = Local::acquire(*f.pool, stop.get_token());
    REQUIRE(coroutine.done());
    (void)failure_text(std::errc::operation_canceled, [&] { coroutine.get(); });
    CHECK(f.pool->available() == 1);
}

TEST_CASE("a buffer that is given after a stop goes to the next", "[rdma][buffer_pool]") {
    Fixture f(1);
    std::optional<Slice> held = f.pool->try_acquire();
    Waiter first(*f.pool);
    Waiter second(*f.pool);
    first.stop.request_stop();
    held.reset();
    f.turn();
    (void)first.error();
    REQUIRE(second.delivered());

    Waiter alone(*f.pool);
    alone.stop.request_stop();
    second.buffer.reset();
    CHECK(f.pool->available() == 1);
    f.turn();
    (void)alone.error();
    CHECK(f.pool->available() == 1);
}

TEST_CASE("a buffer that was given before a stop is delivered", "[rdma][buffer_pool]") {
    Fixture f(1);
    std::optional<Slice> held = f.pool->try_acquire();
    Waiter first(*f.pool);
    Waiter second(*f.pool);
    held.reset();
    first.stop.request_stop();
    f.turn();
    CHECK(first.delivered());
    CHECK(second.waits());
}

// --- lifetimes ---

TEST_CASE("a coroutine that waits for a buffer may be destroyed", "[rdma][buffer_pool]") {
    Fixture f(1);
    std::optional<Slice> held = f.pool->try_acquire();
    Waiter first(*f.pool);
    Waiter second(*f.pool);
    SECTION("while it waits") {
        first.coroutine.destroy();
        held.reset();
    }
    SECTION("with a buffer on the way to it") {
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
    f.turn();
    REQUIRE(second.delivered());
    CHECK_FALSE(first.delivered());
    second.buffer.reset();
    CHECK(f.pool->available() == 1);
}

TEST_CASE("buffers and who waits for them outlive the pool", "[rdma][buffer_pool]") {
    Fixture f(2);
    std::optional<Slice> first = f.pool->try_acquire();
    std::optional<Slice> second = f.pool->try_acquire();
    Waiter served(*f.pool);
    Waiter stopped(*f.pool);
    Waiter destroyed(*f.pool);
    f.pool.reset();
    CHECK(f.verbs.calls("ibv_dereg_mr") == 0);
    first->bytes().front() = std::byte{1};
    first.reset();
    stopped.stop.request_stop();
    f.turn();
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

TEST_CASE("a pool that was moved is the same pool", "[rdma][buffer_pool]") {
    Fixture f(1);
    std::optional<Slice> held = f.pool->try_acquire();
    Waiter waiter(*f.pool);
    Pool moved(std::move(*f.pool));
    f.pool.reset();
    held.reset();
    f.turn();
    CHECK(waiter.delivered());
    waiter.buffer.reset();
    CHECK(moved.available() == 1);
}

TEST_CASE("a waiting coroutine may outlive the executor", "[rdma][buffer_pool]") {
    SimulatedVerbs verbs;
    const ProtectionDomain domain(Context::open("sim0"));
    std::optional<EpollExecutor> executor(std::in_place);
    Pool pool(*executor, domain, 1, 64);
    std::optional<Slice> held = pool.try_acquire();
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

TEST_CASE("a resumed coroutine may destroy the others, and the pool", "[rdma][buffer_pool]") {
    Fixture f(2);
    std::optional<Slice> first = f.pool->try_acquire();
    std::optional<Slice> second = f.pool->try_acquire();
    struct Local {
        static Coroutine destroy(Fixture& fixture, std::optional<Waiter>& other) {
            const Slice buffer = co_await fixture.pool->acquire();
            other.reset();
            fixture.pool.reset();
        }
    };
    std::optional<Waiter> other;
    const Coroutine coroutine = Local::destroy(f, other);
    other.emplace(*f.pool);
    SECTION("which waits") { first.reset(); }
    SECTION("which a buffer is on the way to") {
        first.reset();
        second.reset();
    }
    f.turn();
    REQUIRE(coroutine.done());
    CHECK_NOTHROW(coroutine.get());
    CHECK_FALSE(other);
}

// --- what operations hold ---

TEST_CASE("a buffer that an operation has left to the device is not lent", "[rdma][buffer_pool]") {
    support::RouterFixture ends;
    EpollExecutor executor;
    Pool pool(executor, ends.domain, 3, 64);
    {
        std::vector<Slice> scattered;
        while (std::optional<Slice> buffer = pool.try_acquire()) {
            scattered.push_back(buffer->slice(0, 2));
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

TEST_CASE("a buffer comes back with the queue pair that held it", "[rdma][buffer_pool]") {
    support::RouterFixture ends;
    EpollExecutor executor;
    Pool pool(executor, ends.domain, 1, 64);
    Operation receive = ends.b->post_recv(*pool.try_acquire());
    CHECK(pool.available() == 0);
    ends.b.reset();
    CHECK(pool.available() == 1);
}

// --- any loop ---

namespace {

// The plainest loop: a list of coroutines, and nothing to cancel them.
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

    void turn() {
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

TEST_CASE("a pool works on any loop", "[rdma][buffer_pool]") {
    SimulatedVerbs verbs;
    const ProtectionDomain domain(Context::open("sim0"));
    ListLoop loop;
    BufferPool pool(loop, domain, 1, 64);
    std::optional<Slice> held = pool.try_acquire();
    Waiter first(pool);
    Waiter second(pool);
    held.reset();
    second.stop.request_stop();
    CHECK(first.waits());
    CHECK(second.waits());
    loop.turn();
    CHECK(first.delivered());
    (void)second.error();
    CHECK(loop.resumed == 2);
}

// --- every interleaving ---

namespace {

// One buffer, lent; three coroutines that come one after the other. Whatever happens up to `steps`
// times, in whatever order: nobody waits while a buffer is free, they get it in their order, a
// stop of who has none cancels, and in the end the buffer is there.
class Interleavings {
public:
    explicit Interleavings(std::size_t steps) : steps_(steps) {}

    std::size_t run() {
        return proof::for_each_schedule<int>(
            steps_, [this](const std::vector<int>& schedule) { return play(schedule); });
    }

private:
    static constexpr std::size_t waiters = 3;
    enum Step : int { arrive, release, turn, stop_first, destroy_first = stop_first + waiters };
    static constexpr int step_kinds = destroy_first + waiters;

    struct World {
        explicit World(Fixture& fixture) : f(fixture), held(f.pool->try_acquire()) {}

        bool possible(int step) {
            if (step == arrive) return arrived < waiters;
            if (step == release) return lent() != nullptr;
            if (step == turn) return true;
            const bool stops = step < destroy_first;
            const std::optional<Waiter>& waiter = all[index(step)];
            return waiter && waiter->waits() && !(stops && waiter->stop.stop_requested());
        }

        void take(int step) {
            if (step == arrive) {
                all[arrived++].emplace(*f.pool);
            } else if (step == release) {
                note_deliveries();
                lent()->reset();
            } else if (step == turn) {
                take_turn();
            } else if (step < destroy_first) {
                all[index(step)]->stop.request_stop();
            } else {
                all[index(step)].reset();
            }
        }

        static std::size_t index(int step) {
            return static_cast<std::size_t>(step - stop_first) % waiters;
        }

        std::optional<Slice>* lent() {
            if (held) return &held;
            for (std::optional<Waiter>& waiter : all) {
                if (waiter && waiter->delivered()) return &waiter->buffer;
            }
            return nullptr;
        }

        void take_turn() {
            f.turn();
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

        bool settles() {
            take_turn();
            bool good = in_order;
            for (std::size_t i = 0; i < waiters; ++i) {
                if (served[i] || !all[i]) continue;
                const bool stopped = all[i]->stop.stop_requested();
                good = good && all[i]->waits() != stopped;
                good = good && (stopped || f.pool->available() == 0);
            }
            return good;
        }

        Fixture& f;
        std::optional<Slice> held;
        std::array<std::optional<Waiter>, waiters> all;
        std::size_t arrived = 0;
        std::array<bool, waiters> served{};
        std::size_t next = 0; // behind the one that was served last
        bool in_order = true;
    };

    // Returns the steps that may come next.
    std::vector<int> play(const std::vector<int>& schedule) {
        const auto check = [&](bool good) {
            const auto name = [](int step) { return std::to_string(step); };
            if (!good) FAIL("after the steps " << proof::to_text(schedule, name));
        };
        std::vector<int> possible;
        {
            World world(fixture_);
            for (const int step : schedule) world.take(step);
            for (int step = 0; step < step_kinds; ++step) {
                if (world.possible(step)) possible.push_back(step);
            }
            check(world.settles());
        }
        fixture_.turn();
        check(fixture_.pool->available() == 1);
        return possible;
    }

    const std::size_t steps_;
    Fixture fixture_{1};
};

} // namespace

TEST_CASE("no buffer is lost, whatever comes in whatever order", "[rdma][buffer_pool][proof]") {
    CHECK(Interleavings(8).run() > 50000);
}

TEST_CASE("stops from another thread lose no buffer", "[rdma][buffer_pool][stress]") {
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
        static Task<> work(Fixture& f, Targets& targets, std::size_t self, int& ends) {
            for (int i = 0; i < rounds; ++i) {
                const std::stop_token stop = targets.renew(self);
                try {
                    const Slice buffer = co_await f.pool->acquire(stop);
                    co_await f.executor.schedule();
                } catch (const std::system_error&) {
                }
                ++ends;
            }
        }
        static Task<> join(Scope& scope) { co_await scope.join(); }
    };
    Fixture f(2);
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
