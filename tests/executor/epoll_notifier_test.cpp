// SPDX-License-Identifier: MIT
// EpollNotifier: what the conformance suite, which conformance_tests runs on it, does not assert.
#include <asyncverbs/executor/epoll_executor.hpp>

#include <sys/epoll.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <asyncverbs/coro/when_all.hpp>
#include <asyncverbs/cq/cq_notifier.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/device.hpp>

#include "executor/wait.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"
#include "support/pipe.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using asyncverbs::support::contains;
using asyncverbs::support::Coroutine;
using asyncverbs::support::counters;
using asyncverbs::support::ok;
using asyncverbs::support::Pipe;
using asyncverbs::support::Wait;

static_assert(TimedCqNotifier<EpollNotifier>);
static_assert(std::movable<EpollNotifier> && !std::copyable<EpollNotifier>);
static_assert(std::is_nothrow_move_constructible_v<EpollNotifier>);

namespace {

struct EpollNotifierFixture {
    auto readable(std::stop_token token = {}) { return notifier->readable(token); }
    auto readable_for(std::chrono::nanoseconds time, std::stop_token token = {}) {
        return notifier->readable(token, time);
    }
    std::stop_token token() const { return stop.get_token(); }

    // Runs until a timer ends it: nothing else may wake the loop meanwhile.
    void check_that_it_sleeps() {
        const auto before = counters();
        const auto body = [this]() -> Task<> { co_await executor.sleep_for(5ms); };
        executor.run(body());
        CHECK((counters() - before).epoll_wait == 1);
    }

    EpollExecutor executor;
    Pipe pipe;
    std::optional<EpollNotifier> notifier{std::in_place, executor, pipe.reader()};
    std::stop_source stop;
};

// Calls a function in the iteration in which its pipe becomes readable. Made before a wait, it runs
// before it in the same iteration.
class OnReadable {
public:
    template <class Function>
    OnReadable(EpollExecutor& executor, Function function)
        : pipe_(), notifier_(executor.notifier(pipe_.reader())), coroutine_(run(*this, function)) {}

    void trigger() const { pipe_.put(); }
    bool called() const { return coroutine_.done(); }

private:
    template <class Function>
    static Coroutine run(OnReadable& self, Function function) {
        co_await self.notifier_.readable();
        function();
    }

    Pipe pipe_;
    EpollNotifier notifier_;
    Coroutine coroutine_;
};

std::string registration_error(EpollExecutor& executor, int fd, std::errc expected) {
    try {
        const EpollNotifier notifier(executor, fd);
    } catch (const std::system_error& error) {
        CHECK(error.code() == expected);
        return error.what();
    }
    return "no error";
}

} // namespace

TEST_CASE("EpollNotifier: on a completion channel, each event wakes once", "[epoll_notifier]") {
    simulated::SimulatedVerbs sim;
    const Context context = Context::open();
    const CompletionQueue cq(context, 8);
    EpollExecutor executor;
    EpollNotifier notifier = executor.notifier(cq.channel());
    CHECK(notifier.native_handle() == cq.channel().fd());

    SECTION("the waiter, and no other, though it is not read") {
        for (int i = 0; i < 2; ++i) {
            const Wait wait(notifier.readable());
            executor.run_once();
            CHECK(!wait.result);
            sim.push_events(cq.native_handle());
            executor.run_once();
            CHECK(wait.result == ok);
        }
    }
    SECTION("the next waiter if there is none, also in a wait of no time") {
        const bool bounded = GENERATE(false, true);
        sim.push_events(cq.native_handle());
        executor.run_once();
        const Wait wait(bounded ? notifier.readable({}, 0ns) : notifier.readable());
        executor.run_once();
        CHECK(wait.result == ok);
    }
    SECTION("but a destroyed wait of no time wakes no later one") {
        std::optional<Wait> first(std::in_place, notifier.readable({}, 0ns));
        first.reset();
        const Wait wait(notifier.readable());
        executor.run_once();
        executor.run_once();
        CHECK(!wait.result);
    }
    SECTION("the next waiter if the first one is destroyed before it is resumed") {
        std::optional<Wait> first;
        const OnReadable destroyer(executor, [&] { first.reset(); });
        first.emplace(notifier.readable());
        destroyer.trigger(); // ready before the event, and in the same iteration
        sim.push_events(cq.native_handle());
        executor.run_once();
        CHECK(destroyer.called());
        CHECK(!first);
        const Wait next(notifier.readable());
        executor.run_once();
        CHECK(next.result == ok);
    }
}

TEST_CASE("EpollNotifier: a hang-up wakes, and does not spin without a waiter",
          "[epoll_notifier]") {
    EpollNotifierFixture f;
    SECTION("while a coroutine waits") {
        const Wait wait(f.readable());
        f.pipe.close_writer();
        f.executor.run_once();
        CHECK(wait.result == ok);
    }
    SECTION("while none waits") { f.pipe.close_writer(); }
    SECTION("after it was readable while none waited") {
        f.pipe.put();
        f.executor.run_once();
        f.pipe.close_writer();
    }
    f.executor.run_once();
    f.check_that_it_sleeps();

    for (int i = 0; i < 3; ++i) {
        const Wait wait(f.readable());
        f.executor.run_once();
        CHECK(wait.result == ok);
        if (i == 1) f.executor.run_once();
    }
    const Wait abandoned(f.readable());
    f.notifier.reset();
}

TEST_CASE("EpollNotifier: a stop request for an earlier wait's token", "[epoll_notifier]") {
    EpollNotifierFixture f;
    f.pipe.put();
    const Wait first(f.readable(f.token()));
    f.executor.run_once();
    CHECK(first.result == ok);
    f.pipe.take();
    SECTION("while none waits, and the next wait has it, too") {
        f.stop.request_stop();
        const Wait wait(f.readable(f.token()));
        CHECK(wait.result == std::errc::operation_canceled);
    }
    SECTION("while none waits, and the next wait has another one") {
        f.stop.request_stop();
        std::stop_source next;
        const Wait wait(f.readable(next.get_token()));
        f.executor.run_once();
        CHECK(!wait.result);
        next.request_stop();
        f.executor.run_once();
        CHECK(wait.result == std::errc::operation_canceled);
    }
    SECTION("while none waits, and the notifier is destroyed") {
        f.stop.request_stop();
        f.notifier.reset();
        CHECK(!f.executor.run_once());
    }
    SECTION("during a wait with another one") {
        const Wait wait(f.readable(std::stop_source().get_token()));
        f.stop.request_stop();
        f.executor.run_once();
        CHECK(!wait.result);
    }
}

TEST_CASE("EpollNotifier: one wait at a time", "[epoll_notifier]") {
    EpollNotifierFixture f;
    const Wait first(f.readable());
    const Wait second(f.readable());
    CHECK(second.result == std::errc::device_or_resource_busy);
    f.pipe.put();
    f.executor.run_once();
    CHECK(first.result == ok);
}

TEST_CASE("EpollNotifier: a wait that has ended is not resumed again while its awaiter lives",
          "[epoll_notifier]") {
    EpollNotifierFixture f;
    Pipe never;
    EpollNotifier other(f.executor, never.reader());
    bool resumed = false;
    // The first awaiter lives until the end of the expression, while the second one waits.
    const auto body = [&]() -> Coroutine {
        (co_await f.readable(f.token()), co_await other.readable());
        resumed = true;
    };
    Coroutine coroutine;
    SECTION("ready before it was stopped") {
        coroutine = body();
        f.pipe.put();
        f.stop.request_stop();
    }
    SECTION("ready when the stop request, left over from the iteration before, comes first") {
        f.executor.post([] { throw std::runtime_error("posted"); });
        coroutine = body();
        f.stop.request_stop();
        CHECK_THROWS(f.executor.run_once());
        f.pipe.put();
    }
    SECTION("stopped while it was queued because its notifier was destroyed") {
        f.executor.post([&] { f.notifier.reset(); });
        coroutine = body();
        f.stop.request_stop();
    }
    CHECK(f.executor.run_once());
    f.executor.run_once();
    CHECK(!resumed);
}

TEST_CASE("EpollNotifier: destroying it cancels its wait", "[epoll_notifier]") {
    EpollNotifierFixture f;
    SECTION("unreadable") {
        const Wait wait(f.readable());
        f.notifier.reset();
        f.pipe.put();
        f.executor.run_once();
        CHECK(wait.result == std::errc::operation_canceled);
        CHECK(!f.executor.run_once());
    }
    SECTION("by another coroutine, in the iteration that would resume it") {
        const OnReadable destroyer(f.executor, [&] { f.notifier.reset(); });
        const Wait wait(f.readable());
        destroyer.trigger();
        f.pipe.put();
        f.executor.run_once();
        CHECK(destroyer.called());
        CHECK(wait.result == std::errc::operation_canceled);
        CHECK(!f.executor.run_once());
    }
    SECTION("bounded, and its time passes") {
        const Wait wait(f.readable_for(1us));
        f.notifier.reset();
        std::this_thread::sleep_for(1ms);
        while (f.executor.run_once()) {
        }
        CHECK(wait.result == std::errc::operation_canceled);
    }
}

TEST_CASE("EpollNotifier: it can be moved, also during a wait", "[epoll_notifier]") {
    EpollNotifierFixture f;
    const Wait wait(f.readable());
    EpollNotifier moved = std::move(*f.notifier);
    f.notifier.reset();
    Pipe other;
    EpollNotifier target(f.executor, other.reader());
    target = std::move(moved);
    CHECK(!f.executor.run_once());
    f.pipe.put();
    f.executor.run_once();
    CHECK(wait.result == ok);
    // The fd that `target` was registered for is free again.
    const EpollNotifier again(f.executor, other.reader());
}

TEST_CASE("EpollNotifier: an fd that cannot be registered is an error", "[epoll_notifier]") {
    EpollExecutor executor;
    Pipe pipe;
    const EpollNotifier notifier(executor, pipe.reader());
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::tmpfile(), &std::fclose);
    REQUIRE(file);
    const auto [fd, expected] = GENERATE_REF(table<int, std::errc>({
        {-1, std::errc::bad_file_descriptor},
        {pipe.reader(), std::errc::file_exists},
        {::fileno(file.get()), std::errc::operation_not_permitted},
    }));
    CHECK_THAT(registration_error(executor, fd, expected), contains("epoll_ctl(EPOLL_CTL_ADD)"));
}

TEST_CASE("EpollNotifier: it may outlive the executor", "[epoll_notifier]") {
    auto executor = std::make_unique<EpollExecutor>();
    Pipe pipe;
    auto notifier = std::make_unique<EpollNotifier>(*executor, pipe.reader());
    std::stop_source stop;
    Wait wait(notifier->readable(stop.get_token(), 1us));
    executor.reset();
    pipe.put();
    SECTION("the wait is destroyed first") {
        stop.request_stop();
        wait.coroutine.destroy();
        notifier.reset();
    }
    SECTION("the notifier is destroyed first") {
        notifier.reset();
        stop.request_stop();
    }
    CHECK(!wait.result);
}

TEST_CASE("EpollNotifier: many descriptors", "[epoll_notifier]") {
    EpollExecutor executor;
    constexpr std::size_t count = 200; // more than one epoll_wait reports
    std::vector<std::unique_ptr<Pipe>> pipes;
    std::vector<Task<>> tasks;
    int woken = 0;
    const auto body = [&](int fd) -> Task<> {
        EpollNotifier notifier(executor, fd);
        for (int i = 0; i < 3; ++i) {
            co_await notifier.readable();
            ++woken;
        }
    };
    for (std::size_t i = 0; i < count; ++i) {
        pipes.push_back(std::make_unique<Pipe>());
        pipes.back()->put();
        tasks.push_back(body(pipes.back()->reader()));
    }
    executor.run(when_all(std::move(tasks)));
    CHECK(woken == 3 * count);
}

TEST_CASE("EpollNotifier: a wait is an object that can be moved and combined", "[epoll_notifier]") {
    EpollNotifierFixture f;
    f.pipe.put();
    const auto body = [&]() -> Task<> {
        auto operation = f.readable();
        auto moved = std::move(operation);
        std::error_code error = co_await std::move(moved);
        CHECK(error == ok);
        auto lvalue = f.readable();
        lvalue = f.readable();
        error = co_await lvalue;
        CHECK(error == ok);
        const auto [readable, slept] = co_await when_all(f.readable(), f.executor.sleep_for(1us));
        CHECK(readable == ok);
        CHECK(slept == ok);
    };
    f.executor.run(body());
}
