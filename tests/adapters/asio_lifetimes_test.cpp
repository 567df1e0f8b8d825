// SPDX-License-Identifier: MIT
// What ends before what: the queue, the context, the coroutine that owns one of them, in every
// order and state. The address sanitizer says what else went wrong.
#include <asyncverbs/adapters/asio.hpp>

#include <cstdio>
#include <memory>
#include <optional>
#include <utility>

#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include "adapters/asio.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"
#include "support/pipe.hpp"
#include "support/simulated_verbs.hpp"

using namespace asyncverbs;
using namespace asyncverbs::adapters;
using asyncverbs::simulated::SimulatedVerbs;
using asyncverbs::support::Coroutine;
using asyncverbs::support::Pipe;

namespace {

// A handler that tells whether it is still there.
struct Tracked {
    std::shared_ptr<int> alive = std::make_shared<int>(0);
    int* calls = alive.get();
    auto handler() {
        return [alive = alive](const Error& error, std::span<ibv_wc> wcs) {
            CHECK(error == net::error::operation_aborted);
            CHECK(wcs.empty());
            ++*alive;
        };
    }
};

} // namespace

TEST_CASE("AsioCq: destroying it cancels what waits", "[lifetimes]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    net::io_context io;
    std::optional<AsioCq<IoExecutor>> cq(std::in_place, io, context, 16);
    std::array<ibv_wc, 1> wcs;
    Tracked tracked;
    for (int i = 0; i < 3; ++i) async_poll(*cq, wcs, tracked.handler());
    SECTION("that waits") { poll(io); }
    SECTION("that has not begun") {}
    SECTION("by moving another one over it") {
        poll(io);
        *cq = AsioCq(io, context, 16);
    }
    cq.reset();
    CHECK(*tracked.alive == 0);
    io.restart();
    io.run(); // returns
    CHECK(*tracked.alive == 3);
    CHECK(tracked.alive.use_count() == 1);
}

namespace {

// Owns what its allocator refers to, as any_completion_handler does.
struct OwningHandler {
    struct Arena {
        int blocks = 0;
    };
    template <class T>
    struct Allocator {
        using value_type = T;
        explicit Allocator(Arena& a) : arena(&a) {}
        template <class U>
        Allocator(const Allocator<U>& other) : arena(other.arena) {}
        T* allocate(std::size_t count) {
            ++arena->blocks;
            return std::allocator<T>().allocate(count);
        }
        void deallocate(T* block, std::size_t count) {
            --arena->blocks;
            std::allocator<T>().deallocate(block, count);
        }
        template <class U>
        bool operator==(const Allocator<U>& other) const {
            return arena == other.arena;
        }
        Arena* arena;
    };
    using allocator_type = Allocator<int>;
    allocator_type get_allocator() const { return allocator_type(*arena); }
    void operator()(const Error&, std::span<ibv_wc>) const { CHECK(arena->blocks == 0); }

    std::unique_ptr<Arena> arena = std::make_unique<Arena>();
};

} // namespace

TEST_CASE("async_poll: a handler may own what it allocates from", "[lifetimes]") {
    World world;
    async_poll(world.cq, world.wcs, OwningHandler());
    SECTION("it is called") {
        world.complete(1);
        poll(world.io);
    }
    SECTION("it is destroyed with the context, begun") { poll(world.io); }
    SECTION("it is destroyed with the context, not begun") {}
}

TEST_CASE("AsioCq: a handler may destroy it", "[lifetimes]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    net::io_context io;
    std::optional<AsioCq<IoExecutor>> cq(std::in_place, io, context, 16);
    std::array<ibv_wc, 1> wcs;
    Tracked tracked;
    async_poll(*cq, wcs, [&](const Error& error, std::span<ibv_wc> done) {
        CHECK_FALSE(error);
        CHECK(done.size() == 1);
        cq.reset();
    });
    std::array<ibv_wc, 1> more;
    async_poll(*cq, more, tracked.handler());
    poll(io);
    sim.complete(cq->async_cq().native_handle(), 1);
    poll(io);
    CHECK_FALSE(cq);
    CHECK(*tracked.alive == 1);
}

TEST_CASE("AsioCq: it can be moved while somebody waits", "[lifetimes]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    net::io_context io;
    AsioCq cq(io, context, 16);
    std::array<ibv_wc, 1> wcs;
    Outcome outcome;
    async_poll(cq, wcs, outcome.handler());
    SECTION("before it has begun") {}
    SECTION("waiting") { poll(io); }
    AsioCq moved = std::move(cq);
    sim.complete(moved.async_cq().native_handle(), 1);
    poll(io);
    CHECK(outcome.wr_ids == std::vector<std::uint64_t>{1});
}

TEST_CASE("AsioCq: the context may be destroyed first; handlers go with it", "[lifetimes]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    auto io = std::make_unique<net::io_context>();
    std::array<ibv_wc, 1> wcs;
    Tracked tracked;
    const auto end = [&](auto cq) {
        for (int i = 0; i < 3; ++i) async_poll(cq, wcs, tracked.handler());
        SECTION("that has not begun") {}
        SECTION("that waits") { poll(*io); }
        SECTION("that is to be called") {
            poll(*io);
            sim.complete(cq.async_cq().native_handle(), 1);
            io->restart();
            while (sim.queued_completions(cq.async_cq().native_handle()) > 0) io->poll_one();
        }
        SECTION("that is to be cancelled") {
            poll(*io);
            cq.cancel();
        }
        io.reset();
        CHECK(*tracked.alive == 0);
        CHECK(tracked.alive.use_count() == 1);
    };
    SECTION("on an io_context") { end(AsioCq(*io, context, 16)); }
    // A strand of our own would have to end before the context.
    SECTION("on a strand") {
        AsioCq cq(net::make_strand(*io), context, 16);
        end(std::move(cq));
    }
    SECTION("on any executor") {
        AsioCq<> cq(net::make_strand(*io), context, 16);
        end(std::move(cq));
    }
}

#if defined(ASIO_HAS_CO_AWAIT) || defined(BOOST_ASIO_HAS_CO_AWAIT)
TEST_CASE("AsioCq: a coroutine that owns it, and waits for it, ends with the context",
          "[lifetimes]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    const auto alive = std::make_shared<int>(0);
    struct Local {
        static net::awaitable<void> wait(net::io_context& io, const Context& context,
                                         std::shared_ptr<int>) {
            AsioCq cq(io, context, 16);
            std::array<ibv_wc, 1> wcs;
            Tracked tracked;
            std::array<ibv_wc, 1> more;
            async_poll(cq, more, tracked.handler());
            co_await async_poll(cq, wcs, net::use_awaitable);
        }
    };
    {
        net::io_context io;
        net::co_spawn(io, Local::wait(io, context, alive), net::detached);
        net::co_spawn(io, Local::wait(io, context, alive), net::detached);
        poll(io);
        CHECK(alive.use_count() == 3);
    }
    CHECK(alive.use_count() == 1);
}
#endif

namespace {

Coroutine consume(AsyncCq& cq, std::vector<std::uint64_t>& got, std::size_t count) {
    std::array<ibv_wc, 2> wcs{};
    while (got.size() < count) {
        for (const ibv_wc& wc : co_await cq.poll(wcs)) got.push_back(wc.wr_id);
    }
}

} // namespace

TEST_CASE("AsyncCq on an AsioLoop: coroutines await in an io_context") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    net::io_context io;
    AsioLoop loop(io);
    AsyncCq cq = AsyncCq::create(context, 16, loop);
    std::vector<std::uint64_t> got;
    const Coroutine consumer = consume(cq, got, 3);
    for (std::uint64_t id = 0; id < 3; ++id) {
        poll(io);
        CHECK(got.size() == id);
        sim.complete(cq.native_handle(), id);
    }
    poll(io);
    REQUIRE(consumer.done());
    consumer.get();
    CHECK(got == std::vector<std::uint64_t>{0, 1, 2});
    CHECK(cq.statistics().wakes == 3);
    io.restart();
    io.run(); // returns: nobody waits
}

TEST_CASE("AsyncCq on an AsioLoop: a busy queue starves nobody", "[I9]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    net::io_context io;
    AsioLoop loop(io);
    AsyncCq cq = AsyncCq::create(context, 1024, loop);
    bool posted = false;
    struct Local {
        static Coroutine keep_busy(SimulatedVerbs& sim, AsyncCq& cq, const bool& posted) {
            std::array<ibv_wc, 1> wcs{};
            while (!posted) { // for ever, if nobody else gets a turn
                sim.complete(cq.native_handle(), 1);
                co_await cq.poll(wcs);
            }
        }
    };
    net::post(io, [&] { posted = true; });
    const Coroutine busy = Local::keep_busy(sim, cq, posted);
    poll(io);
    CHECK(busy.done());
}

TEST_CASE("AsyncCq on an AsioLoop: max_wait finds what a dropped event announced", "[I3]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    net::io_context io;
    AsioLoop loop(io);
    AsyncCq cq = AsyncCq::create(context, 16, loop, {.max_wait = std::chrono::milliseconds(2)});
    sim.drop_events(cq.native_handle());
    std::vector<std::uint64_t> got;
    const Coroutine consumer = consume(cq, got, 1);
    REQUIRE(sim.armed(cq.native_handle()));
    sim.complete(cq.native_handle(), 5);
    io.run();
    CHECK(consumer.done());
    CHECK(cq.statistics().events == 0);
}

TEST_CASE("AsioNotifier: the context may be destroyed while a coroutine waits", "[lifetimes]") {
    const Pipe pipe;
    auto io = std::make_unique<net::io_context>();
    std::stop_source stop;
    const auto wait = [&](auto notifier) {
        struct Local {
            static Coroutine run(decltype(notifier)& n, std::stop_token token,
                                 std::chrono::nanoseconds bound) {
                co_await n.readable(token, bound);
            }
        };
        const auto bound =
            GENERATE(std::chrono::hours(1000000), std::chrono::hours(1), std::chrono::hours(0));
        Coroutine coroutine = Local::run(notifier, stop.get_token(), bound);
        poll(*io);
        io.reset();
        stop.request_stop(); // reaches nobody
        const bool over = bound == std::chrono::hours(0);
        CHECK(coroutine.done() == over);
        SECTION("the coroutine ends first") { coroutine.destroy(); }
        SECTION("the notifier ends first") { const auto gone = std::move(notifier); }
    };
    SECTION("on an io_context") { wait(AsioNotifier(io->get_executor(), pipe.reader())); }
    // A strand of our own would have to end before the context.
    SECTION("on a strand") {
        AsioNotifier notifier(net::make_strand(*io), pipe.reader());
        wait(std::move(notifier));
    }
    SECTION("on any executor") {
        AsioNotifier<> notifier(net::make_strand(*io), pipe.reader());
        wait(std::move(notifier));
    }
}

TEST_CASE("AsioNotifier: its destruction cancels, and leaves the descriptor open", "[lifetimes]") {
    const Pipe pipe;
    net::io_context io;
    struct Local {
        static Coroutine run(AsioNotifier<IoExecutor>& n, std::chrono::nanoseconds bound,
                             std::error_code& result) {
            result = co_await n.readable({}, bound);
        }
    };
    const auto bound = GENERATE(std::chrono::hours(1), std::chrono::hours(0));
    std::optional notifier(AsioNotifier(io.get_executor(), pipe.reader()));
    std::error_code result;
    const Coroutine coroutine = Local::run(*notifier, bound, result);
    notifier.reset();
    CHECK_FALSE(coroutine.done());
    poll(io);
    REQUIRE(coroutine.done());
    CHECK(result == std::errc::operation_canceled);
    pipe.put();
    CHECK(pipe.take());
    // It is registered no more: another one can be.
    AsioNotifier again(io.get_executor(), pipe.reader());
}

TEST_CASE("AsioNotifier: a file that cannot be waited for says so at the first wait") {
    net::io_context io;
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::tmpfile(), &std::fclose);
    AsioNotifier notifier(io.get_executor(), ::fileno(file.get()));
    std::error_code result;
    const auto wait = [&]() -> Coroutine { result = co_await notifier.readable(); };
    const Coroutine coroutine = wait();
    poll(io);
    CHECK(coroutine.done());
    CHECK(result == std::errc::operation_not_supported);
}

TEST_CASE("AsioNotifier: errors name the call") {
    net::io_context io;
    const Pipe pipe;
    const AsioNotifier first(io.get_executor(), pipe.reader());
    CHECK_THROWS_WITH(AsioNotifier(io.get_executor(), pipe.reader()),
                      support::contains("stream_descriptor::assign"));
    try {
        AsioNotifier(io.get_executor(), -1);
        FAIL("no exception");
    } catch (const std::system_error& error) {
        CHECK(error.code() == std::errc::bad_file_descriptor);
    }
}

TEST_CASE("AsioNotifier: what a context needs for its first descriptor may fail, too") {
    const Pipe pipe;
    bool failed = true;
    for (std::size_t skip = 0; failed; ++skip) {
        net::io_context io;
        support::fail_system_call(skip);
        try {
            AsioNotifier(io.get_executor(), pipe.reader());
        } catch (const std::system_error& error) {
            CHECK(error.code() == std::errc::io_error);
        }
        failed = support::stop_failing();
    }
}
