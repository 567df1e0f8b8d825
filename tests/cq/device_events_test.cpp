// SPDX-License-Identifier: MIT
// DeviceEvents, and their effect on AsyncCqs (I10).
#include <asyncverbs/cq/device_events.hpp>

#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>

#include <array>
#include <cerrno>
#include <optional>
#include <system_error>
#include <thread>
#include <vector>

#include "cq/fixture.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"

using namespace asyncverbs;
using asyncverbs::simulated::SimulatedVerbs;
using asyncverbs::support::contains;
using asyncverbs::support::Coroutine;
using asyncverbs::support::WrIds;

namespace {

DeviceEvents<EpollNotifier> events_of(const Context& context, EpollExecutor& executor) {
    return {context, executor.notifier(context.native_handle()->async_fd)};
}

ibv_async_event port_event(ibv_event_type type) {
    ibv_async_event event{};
    event.event_type = type;
    event.element.port_num = 1;
    return event;
}

struct Outcome {
    WrIds got;
    std::optional<std::system_error> error;
};

// Polls until it fails.
Coroutine poll_until_error(AsyncCq& cq, Outcome& outcome) {
    std::array<ibv_wc, 4> wcs;
    try {
        for (;;) {
            for (const ibv_wc& wc : co_await cq.poll(wcs)) outcome.got.push_back(wc.wr_id);
        }
    } catch (const std::system_error& error) {
        outcome.error = error;
    }
}

// One device with two AsyncCqs that are driven by hand, and its events.
struct DeviceEventsFixture {
    ibv_event_type next() {
        const auto body = [&]() -> Task<ibv_async_event> { co_return co_await events.next(); };
        return executor.run(body()).event_type;
    }

    SimulatedVerbs sim;
    Context context = Context::open();
    EpollExecutor executor;
    DeviceEvents<EpollNotifier> events = events_of(context, executor);
    ManualNotifier notifier;
    ManualNotifier other_notifier;
    std::optional<AsyncCq> cq{std::in_place, CompletionQueue(context, 4), notifier};
    AsyncCq other{CompletionQueue(context, 4), other_notifier};
    Outcome outcome;
    Outcome other_outcome;
};

} // namespace

TEST_CASE("DeviceEvents: events are delivered in order, with and without a waiter") {
    DeviceEventsFixture f;
    f.sim.push_async_event(f.context.native_handle(), port_event(IBV_EVENT_PORT_ERR));
    f.sim.push_async_event(f.context.native_handle(), port_event(IBV_EVENT_PORT_ACTIVE));
    CHECK(f.next() == IBV_EVENT_PORT_ERR);
    CHECK(f.next() == IBV_EVENT_PORT_ACTIVE);

    std::optional<ibv_event_type> seen;
    const auto wait = [&]() -> Coroutine { seen = (co_await f.events.next()).event_type; };
    const Coroutine waiter = wait();
    f.executor.run_once();
    CHECK(!seen);
    f.sim.push_async_event(f.context.native_handle(), port_event(IBV_EVENT_SM_CHANGE));
    f.executor.run_once();
    CHECK(seen == IBV_EVENT_SM_CHANGE);
}

TEST_CASE("DeviceEvents: a wait for events can be stopped") {
    DeviceEventsFixture f;
    std::stop_source stop;
    std::error_code error;
    const auto wait = [&]() -> Coroutine {
        try {
            co_await f.events.next(stop.get_token());
        } catch (const std::system_error& stopped) {
            error = stopped.code();
        }
    };
    const Coroutine waiter = wait();
    stop.request_stop();
    f.executor.run_once();
    CHECK(error == std::errc::operation_canceled);
}

TEST_CASE("DeviceEvents: a failing verb is named, an interrupted one repeated") {
    DeviceEventsFixture f;
    f.sim.push_async_event(f.context.native_handle(), port_event(IBV_EVENT_PORT_ERR));
    f.sim.fail("ibv_get_async_event", {.error = EINTR});
    CHECK(f.next() == IBV_EVENT_PORT_ERR);
    f.sim.fail("ibv_get_async_event", {.error = EBADF});
    CHECK_THROWS_WITH(f.next(), contains("ibv_get_async_event"));
}

TEST_CASE("DeviceEvents: a moved-from Context is an error") {
    DeviceEventsFixture f;
    Context moved = std::move(f.context);
    CHECK_THROWS_WITH(DeviceEvents(f.context, ManualNotifier()), contains("moved from"));
}

TEST_CASE("DeviceEvents: a failed completion queue fails its own waiters, and no others",
          "[field-53][I10]") {
    DeviceEventsFixture f;
    const Coroutine waiter = poll_until_error(*f.cq, f.outcome);
    const Coroutine other = poll_until_error(f.other, f.other_outcome);

    f.sim.break_cq(f.cq->native_handle());
    CHECK(f.next() == IBV_EVENT_CQ_ERR);
    CHECK(!f.outcome.error); // not inside the other coroutine
    f.notifier.run();
    REQUIRE(f.outcome.error);
    CHECK(f.outcome.error->code() == std::errc::io_error);
    CHECK_THAT(f.outcome.error->what(), contains("CQ error"));

    f.other_notifier.run();
    CHECK(!f.other_outcome.error);
    f.sim.complete(f.other.native_handle(), 7);
    f.other_notifier.notify();
    f.other_notifier.run();
    CHECK(f.other_outcome.got == WrIds{7});
}

TEST_CASE("DeviceEvents: the completions in an overrun queue are delivered before its failure",
          "[field-53][I10]") {
    DeviceEventsFixture f;
    const int depth = f.cq->native_handle()->cqe;
    for (int i = 0; i <= depth; ++i) {
        f.sim.complete(f.cq->native_handle(), static_cast<std::uint64_t>(i));
    }
    CHECK(f.next() == IBV_EVENT_CQ_ERR);
    const Coroutine waiter = poll_until_error(*f.cq, f.outcome);
    CHECK(f.outcome.got.size() == static_cast<std::size_t>(depth));
    REQUIRE(f.outcome.error);
    CHECK(f.outcome.error->code() == std::errc::io_error);

    SECTION("and later polls fail as well") {
        Outcome later;
        const Coroutine poll = poll_until_error(*f.cq, later);
        REQUIRE(later.error);
        CHECK(later.error->code() == std::errc::io_error);
    }
}

TEST_CASE("DeviceEvents: the first error of an AsyncCq stays its error", "[I10]") {
    DeviceEventsFixture f;
    const Coroutine waiter = poll_until_error(*f.cq, f.outcome);
    f.sim.break_cq(f.cq->native_handle());
    CHECK(f.next() == IBV_EVENT_CQ_ERR);
    f.sim.fail("ibv_poll_cq"); // in the iteration that also handles the event
    f.notifier.notify();
    f.notifier.run();
    REQUIRE(f.outcome.error);
    CHECK_THAT(f.outcome.error->what(), contains("ibv_poll_cq"));
}

TEST_CASE("DeviceEvents: when no memory is left to name the event, the waiters fail nevertheless",
          "[no_memory][I5][I10]") {
    DeviceEventsFixture f;
    const Coroutine waiter = poll_until_error(*f.cq, f.outcome);
    f.sim.break_cq(f.cq->native_handle());
    CHECK(f.next() == IBV_EVENT_CQ_ERR);
    support::fail_allocation(1); // the first one resets the wake
    CHECK_NOTHROW(f.notifier.run());
    CHECK(support::stop_failing());
    REQUIRE(f.outcome.error);
    CHECK(f.outcome.error->code() == std::errc::not_enough_memory);
}

TEST_CASE("DeviceEvents: a failed device fails all AsyncCqs of its Context", "[I10]") {
    DeviceEventsFixture f;
    const Context second = Context::open();
    ManualNotifier spared_notifier;
    AsyncCq spared(CompletionQueue(second, 4), spared_notifier);
    Outcome spared_outcome;
    const Coroutine waiter = poll_until_error(*f.cq, f.outcome);
    const Coroutine other = poll_until_error(f.other, f.other_outcome);
    const Coroutine not_concerned = poll_until_error(spared, spared_outcome);

    f.sim.disassociate(f.context.native_handle());
    CHECK(f.next() == IBV_EVENT_DEVICE_FATAL);
    f.notifier.run();
    f.other_notifier.run();
    spared_notifier.run();
    CHECK(f.outcome.error);
    CHECK(f.other_outcome.error);
    CHECK(!spared_outcome.error);
    CHECK_THROWS_WITH(f.next(), contains("ibv_get_async_event"));
}

TEST_CASE("DeviceEvents: an AsyncCq that was moved fails, one that was destroyed does not") {
    DeviceEventsFixture f;
    const Coroutine orphan = poll_until_error(*f.cq, f.outcome);
    f.cq.reset();
    f.cq.emplace(std::move(f.other));
    const Coroutine waiter = poll_until_error(*f.cq, f.other_outcome);
    f.sim.break_cq(f.cq->native_handle());
    CHECK(f.next() == IBV_EVENT_CQ_ERR);
    f.other_notifier.run();
    CHECK(f.other_outcome.error);
    CHECK(!f.outcome.error);
}

TEST_CASE("DeviceEvents: an AsyncCq on another thread fails", "[I10]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    EpollExecutor executor;
    AsyncCq cq = AsyncCq::create(context, 4, executor);
    std::thread device([&] {
        EpollExecutor own;
        auto events = events_of(context, own);
        while (!sim.armed(cq.native_handle())) std::this_thread::yield();
        sim.break_cq(cq.native_handle());
        own.run([](auto& source) -> Task<> { co_await source.next(); }(events));
    });
    const auto body = [&]() -> Task<> {
        std::array<ibv_wc, 1> wcs;
        co_await cq.poll(wcs);
    };
    CHECK_THROWS_WITH(executor.run(body()), contains("CQ error"));
    device.join();
}
