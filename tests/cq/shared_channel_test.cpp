// SPDX-License-Identifier: MIT
// Several AsyncCqs on one channel: on simulated verbs, with a notifier that the test drives by hand
// and under real epoll.
#include <asyncverbs/cq/shared_channel.hpp>

#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>
#include <asyncverbs/verbs/device.hpp>

#include <array>
#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "cq/fixture.hpp"
#include "proof/interleavings.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/escaping.hpp"

using namespace asyncverbs;
using namespace asyncverbs::simulated;
using namespace std::chrono_literals;
using namespace asyncverbs::support;

static_assert(CqNotifier<detail::ChannelNotifier<false>>);
static_assert(!TimedCqNotifier<detail::ChannelNotifier<false>>);
static_assert(TimedCqNotifier<detail::ChannelNotifier<true>>);
static_assert(std::movable<SharedChannel<ManualNotifier>>);

namespace {

struct SharedChannelFixture {
    explicit SharedChannelFixture(std::size_t count = 2, const ProviderModel& provider = rxe)
        : sim(provider), context(Context::open()),
          channel(std::in_place, CompletionChannel(context), notifier) {
        for (std::size_t i = 0; i < count; ++i) add();
    }

    std::optional<AsyncCq>& add(const AsyncCqOptions& options = {}) {
        return cqs.emplace_back(AsyncCq::create(context, 16, *channel, options));
    }
    void complete(std::size_t cq, std::uint64_t wr_id) {
        sim.complete(cqs[cq]->native_handle(), wr_id);
    }
    CqCounters counters(std::size_t cq) const { return sim.counters(cqs[cq]->native_handle()); }
    bool armed(std::size_t cq) const { return sim.armed(cqs[cq]->native_handle()); }
    // Reports the channel as readable.
    bool wake() {
        notifier.notify();
        return notifier.run();
    }

    SimulatedVerbs sim;
    ManualNotifier notifier;
    Context context;
    std::optional<SharedChannel<ManualNotifier>> channel;
    std::deque<std::optional<AsyncCq>> cqs;
};

Coroutine poll_on(AsyncCq& cq, WrIds& got) { return poll_until(cq, got, SIZE_MAX); }

} // namespace

// --- events ---

TEST_CASE("SharedChannel: an event wakes the CQ that it names, and no other", "[field-18][I4]") {
    SharedChannelFixture f;
    WrIds first, second;
    const Coroutine on_first = poll_once(*f.cqs[0], first);
    const Coroutine on_second = poll_once(*f.cqs[1], second);
    f.complete(1, 7);
    CHECK(f.wake());
    CHECK(second == WrIds{7});
    CHECK_FALSE(on_first.done());
    CHECK(f.armed(0));
    CHECK(f.counters(0).polls == 2); // before and after its arm
    CHECK(f.cqs[1]->statistics().events == 1);
    CHECK(f.cqs[0]->statistics().events == 0);
    f.complete(0, 8);
    CHECK(f.wake());
    CHECK(first == WrIds{8});
}

TEST_CASE("SharedChannel: one wait for all CQs, and none without a waiter") {
    SharedChannelFixture f;
    CHECK_FALSE(f.notifier.waiting());
    WrIds first, second;
    const Coroutine on_first = poll_once(*f.cqs[0], first);
    CHECK(f.notifier.waiting());
    const Coroutine on_second = poll_once(*f.cqs[1], second);
    f.complete(0, 1);
    f.complete(1, 2);
    CHECK(f.wake());
    CHECK_FALSE(f.notifier.waiting());
    CHECK(on_first.done());
    CHECK(on_second.done());
}

TEST_CASE("SharedChannel: a wake without an event, and an event without a completion",
          "[field-14][I2]") {
    SharedChannelFixture f;
    WrIds got;
    const Coroutine consumer = poll_once(*f.cqs[0], got);
    CHECK(f.wake());
    CHECK(f.notifier.waiting());
    CHECK(f.counters(0).arms == 1);
    f.sim.push_events(f.cqs[0]->native_handle(), 3);
    CHECK(f.wake());
    CHECK_FALSE(consumer.done());
    CHECK(f.cqs[0]->statistics().events == 3);
    CHECK(f.armed(0)); // again
    f.complete(0, 1);
    CHECK(f.wake());
    CHECK(got == WrIds{1});
}

TEST_CASE("SharedChannel: an event that is read while its CQ has no waiter is not lost",
          "[field-3][I1][I3]") {
    SharedChannelFixture f;
    std::stop_source stop;
    std::error_code error;
    const Coroutine stopped = poll_error(*f.cqs[1], error, stop.get_token());
    stop.request_stop();
    f.notifier.run();
    REQUIRE(stopped.done()); // and its CQ is still armed
    WrIds first, second;
    const Coroutine on_first = poll_once(*f.cqs[0], first);
    f.complete(1, 5);
    CHECK(f.wake());
    CHECK_FALSE(on_first.done());
    const Coroutine on_second = poll_on(*f.cqs[1], second);
    CHECK(second == WrIds{5});
    CHECK(f.armed(1)); // which it would not be if the event had been forgotten
    f.complete(1, 6);
    CHECK(f.wake());
    CHECK(second == WrIds{5, 6});
}

TEST_CASE("SharedChannel: events are acked in batches, each to its CQ", "[field-27][I4]") {
    SharedChannelFixture f(0);
    f.add({.ack_batch = 2});
    f.add({.ack_batch = 16});
    std::array<WrIds, 2> got;
    const Coroutine first = poll_on(*f.cqs[0], got[0]);
    const Coroutine second = poll_on(*f.cqs[1], got[1]);
    for (std::uint64_t i = 0; i < 5; ++i) {
        f.complete(0, i);
        f.complete(1, i);
        f.wake();
    }
    CHECK(f.counters(0).events_acked == 4);
    CHECK(f.counters(1).events_acked == 0);
} // the audit: all acked before the CQs were destroyed

// --- CQs are added and destroyed ---

TEST_CASE("SharedChannel: a CQ is destroyed with an event that was read and not taken",
          "[field-25][I4]") {
    SharedChannelFixture f;
    WrIds first, second;
    std::optional<Coroutine> leaving(poll_once(*f.cqs[0], first));
    leaving.reset(); // its CQ is armed
    const Coroutine staying = poll_on(*f.cqs[1], second);
    f.complete(0, 1);
    f.wake(); // reads the event of the first CQ, which has no waiter
    ibv_cq* const native = f.cqs[0]->native_handle();
    f.cqs[0].reset();
    CHECK(f.sim.counters(native).events_reported == 1);
    CHECK(f.sim.counters(native).events_acked == 1);
    CHECK(f.notifier.waiting());
}

TEST_CASE("SharedChannel: an event of a queue without an AsyncCq is acked", "[I4]") {
    SharedChannelFixture f;
    const std::shared_ptr<ibv_cq> kept = f.cqs[0]->completion_queue().shared_handle();
    WrIds first, second;
    {
        const Coroutine leaving = poll_once(*f.cqs[0], first);
    }
    f.cqs[0].reset();
    const Coroutine staying = poll_on(*f.cqs[1], second);
    f.sim.complete(kept.get(), 1);
    CHECK(f.wake());
    CHECK(f.sim.counters(kept.get()).events_acked == 1);
}

TEST_CASE("SharedChannel: a resumed coroutine destroys a CQ whose event was read with its own",
          "[I8]") {
    SharedChannelFixture f(3);
    WrIds second, third;
    struct Local {
        static Coroutine destroy_other(SharedChannelFixture& fixture) {
            std::array<ibv_wc, 1> wcs{};
            co_await fixture.cqs[0]->poll(wcs);
            fixture.cqs[1].reset();
        }
    };
    const Coroutine killer = Local::destroy_other(f);
    const Coroutine victim = poll_on(*f.cqs[1], second);
    const Coroutine other = poll_on(*f.cqs[2], third);
    for (std::size_t i = 0; i < 3; ++i) f.complete(i, i);
    CHECK(f.wake());
    CHECK(killer.done());
    CHECK(second.empty());
    CHECK(third == WrIds{2});
}

TEST_CASE("SharedChannel: a resumed coroutine destroys everything", "[I8][I12]") {
    SharedChannelFixture f;
    struct Local {
        static Coroutine destroy_all(SharedChannelFixture& fixture) {
            std::array<ibv_wc, 1> wcs{};
            co_await fixture.cqs[0]->poll(wcs);
            fixture.channel.reset();
            fixture.cqs.clear();
        }
    };
    const Coroutine killer = Local::destroy_all(f);
    WrIds second;
    const Coroutine victim = poll_on(*f.cqs[1], second);
    f.complete(0, 1);
    f.complete(1, 2);
    CHECK(f.wake());
    CHECK(killer.done());
    CHECK(second.empty());
    CHECK(f.sim.calls("ibv_destroy_comp_channel") == 1);
}

TEST_CASE("SharedChannel: its CQs may outlive it") {
    SharedChannelFixture f;
    WrIds got;
    const Coroutine consumer = poll_on(*f.cqs[0], got);
    f.channel.reset();
    f.complete(0, 1);
    CHECK(f.wake());
    CHECK(got == WrIds{1});
    CHECK(f.sim.calls("ibv_destroy_comp_channel") == 0);
    f.cqs.clear();
    CHECK(f.sim.calls("ibv_destroy_comp_channel") == 1);
}

// --- stops ---

TEST_CASE("SharedChannel: a stop ends the wait for one CQ", "[field-37][I7]") {
    SharedChannelFixture f;
    std::stop_source stop;
    std::error_code error;
    WrIds got;
    const Coroutine stopped = poll_error(*f.cqs[0], error, stop.get_token());
    const Coroutine other = poll_on(*f.cqs[1], got);
    const bool from_another_thread = GENERATE(false, true);
    if (from_another_thread) {
        std::jthread([&] { stop.request_stop(); }).join();
    } else {
        stop.request_stop();
    }
    CHECK_FALSE(stopped.done()); // not inside request_stop()
    CHECK(f.notifier.run());
    CHECK(stopped.done());
    CHECK(error == std::errc::operation_canceled);
    f.complete(1, 1);
    CHECK(f.wake());
    CHECK(got == WrIds{1});
}

// --- errors ---

TEST_CASE("SharedChannel: a failing channel fails all its CQs, now and later", "[field-44][I5]") {
    SharedChannelFixture f;
    std::error_code first, second, later;
    const Coroutine on_first = poll_error(*f.cqs[0], first);
    const Coroutine on_second = poll_error(*f.cqs[1], second);
    const bool by_notifier = GENERATE(false, true);
    if (by_notifier) {
        f.notifier.notify(std::make_error_code(std::errc::bad_file_descriptor));
    } else {
        f.sim.disassociate(f.context.native_handle());
        f.notifier.notify();
    }
    CHECK(f.notifier.run());
    const auto expected = by_notifier ? std::errc::bad_file_descriptor : std::errc::io_error;
    CHECK(first == expected);
    CHECK(second == expected);
    CHECK_FALSE(f.notifier.waiting());
    if (by_notifier) {
        f.add();
        const Coroutine newcomer = poll_error(*f.cqs[2], later);
        CHECK(later == expected);
        WrIds none;
        const Coroutine thrown = poll_once(*f.cqs[2], none);
        CHECK_THROWS_WITH(thrown.get(), contains("CqNotifier::readable"));
    } else {
        WrIds none;
        const Coroutine thrown = poll_once(*f.cqs[0], none);
        CHECK_THROWS_WITH(thrown.get(), contains("ibv_get_cq_event"));
    }
}

TEST_CASE("SharedChannel: an exception that escapes a coroutine concerns its CQ alone",
          "[I5][I8]") {
    SharedChannelFixture f(3);
    const bool destroys = GENERATE(false, true);
    WrIds got;
    const Coroutine before = poll_on(*f.cqs[1], got);
    const Escaping escaping = Escaping::run(f.cqs[0], destroys);
    WrIds last;
    const Coroutine after = poll_on(*f.cqs[2], last);
    for (std::size_t i = 0; i < 3; ++i) f.complete(i, i);
    f.notifier.notify();
    CHECK_THROWS_WITH(f.notifier.run(), "escaped");
    escaping.handle.destroy();
    CHECK(got == WrIds{1});
    CHECK(last == WrIds{2});
    f.complete(1, 11);
    f.complete(2, 12);
    CHECK(f.wake());
    CHECK(got == WrIds{1, 11});
    CHECK(last == WrIds{2, 12});
}

TEST_CASE("SharedChannel: an exception escapes after everything else was destroyed", "[I8][I12]") {
    SharedChannelFixture f(1);
    f.channel.reset();
    const Escaping escaping = Escaping::run(f.cqs[0], true);
    f.complete(0, 1);
    f.notifier.notify();
    CHECK_THROWS_WITH(f.notifier.run(), "escaped");
    escaping.handle.destroy();
    CHECK(f.sim.calls("ibv_destroy_comp_channel") == 1);
}

TEST_CASE("SharedChannel: bad input") {
    SharedChannelFixture f;
    CompletionQueue elsewhere(f.context, 8);
    CHECK_THROWS_WITH(f.channel->notifier(elsewhere), contains("not on this SharedChannel"));
    CHECK_THROWS_WITH(f.channel->notifier(f.cqs[0]->completion_queue()),
                      contains("has a notifier already"));
    CompletionQueue moved_to(std::move(elsewhere));
    CHECK_THROWS_WITH(f.channel->notifier(elsewhere), contains("moved from"));
    CHECK_THROWS_WITH(f.add({.max_wait = 1ms}), contains("TimedCqNotifier"));
    const CompletionQueue first(f.context, 8, f.channel->channel());
    CompletionQueue second(f.context, 8, f.channel->channel());
    CHECK_THROWS_WITH(AsyncCq(std::move(second), f.channel->notifier(first)),
                      contains("of another completion queue"));
}

TEST_CASE("SharedChannel: a coroutine that awaits the notifier can be destroyed", "[field-41]") {
    SharedChannelFixture f(0);
    const CompletionQueue queue(f.context, 8, f.channel->channel());
    auto notifier = f.channel->notifier(queue);
    struct Local {
        static Coroutine wait(detail::ChannelNotifier<false>& events, std::error_code& error) {
            error = co_await events.readable({});
        }
    };
    std::error_code error = std::make_error_code(std::errc::interrupted);
    std::optional<Coroutine> waiting(Local::wait(notifier, error));
    waiting.reset();
    f.sim.push_events(queue.native_handle());
    CHECK(f.wake());
    CHECK(error == std::errc::interrupted);
    CHECK(notifier.take_events() == 1);
    ibv_ack_cq_events(queue.native_handle(), 1);
    const Coroutine again = Local::wait(notifier, error);
    f.sim.push_events(queue.native_handle());
    CHECK(f.wake());
    CHECK_FALSE(error);
}

// --- under epoll ---

TEST_CASE("SharedChannel: max_wait finds a completion whose event was dropped", "[I3]") {
    SimulatedVerbs sim;
    EpollExecutor loop;
    const Context context = Context::open();
    SharedChannel channel(context, loop);
    AsyncCq bounded = AsyncCq::create(context, 16, channel, {.max_wait = 1ms});
    AsyncCq unbounded = AsyncCq::create(context, 16, channel);
    struct Local {
        static Task<std::uint64_t> next(AsyncCq& cq) {
            std::array<ibv_wc, 1> wcs{};
            const std::span<ibv_wc> done = co_await cq.poll(wcs);
            co_return done[0].wr_id;
        }
    };
    WrIds got;
    const Coroutine parked =
        poll_on(unbounded, got); // the channel is awaited without a bound already
    sim.drop_events(bounded.native_handle());
    loop.post([&] { sim.complete(bounded.native_handle(), 3); });
    CHECK(loop.run(Local::next(bounded)) == 3);
    CHECK(sim.counters(bounded.native_handle()).events_dropped == 1);
}

TEST_CASE("SharedChannel: a CQ that is always ready starves neither its channel nor its loop",
          "[field-47][I9]") {
    SimulatedVerbs sim;
    EpollExecutor loop;
    const Context context = Context::open();
    SharedChannel channel(context, loop);
    AsyncCq busy = AsyncCq::create(context, 16, channel);
    AsyncCq quiet = AsyncCq::create(context, 16, channel);
    struct Local {
        static Task<> spin(SimulatedVerbs& verbs, AsyncCq& cq, const bool& done) {
            std::array<ibv_wc, 1> wcs{};
            for (int i = 0; !done && i < 1'000'000; ++i) {
                verbs.complete(cq.native_handle(), 1);
                co_await cq.poll(wcs);
            }
        }
        static Task<> wait(AsyncCq& cq, bool& done) {
            std::array<ibv_wc, 1> wcs{};
            co_await cq.poll(wcs);
            done = true;
        }
    };
    bool done = false;
    Scope scope;
    scope.spawn(Local::wait(quiet, done));
    sim.complete(quiet.native_handle(), 2);
    loop.run(Local::spin(sim, busy, done));
    CHECK(done);
    CHECK(busy.statistics().polls < 10'000);
}

// --- every order of steps with three CQs ---

namespace {

// What is wrong with this schedule; "" if nothing is.
std::string play(const ProviderModel& provider, const std::vector<int>& schedule) {
    constexpr int queues = 3;
    SharedChannelFixture f(queues, provider);
    std::array<WrIds, queues> got;
    std::array<std::stop_source, queues> stops;
    std::array<std::error_code, queues> errors;
    std::array<std::uint64_t, queues> sent{};
    std::array<Coroutine, queues> consumers;
    struct Local {
        static Coroutine consume(AsyncCq& cq, WrIds& all, std::error_code& error,
                                 std::stop_token stop) {
            std::array<ibv_wc, 2> wcs{};
            while (!error) {
                for (const ibv_wc& wc : co_await cq.poll(wcs, error, stop)) {
                    all.push_back(wc.wr_id);
                }
            }
        }
    };
    const auto start = [&](std::size_t i) {
        consumers[i] = Local::consume(*f.cqs[i], got[i], errors[i], stops[i].get_token());
    };
    const auto run = [&] { // as a level-triggered loop would
        for (int iterations = 0; iterations < 20; ++iterations) {
            const bool readable = f.sim.queued_events(f.channel->channel().native_handle()) > 0;
            if (readable) f.notifier.notify();
            if (!f.notifier.run()) return;
        }
    };
    start(0);
    start(1);
    for (const int step : schedule) {
        const auto i = static_cast<std::size_t>(step % queues);
        switch (step / queues) {
        case 0:
            if (f.cqs[i]) f.complete(i, sent[i]++);
            break;
        case 1:
            stops[i].request_stop();
            break;
        case 2:
            if (i == 2 && f.cqs[2]) start(2); // later than the others, or again
            if (i != 2) f.cqs[i].reset();
            break;
        case 3:
            run();
        }
    }
    run();
    for (std::size_t i = 0; i < queues; ++i) {
        if (!f.cqs[i]) continue;
        if (stops[i].stop_requested() && i < 2 && errors[i] != std::errc::operation_canceled) {
            return "not stopped";
        }
        std::array<ibv_wc, 16> wcs{}; // what a stop left in the queue
        for (const ibv_wc& wc : f.cqs[i]->try_poll(wcs)) {
            if (!stops[i].stop_requested() && i < 2) return "left behind";
            got[i].push_back(wc.wr_id);
        }
        WrIds all(sent[i]);
        for (std::uint64_t id = 0; id < sent[i]; ++id) all[id] = id;
        if (got[i] != all) return "lost, twice or out of order";
    }
    f.cqs.clear();
    f.channel.reset();
    f.sim.audit();
    for (const std::string& problem : f.sim.take_problems()) {
        if (problem.find("context") == std::string::npos) return problem;
    }
    return "";
}

} // namespace

TEST_CASE("SharedChannel: every interleaving of four steps", "[I1][I3][I4][I7][I12]") {
    const ProviderModel provider = GENERATE(rxe, mlx5);
    const std::vector<int> steps{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}; // those of play()
    const std::size_t schedules =
        proof::for_each_schedule<int>(4, [&](const std::vector<int>& schedule) {
            const std::string problem = play(provider, schedule);
            const auto name = [](int step) { return std::to_string(step); };
            if (!problem.empty()) FAIL(problem << ": " << proof::to_text(schedule, name));
            return steps;
        });
    CHECK(schedules == 11'111);
}
