// SPDX-License-Identifier: MIT
// Operations of this library are awaited in coroutine types of others: eager ones, ones with an
// await_transform, ones that continue only on their own scheduler, and models of two libraries'
// own.
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/coro/when_all.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>

#include <array>
#include <cerrno>
#include <cstdint>
#include <optional>
#include <span>
#include <stop_token>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "cq/fixture.hpp"
#include "rdma/fixture.hpp"
#include "support/catch.hpp"
#include "support/foreign/affine_task.hpp"
#include "support/foreign/eager_task.hpp"
#include "support/foreign/qcoro_task.hpp"
#include "support/foreign/tracked_task.hpp"
#include "support/foreign/unifex_task.hpp"

using namespace asyncverbs;
using asyncverbs::support::contains;
using asyncverbs::support::WrIds;
using foreign::RunQueue;

namespace {

struct Eager {
    template <class T>
    using Task = foreign::EagerTask<T>;
};
struct Tracked {
    template <class T>
    using Task = foreign::TrackedTask<T>;
};
struct Affine {
    template <class T>
    using Task = foreign::AffineTask<T>;
};

struct Qcoro {
    template <class T>
    using Task = foreign::QcoroTask<T>;
};
struct Unifex {
    template <class T>
    using Task = foreign::UnifexTask<T>;
};
using Styles = std::tuple<Eager, Tracked, Affine, Qcoro, Unifex>;

static_assert(awaitable_of<foreign::EagerTask<int>, int>);
static_assert(awaitable_of<foreign::TrackedTask<int>, int>);
static_assert(awaitable_of<foreign::AffineTask<int>, int>);
static_assert(awaitable_of<foreign::QcoroTask<int>, int>);
static_assert(awaitable_of<foreign::UnifexTask<int>, int>);

// With the scheduler of the tasks that have one.
struct Fixture : support::CqFixture<> {
    void run() {
        queue.run();
        wake();
        queue.run();
    }
    RunQueue queue;
};

// The coroutines. Their first argument is the scheduler; only AffineTask uses it.
template <class Style>
struct Bodies {
    template <class T>
    using Task = typename Style::template Task<T>;

    static Task<WrIds> poll(RunQueue&, AsyncCq& cq, std::size_t count, std::stop_token stop = {}) {
        WrIds ids;
        std::array<ibv_wc, 4> wcs;
        while (ids.size() < count) {
            const std::span<ibv_wc> some = co_await cq.poll(wcs, stop);
            for (const ibv_wc& wc : some) ids.push_back(wc.wr_id);
        }
        co_return ids;
    }

    static Task<std::error_code> poll_error(RunQueue&, AsyncCq& cq, std::stop_token stop) {
        std::array<ibv_wc, 4> wcs;
        std::error_code error;
        co_await cq.poll(wcs, error, stop);
        co_return error;
    }

    static Task<std::uint64_t> poll_wr_id(RunQueue&, AsyncCq& cq, std::uint64_t wr_id) {
        const ibv_wc wc = co_await cq.poll_wr_id(wr_id);
        co_return wc.wr_id;
    }

    // The same, with the operations as lvalues, which are awaited twice.
    static Task<WrIds> lvalues(RunQueue&, AsyncCq& cq) {
        WrIds ids;
        std::array<ibv_wc, 1> wcs;
        PollOperation poll = cq.poll(wcs);
        PollWrIdOperation poll_wr_id = cq.poll_wr_id(7);
        for (int i = 0; i < 2; ++i) {
            const std::span<ibv_wc> some = co_await by_reference(poll);
            ids.push_back(some.front().wr_id);
            const ibv_wc wc = co_await by_reference(poll_wr_id);
            ids.push_back(wc.wr_id);
        }
        co_return ids;
    }

    // An lvalue, except for libunifex, which awaits none.
    template <class Awaitable>
    static decltype(auto) by_reference(Awaitable& awaitable) {
        if constexpr (std::same_as<Style, Unifex>) {
            return std::move(awaitable);
        } else {
            return static_cast<Awaitable&>(awaitable);
        }
    }

    static Task<int> sleep(RunQueue&, EpollExecutor& executor) {
        int woken = 0;
        auto twice = executor.sleep_for(std::chrono::nanoseconds(1));
        for (int i = 0; i < 2; ++i) {
            const std::error_code error = co_await by_reference(twice);
            if (!error) ++woken;
        }
        const std::error_code error = co_await executor.sleep_for(std::chrono::nanoseconds(1));
        if (!error) ++woken;
        co_return woken;
    }

    // Awaits a task of its own type and one of the library.
    static Task<std::size_t> nested(RunQueue& queue, AsyncCq& cq) {
        const WrIds first = co_await poll(queue, cq, 1);
        auto task = library_task(cq);
        const std::size_t second = co_await std::move(task);
        co_return first.size() + second;
    }
    static asyncverbs::Task<std::size_t> library_task(AsyncCq& cq) {
        std::array<ibv_wc, 1> wcs;
        const std::span<ibv_wc> some = co_await cq.poll(wcs);
        co_return some.size();
    }

    static Task<int> rounds(RunQueue&, Fixture& f, int count) {
        std::array<ibv_wc, 1> wcs;
        int good = 0;
        for (int round = 0; round < count; ++round) {
            const auto id = static_cast<std::uint64_t>(round);
            if (round % 2 == 0) f.complete({id}); // ready; otherwise it arrives during the wait
            const std::span<ibv_wc> some = co_await f.cq->poll(wcs);
            if (some.size() == 1 && some[0].wr_id == id) ++good;
        }
        co_return good;
    }

    static Task<std::uint32_t> send(RunQueue&, AsyncQp& qp, Slice slice) {
        const Completion sent = co_await qp.send(slice);
        co_return sent.bytes();
    }
    static Task<std::uint32_t> receive(RunQueue&, AsyncQp& qp, Slice slice) {
        Operation operation = qp.post_recv(slice);
        const Completion received = co_await by_reference(operation);
        co_return received.bytes();
    }
    static Task<std::error_code> receive_error(RunQueue&, AsyncQp& qp, Slice slice,
                                               std::stop_token stop) {
        std::error_code error;
        Operation operation = qp.post_recv(slice);
        co_await operation.wait(error, stop);
        co_return error;
    }
};

} // namespace

TEMPLATE_LIST_TEST_CASE("Foreign coroutines: completions that have arrived", "[foreign]", Styles) {
    Fixture f;
    f.complete({1, 2});
    auto task = Bodies<TestType>::poll(f.queue, *f.cq, 2);
    task.start();
    f.queue.run(); // without the loop
    REQUIRE(task.done());
    CHECK(task.get() == WrIds{1, 2});
    CHECK(!f.sim.armed(f.native));
}

TEMPLATE_LIST_TEST_CASE("Foreign coroutines: completions that arrive later", "[foreign]", Styles) {
    Fixture f;
    auto task = Bodies<TestType>::poll(f.queue, *f.cq, 3);
    task.start();
    f.run();
    CHECK(!task.done());
    CHECK(f.notifier.waiting());
    if constexpr (std::same_as<TestType, Tracked>) {
        CHECK(task.state() == foreign::TaskState::waiting);
    }
    for (std::uint64_t id = 1; id <= 3; ++id) {
        CHECK(!task.done());
        f.complete({id});
        f.run();
    }
    REQUIRE(task.done());
    CHECK(task.get() == WrIds{1, 2, 3});
}

TEST_CASE("Foreign coroutines: one with a scheduler continues there, not in the loop",
          "[foreign]") {
    Fixture f;
    auto task = Bodies<Affine>::poll(f.queue, *f.cq, 1);
    task.start();
    f.run();
    f.complete({7});
    f.wake();
    CHECK(!task.done());
    CHECK(!f.queue.empty());
    SECTION("when it is run") {
        f.queue.run();
        REQUIRE(task.done());
        CHECK(task.get() == WrIds{7});
    }
    SECTION("or not at all, if it is destroyed meanwhile") {
        {
            const auto destroyed = std::move(task);
        }
        CHECK(f.queue.empty());
    }
}

TEMPLATE_LIST_TEST_CASE("Foreign coroutines: exceptions", "[foreign]", Styles) {
    Fixture f;
    auto task = Bodies<TestType>::nested(f.queue, *f.cq);
    task.start();
    f.run();
    SECTION("of the outer await, through a task of the same kind") {
        f.sim.fail("ibv_poll_cq");
        f.run();
        REQUIRE(task.done());
        CHECK_THROWS_WITH(task.get(), contains("ibv_poll_cq"));
    }
    SECTION("of the inner await, through a Task") {
        f.complete({1});
        f.run();
        CHECK(!task.done());
        f.sim.fail("ibv_poll_cq");
        f.run();
        REQUIRE(task.done());
        CHECK_THROWS_WITH(task.get(), contains("ibv_poll_cq"));
    }
    SECTION("none") {
        f.complete({1});
        f.run();
        f.complete({2});
        f.run();
        REQUIRE(task.done());
        CHECK(task.get() == 2);
    }
}

TEMPLATE_LIST_TEST_CASE("Foreign coroutines: a stop", "[foreign]", Styles) {
    Fixture f;
    std::stop_source stop;
    SECTION("before") {
        stop.request_stop();
        auto task = Bodies<TestType>::poll_error(f.queue, *f.cq, stop.get_token());
        task.start();
        f.queue.run();
        REQUIRE(task.done());
        CHECK(task.get() == std::errc::operation_canceled);
    }
    SECTION("during the wait, from this thread or another: the loop resumes it") {
        const bool elsewhere = GENERATE(false, true);
        auto task = Bodies<TestType>::poll_error(f.queue, *f.cq, stop.get_token());
        task.start();
        f.queue.run();
        if (elsewhere) {
            std::thread([&] { stop.request_stop(); }).join();
        } else {
            stop.request_stop();
        }
        CHECK(!task.done());
        f.run();
        REQUIRE(task.done());
        CHECK(task.get() == std::errc::operation_canceled);
    }
    SECTION("as an exception") {
        auto task = Bodies<TestType>::poll(f.queue, *f.cq, 1, stop.get_token());
        task.start();
        f.queue.run();
        stop.request_stop();
        f.run();
        REQUIRE(task.done());
        CHECK_THROWS_AS(task.get(), std::system_error);
    }
    f.complete({5});
    auto next = Bodies<TestType>::poll(f.queue, *f.cq, 1);
    next.start();
    f.run();
    REQUIRE(next.done());
    CHECK(next.get() == WrIds{5});
}

TEMPLATE_LIST_TEST_CASE("Foreign coroutines: destroyed while it waits, the next one gets it",
                        "[foreign]", Styles) {
    Fixture f;
    {
        auto task = Bodies<TestType>::nested(f.queue, *f.cq);
        task.start();
        f.run();
        if (GENERATE(false, true)) f.complete({1}); // its wake is on the way
    }
    if (f.sim.queued_completions(f.native) == 0) f.complete({1});
    auto next = Bodies<TestType>::poll(f.queue, *f.cq, 1);
    next.start();
    f.run();
    REQUIRE(next.done());
    CHECK(next.get() == WrIds{1});
}

TEMPLATE_LIST_TEST_CASE("Foreign coroutines: 10,000 rounds", "[foreign]", Styles) {
    constexpr int count = 10'000;
    Fixture f;
    auto task = Bodies<TestType>::rounds(f.queue, f, count);
    task.start();
    f.queue.run();
    for (std::uint64_t id = 1; !task.done() && id < count; id += 2) {
        f.complete({id});
        f.run();
    }
    REQUIRE(task.done());
    CHECK(task.get() == count);
}

TEMPLATE_LIST_TEST_CASE("Foreign coroutines: poll_wr_id", "[foreign]", Styles) {
    Fixture f;
    auto two = Bodies<TestType>::poll_wr_id(f.queue, *f.cq, 2);
    auto one = Bodies<TestType>::poll_wr_id(f.queue, *f.cq, 1);
    two.start();
    one.start();
    f.run();
    f.complete({1});
    f.run();
    CHECK(!two.done());
    REQUIRE(one.done());
    CHECK(one.get() == 1);
    f.complete({2});
    f.run();
    REQUIRE(two.done());
    CHECK(two.get() == 2);
}

TEMPLATE_LIST_TEST_CASE("Foreign coroutines: operations as lvalues, twice", "[foreign]", Styles) {
    Fixture f;
    auto task = Bodies<TestType>::lvalues(f.queue, *f.cq);
    task.start();
    f.queue.run();
    for (const std::uint64_t id : WrIds{1, 7, 2, 7}) {
        CHECK(!task.done());
        f.complete({id});
        f.run();
    }
    REQUIRE(task.done());
    CHECK(task.get() == WrIds{1, 7, 2, 7});
}

TEMPLATE_LIST_TEST_CASE("Foreign coroutines: sleep_for", "[foreign]", Styles) {
    EpollExecutor executor;
    RunQueue queue;
    auto task = Bodies<TestType>::sleep(queue, executor);
    task.start();
    struct Local {
        static Task<> run(EpollExecutor& e, RunQueue& q, const decltype(task)& of) {
            while (!of.done()) {
                q.run();
                co_await e.schedule();
            }
        }
    };
    executor.run(Local::run(executor, queue, task));
    CHECK(task.get() == 3);
}

TEMPLATE_LIST_TEST_CASE("Foreign coroutines: operations of a queue pair", "[foreign]", Styles) {
    support::RouterFixture f;
    RunQueue queue;
    const auto run = [&] {
        queue.run();
        f.run();
        queue.run();
    };
    SECTION("sends and receives") {
        auto receiver = Bodies<TestType>::receive(queue, *f.b, f.slice(100, 64));
        receiver.start();
        run();
        CHECK(!receiver.done());
        auto sender = Bodies<TestType>::send(queue, *f.a, f.slice(0, 5));
        sender.start();
        run();
        REQUIRE(receiver.done());
        REQUIRE(sender.done());
        CHECK(receiver.get() == 5);
    }
    SECTION("a stop") {
        std::stop_source stop;
        auto receiver =
            Bodies<TestType>::receive_error(queue, *f.b, f.slice(100, 64), stop.get_token());
        receiver.start();
        run();
        stop.request_stop();
        run();
        REQUIRE(receiver.done());
        CHECK(receiver.get() == std::errc::operation_canceled);
    }
}

// On a real loop, within a Task.
TEMPLATE_LIST_TEST_CASE("Foreign coroutines: on an EpollExecutor", "[foreign]", Styles) {
    simulated::SimulatedVerbs sim;
    const Context context = Context::open();
    EpollExecutor executor;
    AsyncCq cq = AsyncCq::create(context, 64, executor);
    RunQueue queue;
    struct Local {
        static Task<WrIds> wait(RunQueue& q, AsyncCq& c, std::size_t count) {
            auto foreign = Bodies<TestType>::poll(q, c, count);
            WrIds ids = co_await std::move(foreign);
            co_return ids;
        }
        static Task<int> feed(EpollExecutor& e, RunQueue& q, simulated::SimulatedVerbs& s,
                              ibv_cq* native) {
            for (std::uint64_t id = 0; id < 100; ++id) {
                co_await e.schedule();
                s.complete(native, id);
                co_await e.schedule();
                q.run();
            }
            for (int i = 0; i < 3; ++i) {
                co_await e.schedule();
                q.run();
            }
            co_return 0;
        }
    };
    auto waiting = Local::wait(queue, cq, 100);
    auto feeding = Local::feed(executor, queue, sim, cq.native_handle());
    const auto [ids, done] = executor.run(when_all(std::move(waiting), std::move(feeding)));
    CHECK(ids.size() == 100);
    CHECK(done == 0);
}
