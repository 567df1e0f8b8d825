// SPDX-License-Identifier: MIT
// AsyncCq on simulated verbs and a notifier that the test drives by hand.
#include <asyncverbs/cq/async_cq.hpp>

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/cq/shared_channel.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>
#include <asyncverbs/verbs/device.hpp>

#include <array>
#include <cerrno>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string_view>
#include <system_error>
#include <vector>

#include "cq/fixture.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"
#include "support/escaping.hpp"

using namespace asyncverbs;
using namespace asyncverbs::simulated;
using namespace asyncverbs::support;
using Fixture = CqFixture<>;

static_assert(CqNotifier<ManualNotifier>);
static_assert(std::move_constructible<PollOperation> && !std::copyable<PollOperation>);
static_assert(std::move_constructible<PollWrIdOperation>);
static_assert(awaitable_of<PollOperation, std::span<ibv_wc>>);
static_assert(awaitable_of<PollOperation&, std::span<ibv_wc>>);
static_assert(awaitable_of<PollWrIdOperation, ibv_wc> && awaitable<PollWrIdOperation&>);
static_assert(std::movable<AsyncCq> && !std::copyable<AsyncCq>);

namespace {

// A ManualNotifier whose waits can be bounded; records the bounds it was given.
struct TimedManualNotifier : ManualNotifier {
    using ManualNotifier::readable;
    Readable readable(std::stop_token stop, std::chrono::nanoseconds bound) {
        bounds->push_back(bound);
        return readable(std::move(stop));
    }
    std::shared_ptr<std::vector<std::chrono::nanoseconds>> bounds =
        std::make_shared<std::vector<std::chrono::nanoseconds>>();
};
using TimedFixture = CqFixture<TimedManualNotifier>;

} // namespace

// --- poll, arm, wait, consume ---

TEST_CASE("AsyncCq: completions that have arrived are delivered without suspending") {
    Fixture f;
    f.complete({1, 2});
    WrIds got;
    const Coroutine consumer = poll_once(*f.cq, got);
    CHECK(consumer.done());
    CHECK(got == WrIds{1, 2});
    CHECK(f.cq->statistics().polls == 1);
    CHECK(f.cq->statistics().arms == 0);
}

TEST_CASE("AsyncCq: waits for a completion and delivers it", "[field-2][I1]") {
    const auto model = GENERATE(ArmModel::flag, ArmModel::index);
    Fixture f(ProviderModel{.arm_model = model});
    WrIds got;
    const Coroutine consumer = poll_once(*f.cq, got);
    CHECK_FALSE(consumer.done());
    CHECK(f.notifier.waiting());
    CHECK(f.sim.armed(f.native));
    f.complete_and_wake({5});
    CHECK(consumer.done());
    CHECK(got == WrIds{5});
    CHECK_FALSE(f.notifier.waiting()); // no waiter: the wait loop is suspended
}

TEST_CASE("AsyncCq: a completion after the arm is delivered once; its event is a spurious wake",
          "[field-5][I2]") {
    Fixture f;
    bool once = true;
    f.sim.on_call([&](const Call& call) {
        if (call.verb == "ibv_req_notify_cq" && call.moment == Call::Moment::after && once) {
            once = false;
            f.complete({7});
        }
    });
    WrIds got;
    const Coroutine first = poll_once(*f.cq, got);
    f.sim.on_call(nullptr);
    CHECK(first.done());

    const Coroutine second = poll_once(*f.cq, got);
    CHECK_FALSE(second.done());
    f.notifier.notify(); // the event of the completion that was delivered before
    REQUIRE(f.notifier.run());
    CHECK_FALSE(second.done());
    CHECK(f.cq->statistics().events == 1);
    f.complete_and_wake({8});
    CHECK(second.done());
    CHECK(got == WrIds{7, 8});
}

TEST_CASE("AsyncCq: more completions than the span holds need no further event", "[field-4][I1]") {
    Fixture f;
    WrIds got;
    const Coroutine consumer = poll_until<2>(*f.cq, got, 5);
    f.complete_and_wake({1, 2, 3, 4, 5});
    CHECK(consumer.done());
    CHECK(got == WrIds{1, 2, 3, 4, 5});
    CHECK(f.cq->statistics().wakes == 1);
}

TEST_CASE("AsyncCq: one wait costs one arm, one event and no poll too many") {
    Fixture f;
    WrIds got;
    const Coroutine consumer = poll_until(*f.cq, got, 100);
    const CqStatistics before = f.cq->statistics();
    for (std::uint64_t id = 0; id < 50; ++id) f.complete_and_wake({id});
    const CqStatistics after = f.cq->statistics();
    CHECK(after.arms - before.arms == 50);
    CHECK(after.events - before.events == 50);
    CHECK(after.wakes - before.wakes == 50);
    CHECK(after.polls - before.polls == 150); // found one; empty; empty after the arm
}

TEST_CASE("AsyncCq: an operation can be moved until it is awaited") {
    Fixture f;
    struct Local {
        static Coroutine run(AsyncCq& cq, WrIds& got, std::stop_token stop) {
            std::array<ibv_wc, 2> wcs{};
            PollOperation any = cq.poll(wcs);
            PollOperation moved = std::move(any);
            for (const ibv_wc& wc : co_await std::move(moved)) got.push_back(wc.wr_id);
            std::error_code error;
            PollWrIdOperation one = cq.poll_wr_id(9, error, stop);
            PollWrIdOperation moved_one = std::move(one);
            co_await std::move(moved_one);
            got.push_back(error == std::errc::operation_canceled ? 1000 : 2000);
        }
    };
    std::stop_source stop;
    WrIds got;
    const Coroutine consumer = Local::run(*f.cq, got, stop.get_token());
    f.complete_and_wake({1});
    CHECK(got == WrIds{1});
    stop.request_stop();
    f.run_until_idle();
    CHECK(got == WrIds{1, 1000});
}

TEST_CASE("AsyncCq: an operation is awaited as an lvalue, and polls again each time") {
    Fixture f;
    struct Local {
        static Coroutine run(std::optional<AsyncCq>& cq, WrIds& got, std::stop_token stop) {
            std::array<ibv_wc, 1> wcs{};
            PollOperation any = cq->poll(wcs, stop);
            for (int i = 0; i < 3; ++i) {
                for (const ibv_wc& wc : co_await any) got.push_back(wc.wr_id);
            }
            PollWrIdOperation one = cq->poll_wr_id(9);
            for (int i = 0; i < 2; ++i) {
                const ibv_wc wc = co_await one;
                got.push_back(wc.wr_id);
            }
            cq.reset(); // before its operations
        }
    };
    std::stop_source stop;
    WrIds got;
    f.complete({1});
    const Coroutine consumer = Local::run(f.cq, got, stop.get_token());
    for (const std::uint64_t id : {2u, 3u, 9u, 9u}) f.complete_and_wake({id});
    CHECK(consumer.done());
    CHECK(got == WrIds{1, 2, 3, 9, 9});
    stop.request_stop(); // no longer reaches the destroyed AsyncCq
}

TEST_CASE("AsyncCq: an operation can be moved between await_ready() and await_suspend()") {
    // As an await_transform does that wraps the awaiter in its own.
    struct Wrapper {
        explicit Wrapper(PollWrIdOperation o) : operation(std::move(o)) {}
        bool await_ready() { return operation->await_ready(); }
        std::coroutine_handle<> await_suspend(std::coroutine_handle<> coroutine) {
            move();
            return operation->await_suspend(coroutine);
        }
        ibv_wc await_resume() {
            move();
            return operation->await_resume();
        }
        void move() {
            PollWrIdOperation moved = std::move(*operation);
            operation.emplace(std::move(moved));
        }
        std::optional<PollWrIdOperation> operation;
    };
    struct Local {
        static Coroutine run(AsyncCq& cq, WrIds& got) {
            for (int i = 0; i < 2; ++i) {
                Wrapper wrapper(cq.poll_wr_id(9));
                const ibv_wc wc = co_await wrapper;
                got.push_back(wc.wr_id);
            }
        }
    };
    Fixture f;
    WrIds got;
    f.complete({9});
    const Coroutine consumer = Local::run(*f.cq, got);
    CHECK(got == WrIds{9});
    f.complete_and_wake({9});
    CHECK(got == WrIds{9, 9});
}

// --- several waiters ---

TEST_CASE("AsyncCq: two waiters, one completion: the first gets it, the second stays armed (I6)",
          "[field-35][I6]") {
    Fixture f;
    WrIds first_got;
    WrIds second_got;
    const Coroutine first = poll_once(*f.cq, first_got);
    const Coroutine second = poll_once(*f.cq, second_got);
    CHECK(f.sim.calls("ibv_req_notify_cq") == 1);
    f.complete_and_wake({1});
    CHECK(first_got == WrIds{1});
    CHECK_FALSE(second.done());
    CHECK(f.sim.armed(f.native));
    CHECK(f.notifier.waiting());
    f.complete_and_wake({2});
    CHECK(second_got == WrIds{2});
}

TEST_CASE("AsyncCq: completions that one waiter has no room for go to the next at once (I6)",
          "[field-33][I6]") {
    Fixture f;
    std::array<WrIds, 3> got;
    const Coroutine first = poll_once<2>(*f.cq, got[0]);
    const Coroutine second = poll_once<1>(*f.cq, got[1]);
    const Coroutine third = poll_once<1>(*f.cq, got[2]);
    f.complete_and_wake({1, 2, 3});
    CHECK(got[0] == WrIds{1, 2});
    CHECK(got[1] == WrIds{3});
    CHECK_FALSE(third.done());
    CHECK(f.sim.armed(f.native));
}

TEST_CASE("AsyncCq: try_poll takes completions, but not while a coroutine waits") {
    Fixture f;
    std::array<ibv_wc, 4> wcs{};
    CHECK(f.cq->try_poll(wcs).empty());
    CHECK(f.cq->try_poll({}).empty());
    f.complete({1});
    CHECK(f.cq->try_poll(wcs).size() == 1);
    CHECK(f.cq->statistics().arms == 0);

    WrIds got;
    const Coroutine consumer = poll_once(*f.cq, got);
    f.complete({2});
    CHECK(f.cq->try_poll(wcs).empty());
    f.wake();
    CHECK(got == WrIds{2});
}

// --- poll_wr_id ---

TEST_CASE("AsyncCq: poll_wr_id keeps completions that do not match, in order, for the next poll",
          "[field-34][I6]") {
    Fixture f;
    for (std::uint64_t id = 1; id <= 40; ++id) f.complete({id});
    WrIds got;
    const Coroutine selective = poll_wr_id(*f.cq, 35, got);
    REQUIRE(selective.done());
    CHECK(got == WrIds{35});

    WrIds rest;
    const Coroutine consumer = poll_until<7>(*f.cq, rest, 39);
    REQUIRE(consumer.done());
    WrIds expected;
    for (std::uint64_t id = 1; id <= 40; ++id) {
        if (id != 35) expected.push_back(id);
    }
    CHECK(rest == expected);
}

TEST_CASE("AsyncCq: poll_wr_id waits for its completion while others are delivered") {
    Fixture f;
    WrIds any_got;
    WrIds nine_got;
    WrIds eight_got;
    const Coroutine nine = poll_wr_id(*f.cq, 9, nine_got);
    const Coroutine any = poll_once<4>(*f.cq, any_got);
    const Coroutine eight = poll_wr_id(*f.cq, 8, eight_got);
    f.complete_and_wake({8, 1, 2});
    CHECK(eight_got == WrIds{8});
    CHECK(any_got == WrIds{1, 2});
    CHECK_FALSE(nine.done());
    f.complete_and_wake({3, 9});
    CHECK(nine_got == WrIds{9});
    std::array<ibv_wc, 4> wcs{};
    REQUIRE(f.cq->try_poll(wcs).size() == 1); // the one without a waiter is kept
    CHECK(wcs[0].wr_id == 3);
}

TEST_CASE("AsyncCq: two waiters for one wr_id get one completion each, in order") {
    Fixture f;
    WrIds first_got;
    WrIds second_got;
    const Coroutine first = poll_wr_id(*f.cq, 4, first_got);
    const Coroutine second = poll_wr_id(*f.cq, 4, second_got);
    f.complete_and_wake({4});
    CHECK(first.done());
    CHECK_FALSE(second.done());
    f.complete_and_wake({4});
    CHECK(second.done());
}

TEST_CASE("AsyncCq: hundreds of coroutines wait for one wr_id each") {
    constexpr std::size_t count = 500; // two for each wr_id
    constexpr std::size_t half = count / 2;
    Fixture f;
    std::vector<WrIds> got(count);
    std::vector<Coroutine> waiters;
    for (std::size_t i = 0; i < count; ++i)
        waiters.push_back(poll_wr_id(*f.cq, i % half * 1024, got[i]));
    for (const std::size_t first : {std::size_t{0}, half}) {
        for (std::size_t i = 0; i < half; ++i) {
            f.complete({i * 77 % half * 1024});
            if (i % 25 == 24) f.wake(); // several in one batch
        }
        for (std::size_t i = 0; i < count; ++i) REQUIRE(waiters[i].done() == (i < first + half));
    }
    for (std::size_t i = 0; i < count; ++i) CHECK(got[i] == WrIds{i % half * 1024});
}

TEST_CASE("AsyncCq: a stopped or failed poll_wr_id has no claim to a completion", "[I7]") {
    // A coroutine that is resumed before it keeps the completion, and then polls for any.
    const bool fails = GENERATE(false, true);
    Fixture f;
    std::stop_source stop;
    WrIds got;
    WrIds ended_got;
    struct Local {
        static Coroutine run(Fixture& fixture, WrIds& out, std::stop_token token) {
            std::error_code error;
            static_cast<void>(co_await fixture.cq->poll_wr_id(2, error, token));
            fixture.complete({1, 5});
            const ibv_wc five = co_await fixture.cq->poll_wr_id(5, error);
            out.push_back(five.wr_id);
            std::array<ibv_wc, 4> wcs{};
            for (const ibv_wc& wc : co_await fixture.cq->poll(wcs, error)) out.push_back(wc.wr_id);
        }
    };
    const Coroutine first = Local::run(f, got, stop.get_token());
    const Coroutine ended = poll_wr_id(*f.cq, 1, ended_got, stop.get_token());
    if (fails) {
        f.wake(std::make_error_code(std::errc::io_error));
        CHECK(got == WrIds{0}); // nothing is polled after a failure
        CHECK(first.done());
    } else {
        stop.request_stop();
        f.run_until_idle();
        CHECK(got == WrIds{5, 1});
    }
    CHECK(ended.done());
    CHECK(ended_got.empty());
}

TEST_CASE("AsyncCq: a kept completion goes to the waiter, not to a coroutine that polls again",
          "[field-34][I6]") {
    // One batch holds completion 1, for poll_wr_id(1), and 2. The coroutine that is resumed with 1
    // polls again at once, but 2 belongs to the other waiter.
    Fixture f;
    WrIds got;
    WrIds waiting_got;
    struct Local {
        static Coroutine run(AsyncCq& cq, WrIds& out) {
            const ibv_wc one = co_await cq.poll_wr_id(1);
            out.push_back(one.wr_id);
            std::array<ibv_wc, 4> wcs{};
            for (const ibv_wc& wc : co_await cq.poll(wcs)) out.push_back(wc.wr_id);
        }
    };
    const Coroutine both = Local::run(*f.cq, got);
    const Coroutine waiting = poll_once(*f.cq, waiting_got);
    f.complete_and_wake({1, 2});
    CHECK(got == WrIds{1});
    CHECK(waiting_got == WrIds{2});
    f.complete_and_wake({3});
    CHECK(got == WrIds{1, 3});
}

TEST_CASE("AsyncCq: a coroutine that polls again does not take what poll_wr_id waits for") {
    // One batch holds the completions of two waiters. The first to be resumed polls again: for any
    // completion, or for the one of the other waiter.
    Fixture f;
    WrIds got;
    WrIds other_got;
    struct Local {
        static Coroutine run(AsyncCq& cq, bool same, WrIds& out) {
            const ibv_wc two = co_await cq.poll_wr_id(2);
            out.push_back(two.wr_id);
            if (same) {
                const ibv_wc one = co_await cq.poll_wr_id(1);
                out.push_back(one.wr_id);
            }
            std::array<ibv_wc, 4> wcs{};
            for (const ibv_wc& wc : co_await cq.poll(wcs)) out.push_back(wc.wr_id);
        }
    };
    const bool same = GENERATE(false, true);
    const Coroutine greedy = Local::run(*f.cq, same, got);
    const Coroutine other = poll_wr_id(*f.cq, 1, other_got);
    f.complete_and_wake({1, 2, 3});
    CHECK(other_got == WrIds{1});
    CHECK(got == (same ? WrIds{2} : WrIds{2, 3}));
}

// --- cancellation ---

TEST_CASE("AsyncCq: a stop token that is already stopped cancels before the poll (I7)",
          "[field-38][I7]") {
    Fixture f;
    f.complete({1});
    std::stop_source stop;
    stop.request_stop();
    std::error_code error;
    const Coroutine consumer = poll_error(*f.cq, error, stop.get_token());
    REQUIRE(consumer.done());
    consumer.get();
    CHECK(error == std::errc::operation_canceled);
    CHECK(f.sim.queued_completions(f.native) == 1);
    CHECK(f.cq->statistics().polls == 0);
}

TEST_CASE("AsyncCq: a waiter is cancelled by the loop; the others stay (I6, I7)", "[I6][I7]") {
    Fixture f;
    std::stop_source stop;
    std::error_code error;
    WrIds got;
    const Coroutine cancelled = poll_error(*f.cq, error, stop.get_token());
    const Coroutine other = poll_once(*f.cq, got);
    stop.request_stop();
    CHECK_FALSE(cancelled.done()); // not inside request_stop()
    REQUIRE(f.notifier.stop_requested());
    REQUIRE(f.notifier.run());
    CHECK(cancelled.done());
    CHECK(error == std::errc::operation_canceled);
    CHECK_FALSE(other.done());
    CHECK(f.notifier.waiting());
    CHECK_FALSE(f.notifier.stop_requested());
    f.complete_and_wake({1});
    CHECK(got == WrIds{1});
}

TEST_CASE("AsyncCq: the throwing form throws operation_canceled") {
    Fixture f;
    std::stop_source stop;
    WrIds got;
    const Coroutine poll = poll_once(*f.cq, got, stop.get_token());
    const Coroutine selective = poll_wr_id(*f.cq, 1, got, stop.get_token());
    stop.request_stop();
    f.run_until_idle();
    for (const Coroutine* consumer : {&poll, &selective}) {
        REQUIRE(consumer->done());
        try {
            consumer->get();
            FAIL("nothing was thrown");
        } catch (const std::system_error& error) {
            CHECK(error.code() == std::errc::operation_canceled);
        }
    }
}

TEST_CASE("AsyncCq: a stop between the last poll and the wait ends it before it waits (I7)",
          "[field-38][I7]") {
    Fixture f;
    std::stop_source stop;
    f.sim.on_call([&](const Call& call) { // await_ready() looked at the token before
        if (call.verb == "ibv_req_notify_cq" && call.moment == Call::Moment::after) {
            stop.request_stop();
        }
    });
    std::error_code error;
    const Coroutine cancelled = poll_error(*f.cq, error, stop.get_token());
    f.sim.on_call(nullptr);
    REQUIRE(cancelled.done());
    CHECK(error == std::errc::operation_canceled);
    CHECK_FALSE(f.notifier.waiting());

    WrIds got; // the arm is still outstanding: the next one neither loses nor repeats it
    const Coroutine next = poll_once(*f.cq, got);
    f.run_until_idle();
    CHECK_FALSE(next.done());
    f.complete_and_wake({1});
    CHECK(got == WrIds{1});
    CHECK(f.cq->statistics().arms == 1);
}

// --- lifetimes ---

namespace {

// Records whether the channel was destroyed before the notifier.
struct RecordingNotifier : ManualNotifier {
    RecordingNotifier(SimulatedVerbs& simulation, std::uint64_t& channels_destroyed)
        : sim(&simulation), count(&channels_destroyed) {}
    RecordingNotifier(RecordingNotifier&& other) noexcept
        : ManualNotifier(other), sim(std::exchange(other.sim, nullptr)), count(other.count) {}
    ~RecordingNotifier() {
        if (sim) *count = sim->calls("ibv_destroy_comp_channel");
    }
    SimulatedVerbs* sim;
    std::uint64_t* count;
};

} // namespace

TEST_CASE("AsyncCq: the notifier leaves its loop before the channel is closed (I12)", "[I12]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    std::uint64_t channels_destroyed = 99;
    ManualNotifier control;
    SECTION("never awaited") {
        AsyncCq cq(CompletionQueue(context, 8), RecordingNotifier(sim, channels_destroyed));
    }
    SECTION("idle") {
        AsyncCq cq(CompletionQueue(context, 8), RecordingNotifier(sim, channels_destroyed));
        WrIds got;
        const Coroutine consumer = poll_once(cq, got);
    }
    SECTION("destroyed by a coroutine that it resumed") {
        RecordingNotifier recorder(sim, channels_destroyed);
        control = recorder;
        std::optional<AsyncCq> cq(std::in_place, CompletionQueue(context, 8), std::move(recorder));
        struct Local {
            static Coroutine run(std::optional<AsyncCq>& owner) {
                std::array<ibv_wc, 1> wcs{};
                co_await owner->poll(wcs);
                owner.reset();
            }
        };
        const Coroutine destroyer = Local::run(cq);
        sim.complete(cq->native_handle(), 1);
        control.notify();
        REQUIRE(control.run());
        REQUIRE(destroyer.done());
    }
    CHECK(channels_destroyed == 0);
    CHECK(sim.calls("ibv_destroy_comp_channel") == 1);
}

TEST_CASE("AsyncCq: waiters survive a move of the AsyncCq") {
    Fixture f;
    WrIds got;
    const Coroutine consumer = poll_once(*f.cq, got);
    AsyncCq moved = std::move(*f.cq);
    f.complete_and_wake({1});
    CHECK(got == WrIds{1});
    AsyncCq other(CompletionQueue(f.context, 8), ManualNotifier());
    moved = std::move(other);
    CHECK(f.sim.calls("ibv_destroy_cq") == 1);
}

// --- errors ---

TEST_CASE("AsyncCq: a fatal error reaches all current and all later waiters (I5)",
          "[field-44][I5]") {
    Fixture f;
    std::array<std::error_code, 3> errors;
    const Coroutine first = poll_error(*f.cq, errors[0]);
    const Coroutine second = poll_error(*f.cq, errors[1]);
    WrIds got;
    const Coroutine selective = poll_wr_id(*f.cq, 1, got);
    std::string verb;
    SECTION("the event cannot be read") {
        f.sim.fail("ibv_get_cq_event", {.error = EIO});
        f.notifier.notify();
        verb = "ibv_get_cq_event";
    }
    SECTION("the notifier failed") {
        f.notifier.notify(std::make_error_code(std::errc::io_error));
        verb = "CqNotifier::readable";
    }
    SECTION("the CQ cannot be polled") {
        f.sim.fail("ibv_poll_cq");
        f.notifier.notify();
        verb = "ibv_poll_cq";
    }
    REQUIRE(f.notifier.run());
    const Coroutine later = poll_error(*f.cq, errors[2]);
    CHECK(first.done());
    CHECK(second.done());
    CHECK(selective.done());
    CHECK(later.done());
    for (const std::error_code& error : errors) CHECK(error == std::errc::io_error);
    CHECK_THROWS_WITH(selective.get(), contains(verb + ": "));
    CHECK_FALSE(f.notifier.waiting());
}

TEST_CASE("AsyncCq: after a fatal error try_poll still takes completions") {
    Fixture f;
    std::error_code error;
    const Coroutine consumer = poll_error(*f.cq, error);
    REQUIRE(f.wake(std::make_error_code(std::errc::io_error)));
    f.complete({1});
    std::array<ibv_wc, 4> wcs{};
    CHECK(f.cq->try_poll(wcs).size() == 1);
    f.sim.fail("ibv_poll_cq");
    CHECK_THROWS_WITH(f.cq->try_poll(wcs), contains("ibv_poll_cq"));
}

namespace {

struct ThrowingNotifier {
    struct Readable {
        bool await_ready() const noexcept { return true; }
        void await_suspend(std::coroutine_handle<>) const noexcept {}
        std::error_code await_resume() const {
            if (unknown) throw 1;
            throw std::system_error(std::make_error_code(std::errc::io_error), "the loop");
        }
        bool unknown;
    };
    Readable readable(std::stop_token) { return {unknown}; }
    bool unknown = false;
};

} // namespace

TEST_CASE("AsyncCq: an exception of the notifier is a fatal error") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    const bool unknown = GENERATE(false, true);
    AsyncCq cq(CompletionQueue(context, 8), ThrowingNotifier{unknown});
    WrIds got;
    const Coroutine consumer = poll_once(cq, got);
    REQUIRE(consumer.done());
    CHECK_THROWS_WITH(consumer.get(),
                      contains(unknown ? "exception of unknown type" : "the loop: "));
}

TEST_CASE("AsyncCq: the loop rethrows an exception that escapes a resumed coroutine") {
    Fixture f;
    const Escaping escaping = Escaping::run(f.cq);
    f.complete({1});
    CHECK_THROWS_WITH(f.wake(), "escaped");
    escaping.handle.destroy();
    std::error_code error;
    const Coroutine later = poll_error(*f.cq, error);
    CHECK(later.done());
    CHECK(error == std::errc::state_not_recoverable);
}

TEST_CASE("AsyncCq: a coroutine that destroys its AsyncCq and then lets an exception escape",
          "[I8][I12]") {
    Fixture f;
    for (int i = 0; i < 2; ++i) {
        if (!f.cq) f.cq.emplace(CompletionQueue(f.context, 8), f.notifier);
        const Escaping escaping = Escaping::run(f.cq, true);
        f.sim.complete(f.cq->native_handle(), 1);
        CHECK_THROWS_WITH(f.wake(), "escaped");
        escaping.handle.destroy();
        CHECK(f.sim.calls("ibv_destroy_cq") == static_cast<std::uint64_t>(i) + 1);
        CHECK(f.sim.calls("ibv_destroy_comp_channel") == static_cast<std::uint64_t>(i) + 1);
    }
}

TEST_CASE("AsyncCq: an exception that escapes fails all other waiters", "[I5]") {
    Fixture f;
    const Escaping first = Escaping::run(f.cq);
    std::error_code error;
    const Coroutine parked = poll_error(*f.cq, error);
    const Escaping second = Escaping::run(f.cq);
    WrIds got;
    const Coroutine selective = poll_wr_id(*f.cq, 7, got);
    f.complete({1});
    CHECK_THROWS_WITH(f.wake(), "escaped");
    CHECK(parked.done());
    CHECK(error == std::errc::state_not_recoverable);
    CHECK(second.handle.done());
    CHECK(selective.done());
    first.handle.destroy();
    second.handle.destroy();
}

TEST_CASE("AsyncCq: an empty span is an error of that call alone", "[field-49]") {
    Fixture f;
    struct Local {
        static Coroutine run(AsyncCq& cq, std::error_code& error) {
            co_await cq.poll({}, error);
            co_await cq.poll({});
        }
    };
    std::error_code error;
    const Coroutine consumer = Local::run(*f.cq, error);
    REQUIRE(consumer.done());
    CHECK(error == std::errc::invalid_argument);
    CHECK_THROWS_WITH(consumer.get(), contains("span for completions is empty"));
    f.complete({1});
    WrIds got;
    const Coroutine next = poll_once(*f.cq, got);
    CHECK(got == WrIds{1});
}

TEST_CASE("AsyncCq: bad options") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    const auto make = [&](AsyncCqOptions options) {
        AsyncCq(CompletionQueue(context, 8), ManualNotifier(), options);
    };
    CHECK_THROWS_WITH(make({.ack_batch = 0}), contains("ack_batch must be at least 1"));
    CHECK_THROWS_WITH(make({.busy_poll = {.limit = std::chrono::seconds(-1)}}),
                      contains("busy_poll.limit"));
    CHECK_THROWS_WITH(make({.max_wait = std::chrono::seconds(-1)}), contains("max_wait"));
    CHECK_THROWS_WITH(make({.max_wait = std::chrono::seconds(1)}), contains("TimedCqNotifier"));
}

// --- options, fairness ---

TEST_CASE("AsyncCq: a CQ that is always ready lets an iteration of the loop pass now and then (I9)",
          "[field-47][I9]") {
    TimedFixture f;
    WrIds got;
    struct Local {
        static Coroutine run(AsyncCq& cq, TimedFixture& fixture, WrIds& out) {
            std::array<ibv_wc, 1> wcs{};
            for (std::uint64_t id = 0; id < 5000; ++id) {
                fixture.complete({id});
                const std::span<ibv_wc> done = co_await cq.poll(wcs);
                out.push_back(done[0].wr_id);
            }
        }
    };
    const Coroutine busy = Local::run(*f.cq, f, got);
    std::size_t iterations = 0;
    while (!busy.done()) {
        REQUIRE(f.notifier.waiting());
        REQUIRE(f.notifier.bounds->back() == std::chrono::nanoseconds(0));
        ++iterations;
        REQUIRE(f.wake(std::make_error_code(std::errc::timed_out)));
    }
    CHECK(iterations == 4);
    CHECK(got.size() == 5000);
    CHECK(f.sim.calls("ibv_req_notify_cq") == 0);
}

// --- timestamps ---

namespace {

struct TimestampFixture {
    SimulatedVerbs sim{{DeviceOptions{.name = "sim0", .completion_timestamps = true}}};
    Context context = Context::open();
    ManualNotifier notifier;
    AsyncCq cq{CompletionQueue::extended(context, 8, IBV_WC_EX_WITH_COMPLETION_TIMESTAMP),
               notifier};
};

} // namespace

TEST_CASE("AsyncCq: the wait after an arm that may be lost is bounded (mana)", "[I1][I2]") {
    CqFixture<TimedManualNotifier> f(mana);
    const auto& bounds = *f.notifier.bounds;
    WrIds got;
    const Coroutine waiter = poll_until(*f.cq, got, 3);
    CHECK(bounds.empty());
    f.sim.push_events(f.native);
    f.wake(); // finds nothing, and the next arm is lost
    CHECK(bounds.size() == 1);
    CHECK(f.sim.counters(f.native).arms_lost == 1);
    f.wake(std::make_error_code(std::errc::timed_out));
    CHECK(bounds.size() == 2); // it is lost again
    f.complete({1});
    f.wake(std::make_error_code(std::errc::timed_out));
    CHECK(got == WrIds{1});
    CHECK(f.sim.armed(f.native));
    f.complete_and_wake({2});
    CHECK(got == WrIds{1, 2});
    CHECK(bounds.size() == 2); // these two waits have no bound
}

TEST_CASE("AsyncCq: when no memory is left, an error reaches all waiters nevertheless",
          "[no_memory][I5]") {
    CqFixture f;
    std::array<std::error_code, 3> errors;
    const Coroutine first = poll_error(*f.cq, errors[0]);
    const Coroutine second = poll_error(*f.cq, errors[1]);
    const std::string_view verb = GENERATE("ibv_poll_cq", "ibv_get_cq_event", "ibv_req_notify_cq");
    f.sim.fail(verb);
    f.sim.push_events(f.native);
    f.notifier.notify();
    support::run_out_of_memory(0);
    f.notifier.run();
    support::stop_failing();
    const Coroutine later = poll_error(*f.cq, errors[2]);
    for (const std::error_code& error : errors) CHECK(error == std::errc::not_enough_memory);
}

TEST_CASE("AsyncCq: when no memory is left, a stop ends the wait", "[no_memory][I7]") {
    CqFixture f;
    std::stop_source stop;
    std::error_code stopped;
    std::error_code failed;
    const Coroutine first = poll_error(*f.cq, stopped, stop.get_token());
    const Coroutine second = poll_error(*f.cq, failed);
    stop.request_stop();
    support::run_out_of_memory(0);
    f.notifier.run();
    support::stop_failing();
    CHECK(stopped == std::errc::operation_canceled);
    CHECK(failed == std::errc::not_enough_memory);
}

TEST_CASE("AsyncCq: timestamps are delivered with their completions, also with kept ones") {
    TimestampFixture f;
    struct Local {
        static Coroutine poll(AsyncCq& queue, WrIds& got, std::vector<std::uint64_t>& times) {
            std::array<ibv_wc, 2> wcs{};
            std::array<std::uint64_t, 2> timestamps{};
            const std::span<ibv_wc> done = co_await queue.poll_timestamped(wcs, timestamps);
            for (std::size_t i = 0; i < done.size(); ++i) {
                got.push_back(done[i].wr_id);
                times.push_back(timestamps[i]);
            }
        }
    };
    WrIds got, selective;
    std::vector<std::uint64_t> times;
    const Coroutine waiting = Local::poll(f.cq, got, times);
    f.sim.complete(f.cq.native_handle(), 1);
    f.notifier.notify();
    f.notifier.run();
    CHECK(waiting.done());
    for (std::uint64_t id = 2; id <= 4; ++id) f.sim.complete(f.cq.native_handle(), id);
    const Coroutine one = poll_wr_id(f.cq, 3, selective);
    CHECK(selective == WrIds{3});
    const Coroutine kept = Local::poll(f.cq, got, times);
    CHECK(kept.done());
    CHECK(got == WrIds{1, 2, 4});
    CHECK(times == std::vector<std::uint64_t>{1001, 1002, 1004});
}

TEST_CASE("AsyncCq: a wait for timestamped completions is stopped without an exception") {
    TimestampFixture f;
    struct Local {
        static Coroutine poll(AsyncCq& queue, std::error_code& error, std::stop_token stop) {
            std::array<ibv_wc, 1> wcs{};
            std::array<std::uint64_t, 1> timestamps{};
            co_await queue.poll_timestamped(wcs, timestamps, error, stop);
        }
    };
    std::stop_source stop;
    std::error_code error;
    const Coroutine waiting = Local::poll(f.cq, error, stop.get_token());
    stop.request_stop();
    f.notifier.run();
    CHECK(waiting.done());
    CHECK(error == std::errc::operation_canceled);
}

TEST_CASE("AsyncCq: a poll for timestamps that are not available is rejected at once") {
    TimestampFixture f;
    AsyncCq plain(CompletionQueue(f.context, 8), ManualNotifier());
    std::array<ibv_wc, 2> wcs{};
    std::array<std::uint64_t, 1> timestamps{};
    CHECK_THROWS_WITH((void)plain.poll_timestamped(std::span(wcs).first(1), timestamps),
                      contains("has no timestamps"));
    CHECK_THROWS_WITH((void)f.cq.poll_timestamped(wcs, timestamps), contains("differ in length"));
}

// --- tracing ---

namespace {

struct Recorder {
    struct Record {
        std::vector<CqStatistics> before;
        std::vector<CqStatistics> after;
        std::vector<std::error_code> results;
    };
    void before_wait(const CqStatistics& statistics) noexcept {
        record->before.push_back(statistics);
    }
    void after_wait(const CqStatistics& statistics, std::error_code result) noexcept {
        record->after.push_back(statistics);
        record->results.push_back(result);
    }
    Record* record;
};
static_assert(CqTracer<Recorder> && CqTracer<NoTracer>);

struct ThrowingTracer {
    void before_wait(const CqStatistics&) {}
    void after_wait(const CqStatistics&, std::error_code) {}
};
static_assert(!CqTracer<ThrowingTracer> && !CqTracer<int>);

} // namespace

TEST_CASE("AsyncCq: a tracer is called for each wait, and only then") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    ManualNotifier notifier;
    Recorder::Record record;
    struct Loop {
        ManualNotifier notifier(int) { return given; }
        ManualNotifier& given;
    } loop{notifier};
    AsyncCq cq = AsyncCq::create(context, 8, loop, {}, Recorder{&record});
    WrIds got;
    sim.complete(cq.native_handle(), 1);
    const Coroutine ready = poll_once(cq, got);
    CHECK(record.before.empty());
    const Coroutine waiting = poll_once(cq, got);
    REQUIRE(record.before.size() == 1);
    CHECK(record.before[0].completions == 1);
    CHECK(record.before[0].arms == 1);
    sim.complete(cq.native_handle(), 2);
    sim.complete(cq.native_handle(), 3);
    notifier.notify();
    notifier.run();
    REQUIRE(record.results.size() == 1);
    CHECK_FALSE(record.results[0]);
    CHECK(record.after[0].events == 0);
    std::error_code error;
    std::stop_source stop;
    const Coroutine stopped = poll_error(cq, error, stop.get_token());
    REQUIRE(record.before.size() == 2);
    CHECK(record.before[1].completions == 3);
    CHECK(record.before[1].events == 1);
    stop.request_stop();
    notifier.run();
    REQUIRE(record.results.size() == 2);
    CHECK(record.results[1] == std::errc::operation_canceled);
}

TEST_CASE("AsyncCq: a tracer gets the error that ended a wait") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    Recorder::Record record;
    std::error_code error;
    SECTION("the notifier's") {
        AsyncCq cq(CompletionQueue(context, 8), ThrowingNotifier{}, {}, Recorder{&record});
        const Coroutine waiting = poll_error(cq, error);
    }
    SECTION("the channel's, which several CQs share") {
        ManualNotifier notifier;
        SharedChannel channel(CompletionChannel(context), notifier);
        AsyncCq cq = AsyncCq::create(context, 8, channel, {}, Recorder{&record});
        const Coroutine waiting = poll_error(cq, error);
        sim.fail("ibv_get_cq_event", {.error = EIO});
        notifier.notify();
        notifier.run();
    }
    CHECK(error == std::errc::io_error);
    CHECK(record.before.size() == 1);
    REQUIRE(record.results.size() == 1);
    CHECK(record.results[0] == std::errc::io_error);
}
