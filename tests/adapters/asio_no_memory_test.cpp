// SPDX-License-Identifier: MIT
// Lack of memory: each allocation fails once, and all of them from the n-th on. What was started
// ends, and the loop is usable afterwards.
#include <asyncverbs/adapters/asio.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <functional>
#include <new>
#include <optional>
#include <stop_token>
#include <system_error>
#include <utility>

#include "adapters/asio.hpp"
#include "adapters/asio_harness.hpp"
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

// Calls `attempt` with a new Case while the n-th allocation, or all from the n-th on, fail, for
// each n until none fails; then `finish` with memory.
template <class Case>
void sweep(void (*attempt)(Case&), void (*finish)(Case&)) {
    const bool once = GENERATE(true, false);
    bool failed = true;
    std::size_t skip = 0;
    for (; failed; ++skip) {
        INFO((once ? "only allocation " : "all from allocation ") << skip);
        Case each;
        once ? support::fail_allocation(skip) : support::run_out_of_memory(skip);
        try {
            attempt(each);
        } catch (const std::bad_alloc&) {
        }
        failed = support::stop_failing();
        finish(each);
        REQUIRE(skip < 1000);
    }
}

// A notifier, and coroutines that wait for it one after the other.
template <class MakeLoop>
struct Waits : AsioHarness<MakeLoop> {
    Waits() : readable(this->notifier(pipe.reader())) {}

    Coroutine wait(std::stop_token token, std::chrono::nanoseconds bound) {
        result = co_await readable.readable(std::move(token), bound);
    }
    void start(std::chrono::nanoseconds bound = 1h) {
        result.reset();
        waiter.emplace(wait(stop.get_token(), bound));
        started = true;
    }
    void run_ready() { adapters::run_ready(this->io); }

    // What was started has ended, with these errors or for lack of memory, and the next wait works.
    void finish(std::errc error) {
        for (int i = 0; i < 10 && started && !waiter->done(); ++i) {
            this->io.restart();
            this->io.run_one_for(2ms);
        }
        if (started) {
            CHECK(waiter->done());
            if (result) CHECK(result->value() == static_cast<int>(error));
        }
        run_ready();
        CHECK(this->io.stopped()); // no work is left
        waiter.reset();
        result.reset();
        stop = std::stop_source();
        start();
        pipe.put();
        this->io.restart();
        this->io.run_for(10s);
        CHECK(waiter->done());
        CHECK(result == std::error_code());
    }

    Pipe pipe;
    decltype(std::declval<AsioHarness<MakeLoop>&>().notifier(0)) readable;
    std::stop_source stop;
    std::optional<std::error_code> result;
    bool started = false;
    std::optional<Coroutine> waiter;
};

} // namespace

TEMPLATE_TEST_CASE("AsioNotifier without memory", "[no_memory]", OnContext, OnStrand, OnAny,
                   OnAnyStrand) {
    using Case = Waits<TestType>;
    SECTION("a notifier") {
        sweep<Case>([](Case& c) { auto other = c.notifier(c.pipe.writer()); },
                    [](Case& c) { c.finish({}); });
    }
    SECTION("a stop while it waits") {
        sweep<Case>(
            [](Case& c) {
                c.start();
                c.run_ready();
                c.stop.request_stop();
                c.run_ready();
            },
            [](Case& c) { c.finish(std::errc::operation_canceled); });
    }
    SECTION("readable") {
        sweep<Case>(
            [](Case& c) {
                c.start();
                c.run_ready();
                c.pipe.put();
                c.run_ready();
            },
            [](Case& c) {
                if (c.started) c.pipe.put();
                c.finish({});
            });
    }
    SECTION("a bound that passes") {
        sweep<Case>(
            [](Case& c) {
                c.start(1us);
                c.io.restart();
                c.io.run_for(1ms);
            },
            [](Case& c) { c.finish(std::errc::timed_out); });
    }
    SECTION("no time") {
        sweep<Case>(
            [](Case& c) {
                c.start(0ns);
                c.run_ready();
            },
            [](Case& c) { c.finish(std::errc::timed_out); });
    }
}

namespace {

// A queue on an executor, and two polls whose handlers run on another executor.
template <class MakeLoop>
struct Polls {
    using Executor = decltype(MakeLoop()(std::declval<net::io_context&>()).get_executor());

    // The simulated device has memory.
    Polls() {
        sim.on_call([this](const simulated::Call& call) {
            call.moment == simulated::Call::Moment::before ? void(shelter.emplace())
                                                           : shelter.reset();
        });
    }
    ~Polls() { sim.on_call(nullptr); }

    void start(Outcome& outcome) {
        async_poll(*cq, buffers.at(started),
                   net::bind_executor(handler_executor, outcome.handler()));
        ++started;
    }
    void run_ready() { adapters::run_ready(io); }
    void complete(std::uint64_t id) {
        const support::FailureShelter no_failures;
        sim.complete(cq->completion_queue().native_handle(), id);
    }

    // The handlers of all polls that async_poll() has accepted are called, and the next poll works.
    void finish() {
        cq->cancel();
        run_ready();
        CHECK(static_cast<std::size_t>(first.calls + second.calls) == started);
        CHECK(first.handlers() + second.handlers() == 0);
        Outcome next;
        start(next);
        complete(7);
        run_ready();
        CHECK(next.calls == 1);
    }

    simulated::SimulatedVerbs sim;
    Context context = Context::open();
    net::io_context io;
    Executor executor = MakeLoop()(io).get_executor();
    net::any_io_executor handler_executor = MakeLoop()(io).get_executor();
    std::optional<AsioCq<Executor>> cq{std::in_place, executor, context, 16};
    std::array<std::array<ibv_wc, 4>, 3> buffers;
    Outcome first;
    Outcome second;
    std::size_t started = 0;
    std::optional<support::FailureShelter> shelter;
};

} // namespace

// Not on a strand: Asio's strand allocates in a destructor, which ends the program.
TEMPLATE_TEST_CASE("AsioCq without memory", "[no_memory]", OnContext, OnAny) {
    using Case = Polls<TestType>;
    const auto finish = [](Case& c) { c.finish(); };
    SECTION("completions") {
        sweep<Case>(
            [](Case& c) {
                c.start(c.first);
                c.run_ready();
                c.start(c.second);
                c.run_ready();
                c.complete(1);
                c.run_ready();
                c.complete(2);
                c.run_ready();
            },
            finish);
    }
    SECTION("cancel") {
        sweep<Case>(
            [](Case& c) {
                c.start(c.first);
                c.start(c.second);
                c.run_ready();
                c.cq->cancel();
                c.run_ready();
            },
            finish);
    }
}
