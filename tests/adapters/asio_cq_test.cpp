// SPDX-License-Identifier: MIT
// async_poll(): every kind of token, on which executor it completes, what it costs, how it ends
// early. The same source is compiled for standalone Asio and for Boost.Asio.
#include <asyncverbs/adapters/asio.hpp>

#include <functional>
#include <future>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>

#include "adapters/asio.hpp"
#include "support/catch.hpp"
#include "support/counters.hpp"
#include "support/simulated_verbs.hpp"

using namespace asyncverbs;
using namespace asyncverbs::adapters;
using asyncverbs::simulated::SimulatedVerbs;
using asyncverbs::support::counters;
using asyncverbs::support::Counters;

namespace {

const std::vector<std::uint64_t> none;

} // namespace

TEST_CASE("async_poll: what is there at once completes by a post, never within the call") {
    World world;
    world.complete(1);
    world.complete(2);
    Outcome outcome;
    async_poll(world.cq, world.wcs, outcome.handler());
    CHECK(outcome.calls == 0);
    SECTION("begun outside of the loop") {}
    SECTION("begun by a handler of the loop") {
        net::post(world.io, [&] {
            world.complete(3);
            async_poll(world.cq, std::span(world.wcs).subspan(2), outcome.handler());
            CHECK(outcome.calls == 0);
        });
    }
    world.io.run();
    CHECK(outcome.calls >= 1);
    CHECK_FALSE(outcome.error);
    CHECK(outcome.wr_ids.at(0) == 1);
    CHECK(outcome.wr_ids.at(1) == 2);
    CHECK(world.cq.async_cq().statistics().arms == 0);
}

TEST_CASE("async_poll: waits in the loop, which has work until then") {
    World world;
    Outcome outcome;
    async_poll(world.cq, world.wcs, outcome.handler());
    std::thread device([&] {
        while (!world.armed()) std::this_thread::yield();
        world.complete(42);
    });
    world.io.run();
    device.join();
    CHECK(outcome.calls == 1);
    CHECK_FALSE(outcome.error);
    CHECK(outcome.wr_ids == std::vector<std::uint64_t>{42});
    CHECK(world.cq.async_cq().statistics().wakes == 1);
}

TEST_CASE("async_poll: first come, first served", "[I6]") {
    World world;
    std::array<Outcome, 3> outcomes;
    std::array<std::array<ibv_wc, 1>, 3> wcs;
    for (std::size_t i = 0; i < 3; ++i) async_poll(world.cq, wcs[i], outcomes[i].handler());
    poll(world.io);
    for (std::uint64_t id = 0; id < 3; ++id) world.complete(id);
    poll(world.io);
    for (std::size_t i = 0; i < 3; ++i) CHECK(outcomes[i].wr_ids == std::vector<std::uint64_t>{i});
}

TEST_CASE("async_poll with use_future") {
    World world;
    std::future<std::span<ibv_wc>> future = async_poll(world.cq, world.wcs, net::use_future);
    poll(world.io);
    world.complete(7);
    poll(world.io);
    const std::span<ibv_wc> done = future.get();
    CHECK(done.data() == world.wcs.data());
    REQUIRE(done.size() == 1);
    CHECK(done[0].wr_id == 7);

    std::future<std::span<ibv_wc>> cancelled = async_poll(world.cq, world.wcs, net::use_future);
    poll(world.io);
    world.cq.cancel();
    poll(world.io);
    try {
        cancelled.get();
        FAIL("no exception");
    } catch (const std::exception& error) { // boost::system::system_error in Boost 1.74
        CHECK(std::string(error.what()) != "");
    }
}

#if defined(ASIO_HAS_CO_AWAIT) || defined(BOOST_ASIO_HAS_CO_AWAIT)
TEST_CASE("async_poll with use_awaitable, beside a timer") {
    World world;
    std::vector<std::uint64_t> got;
    struct Local {
        static net::awaitable<void> consume(World& world, std::vector<std::uint64_t>& got) {
            while (got.size() < 200) {
                for (const ibv_wc& wc :
                     co_await async_poll(world.cq, world.wcs, net::use_awaitable)) {
                    got.push_back(wc.wr_id);
                }
            }
        }
        static net::awaitable<void> produce(World& world) {
            net::steady_timer timer(world.io);
            for (std::uint64_t id = 0; id < 200; ++id) {
                world.complete(id);
                if (id % 3 != 0) continue;
                timer.expires_after(std::chrono::microseconds(10));
                co_await timer.async_wait(net::use_awaitable);
            }
        }
    };
    net::co_spawn(world.io, Local::consume(world, got), net::detached);
    net::co_spawn(world.io, Local::produce(world), net::detached);
    world.io.run();
    REQUIRE(got.size() == 200);
    for (std::uint64_t id = 0; id < 200; ++id) CHECK(got[id] == id);
}

TEST_CASE("async_poll with use_awaitable throws operation_aborted") {
    World world;
    Error error;
    struct Local {
        static net::awaitable<void> wait(World& world, Error& error) {
            try {
                co_await async_poll(world.cq, world.wcs, net::use_awaitable);
            } catch (const decltype(net::error::operation_aborted)&) {
                throw;
#if defined(ASYNCVERBS_BOOST_ASIO)
            } catch (const boost::system::system_error& caught) {
#else
            } catch (const std::system_error& caught) {
#endif
                error = caught.code();
            }
        }
    };
    net::co_spawn(world.io, Local::wait(world, error), net::detached);
    poll(world.io);
    world.cq.cancel();
    poll(world.io);
    CHECK(error == net::error::operation_aborted);
}

TEST_CASE("async_poll: the default token is what the AsioCq was rebound for") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    net::io_context io;
    using Cq = net::use_awaitable_t<>::as_default_on_t<AsioCq<>>;
    Cq cq(io, context, 16);
    std::uint64_t got = 0;
    struct Local {
        static net::awaitable<void> wait(Cq& queue, std::uint64_t& wr_id) {
            std::array<ibv_wc, 1> wcs;
            const std::span<ibv_wc> done = co_await async_poll(queue, wcs);
            wr_id = done[0].wr_id;
        }
    };
    net::co_spawn(io, Local::wait(cq, got), net::detached);
    poll(io);
    sim.complete(cq.async_cq().native_handle(), 5);
    poll(io);
    CHECK(got == 5);
}
#else
TEST_CASE("async_poll with use_awaitable") {
    WARN("left out: this Asio has no coroutines with this compiler");
}
#endif

#if defined(ASYNCVERBS_TEST_DEFERRED)
TEST_CASE("async_poll with deferred begins when it is told to") {
    World world;
    world.complete(1);
    Outcome outcome;
    auto operation = async_poll(world.cq, world.wcs, ASYNCVERBS_TEST_DEFERRED);
    CHECK(poll(world.io) == 0);
    CHECK(world.cq.async_cq().statistics().polls == 0);
    std::move(operation)(outcome.handler());
    poll(world.io);
    CHECK(outcome.wr_ids == std::vector<std::uint64_t>{1});
}
#else
TEST_CASE("async_poll with deferred") { WARN("left out: this Asio has no deferred"); }
#endif

TEST_CASE("async_poll: the default token is that of the executor") {
    struct Future : IoExecutor {
        explicit Future(const IoExecutor& executor) : IoExecutor(executor) {}
        using default_completion_token_type = net::use_future_t<>;
    };
    World world;
    AsioCq cq(Future(world.io.get_executor()), world.context, 16);
    std::future<std::span<ibv_wc>> future = async_poll(cq, world.wcs);
    poll(world.io);
    world.sim.complete(cq.async_cq().native_handle(), 5);
    poll(world.io);
    CHECK(future.get()[0].wr_id == 5);
}

TEST_CASE("async_poll gives values away, as its signature says") {
    World world;
    int calls = 0;
    async_poll(world.cq, world.wcs, [&](Error&&, std::span<ibv_wc>&&) { ++calls; });
    world.complete(1);
    poll(world.io);
    CHECK(calls == 1);
}

namespace {

// Counts where it was that was no place for it.
struct AlignedHandler {
    explicit AlignedHandler(int& count) : misplaced(count) {}
    AlignedHandler(AlignedHandler&& other) noexcept : misplaced(other.misplaced) {
        if (reinterpret_cast<std::uintptr_t>(this) % alignof(AlignedHandler) != 0) ++misplaced;
    }
    void operator()(const Error&, std::span<ibv_wc>) const {}
    alignas(128) int& misplaced;
};

} // namespace

TEST_CASE("async_poll keeps the alignment of its handler") {
    World world;
    int misplaced = 0;
    for (int i = 0; i < 16; ++i) async_poll(world.cq, world.wcs, AlignedHandler(misplaced));
    poll(world.io);
    CHECK(misplaced == 0);
}

TEST_CASE("async_poll completes on the handler's executor, which has work until then") {
    World world;
    net::io_context other;
    int calls = 0;
    SECTION("an io_context") {
        async_poll(world.cq, world.wcs,
                   net::bind_executor(other, [&](const Error& error, std::span<ibv_wc> wcs) {
                       CHECK_FALSE(error);
                       CHECK(wcs.size() == 1);
                       CHECK(other.get_executor().running_in_this_thread());
                       ++calls;
                   }));
    }
    SECTION("a strand") {
        const auto strand = net::make_strand(other);
        async_poll(world.cq, world.wcs,
                   net::bind_executor(strand, [&, strand](const Error&, std::span<ibv_wc>) {
                       CHECK(strand.running_in_this_thread());
                       ++calls;
                   }));
    }
    SECTION("any executor") {
        async_poll(world.cq, world.wcs,
                   net::bind_executor(net::any_io_executor(other.get_executor()),
                                      [&](const Error&, std::span<ibv_wc>) {
                                          CHECK(other.get_executor().running_in_this_thread());
                                          ++calls;
                                      }));
    }
    std::thread thread([&] { other.run(); }); // returns at once if it has no work
    poll(world.io);
    world.complete(1);
    std::thread device([&] { world.io.restart(), world.io.run(); });
    thread.join();
    device.join();
    CHECK(calls == 1);
}

TEST_CASE("async_poll completes on the strand of the queue by default") {
    World world;
    const auto strand = net::make_strand(world.io);
    AsioCq cq(strand, world.context, 16);
    CHECK(cq.get_executor() == strand);
    int calls = 0;
    const auto handler = [&](const Error& error, std::span<ibv_wc> wcs) {
        CHECK_FALSE(error);
        CHECK(wcs.size() == 1);
        CHECK(strand.running_in_this_thread());
        ++calls;
    };
    async_poll(cq, world.wcs, handler);
    poll(world.io);
    world.sim.complete(cq.async_cq().native_handle(), 1);
    poll(world.io);
    CHECK(calls == 1);
    world.sim.complete(cq.async_cq().native_handle(), 2);
    async_poll(cq, world.wcs, handler);
    poll(world.io);
    CHECK(calls == 2);
}

TEST_CASE("async_poll: an exception of a handler leaves run(), and harms nothing") {
    World world;
    Outcome outcome;
    const auto throws = [](const Error&, std::span<ibv_wc>) { throw std::runtime_error("mine"); };
    async_poll(world.cq, world.wcs, throws);
    std::array<ibv_wc, 1> more;
    async_poll(world.cq, more, outcome.handler());
    poll(world.io);
    world.complete(1);
    CHECK_THROWS_WITH(poll(world.io), "mine");
    world.complete(2);
    poll(world.io);
    CHECK(outcome.wr_ids == std::vector<std::uint64_t>{2});
}

TEST_CASE("async_poll: errors") {
    World world;
    Outcome outcome;
    SECTION("an empty span") {
        async_poll(world.cq, {}, outcome.handler());
        poll(world.io);
        CHECK(outcome.error == std::errc::invalid_argument);
    }
    SECTION("a failing verb reaches all who wait, and all who come later") {
        async_poll(world.cq, world.wcs, outcome.handler());
        async_poll(world.cq, world.wcs, outcome.handler());
        poll(world.io);
        world.sim.disassociate(world.context.native_handle());
        poll(world.io);
        CHECK(outcome.calls == 2);
        CHECK(outcome.error == std::errc::io_error);
        async_poll(world.cq, world.wcs, outcome.handler());
        poll(world.io);
        CHECK(outcome.calls == 3);
        CHECK(outcome.error == std::errc::io_error);
        CHECK(poll(world.io) == 0); // nothing spins
    }
    CHECK(outcome.wr_ids == none);
}

TEST_CASE("AsioCq::cancel() ends what waits, and the loop's work with it", "[I7]") {
    World world;
    std::array<Outcome, 2> outcomes;
    for (Outcome& outcome : outcomes) async_poll(world.cq, world.wcs, outcome.handler());
    poll(world.io);
    world.cq.cancel();
    for (const Outcome& outcome : outcomes) CHECK(outcome.calls == 0);
    world.io.restart();
    world.io.run(); // returns
    for (const Outcome& outcome : outcomes) {
        CHECK(outcome.calls == 1);
        CHECK(outcome.error == net::error::operation_aborted);
    }
    // What comes then is for who comes then.
    world.complete(1);
    async_poll(world.cq, world.wcs, outcomes[0].handler());
    poll(world.io);
    CHECK_FALSE(outcomes[0].error);
    CHECK(outcomes[0].wr_ids == std::vector<std::uint64_t>{1});
    world.cq.cancel(); // nobody waits
    CHECK(poll(world.io) == 0);
}

TEST_CASE("AsioCq::cancel() ends what is on its way to wait, and nothing later", "[I7]") {
    World world;
    Outcome cancelled;
    Outcome later;
    std::array<ibv_wc, 1> wcs;
    async_poll(world.cq, world.wcs, cancelled.handler());
    world.cq.cancel();
    async_poll(world.cq, wcs, later.handler());
    world.complete(1);
    poll(world.io);
    CHECK(cancelled.calls == 1);
    CHECK(cancelled.error == net::error::operation_aborted);
    CHECK(cancelled.wr_ids == none);
    CHECK(later.wr_ids == std::vector<std::uint64_t>{1});
}

TEST_CASE("AsioCq::cancel() takes nothing back that was delivered", "[I7]") {
    World world;
    Outcome outcome;
    world.complete(1);
    net::post(world.io, [&] {
        async_poll(world.cq, world.wcs, outcome.handler()); // is decided, but not called yet
        world.cq.cancel();
    });
    poll(world.io);
    CHECK_FALSE(outcome.error);
    CHECK(outcome.wr_ids == std::vector<std::uint64_t>{1});
}

#if defined(ASYNCVERBS_ASIO_CANCELLATION)
TEST_CASE("async_poll: a cancellation slot cancels one operation", "[I7]") {
    World world;
    net::cancellation_signal signal;
    Outcome cancelled;
    Outcome other;
    const auto type = GENERATE(net::cancellation_type::terminal, net::cancellation_type::partial,
                               net::cancellation_type::total);
    SECTION("the only one: the loop runs out of work") {
        async_poll(world.cq, world.wcs,
                   net::bind_cancellation_slot(signal.slot(), cancelled.handler()));
        poll(world.io);
        signal.emit(type);
        CHECK(cancelled.calls == 0);
        world.io.restart();
        world.io.run();
    }
    SECTION("the only one that waits: another one is on its way") {
        std::array<ibv_wc, 1> wcs;
        async_poll(world.cq, world.wcs,
                   net::bind_cancellation_slot(signal.slot(), cancelled.handler()));
        poll(world.io);
        signal.emit(type);
        async_poll(world.cq, wcs, other.handler());
        poll(world.io);
        CHECK(other.calls == 0);
        world.complete(1);
        poll(world.io);
        CHECK(other.wr_ids == std::vector<std::uint64_t>{1});
    }
    SECTION("before it has begun") {
        async_poll(world.cq, world.wcs,
                   net::bind_cancellation_slot(signal.slot(), cancelled.handler()));
        net::dispatch(world.io, [&] { signal.emit(type); });
        world.io.run();
    }
    SECTION("the first of two: the other one gets what comes") {
        std::array<ibv_wc, 1> wcs;
        async_poll(world.cq, world.wcs,
                   net::bind_cancellation_slot(signal.slot(), cancelled.handler()));
        async_poll(world.cq, wcs, other.handler());
        poll(world.io);
        signal.emit(type);
        world.complete(1);
        poll(world.io);
        CHECK_FALSE(other.error);
        CHECK(other.wr_ids == std::vector<std::uint64_t>{1});
    }
    SECTION("the second of two") {
        std::array<ibv_wc, 1> wcs;
        async_poll(world.cq, wcs, other.handler());
        async_poll(world.cq, world.wcs,
                   net::bind_cancellation_slot(signal.slot(), cancelled.handler()));
        poll(world.io);
        signal.emit(type);
        poll(world.io);
        CHECK(other.calls == 0);
        world.complete(1);
        poll(world.io);
        CHECK(other.wr_ids == std::vector<std::uint64_t>{1});
    }
    CHECK(cancelled.calls == 1);
    CHECK(cancelled.error == net::error::operation_aborted);
    CHECK(cancelled.wr_ids == none);
    CHECK_FALSE(signal.slot().has_handler()); // as if it had never been there
}

TEST_CASE("async_poll: a cancellation that comes too late takes nothing back", "[I7]") {
    World world;
    net::cancellation_signal signal;
    Outcome outcome;
    async_poll(world.cq, world.wcs, net::bind_cancellation_slot(signal.slot(), outcome.handler()));
    poll(world.io);
    SECTION("decided") {
        world.complete(1);
        world.io.restart();
        while (world.sim.queued_completions(world.queue()) > 0) world.io.poll_one();
        CHECK(outcome.calls == 0);
        signal.emit(net::cancellation_type::total);
        poll(world.io);
    }
    SECTION("called") {
        world.complete(1);
        poll(world.io);
        CHECK(outcome.calls == 1);
        signal.emit(net::cancellation_type::total);
        CHECK(poll(world.io) == 0);
    }
    CHECK(outcome.calls == 1);
    CHECK_FALSE(outcome.error);
    CHECK(outcome.wr_ids == std::vector<std::uint64_t>{1});
}

TEST_CASE("async_poll: a slot that outlives queue and context does no harm") {
    net::cancellation_signal signal;
    {
        World world;
        async_poll(world.cq, world.wcs,
                   net::bind_cancellation_slot(signal.slot(), [](const Error&, auto) {}));
        poll(world.io);
    }
    signal.emit(net::cancellation_type::terminal);
}
#else
TEST_CASE("async_poll: cancellation slots") { WARN("left out: this Asio has none"); }
#endif

namespace {

// What a handler's allocator was asked for.
struct Allocations {
    std::size_t count = 0;
    std::size_t alive = 0;
    void* kept = nullptr; // by the recycling one
    std::size_t kept_size = 0;
    std::size_t recycled = 0;
    ~Allocations() { ::operator delete(kept); }
};

template <class T>
struct CountingAllocator {
    using value_type = T;
    explicit CountingAllocator(Allocations& a) : allocations(&a) {}
    template <class U>
    CountingAllocator(const CountingAllocator<U>& other) : allocations(other.allocations) {}

    T* allocate(std::size_t count) {
        ++allocations->count;
        ++allocations->alive;
        const std::size_t size = count * sizeof(T);
        if (allocations->kept != nullptr && size <= allocations->kept_size) {
            ++allocations->recycled;
            return static_cast<T*>(std::exchange(allocations->kept, nullptr));
        }
        return static_cast<T*>(::operator new(size));
    }
    void deallocate(T* block, std::size_t count) {
        --allocations->alive;
        ::operator delete(std::exchange(allocations->kept, block));
        allocations->kept_size = count * sizeof(T);
    }
    template <class U>
    bool operator==(const CountingAllocator<U>& other) const {
        return allocations == other.allocations;
    }
    Allocations* allocations;
};

// Begins rounds of which each ends by a call of its handler. What the later ones cost is counted,
// when Asio has memory to recycle.
struct Rounds {
    std::function<void()> begin;
    Allocations allocations;
    bool as_expected = true;
    int calls = 0;
    Counters before;
    Counters cost;

    static constexpr int warm_up = 10;
    static constexpr int count = 1100; // which is enough for a ready queue to give up its turn

    void operator()(const Error& error, std::span<ibv_wc> wcs) {
        // No CHECK here, which allocates. The memory is free for what the handler begins.
        as_expected = as_expected && !error && wcs.size() == 1 && allocations.alive == 0;
        if (++calls == warm_up) {
            allocations.count = allocations.recycled = simulated = 0;
            before = counters();
        } else if (calls == warm_up + count) {
            cost = counters() - before;
            cost.allocations -= simulated;
            return;
        }
        begin();
    }

    // The device allocates, too, but on nobody's account.
    void complete(World& world, AsyncCq& cq) {
        const Counters start = counters();
        world.sim.complete(cq.native_handle(), 1);
        simulated += (counters() - start).allocations;
    }
    std::size_t simulated = 0;
};

struct CountingHandler {
    Rounds& rounds;

    using allocator_type = CountingAllocator<std::byte>;
    allocator_type get_allocator() const { return allocator_type(rounds.allocations); }
    void operator()(const Error& error, std::span<ibv_wc> wcs) const { rounds(error, wcs); }
};

} // namespace

TEST_CASE("async_poll costs one allocation, none with a recycling allocator", "[allocations]") {
    World world;
    const auto strand = net::make_strand(world.io);
    AsioCq on_strand(strand, world.context, 16);
    net::io_context other;
    Rounds rounds;
    const CountingHandler handler{rounds};
    AsyncCq* queue = &world.cq.async_cq();
    const auto complete_later = [&] {
        net::post(world.io, [&] { rounds.complete(world, *queue); });
    };

    SECTION("ready at once") {
        rounds.begin = [&] {
            rounds.complete(world, *queue);
            async_poll(world.cq, world.wcs, handler);
        };
    }
    SECTION("after a wait") {
        rounds.begin = [&] {
            async_poll(world.cq, world.wcs, handler);
            complete_later();
        };
    }
    SECTION("on a strand") {
        queue = &on_strand.async_cq();
        rounds.begin = [&] {
            async_poll(on_strand, world.wcs, handler);
            complete_later();
        };
    }
    SECTION("the handler on another executor") {
        rounds.begin = [&] { async_poll(world.cq, world.wcs, net::bind_executor(other, handler)); };
    }
    SECTION("the handler on a strand of its own") {
        rounds.begin = [&] {
            async_poll(world.cq, world.wcs, net::bind_executor(strand, handler));
            complete_later();
        };
    }
    rounds.begin();
    while (rounds.calls < Rounds::warm_up + Rounds::count) {
        poll(world.io);
        poll(other);
        if (world.armed()) rounds.complete(world, *queue);
    }
    CHECK(rounds.as_expected);
    CHECK(rounds.allocations.count == Rounds::count);
    CHECK(rounds.allocations.recycled == Rounds::count);
    CHECK(rounds.cost.allocations == 0);
}

TEST_CASE("async_poll costs one allocation with the default allocator", "[allocations]") {
    World world;
    Rounds rounds;
    const auto handler = [&](const Error& error, std::span<ibv_wc> wcs) { rounds(error, wcs); };
    SECTION("ready at once") {
        rounds.begin = [&] {
            rounds.complete(world, world.cq.async_cq());
            async_poll(world.cq, world.wcs, handler);
        };
    }
    SECTION("after a wait") {
        rounds.begin = [&] {
            async_poll(world.cq, world.wcs, handler);
            net::post(world.io, [&] { rounds.complete(world, world.cq.async_cq()); });
        };
    }
    rounds.begin();
    world.io.run();
    CHECK(rounds.as_expected);
    CHECK(rounds.cost.allocations == Rounds::count);
}

TEST_CASE("async_poll: where there is no memory it fails, but loses nothing", "[allocations]") {
    enum class End { ready, completed, cancelled, destroyed };
    const End end = GENERATE(End::ready, End::completed, End::cancelled, End::destroyed);
    bool failed = true;
    for (std::size_t skip = 0; failed; ++skip) {
        SimulatedVerbs sim;
        const Context context = Context::open();
        net::io_context io;
        std::optional<AsioCq<IoExecutor>> cq(std::in_place, io, context, 16);
        ibv_cq* const queue = cq->async_cq().native_handle();
        std::array<ibv_wc, 1> wcs;
        Outcome outcome;
        outcome.wr_ids.reserve(1);
        bool begun = false;
        if (end == End::ready) sim.complete(queue, 1);
        support::fail_allocation(skip);
        try {
            async_poll(*cq, wcs, outcome.handler());
            begun = true;
        } catch (const std::bad_alloc&) {
        }
        poll(io);
        if (end == End::completed) sim.complete(queue, 1);
        if (end == End::cancelled) cq->cancel();
        if (end == End::destroyed) cq.reset();
        poll(io);
        failed = support::stop_failing();
        CHECK(outcome.calls == (begun ? 1 : 0));
        const bool delivered = end == End::ready || end == End::completed;
        CHECK(outcome.wr_ids.size() == (begun && delivered ? 1 : 0));
    }
}
