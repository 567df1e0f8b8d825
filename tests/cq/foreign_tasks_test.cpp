// SPDX-License-Identifier: MIT
// What this library returns is awaited in coroutines of other libraries: eager ones, ones with an
// await_transform of their own, and ones that go on on their own scheduler only.
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/coro/when_all.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>

#include <array>
#include <cerrno>
#include <cstdint>
#include <optional>
#include <span>
#include <stop_token>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "rdma/fixture.hpp"
#include "support/catch.hpp"
#include "support/foreign/affine_task.hpp"
#include "support/foreign/eager_task.hpp"
#include "support/foreign/tracked_task.hpp"
#include "support/simulated_verbs.hpp"

using namespace asyncverbs;
using asyncverbs::support::contains;
using foreign::RunQueue;
using WrIds = std::vector<std::uint64_t>;

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

static_assert(awaitable_of<foreign::EagerTask<int>, int>);
static_assert(awaitable_of<foreign::TrackedTask<int>, int>);
static_assert(awaitable_of<foreign::AffineTask<int>, int>);

// A CQ, a loop that is run by hand, and the scheduler of the tasks that have one.
struct Rig {
    void complete(std::uint64_t wr_id) { sim.complete(native, wr_id); }

    // What the loop does, and then the scheduler.
    void run() {
        queue.run();
        notifier.notify();
        notifier.run();
        queue.run();
    }

    simulated::SimulatedVerbs sim;
    RunQueue queue;
    ManualNotifier notifier;
    Context context = Context::open();
    std::optional<AsyncCq> cq{std::in_place, CompletionQueue(context, 64), notifier};
    ibv_cq* native = cq->native_handle();
};

// The coroutines. Their first argument is the scheduler, of which only AffineTask takes notice.
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

    // An operation that is made first, moved, and awaited later.
    static Task<std::size_t> poll_later(RunQueue&, AsyncCq& cq) {
        std::array<ibv_wc, 4> wcs;
        PollOperation operation = cq.poll(wcs);
        PollOperation moved = std::move(operation);
        const std::span<ibv_wc> some = co_await std::move(moved);
        co_return some.size();
    }

    // Of itself and of the library's own.
    static Task<std::size_t> nested(RunQueue& queue, AsyncCq& cq) {
        const WrIds first = co_await poll(queue, cq, 1);
        const std::size_t second = co_await library_task(cq);
        co_return first.size() + second;
    }
    static asyncverbs::Task<std::size_t> library_task(AsyncCq& cq) {
        std::array<ibv_wc, 1> wcs;
        const std::span<ibv_wc> some = co_await cq.poll(wcs);
        co_return some.size();
    }

    static Task<int> rounds(RunQueue&, Rig& rig, int count) {
        std::array<ibv_wc, 1> wcs;
        int good = 0;
        for (int round = 0; round < count; ++round) {
            const auto id = static_cast<std::uint64_t>(round);
            if (round % 2 == 0) rig.complete(id); // there at once; else it comes while this waits
            const std::span<ibv_wc> some = co_await rig.cq->poll(wcs);
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
        const Completion received = co_await operation; // an lvalue
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

TEMPLATE_TEST_CASE("Foreign coroutines: completions that are there", "[foreign]", Eager, Tracked,
                   Affine) {
    Rig rig;
    rig.complete(1);
    rig.complete(2);
    auto task = Bodies<TestType>::poll(rig.queue, *rig.cq, 2);
    task.start();
    rig.queue.run(); // the loop has no part in it
    REQUIRE(task.done());
    CHECK(task.get() == WrIds{1, 2});
    CHECK(!rig.sim.armed(rig.native));
}

TEMPLATE_TEST_CASE("Foreign coroutines: completions that are waited for", "[foreign]", Eager,
                   Tracked, Affine) {
    Rig rig;
    auto task = Bodies<TestType>::poll(rig.queue, *rig.cq, 3);
    task.start();
    rig.run();
    CHECK(!task.done());
    CHECK(rig.notifier.waiting());
    if constexpr (std::same_as<TestType, Tracked>) {
        CHECK(task.state() == foreign::TaskState::waiting);
    }
    for (std::uint64_t id = 1; id <= 3; ++id) {
        CHECK(!task.done());
        rig.complete(id);
        rig.run();
    }
    REQUIRE(task.done());
    CHECK(task.get() == WrIds{1, 2, 3});
}

TEST_CASE("Foreign coroutines: one with a scheduler goes on there and not in the loop",
          "[foreign]") {
    Rig rig;
    auto task = Bodies<Affine>::poll(rig.queue, *rig.cq, 1);
    task.start();
    rig.run();
    rig.complete(7);
    rig.notifier.notify();
    rig.notifier.run();
    CHECK(!task.done());
    CHECK(!rig.queue.empty());
    SECTION("when it is run") {
        rig.queue.run();
        REQUIRE(task.done());
        CHECK(task.get() == WrIds{7});
    }
    SECTION("or never, if it is destroyed meanwhile") {
        {
            const auto gone = std::move(task);
        }
        CHECK(rig.queue.empty());
    }
}

TEMPLATE_TEST_CASE("Foreign coroutines: an operation is moved before it is awaited", "[foreign]",
                   Eager, Tracked, Affine) {
    Rig rig;
    auto task = Bodies<TestType>::poll_later(rig.queue, *rig.cq);
    task.start();
    rig.run();
    CHECK(!task.done());
    rig.complete(1);
    rig.run();
    REQUIRE(task.done());
    CHECK(task.get() == 1);
}

TEMPLATE_TEST_CASE("Foreign coroutines: exceptions", "[foreign]", Eager, Tracked, Affine) {
    Rig rig;
    auto task = Bodies<TestType>::nested(rig.queue, *rig.cq);
    task.start();
    rig.run();
    SECTION("of the outer await, through a task of the same kind") {
        rig.sim.fail("ibv_poll_cq");
        rig.run();
        REQUIRE(task.done());
        CHECK_THROWS_WITH(task.get(), contains("ibv_poll_cq"));
    }
    SECTION("of the inner await, through a Task") {
        rig.complete(1);
        rig.run();
        CHECK(!task.done());
        rig.sim.fail("ibv_poll_cq");
        rig.run();
        REQUIRE(task.done());
        CHECK_THROWS_WITH(task.get(), contains("ibv_poll_cq"));
    }
    SECTION("none") {
        rig.complete(1);
        rig.run();
        rig.complete(2);
        rig.run();
        REQUIRE(task.done());
        CHECK(task.get() == 2);
    }
}

TEMPLATE_TEST_CASE("Foreign coroutines: a stop", "[foreign]", Eager, Tracked, Affine) {
    Rig rig;
    std::stop_source stop;
    SECTION("before") {
        stop.request_stop();
        auto task = Bodies<TestType>::poll_error(rig.queue, *rig.cq, stop.get_token());
        task.start();
        rig.queue.run();
        REQUIRE(task.done());
        CHECK(task.get() == std::errc::operation_canceled);
    }
    SECTION("meanwhile, from this thread or another, resumes it in the loop") {
        const bool elsewhere = GENERATE(false, true);
        auto task = Bodies<TestType>::poll_error(rig.queue, *rig.cq, stop.get_token());
        task.start();
        rig.queue.run();
        if (elsewhere) {
            std::thread([&] { stop.request_stop(); }).join();
        } else {
            stop.request_stop();
        }
        CHECK(!task.done());
        rig.run();
        REQUIRE(task.done());
        CHECK(task.get() == std::errc::operation_canceled);
    }
    SECTION("as an exception") {
        auto task = Bodies<TestType>::poll(rig.queue, *rig.cq, 1, stop.get_token());
        task.start();
        rig.queue.run();
        stop.request_stop();
        rig.run();
        REQUIRE(task.done());
        CHECK_THROWS_AS(task.get(), std::system_error);
    }
    rig.complete(5);
    auto next = Bodies<TestType>::poll(rig.queue, *rig.cq, 1);
    next.start();
    rig.run();
    REQUIRE(next.done());
    CHECK(next.get() == WrIds{5});
}

TEMPLATE_TEST_CASE("Foreign coroutines: destroyed while it waits, the next one gets it",
                   "[foreign]", Eager, Tracked, Affine) {
    Rig rig;
    {
        auto task = Bodies<TestType>::nested(rig.queue, *rig.cq);
        task.start();
        rig.run();
        if (GENERATE(false, true)) rig.complete(1); // and is on the way
    }
    if (rig.sim.queued_completions(rig.native) == 0) rig.complete(1);
    auto next = Bodies<TestType>::poll(rig.queue, *rig.cq, 1);
    next.start();
    rig.run();
    REQUIRE(next.done());
    CHECK(next.get() == WrIds{1});
}

TEMPLATE_TEST_CASE("Foreign coroutines: their AsyncCq is destroyed while they wait", "[foreign]",
                   Eager, Tracked, Affine) {
    Rig rig;
    auto task = Bodies<TestType>::poll(rig.queue, *rig.cq, 1);
    task.start();
    rig.run();
    rig.cq.reset();
    rig.run();
    CHECK(!task.done());
}

TEMPLATE_TEST_CASE("Foreign coroutines: 10,000 rounds", "[foreign]", Eager, Tracked, Affine) {
    constexpr int count = 10'000;
    Rig rig;
    auto task = Bodies<TestType>::rounds(rig.queue, rig, count);
    task.start();
    rig.queue.run();
    for (std::uint64_t id = 1; !task.done() && id < count; id += 2) {
        rig.complete(id);
        rig.run();
    }
    REQUIRE(task.done());
    CHECK(task.get() == count);
}

TEMPLATE_TEST_CASE("Foreign coroutines: poll_wr_id", "[foreign]", Eager, Tracked, Affine) {
    Rig rig;
    auto two = Bodies<TestType>::poll_wr_id(rig.queue, *rig.cq, 2);
    auto one = Bodies<TestType>::poll_wr_id(rig.queue, *rig.cq, 1);
    two.start();
    one.start();
    rig.run();
    rig.complete(1);
    rig.run();
    CHECK(!two.done());
    REQUIRE(one.done());
    CHECK(one.get() == 1);
    rig.complete(2);
    rig.run();
    REQUIRE(two.done());
    CHECK(two.get() == 2);
}

TEMPLATE_TEST_CASE("Foreign coroutines: operations of a queue pair", "[foreign]", Eager, Tracked,
                   Affine) {
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
    SECTION("a failing verb") {
        f.sim.fail("ibv_post_send");
        auto sender = Bodies<TestType>::send(queue, *f.a, f.slice(0, 5));
        sender.start();
        run();
        REQUIRE(sender.done());
        CHECK_THROWS_WITH(sender.get(), contains("ibv_post_send"));
    }
    SECTION("destroyed while it waits") {
        auto receiver = Bodies<TestType>::receive(queue, *f.b, f.slice(100, 64));
        receiver.start();
        run();
    }
}

// On a real loop, within the library's own tasks.
TEMPLATE_TEST_CASE("Foreign coroutines: on an EpollExecutor", "[foreign]", Eager, Tracked, Affine) {
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
