// SPDX-License-Identifier: MIT
// AsyncCq on simulated verbs and a notifier that the test drives by hand.
#include <asyncverbs/cq/async_cq.hpp>

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/cq/shared_channel.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>
#include <asyncverbs/verbs/device.hpp>

#include <fcntl.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <coroutine>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <system_error>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/escaping.hpp"
#include "support/simulated_verbs.hpp"

using namespace asyncverbs;
using namespace asyncverbs::simulated;
using asyncverbs::support::contains;
using asyncverbs::support::Coroutine;
using asyncverbs::support::Escaping;
using WrIds = std::vector<std::uint64_t>;

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

template <class Notifier = ManualNotifier>
struct Fixture {
    explicit Fixture(const ProviderModel& provider = rxe, AsyncCqOptions options = {})
        : sim(provider), context(Context::open()),
          cq(std::in_place, CompletionQueue(context, 64), notifier, options),
          native(cq->native_handle()) {}

    void complete(std::uint64_t wr_id) { sim.complete(native, wr_id); }

    // What a loop does: whenever the channel is readable, the notifier is told.
    void complete_and_run(std::uint64_t wr_id) {
        complete(wr_id);
        notifier.notify();
        notifier.run();
    }

    SimulatedVerbs sim;
    Notifier notifier;
    Context context;
    std::optional<AsyncCq> cq;
    ibv_cq* native;
};

template <std::size_t Span = 4>
Coroutine poll_once(AsyncCq& cq, WrIds& got, std::stop_token stop = {}) {
    std::array<ibv_wc, Span> wcs{};
    const std::span<ibv_wc> done = co_await cq.poll(wcs, stop);
    for (const ibv_wc& wc : done) got.push_back(wc.wr_id);
}

template <std::size_t Span = 4>
Coroutine poll_until(AsyncCq& cq, WrIds& got, std::size_t count) {
    std::array<ibv_wc, Span> wcs{};
    while (got.size() < count) {
        for (const ibv_wc& wc : co_await cq.poll(wcs)) got.push_back(wc.wr_id);
    }
}

Coroutine poll_error(AsyncCq& cq, std::error_code& error, std::stop_token stop = {}) {
    std::array<ibv_wc, 1> wcs{};
    error = std::make_error_code(std::errc::interrupted); // to be overwritten
    const std::span<ibv_wc> done = co_await cq.poll(wcs, error, stop);
    if (!done.empty() && error) throw std::logic_error("completions and an error");
}

Coroutine poll_one_wr_id(AsyncCq& cq, std::uint64_t wr_id, WrIds& got, std::stop_token stop = {}) {
    const ibv_wc wc = co_await cq.poll_wr_id(wr_id, stop);
    got.push_back(wc.wr_id);
}

} // namespace

// --- poll, arm, wait, consume ---

TEST_CASE("AsyncCq: completions that are there are delivered without suspending") {
    Fixture f;
    f.complete(1);
    f.complete(2);
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
    f.complete_and_run(5);
    CHECK(consumer.done());
    CHECK(got == WrIds{5});
    CHECK_FALSE(f.notifier.waiting()); // nobody waits, so neither does the pump
}

TEST_CASE("AsyncCq: a completion between poll and arm does not wait for an event (I1)",
          "[field-1][I1]") {
    const auto model = GENERATE(ArmModel::flag, ArmModel::index);
    Fixture f(ProviderModel{.arm_model = model});
    bool once = true;
    f.sim.on_call([&](const Call& call) {
        if (call.verb == "ibv_req_notify_cq" && call.moment == Call::Moment::before && once) {
            once = false;
            f.complete(7);
        }
    });
    WrIds got;
    const Coroutine consumer = poll_once(*f.cq, got);
    f.sim.on_call(nullptr);
    CHECK(consumer.done());
    CHECK(got == WrIds{7});
}

TEST_CASE("AsyncCq: a completion after the arm is delivered once; its event is a spurious wake",
          "[field-5][I2]") {
    Fixture f;
    bool once = true;
    f.sim.on_call([&](const Call& call) {
        if (call.verb == "ibv_req_notify_cq" && call.moment == Call::Moment::after && once) {
            once = false;
            f.complete(7);
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
    f.complete_and_run(8);
    CHECK(second.done());
    CHECK(got == WrIds{7, 8});
}

TEST_CASE("AsyncCq: a wake with nothing to read is waited out, and nothing is acked (I2)",
          "[field-14][I2][I4]") {
    Fixture f;
    WrIds got;
    const Coroutine consumer = poll_once(*f.cq, got);
    for (int i = 0; i < 3; ++i) {
        f.notifier.notify();
        REQUIRE(f.notifier.run());
        REQUIRE(f.notifier.waiting());
    }
    CHECK_FALSE(consumer.done());
    CHECK(f.cq->statistics().wakes == 3);
    CHECK(f.cq->statistics().events == 0);
    CHECK(f.cq->statistics().arms == 1);
    f.complete_and_run(1);
    CHECK(got == WrIds{1});
}

TEST_CASE("AsyncCq: more completions than the span holds need no further event", "[field-4][I1]") {
    Fixture f;
    WrIds got;
    const Coroutine consumer = poll_until<2>(*f.cq, got, 5);
    for (std::uint64_t id = 1; id <= 5; ++id) f.complete(id);
    f.notifier.notify();
    f.notifier.run();
    CHECK(consumer.done());
    CHECK(got == WrIds{1, 2, 3, 4, 5});
    CHECK(f.cq->statistics().wakes == 1);
}

TEST_CASE("AsyncCq: one wait costs one arm, one event and no poll too many") {
    Fixture f;
    WrIds got;
    const Coroutine consumer = poll_until(*f.cq, got, 100);
    const CqStatistics before = f.cq->statistics();
    for (std::uint64_t id = 0; id < 50; ++id) f.complete_and_run(id);
    const CqStatistics after = f.cq->statistics();
    CHECK(after.arms - before.arms == 50);
    CHECK(after.events - before.events == 50);
    CHECK(after.wakes - before.wakes == 50);
    CHECK(after.polls - before.polls == 150); // found one; empty; empty after the arm
}

TEST_CASE("AsyncCq: a channel handed over in blocking mode does not block", "[field-16][I3]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    CompletionQueue queue(context, 8);
    const int fd = queue.channel().fd();
    REQUIRE(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK) == 0);
    ManualNotifier notifier;
    AsyncCq cq(std::move(queue), notifier);
    WrIds got;
    const Coroutine consumer = poll_once(cq, got);
    notifier.notify();
    CHECK(notifier.run());
    CHECK(notifier.waiting());
}

TEST_CASE("AsyncCq: an error completion is delivered as the device wrote it (I11)",
          "[field-51][I11]") {
    Fixture f;
    f.sim.complete(f.native, 3, IBV_WC_RETRY_EXC_ERR, 17);
    std::array<ibv_wc, 1> wcs{};
    REQUIRE(f.cq->try_poll(wcs).size() == 1);
    CHECK(wcs[0].wr_id == 3);
    CHECK(wcs[0].status == IBV_WC_RETRY_EXC_ERR);
    CHECK(wcs[0].qp_num == 17);
}

TEST_CASE("AsyncCq: an operation can be moved until it is awaited, and then it does what it says") {
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
    f.complete_and_run(1);
    CHECK(got == WrIds{1});
    stop.request_stop();
    while (f.notifier.run()) {
    }
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
    f.sim.complete(f.native, 1);
    const Coroutine consumer = Local::run(f.cq, got, stop.get_token());
    for (const std::uint64_t id : {2u, 3u, 9u, 9u}) f.complete_and_run(id);
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
    f.sim.complete(f.native, 9);
    const Coroutine consumer = Local::run(*f.cq, got);
    CHECK(got == WrIds{9});
    f.complete_and_run(9);
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
    f.complete_and_run(1);
    CHECK(first_got == WrIds{1});
    CHECK_FALSE(second.done());
    CHECK(f.sim.armed(f.native));
    CHECK(f.notifier.waiting());
    f.complete_and_run(2);
    CHECK(second_got == WrIds{2});
}

TEST_CASE("AsyncCq: what one waiter leaves goes to the next at once (I6)", "[field-33][I6]") {
    Fixture f;
    std::array<WrIds, 3> got;
    const Coroutine first = poll_once<2>(*f.cq, got[0]);
    const Coroutine second = poll_once<1>(*f.cq, got[1]);
    const Coroutine third = poll_once<1>(*f.cq, got[2]);
    for (std::uint64_t id = 1; id <= 3; ++id) f.complete(id);
    f.notifier.notify();
    f.notifier.run();
    CHECK(got[0] == WrIds{1, 2});
    CHECK(got[1] == WrIds{3});
    CHECK_FALSE(third.done());
    CHECK(f.sim.armed(f.native));
}

TEST_CASE("AsyncCq: who polls again goes behind those who wait") {
    Fixture f;
    WrIds greedy_got;
    WrIds patient_got;
    const Coroutine greedy = poll_until<1>(*f.cq, greedy_got, 3);
    const Coroutine patient = poll_once<1>(*f.cq, patient_got);
    f.complete(1);
    f.complete(2);
    f.complete(3);
    f.notifier.notify();
    f.notifier.run();
    CHECK(greedy_got == WrIds{1, 3});
    CHECK(patient_got == WrIds{2});
}

TEST_CASE("AsyncCq: try_poll takes what is there, but not from those who wait") {
    Fixture f;
    std::array<ibv_wc, 4> wcs{};
    CHECK(f.cq->try_poll(wcs).empty());
    CHECK(f.cq->try_poll({}).empty());
    f.complete(1);
    CHECK(f.cq->try_poll(wcs).size() == 1);
    CHECK(f.cq->statistics().arms == 0);

    WrIds got;
    const Coroutine consumer = poll_once(*f.cq, got);
    f.complete(2);
    CHECK(f.cq->try_poll(wcs).empty());
    f.notifier.notify();
    f.notifier.run();
    CHECK(got == WrIds{2});
}

// --- poll_wr_id ---

TEST_CASE("AsyncCq: poll_wr_id keeps what does not match, in order, for the next poll",
          "[field-34][I6]") {
    Fixture f;
    for (std::uint64_t id = 1; id <= 40; ++id) f.complete(id);
    WrIds got;
    const Coroutine selective = poll_one_wr_id(*f.cq, 35, got);
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

TEST_CASE("AsyncCq: poll_wr_id waits for its own while others take theirs") {
    Fixture f;
    WrIds any_got;
    WrIds nine_got;
    WrIds eight_got;
    const Coroutine nine = poll_one_wr_id(*f.cq, 9, nine_got);
    const Coroutine any = poll_once<4>(*f.cq, any_got);
    const Coroutine eight = poll_one_wr_id(*f.cq, 8, eight_got);
    f.complete(8);
    f.complete(1);
    f.complete(2);
    f.notifier.notify();
    f.notifier.run();
    CHECK(eight_got == WrIds{8});
    CHECK(any_got == WrIds{1, 2});
    CHECK_FALSE(nine.done());
    f.complete(3);
    f.complete_and_run(9);
    CHECK(nine_got == WrIds{9});
    std::array<ibv_wc, 4> wcs{};
    REQUIRE(f.cq->try_poll(wcs).size() == 1); // what nobody wanted is still there
    CHECK(wcs[0].wr_id == 3);
}

TEST_CASE("AsyncCq: two wait for the same wr_id: each gets one, in order") {
    Fixture f;
    WrIds first_got;
    WrIds second_got;
    const Coroutine first = poll_one_wr_id(*f.cq, 4, first_got);
    const Coroutine second = poll_one_wr_id(*f.cq, 4, second_got);
    f.complete_and_run(4);
    CHECK(first.done());
    CHECK_FALSE(second.done());
    f.complete_and_run(4);
    CHECK(second.done());
}

TEST_CASE("AsyncCq: a completion kept while a resumed coroutine polls goes to who waited",
          "[field-34][I6]") {
    // The batch holds 1 for a selective waiter and 2; the coroutine that 1 resumes polls at once,
    // but 2 belongs to the one that has been waiting.
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
    f.complete(1);
    f.complete(2);
    f.notifier.notify();
    f.notifier.run();
    CHECK(got == WrIds{1});
    CHECK(waiting_got == WrIds{2});
    f.complete_and_run(3);
    CHECK(got == WrIds{1, 3});
}

TEST_CASE("AsyncCq: who polls again in its turn leaves to others what they wait for by wr_id") {
    // One batch holds the completions of two who wait for theirs. The first one to be resumed polls
    // for any, or for the same one as the other.
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
    const Coroutine other = poll_one_wr_id(*f.cq, 1, other_got);
    f.complete(1);
    f.complete(2);
    f.complete(3);
    f.notifier.notify();
    f.notifier.run();
    CHECK(other_got == WrIds{1});
    CHECK(got == (same ? WrIds{2} : WrIds{2, 3}));
}

// --- cancellation ---

TEST_CASE("AsyncCq: a stop token that is already stopped cancels before the poll (I7)",
          "[field-38][I7]") {
    Fixture f;
    f.complete(1);
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

TEST_CASE("AsyncCq: a parked waiter is cancelled on the loop; the others stay (I6, I7)",
          "[I6][I7]") {
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
    f.complete_and_run(1);
    CHECK(got == WrIds{1});
}

TEST_CASE("AsyncCq: the throwing form throws operation_canceled") {
    Fixture f;
    std::stop_source stop;
    WrIds got;
    const Coroutine poll = poll_once(*f.cq, got, stop.get_token());
    const Coroutine selective = poll_one_wr_id(*f.cq, 1, got, stop.get_token());
    stop.request_stop();
    while (f.notifier.run()) {
    }
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

TEST_CASE("AsyncCq: a completion and a stop at once: the completion is delivered or kept (I7)",
          "[field-37][I7]") {
    const bool stop_first = GENERATE(true, false);
    Fixture f;
    std::stop_source stop;
    WrIds got;
    WrIds next_got;
    const Coroutine cancelled = poll_once<1>(*f.cq, got, stop.get_token());
    const Coroutine next = poll_once<1>(*f.cq, next_got);
    if (stop_first) stop.request_stop();
    f.complete(1);
    if (!stop_first) stop.request_stop();
    f.notifier.notify();
    while (f.notifier.run()) {
    }
    CHECK(cancelled.done());
    CHECK(got.size() + next_got.size() == 1);
    CHECK(next.done() == (next_got.size() == 1));
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
    while (f.notifier.run()) {
    }
    CHECK_FALSE(next.done());
    f.complete_and_run(1);
    CHECK(got == WrIds{1});
    CHECK(f.cq->statistics().arms == 1);
}

TEST_CASE("AsyncCq: a stop while nobody waits disturbs nobody") {
    Fixture f;
    std::stop_source stop;
    WrIds got;
    Coroutine destroyed = poll_once(*f.cq, got, stop.get_token());
    destroyed.destroy();
    stop.request_stop();
    const Coroutine consumer = poll_once(*f.cq, got);
    f.complete_and_run(1);
    while (f.notifier.run()) {
    }
    CHECK(got == WrIds{1});
}

TEST_CASE("AsyncCq: stops from another thread at any moment", "[I7]") {
    Fixture f;
    for (int round = 0; round < 500; ++round) {
        std::stop_source stop;
        std::error_code error;
        std::thread other([&] { stop.request_stop(); });
        const Coroutine consumer = poll_error(*f.cq, error, stop.get_token());
        other.join();
        while (f.notifier.run()) {
        }
        REQUIRE(consumer.done());
        REQUIRE(error == std::errc::operation_canceled);
    }
    WrIds got;
    const Coroutine consumer = poll_once(*f.cq, got);
    f.complete_and_run(1);
    CHECK(got == WrIds{1});
}

// --- lifetimes ---

TEST_CASE("AsyncCq: a coroutine that is destroyed while it waits loses nothing for the next",
          "[I6]") {
    Fixture f;
    WrIds got;
    Coroutine destroyed = poll_once(*f.cq, got);
    WrIds next_got;
    const Coroutine next = poll_once(*f.cq, next_got);
    SECTION("before the completion") {
        destroyed.destroy();
        f.complete(1);
    }
    SECTION("after the completion") {
        f.complete(1);
        destroyed.destroy();
    }
    f.notifier.notify();
    f.notifier.run();
    CHECK(got.empty());
    CHECK(next_got == WrIds{1});
}

TEST_CASE("AsyncCq: the only waiter is destroyed, its event comes later", "[field-41][I8]") {
    Fixture f;
    WrIds got;
    Coroutine destroyed = poll_once(*f.cq, got);
    destroyed.destroy();
    f.complete_and_run(1);
    CHECK(f.cq->statistics().events == 1);
    const Coroutine next = poll_once(*f.cq, got);
    CHECK(next.done());
    CHECK(got == WrIds{1});
}

TEST_CASE("AsyncCq: destroyed while coroutines wait: they are not resumed, but may be destroyed",
          "[I8]") {
    Fixture f;
    std::stop_source stop;
    WrIds got;
    std::optional<Coroutine> parked = poll_once(*f.cq, got, stop.get_token());
    const Coroutine selective = poll_one_wr_id(*f.cq, 1, got, stop.get_token());
    f.cq.reset();
    CHECK_FALSE(f.notifier.waiting());
    CHECK(f.sim.calls("ibv_destroy_cq") == 1);
    stop.request_stop();
    CHECK_FALSE(parked->done());
    parked.reset();
}

TEST_CASE("AsyncCq: a resumed coroutine may destroy its AsyncCq (I8)", "[I8]") {
    Fixture f;
    struct Local {
        static Coroutine run(std::optional<AsyncCq>& cq, WrIds& out) {
            std::array<ibv_wc, 1> wcs{};
            for (const ibv_wc& wc : co_await cq->poll(wcs)) out.push_back(wc.wr_id);
            cq.reset();
        }
    };
    WrIds got;
    WrIds other_got;
    const Coroutine destroyer = Local::run(f.cq, got);
    const Coroutine other = poll_once(*f.cq, other_got);
    f.complete(1);
    f.complete_and_run(2);
    CHECK(destroyer.done());
    CHECK(got == WrIds{1});
    CHECK_FALSE(other.done());
    CHECK_FALSE(f.notifier.waiting());
    CHECK(f.sim.calls("ibv_destroy_cq") == 1);
}

TEST_CASE("AsyncCq: a cancelled coroutine may destroy its AsyncCq, and so may a failed one (I8)",
          "[I8]") {
    Fixture f;
    struct Local {
        static Coroutine run(std::optional<AsyncCq>& cq, std::stop_token stop) {
            std::array<ibv_wc, 1> wcs{};
            std::error_code error;
            co_await cq->poll(wcs, error, stop);
            cq.reset();
        }
    };
    std::stop_source stop;
    const Coroutine destroyer = Local::run(f.cq, stop.get_token());
    const Coroutine other = Local::run(f.cq, stop.get_token());
    SECTION("cancelled") { stop.request_stop(); }
    SECTION("failed") { f.notifier.notify(std::make_error_code(std::errc::io_error)); }
    REQUIRE(f.notifier.run());
    CHECK(destroyer.done());
    CHECK_FALSE(other.done());
    CHECK(f.sim.calls("ibv_destroy_cq") == 1);
}

TEST_CASE("AsyncCq: a resumed coroutine may destroy another that waits", "[I8]") {
    Fixture f;
    Coroutine victim;
    struct Local {
        static Coroutine run(AsyncCq& cq, Coroutine& other) {
            std::array<ibv_wc, 1> wcs{};
            co_await cq.poll(wcs);
            other.destroy();
        }
    };
    const Coroutine killer = Local::run(*f.cq, victim);
    WrIds got;
    victim = poll_once(*f.cq, got);
    f.complete(1);
    f.complete_and_run(2);
    CHECK(killer.done());
    CHECK(got.empty());
    CHECK(f.sim.queued_completions(f.native) == 1);
}

namespace {

// Tells what had already been destroyed when the notifier was.
struct WitnessNotifier : ManualNotifier {
    WitnessNotifier(SimulatedVerbs& simulation, std::uint64_t& channels_destroyed)
        : sim(&simulation), count(&channels_destroyed) {}
    WitnessNotifier(WitnessNotifier&& other) noexcept
        : ManualNotifier(other), sim(std::exchange(other.sim, nullptr)), count(other.count) {}
    ~WitnessNotifier() {
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
        AsyncCq cq(CompletionQueue(context, 8), WitnessNotifier(sim, channels_destroyed));
    }
    SECTION("idle") {
        AsyncCq cq(CompletionQueue(context, 8), WitnessNotifier(sim, channels_destroyed));
        WrIds got;
        const Coroutine consumer = poll_once(cq, got);
    }
    SECTION("destroyed by a coroutine that it resumed") {
        WitnessNotifier witness(sim, channels_destroyed);
        control = witness;
        std::optional<AsyncCq> cq(std::in_place, CompletionQueue(context, 8), std::move(witness));
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

TEST_CASE("AsyncCq: a move takes the waiters along") {
    Fixture f;
    WrIds got;
    const Coroutine consumer = poll_once(*f.cq, got);
    AsyncCq moved = std::move(*f.cq);
    f.complete_and_run(1);
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
    const Coroutine selective = poll_one_wr_id(*f.cq, 1, got);
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

TEST_CASE("AsyncCq: a failing arm fails the waiter, which never waits (I5)", "[field-7][I5]") {
    const auto sign = GENERATE(ErrnoSign::positive, ErrnoSign::negative, ErrnoSign::minus_one);
    Fixture f;
    f.sim.fail("ibv_req_notify_cq", {.error = ENOMEM, .sign = sign});
    WrIds got;
    const Coroutine consumer = poll_once(*f.cq, got);
    REQUIRE(consumer.done());
    CHECK_THROWS_WITH(consumer.get(), "ibv_req_notify_cq: Cannot allocate memory");
    CHECK_FALSE(f.notifier.waiting());
    const Coroutine later = poll_once(*f.cq, got);
    REQUIRE(later.done());
    CHECK_THROWS_WITH(later.get(), "ibv_req_notify_cq: Cannot allocate memory");
}

TEST_CASE("AsyncCq: a re-arm that fails fails those who still wait", "[I5]") {
    Fixture f;
    WrIds got;
    std::error_code error;
    const Coroutine first = poll_once<1>(*f.cq, got);
    const Coroutine second = poll_error(*f.cq, error);
    f.sim.fail("ibv_req_notify_cq");
    f.complete_and_run(1);
    CHECK(got == WrIds{1});
    CHECK(second.done());
    CHECK(error == std::errc::io_error);
}

TEST_CASE("AsyncCq: after a fatal error try_poll still takes what the device has") {
    Fixture f;
    std::error_code error;
    const Coroutine consumer = poll_error(*f.cq, error);
    f.notifier.notify(std::make_error_code(std::errc::io_error));
    REQUIRE(f.notifier.run());
    f.complete(1);
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
            throw std::runtime_error("the loop is gone");
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
                      contains(unknown ? "exception of unknown type" : "the loop is gone"));
}

TEST_CASE("AsyncCq: an exception that escapes a resumed coroutine passes to the loop") {
    Fixture f;
    const Escaping escaping = Escaping::run(f.cq);
    f.complete(1);
    f.notifier.notify();
    CHECK_THROWS_WITH(f.notifier.run(), "escaped");
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
        f.notifier.notify();
        CHECK_THROWS_WITH(f.notifier.run(), "escaped");
        escaping.handle.destroy();
        CHECK(f.sim.calls("ibv_destroy_cq") == static_cast<std::uint64_t>(i) + 1);
        CHECK(f.sim.calls("ibv_destroy_comp_channel") == static_cast<std::uint64_t>(i) + 1);
    }
}

TEST_CASE("AsyncCq: an exception that escapes leaves no other waiter behind", "[I5]") {
    Fixture f;
    const Escaping first = Escaping::run(f.cq);
    std::error_code error;
    const Coroutine parked = poll_error(*f.cq, error);
    const Escaping second = Escaping::run(f.cq);
    WrIds got;
    const Coroutine selective = poll_one_wr_id(*f.cq, 7, got);
    f.complete(1);
    f.notifier.notify();
    CHECK_THROWS_WITH(f.notifier.run(), "escaped");
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
    f.complete(1);
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

TEST_CASE("AsyncCq: an event that the kernel dropped is made up for by max_wait", "[I3]") {
    using namespace std::chrono_literals;
    Fixture<TimedManualNotifier> f(rxe, {.max_wait = 10ms});
    WrIds got;
    const Coroutine consumer = poll_until(*f.cq, got, 2);
    f.sim.drop_events(f.native);
    f.complete(1);
    REQUIRE(f.sim.queued_events(f.native->channel) == 0);
    f.notifier.notify(std::make_error_code(std::errc::timed_out));
    REQUIRE(f.notifier.run());
    CHECK(got == WrIds{1});
    CHECK(f.sim.armed(f.native));
    REQUIRE(f.notifier.bounds->size() == 2);
    CHECK(f.notifier.bounds->front() == 10ms);
    f.complete_and_run(2);
    CHECK(consumer.done());
}

TEST_CASE("AsyncCq: a CQ that is always ready takes a turn of the loop now and then (I9)",
          "[field-47][I9]") {
    Fixture<TimedManualNotifier> f;
    WrIds got;
    struct Local {
        static Coroutine run(AsyncCq& cq, Fixture<TimedManualNotifier>& fixture, WrIds& out) {
            std::array<ibv_wc, 1> wcs{};
            for (std::uint64_t id = 0; id < 5000; ++id) {
                fixture.complete(id);
                const std::span<ibv_wc> done = co_await cq.poll(wcs);
                out.push_back(done[0].wr_id);
            }
        }
    };
    const Coroutine busy = Local::run(*f.cq, f, got);
    std::size_t turns = 0;
    while (!busy.done()) {
        REQUIRE(f.notifier.waiting());
        REQUIRE(f.notifier.bounds->back() == std::chrono::nanoseconds(0));
        ++turns;
        f.notifier.notify(std::make_error_code(std::errc::timed_out));
        REQUIRE(f.notifier.run());
    }
    CHECK(turns == 4);
    CHECK(got.size() == 5000);
    CHECK(f.sim.calls("ibv_req_notify_cq") == 0);
}

// --- timestamps ---

TEST_CASE("AsyncCq: timestamps come with their completions, kept ones too") {
    SimulatedVerbs sim({DeviceOptions{.name = "sim0", .completion_timestamps = true}});
    const Context context = Context::open();
    ManualNotifier notifier;
    AsyncCq cq(CompletionQueue::extended(context, 8, IBV_WC_EX_WITH_COMPLETION_TIMESTAMP),
               notifier);
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
    const Coroutine waiting = Local::poll(cq, got, times);
    sim.complete(cq.native_handle(), 1);
    notifier.notify();
    notifier.run();
    CHECK(waiting.done());
    for (std::uint64_t id = 2; id <= 4; ++id) sim.complete(cq.native_handle(), id);
    const Coroutine one = poll_one_wr_id(cq, 3, selective);
    CHECK(selective == WrIds{3});
    const Coroutine kept = Local::poll(cq, got, times);
    CHECK(kept.done());
    CHECK(got == WrIds{1, 2, 4});
    CHECK(times == std::vector<std::uint64_t>{1001, 1002, 1004});
}

TEST_CASE("AsyncCq: a wait for timestamped completions is stopped without an exception") {
    SimulatedVerbs sim({DeviceOptions{.name = "sim0", .completion_timestamps = true}});
    const Context context = Context::open();
    ManualNotifier notifier;
    AsyncCq cq(CompletionQueue::extended(context, 8, IBV_WC_EX_WITH_COMPLETION_TIMESTAMP),
               notifier);
    struct Local {
        static Coroutine poll(AsyncCq& queue, std::error_code& error, std::stop_token stop) {
            std::array<ibv_wc, 1> wcs{};
            std::array<std::uint64_t, 1> timestamps{};
            co_await queue.poll_timestamped(wcs, timestamps, error, stop);
        }
    };
    std::stop_source stop;
    std::error_code error;
    const Coroutine waiting = Local::poll(cq, error, stop.get_token());
    stop.request_stop();
    notifier.run();
    CHECK(waiting.done());
    CHECK(error == std::errc::operation_canceled);
}

TEST_CASE("AsyncCq: timestamps that cannot be had are refused at once") {
    SimulatedVerbs sim({DeviceOptions{.name = "sim0", .completion_timestamps = true}});
    const Context context = Context::open();
    AsyncCq plain(CompletionQueue(context, 8), ManualNotifier());
    AsyncCq extended(CompletionQueue::extended(context, 8, IBV_WC_EX_WITH_COMPLETION_TIMESTAMP),
                     ManualNotifier());
    std::array<ibv_wc, 2> wcs{};
    std::array<std::uint64_t, 1> timestamps{};
    CHECK_THROWS_WITH((void)plain.poll_timestamped(std::span(wcs).first(1), timestamps),
                      contains("has no timestamps"));
    CHECK_THROWS_WITH((void)extended.poll_timestamped(wcs, timestamps),
                      contains("differ in length"));
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

TEST_CASE("AsyncCq: a tracer is told of each wait, and of nothing else") {
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

TEST_CASE("AsyncCq: a tracer is told of the error that has ended a wait") {
    struct ThrowingNotifier {
        struct Readable {
            bool await_ready() const noexcept { return true; }
            void await_suspend(std::coroutine_handle<>) const noexcept {}
            std::error_code await_resume() const {
                throw std::system_error(std::make_error_code(std::errc::io_error));
            }
        };
        Readable readable(const std::stop_token&) const { return {}; }
    };
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
