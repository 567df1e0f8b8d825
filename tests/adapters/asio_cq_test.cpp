// SPDX-License-Identifier: MIT
// async_poll(): completion tokens, executors, cancellation and cost. The same source is compiled
// for standalone Asio and for Boost.Asio.
#include <asyncverbs/adapters/asio.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>

#include <functional>
#include <future>
#include <optional>
#include <stdexcept>
#include <system_error>

#include "adapters/asio.hpp"
#include "support/catch.hpp"
#include "support/counters.hpp"

using namespace asyncverbs;
using namespace asyncverbs::adapters;
using asyncverbs::simulated::SimulatedVerbs;
using asyncverbs::support::counters;
using asyncverbs::support::Counters;

TEST_CASE("async_poll: completions in the queue complete it by a post, not within the call") {
    Fixture f;
    f.complete(1);
    f.complete(2);
    Outcome outcome;
    const auto start = [&] {
        f.start(outcome.handler());
        CHECK(outcome.calls == 0);
    };
    SECTION("outside of the loop") { start(); }
    SECTION("in a handler of the loop") { net::post(*f.io, start); }
    f.run();
    CHECK(outcome.completed({1, 2}));
    CHECK(f.cq->async_cq().statistics().arms == 0);
}

TEST_CASE("async_poll: waits in the loop, which has work until then") {
    Fixture f;
    Outcome outcome;
    f.start(outcome.handler());
    std::thread device([&] {
        while (!f.sim.armed(f.queue())) std::this_thread::yield();
        f.complete(42);
    });
    f.run();
    device.join();
    CHECK(outcome.completed({42}));
    CHECK(f.cq->async_cq().statistics().wakes == 1);
}

TEST_CASE("async_poll: first come, first served", "[I6]") {
    Fixture f;
    std::array<Outcome, 3> outcomes;
    for (Outcome& outcome : outcomes) f.start(outcome.handler(), 1);
    f.run_ready();
    for (std::uint64_t id = 0; id < 3; ++id) f.complete(id);
    f.run_ready();
    for (std::uint64_t id = 0; id < 3; ++id) CHECK(outcomes[id].completed({id}));
}

TEST_CASE("async_poll with use_future") {
    Fixture f;
    std::array<ibv_wc, 4> wcs{};
    std::future<std::span<ibv_wc>> future = async_poll(*f.cq, wcs, net::use_future);
    f.run_ready();
    SECTION("completed") {
        f.complete(7);
        f.run_ready();
        const std::span<ibv_wc> done = future.get();
        CHECK(done.data() == wcs.data());
        REQUIRE(done.size() == 1);
        CHECK(done[0].wr_id == 7);
    }
    SECTION("cancelled") {
        f.cq->cancel();
        f.run_ready();
        CHECK_THROWS_AS(future.get(), SystemError);
    }
}

#if defined(ASIO_HAS_CO_AWAIT) || defined(BOOST_ASIO_HAS_CO_AWAIT)
TEST_CASE("async_poll with use_awaitable, beside a timer") {
    Fixture f;
    Ids got;
    struct Local {
        static net::awaitable<void> consume(Fixture& f, Ids& got) {
            std::array<ibv_wc, 4> wcs{};
            while (got.size() < 200) {
                for (const ibv_wc& wc : co_await async_poll(*f.cq, wcs, net::use_awaitable)) {
                    got.push_back(wc.wr_id);
                }
            }
        }
        static net::awaitable<void> produce(Fixture& f) {
            net::steady_timer timer(*f.io);
            for (std::uint64_t id = 0; id < 200; ++id) {
                f.complete(id);
                if (id % 3 != 0) continue;
                timer.expires_after(std::chrono::microseconds(10));
                co_await timer.async_wait(net::use_awaitable);
            }
        }
    };
    net::co_spawn(*f.io, Local::consume(f, got), net::detached);
    net::co_spawn(*f.io, Local::produce(f), net::detached);
    f.run();
    REQUIRE(got.size() == 200);
    for (std::uint64_t id = 0; id < 200; ++id) CHECK(got[id] == id);
}

TEST_CASE("async_poll with use_awaitable throws operation_aborted") {
    Fixture f;
    Error error;
    struct Local {
        static net::awaitable<void> wait(Fixture& f, Error& error) {
            std::array<ibv_wc, 4> wcs{};
            try {
                co_await async_poll(*f.cq, wcs, net::use_awaitable);
            } catch (const SystemError& caught) {
                error = caught.code();
            }
        }
    };
    net::co_spawn(*f.io, Local::wait(f, error), net::detached);
    f.run_ready();
    f.cq->cancel();
    f.run_ready();
    CHECK(error == net::error::operation_aborted);
}

TEST_CASE("async_poll: the default token is that which the AsioCq was rebound for") {
    Fixture f;
    using Cq = net::use_awaitable_t<>::as_default_on_t<AsioCq<>>;
    Cq cq(*f.io, f.context, 16);
    std::uint64_t got = 0;
    struct Local {
        static net::awaitable<void> wait(Cq& queue, std::uint64_t& wr_id) {
            std::array<ibv_wc, 1> wcs;
            const std::span<ibv_wc> done = co_await async_poll(queue, wcs);
            wr_id = done[0].wr_id;
        }
    };
    net::co_spawn(*f.io, Local::wait(cq, got), net::detached);
    f.run_ready();
    f.sim.complete(cq.async_cq().native_handle(), 5);
    f.run_ready();
    CHECK(got == 5);
}
#else
TEST_CASE("async_poll with use_awaitable") {
    WARN("left out: this Asio has no coroutines with this compiler");
}
#endif

#if defined(ASYNCVERBS_TEST_DEFERRED)
TEST_CASE("async_poll with deferred starts when the operation is called") {
    Fixture f;
    f.complete(1);
    Outcome outcome;
    std::array<ibv_wc, 4> wcs{};
    auto operation = async_poll(*f.cq, wcs, ASYNCVERBS_TEST_DEFERRED);
    CHECK(f.run_ready() == 0);
    CHECK(f.cq->async_cq().statistics().polls == 0);
    std::move(operation)(outcome.handler());
    f.run_ready();
    CHECK(outcome.completed({1}));
}
#else
TEST_CASE("async_poll with deferred") { WARN("left out: this Asio has no deferred"); }
#endif

TEST_CASE("async_poll: the default token is that of the executor") {
    struct Future : IoExecutor {
        explicit Future(const IoExecutor& executor) : IoExecutor(executor) {}
        using default_completion_token_type = net::use_future_t<>;
    };
    Fixture f;
    AsioCq cq(Future(f.io->get_executor()), f.context, 16);
    std::array<ibv_wc, 4> wcs{};
    std::future<std::span<ibv_wc>> future = async_poll(cq, wcs);
    f.run_ready();
    f.sim.complete(cq.async_cq().native_handle(), 5);
    f.run_ready();
    CHECK(future.get()[0].wr_id == 5);
}

TEST_CASE("async_poll passes rvalues, as its signature says") {
    Fixture f;
    int calls = 0;
    f.start([&](Error&&, std::span<ibv_wc>&&) { ++calls; });
    f.complete(1);
    f.run_ready();
    CHECK(calls == 1);
}

namespace {

// Counts how often it was constructed at a misaligned address.
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
    Fixture f;
    int misplaced = 0;
    for (int i = 0; i < 16; ++i) f.start(AlignedHandler(misplaced));
    f.run_ready();
    CHECK(misplaced == 0);
}

TEST_CASE("async_poll calls the handler on its executor, which has work until then") {
    Fixture f;
    net::io_context other;
    int calls = 0;
    const auto start_on = [&](const auto& executor, auto runs_here) {
        f.start(net::bind_executor(executor,
                                   [&calls, runs_here](const Error& error, std::span<ibv_wc> wcs) {
                                       CHECK_FALSE(error);
                                       CHECK(wcs.size() == 1);
                                       CHECK(runs_here());
                                       ++calls;
                                   }));
    };
    const auto other_runs_here = [&] { return other.get_executor().running_in_this_thread(); };
    SECTION("an io_context") { start_on(other.get_executor(), other_runs_here); }
    SECTION("a strand") {
        const auto strand = net::make_strand(other);
        start_on(strand, [strand] { return strand.running_in_this_thread(); });
    }
    SECTION("any executor") {
        start_on(net::any_io_executor(other.get_executor()), other_runs_here);
    }
    std::thread thread([&] { other.run(); }); // returns at once if it has no work
    f.run_ready();
    f.complete(1);
    std::thread device([&] { f.run(); });
    thread.join();
    device.join();
    CHECK(calls == 1);
}

TEST_CASE("async_poll calls the handler on the strand of the queue by default") {
    Fixture f;
    const auto strand = net::make_strand(*f.io);
    AsioCq cq(strand, f.context, 16);
    CHECK(cq.get_executor() == strand);
    std::array<ibv_wc, 4> wcs{};
    int calls = 0;
    const auto start = [&] {
        async_poll(cq, wcs, [&](const Error& error, std::span<ibv_wc> done) {
            CHECK_FALSE(error);
            CHECK(done.size() == 1);
            CHECK(strand.running_in_this_thread());
            ++calls;
        });
    };
    start();
    f.run_ready();
    f.sim.complete(cq.async_cq().native_handle(), 1);
    f.run_ready();
    CHECK(calls == 1);
    f.sim.complete(cq.async_cq().native_handle(), 2);
    start();
    f.run_ready();
    CHECK(calls == 2);
}

TEST_CASE("async_poll: an exception of a handler leaves run() and affects no other operation") {
    Fixture f;
    Outcome outcome;
    f.start([](const Error&, std::span<ibv_wc>) { throw std::runtime_error("mine"); });
    f.start(outcome.handler());
    f.run_ready();
    f.complete(1);
    CHECK_THROWS_WITH(f.run_ready(), "mine");
    f.complete(2);
    f.run_ready();
    CHECK(outcome.completed({2}));
}

TEST_CASE("async_poll: errors") {
    Fixture f;
    Outcome outcome;
    SECTION("an empty span") {
        f.start(outcome.handler(), 0);
        f.run_ready();
        CHECK(outcome.error == std::errc::invalid_argument);
    }
    SECTION("a failing verb fails all waiting and all later polls") {
        for (int i = 0; i < 2; ++i) f.start(outcome.handler());
        f.run_ready();
        f.sim.disassociate(f.context.native_handle());
        f.run_ready();
        CHECK(outcome.calls == 2);
        CHECK(outcome.error == std::errc::io_error);
        f.start(outcome.handler());
        f.run_ready();
        CHECK(outcome.calls == 3);
        CHECK(outcome.error == std::errc::io_error);
        CHECK(f.run_ready() == 0); // nothing spins
    }
    CHECK(outcome.wr_ids.empty());
}

TEST_CASE("AsioCq::cancel() ends waiting polls, and the loop's work with them", "[I7]") {
    Fixture f;
    std::array<Outcome, 2> outcomes;
    for (Outcome& outcome : outcomes) f.start(outcome.handler());
    f.run_ready();
    f.cq->cancel();
    for (const Outcome& outcome : outcomes) CHECK(outcome.calls == 0);
    f.run(); // returns
    for (const Outcome& outcome : outcomes) CHECK(outcome.cancelled());

    Outcome later;
    f.complete(1);
    f.start(later.handler());
    f.run_ready();
    CHECK(later.completed({1}));
    f.cq->cancel(); // no poll waits
    CHECK(f.run_ready() == 0);
}

TEST_CASE("AsioCq::cancel() ends polls that have not started, but no later ones", "[I7]") {
    Fixture f;
    Outcome cancelled;
    Outcome later;
    f.start(cancelled.handler());
    f.cq->cancel();
    f.start(later.handler());
    f.complete(1);
    f.run_ready();
    CHECK(cancelled.cancelled());
    CHECK(later.completed({1}));
}

TEST_CASE("AsioCq::cancel() does not affect a poll that has its completions", "[I7]") {
    Fixture f;
    Outcome outcome;
    f.complete(1);
    net::post(*f.io, [&] {
        f.start(outcome.handler()); // takes the completion; the handler is called later
        f.cq->cancel();
    });
    f.run_ready();
    CHECK(outcome.completed({1}));
}

#if defined(ASYNCVERBS_ASIO_CANCELLATION)
TEST_CASE("async_poll: a cancellation slot cancels one operation", "[I7]") {
    Fixture f;
    net::cancellation_signal signal;
    Outcome cancelled;
    Outcome other;
    const auto type = GENERATE(net::cancellation_type::terminal, net::cancellation_type::partial,
                               net::cancellation_type::total);
    bool has_other = false;
    const auto start_cancelled = [&] {
        f.start(net::bind_cancellation_slot(signal.slot(), cancelled.handler()));
    };
    const auto start_other = [&] {
        f.start(other.handler());
        has_other = true;
    };
    SECTION("the only one: the loop runs out of work") {
        start_cancelled();
        f.run_ready();
        signal.emit(type);
        CHECK(cancelled.calls == 0);
        f.run();
    }
    SECTION("the only one that waits: another one has not started") {
        start_cancelled();
        f.run_ready();
        signal.emit(type);
        start_other();
        f.run_ready();
    }
    SECTION("before it has started") {
        start_cancelled();
        net::dispatch(*f.io, [&] { signal.emit(type); });
        f.run();
    }
    SECTION("the first of two") {
        start_cancelled();
        start_other();
        f.run_ready();
        signal.emit(type);
        // The completion may arrive before the cancellation is handled.
        if (GENERATE(false, true)) f.run_ready();
    }
    SECTION("the second of two") {
        start_other();
        start_cancelled();
        f.run_ready();
        signal.emit(type);
        f.run_ready();
    }
    CHECK(other.calls == 0);
    f.complete(1);
    f.run_ready();
    CHECK(cancelled.cancelled());
    CHECK_FALSE(signal.slot().has_handler());
    CHECK(other.completed({1}) == has_other);
}

TEST_CASE("async_poll: a late cancellation does not affect the result", "[I7]") {
    Fixture f;
    net::cancellation_signal signal;
    Outcome outcome;
    f.start(net::bind_cancellation_slot(signal.slot(), outcome.handler()));
    f.run_ready();
    SECTION("the poll has its completions") {
        f.complete_without_call(1);
        CHECK(outcome.calls == 0);
        signal.emit(net::cancellation_type::total);
        f.run_ready();
    }
    SECTION("the handler was called") {
        f.complete(1);
        f.run_ready();
        CHECK(outcome.calls == 1);
        signal.emit(net::cancellation_type::total);
        CHECK(f.run_ready() == 0);
    }
    CHECK(outcome.completed({1}));
}

TEST_CASE("async_poll: a slot may outlive the queue and the context") {
    net::cancellation_signal signal;
    {
        Fixture f;
        f.start(net::bind_cancellation_slot(signal.slot(), [](const Error&, auto) {}));
        f.run_ready();
    }
    signal.emit(net::cancellation_type::terminal);
}
#else
TEST_CASE("async_poll: cancellation slots") { WARN("left out: this Asio has none"); }
#endif

namespace {

// Counts what a handler's allocator is asked for. Keeps the last freed block for the next request.
struct Allocations {
    std::size_t count = 0;
    std::size_t alive = 0;
    std::size_t recycled = 0;
    void* kept = nullptr;
    std::size_t kept_size = 0;
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

// Owns the memory resource of its allocator, as any_completion_handler does.
struct OwningHandler {
    using allocator_type = CountingAllocator<int>;
    allocator_type get_allocator() const { return allocator_type(*allocations); }
    void operator()(const Error&, std::span<ibv_wc>) const { CHECK(allocations->alive == 0); }

    std::unique_ptr<Allocations> allocations = std::make_unique<Allocations>();
};

// Repeats a round that ends with a call of its handler, and counts the cost of the later rounds,
// when Asio has memory to recycle.
struct Rounds {
    static constexpr int warm_up = 10;
    static constexpr int count = 1100; // enough for a ready queue to yield to others (I9)

    Fixture f;
    AsyncCq* queue = &f.cq->async_cq();
    std::function<void()> begin;
    Allocations allocations;
    bool as_expected = true;
    int calls = 0;
    Counters before;
    Counters cost;
    std::size_t simulated = 0; // allocations of the simulated device, which do not count

    bool done() const { return calls == warm_up + count; }

    void complete() {
        const Counters start = counters();
        f.sim.complete(queue->native_handle(), 1);
        simulated += (counters() - start).allocations;
    }
    void complete_later() {
        net::post(*f.io, [this] { complete(); });
    }

    void operator()(const Error& error, std::span<ibv_wc> wcs) {
        // No CHECK, which allocates. The operation's memory was freed before the call.
        as_expected = as_expected && !error && wcs.size() == 1 && allocations.alive == 0;
        if (++calls == warm_up) {
            allocations.count = allocations.recycled = simulated = 0;
            before = counters();
        } else if (done()) {
            cost = counters() - before;
            cost.allocations -= simulated;
            return;
        }
        begin();
    }
};

struct CountingHandler {
    Rounds& rounds;

    using allocator_type = CountingAllocator<std::byte>;
    allocator_type get_allocator() const { return allocator_type(rounds.allocations); }
    void operator()(const Error& error, std::span<ibv_wc> wcs) const { rounds(error, wcs); }
};

} // namespace

TEST_CASE("async_poll: a handler may own what it allocates from", "[lifetimes]") {
    Fixture f;
    f.start(OwningHandler());
    SECTION("it is called") {
        f.complete(1);
        f.run_ready();
    }
    SECTION("it is destroyed with the context, after the start") { f.run_ready(); }
    SECTION("it is destroyed with the context, before the start") {}
}

TEST_CASE("async_poll costs one allocation, none with a recycling allocator", "[allocations]") {
    Rounds rounds;
    Fixture& f = rounds.f;
    const auto strand = net::make_strand(*f.io);
    AsioCq on_strand(strand, f.context, 16);
    net::io_context other;
    std::array<ibv_wc, 4> wcs{};
    const CountingHandler handler{rounds};

    SECTION("ready at once") {
        rounds.begin = [&] {
            rounds.complete();
            async_poll(*f.cq, wcs, handler);
        };
    }
    SECTION("after a wait") {
        rounds.begin = [&] {
            async_poll(*f.cq, wcs, handler);
            rounds.complete_later();
        };
    }
    SECTION("on a strand") {
        rounds.queue = &on_strand.async_cq();
        rounds.begin = [&] {
            async_poll(on_strand, wcs, handler);
            rounds.complete_later();
        };
    }
    SECTION("the handler on another executor") {
        rounds.begin = [&] { async_poll(*f.cq, wcs, net::bind_executor(other, handler)); };
    }
    SECTION("the handler on a strand") {
        rounds.begin = [&] {
            async_poll(*f.cq, wcs, net::bind_executor(strand, handler));
            rounds.complete_later();
        };
    }
    rounds.begin();
    while (!rounds.done()) {
        f.run_ready();
        run_ready(other);
        if (f.sim.armed(f.queue())) rounds.complete();
    }
    CHECK(rounds.as_expected);
    CHECK(rounds.allocations.count == Rounds::count);
    CHECK(rounds.allocations.recycled == Rounds::count);
    CHECK(rounds.cost.allocations == 0);
}

TEST_CASE("async_poll costs one allocation with the default allocator", "[allocations]") {
    Rounds rounds;
    std::array<ibv_wc, 4> wcs{};
    const bool ready = GENERATE(true, false);
    rounds.begin = [&] {
        if (ready) rounds.complete();
        async_poll(*rounds.f.cq, wcs, std::ref(rounds));
        if (!ready) rounds.complete_later();
    };
    rounds.begin();
    rounds.f.run();
    CHECK(rounds.as_expected);
    CHECK(rounds.cost.allocations == Rounds::count);
}

TEST_CASE("async_poll: without memory it throws, and loses nothing", "[allocations]") {
    enum class End { ready, completed, cancelled, destroyed };
    const End end = GENERATE(End::ready, End::completed, End::cancelled, End::destroyed);
    bool failed = true;
    for (std::size_t skip = 0; failed; ++skip) {
        Fixture f;
        std::array<ibv_wc, 1> wcs;
        Outcome outcome;
        outcome.wr_ids.reserve(1);
        bool started = false;
        if (end == End::ready) f.complete(1);
        support::fail_allocation(skip);
        try {
            async_poll(*f.cq, wcs, outcome.handler());
            started = true;
        } catch (const std::bad_alloc&) {
        }
        f.run_ready();
        if (end == End::completed) f.complete(1);
        if (end == End::cancelled) f.cq->cancel();
        if (end == End::destroyed) f.cq.reset();
        f.run_ready();
        failed = support::stop_failing();
        CHECK(outcome.calls == (started ? 1 : 0));
        const bool delivered = end == End::ready || end == End::completed;
        CHECK(outcome.wr_ids.size() == (started && delivered ? 1 : 0));
    }
}
