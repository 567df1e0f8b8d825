// SPDX-License-Identifier: MIT
// The queue, the context, the notifier and the waiting coroutine end in every order and state. The
// address sanitizer finds what the assertions do not. Then: AsioNotifier, where the conformance
// suite does not assert it.
#include <asyncverbs/adapters/asio.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>

#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <stop_token>
#include <utility>

#include "adapters/asio.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"
#include "support/pipe.hpp"

using namespace asyncverbs;
using namespace asyncverbs::adapters;
using namespace std::chrono_literals;
using asyncverbs::support::Coroutine;
using asyncverbs::support::Pipe;

namespace {

Coroutine wait(auto& notifier, std::stop_token stop, std::chrono::nanoseconds bound,
               std::error_code& result) {
    result = co_await notifier.readable(std::move(stop), bound);
}

// Calls `test` with an object that `make` creates, for each kind of executor. The executor is
// destroyed before the call, because no strand may outlive its context.
template <class Make, class Test>
void on_each_executor(net::io_context& io, Make make, Test test) {
    SECTION("on an io_context") {
        auto object = make(io.get_executor());
        test(std::move(object));
    }
    SECTION("on a strand") {
        auto object = make(net::make_strand(io));
        test(std::move(object));
    }
    SECTION("on any executor") {
        auto object = make(net::any_io_executor(net::make_strand(io)));
        test(std::move(object));
    }
}

} // namespace

TEST_CASE("AsioCq: destroying it cancels its polls", "[lifetimes]") {
    Fixture f;
    Outcome outcome;
    for (int i = 0; i < 3; ++i) f.start(outcome.handler());
    SECTION("that wait") { f.run_ready(); }
    SECTION("that have not started") {}
    SECTION("by a move assignment") {
        f.run_ready();
        *f.cq = AsioCq(*f.io, f.context, 16);
    }
    f.cq.reset();
    CHECK(outcome.calls == 0);
    f.run(); // returns
    CHECK(outcome.cancelled(3));
    CHECK(outcome.handlers() == 0);
}

TEST_CASE("AsioCq: a handler may destroy it", "[lifetimes]") {
    Fixture f;
    Outcome outcome;
    f.start([&](const Error& error, std::span<ibv_wc> done) {
        CHECK_FALSE(error);
        CHECK(done.size() == 1);
        f.cq.reset();
    });
    f.start(outcome.handler());
    f.run_ready();
    f.complete(1);
    f.run_ready();
    CHECK_FALSE(f.cq);
    CHECK(outcome.cancelled());
}

TEST_CASE("AsioCq: it can be moved while a poll waits", "[lifetimes]") {
    Fixture f;
    Outcome outcome;
    f.start(outcome.handler());
    SECTION("before the poll has started") {}
    SECTION("while it waits") { f.run_ready(); }
    AsioCq moved = std::move(*f.cq);
    f.sim.complete(moved.async_cq().native_handle(), 1);
    f.run_ready();
    CHECK(outcome.completed({1}));
}

TEST_CASE("AsioCq: destroying the context first destroys the handlers", "[lifetimes]") {
    Fixture f;
    Outcome outcome;
    const auto make = [&](const auto& executor) { return AsioCq(executor, f.context, 16); };
    on_each_executor(*f.io, make, [&](auto cq) {
        std::array<ibv_wc, 1> wcs;
        for (int i = 0; i < 3; ++i) async_poll(cq, wcs, outcome.handler());
        SECTION("that have not started") {}
        SECTION("that wait") { f.run_ready(); }
        SECTION("that are about to be called") {
            f.run_ready();
            ibv_cq* const queue = cq.async_cq().native_handle();
            f.sim.complete(queue, 1);
            f.io->restart();
            while (f.sim.queued_completions(queue) > 0) f.io->poll_one();
        }
        SECTION("that are about to be cancelled") {
            f.run_ready();
            cq.cancel();
        }
        f.io.reset();
        CHECK(outcome.calls == 0);
        CHECK(outcome.handlers() == 0);
    });
}

#if defined(ASIO_HAS_CO_AWAIT) || defined(BOOST_ASIO_HAS_CO_AWAIT)
TEST_CASE("AsioCq: a coroutine that owns it and waits for it ends with the context",
          "[lifetimes]") {
    Fixture f;
    const auto alive = std::make_shared<int>(0);
    struct Local {
        static net::awaitable<void> wait(Fixture& f, std::shared_ptr<int>) {
            AsioCq cq(*f.io, f.context, 16);
            std::array<ibv_wc, 1> wcs;
            Outcome outcome;
            std::array<ibv_wc, 1> more;
            async_poll(cq, more, outcome.handler());
            co_await async_poll(cq, wcs, net::use_awaitable);
        }
    };
    for (int i = 0; i < 2; ++i) net::co_spawn(*f.io, Local::wait(f, alive), net::detached);
    f.run_ready();
    CHECK(alive.use_count() == 3);
    f.io.reset();
    CHECK(alive.use_count() == 1);
}
#endif

TEST_CASE("AsioNotifier: the context may be destroyed while a coroutine waits", "[lifetimes]") {
    const Pipe pipe;
    std::optional<net::io_context> io(std::in_place);
    const auto make = [&](const auto& executor) { return AsioNotifier(executor, pipe.reader()); };
    on_each_executor(*io, make, [&](auto notifier) {
        const std::chrono::nanoseconds bound = GENERATE(1000000h, 1h, 0h);
        std::stop_source stop;
        std::error_code result;
        Coroutine coroutine = wait(notifier, stop.get_token(), bound, result);
        run_ready(*io);
        io.reset();
        stop.request_stop(); // has no effect
        CHECK(coroutine.done() == (bound == 0h));
        SECTION("the coroutine ends first") { coroutine.destroy(); }
        SECTION("the notifier ends first") { const auto moved = std::move(notifier); }
    });
}

TEST_CASE("AsioNotifier: destroying it cancels, and does not close the descriptor", "[lifetimes]") {
    const Pipe pipe;
    net::io_context io;
    const std::chrono::nanoseconds bound = GENERATE(1h, 0h);
    std::optional notifier(AsioNotifier(io.get_executor(), pipe.reader()));
    std::error_code result;
    const Coroutine coroutine = wait(*notifier, {}, bound, result);
    notifier.reset();
    CHECK_FALSE(coroutine.done());
    run_ready(io);
    REQUIRE(coroutine.done());
    CHECK(result == std::errc::operation_canceled);
    pipe.put();
    CHECK(pipe.take());
    // The descriptor is not registered any more: another notifier can register it.
    const AsioNotifier again(io.get_executor(), pipe.reader());
}

TEST_CASE("AsioNotifier: the context has no work once a wait has ended", "[lifetimes]") {
    net::io_context io;
    const Pipe pipe;
    const auto make = [&](const auto& executor) { return AsioNotifier(executor, pipe.reader()); };
    on_each_executor(io, make, [&](auto notifier) {
        const std::chrono::nanoseconds bound = GENERATE(0ns, 1h, std::chrono::nanoseconds::max());
        std::stop_source stop;
        std::error_code result;
        Coroutine waiter = wait(notifier, stop.get_token(), bound, result);
        const bool with_time = bound > 0ns;
        if (with_time) {
            run_ready(io);
            CHECK_FALSE(io.stopped()); // a wait is work
        }
        SECTION("because it is readable") { pipe.put(); }
        SECTION("by a stop") { stop.request_stop(); }
        SECTION("because its coroutine was destroyed") { waiter.destroy(); }
        SECTION("because its notifier was destroyed") {
            const auto destroyed = std::move(notifier);
        }
        run_ready(io);
        CHECK(io.stopped());
    });
}

TEST_CASE("AsioNotifier: the first wait fails for a file that cannot be waited for") {
    net::io_context io;
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::tmpfile(), &std::fclose);
    AsioNotifier notifier(io.get_executor(), ::fileno(file.get()));
    std::error_code result;
    const Coroutine coroutine = wait(notifier, {}, 1h, result);
    run_ready(io);
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

TEST_CASE("AsioNotifier: the system calls of a context's first descriptor may fail") {
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
