// SPDX-License-Identifier: MIT
// EpollNotifier: readiness, stop requests, bounded waits, nobody waiting, destruction.
#include <asyncverbs/executor/epoll_executor.hpp>

#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>

#include <asyncverbs/coro/when_all.hpp>
#include <asyncverbs/cq/cq_notifier.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/device.hpp>

#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"
#include "support/pipe.hpp"
#include "support/simulated_verbs.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using asyncverbs::support::contains;
using asyncverbs::support::Coroutine;
using asyncverbs::support::counters;
using asyncverbs::support::Pipe;

static_assert(TimedCqNotifier<EpollNotifier>);
static_assert(std::movable<EpollNotifier> && !std::copyable<EpollNotifier>);
static_assert(std::is_nothrow_move_constructible_v<EpollNotifier>);

namespace {

using Result = std::optional<std::error_code>;
const std::error_code ok;

Coroutine wait(EpollNotifier& notifier, Result& result, std::stop_token stop = {}) {
    result = co_await notifier.readable(stop);
}
Coroutine wait_for(EpollNotifier& notifier, std::chrono::nanoseconds time, Result& result,
                   std::stop_token stop = {}) {
    result = co_await notifier.readable(stop, time);
}

std::string registration_error(EpollExecutor& executor, int fd, std::errc expected) {
    try {
        const EpollNotifier notifier(executor, fd);
    } catch (const std::system_error& error) {
        CHECK(error.code() == expected);
        return error.what();
    }
    return "no error";
}

struct Fixture {
    EpollExecutor executor;
    Pipe pipe;
    std::optional<EpollNotifier> notifier{std::in_place, executor, pipe.reader()};
    Result result;
};

} // namespace

TEST_CASE("EpollNotifier: wakes when the fd is readable", "[epoll_notifier]") {
    Fixture f;
    CHECK(f.notifier->native_handle() == f.pipe.reader());
    SECTION("later") {
        const Coroutine waiter = wait(*f.notifier, f.result);
        CHECK(!f.executor.run_once());
        CHECK(!f.result);
        f.pipe.put();
        CHECK(!f.result);
        CHECK(f.executor.run_once());
        CHECK(f.result == ok);
    }
    SECTION("before the wait") {
        f.pipe.put();
        const Coroutine waiter = wait(*f.notifier, f.result);
        f.executor.run_once();
        CHECK(f.result == ok);
    }
    SECTION("again, as long as it is not read") {
        f.pipe.put();
        for (int i = 0; i < 3; ++i) {
            f.result.reset();
            const Coroutine waiter = wait(*f.notifier, f.result);
            f.executor.run_once();
            CHECK(f.result == ok);
        }
        f.pipe.take();
        f.result.reset();
        const Coroutine waiter = wait(*f.notifier, f.result);
        f.executor.run_once();
        CHECK(!f.result);
    }
    SECTION("from another thread") {
        const auto body = [&]() -> Task<> {
            std::thread thread([&] { f.pipe.put(); });
            const std::error_code error = co_await f.notifier->readable();
            CHECK(!error);
            thread.join();
        };
        f.executor.run(body());
    }
}

TEST_CASE("EpollNotifier: readable with nobody waiting does not spin", "[epoll_notifier]") {
    Fixture f;
    f.pipe.put();
    f.executor.run_once();
    // A blocking run must block now: nothing but the timer ends its waits.
    const auto before = counters();
    const auto body = [&]() -> Task<> { co_await f.executor.sleep_for(5ms); };
    f.executor.run(body());
    CHECK((counters() - before).epoll_wait == 1);

    SECTION("and the next wait finds it readable") {
        const Coroutine waiter = wait(*f.notifier, f.result);
        f.executor.run_once();
        CHECK(f.result == ok);
    }
    SECTION("and the next wait waits if it was read meanwhile") {
        f.pipe.take();
        const Coroutine waiter = wait(*f.notifier, f.result);
        f.executor.run_once();
        CHECK(!f.result);
        f.pipe.put();
        f.executor.run_once();
        CHECK(f.result == ok);
    }
}

TEST_CASE("EpollNotifier: of a completion channel, each event wakes once", "[epoll_notifier]") {
    simulated::SimulatedVerbs sim;
    const Context context = Context::open();
    const CompletionQueue cq(context, 8);
    EpollExecutor executor;
    EpollNotifier notifier = executor.notifier(cq.channel());
    CHECK(notifier.native_handle() == cq.channel().fd());
    Result result;

    SECTION("whoever waits") {
        const Coroutine waiter = wait(notifier, result);
        executor.run_once();
        CHECK(!result);
        sim.push_events(cq.native_handle());
        executor.run_once();
        CHECK(result == ok);
    }
    SECTION("the next one, if nobody waits") {
        sim.push_events(cq.native_handle());
        executor.run_once();
        const Coroutine waiter = wait(notifier, result);
        executor.run_once();
        CHECK(result == ok);
    }
    SECTION("the next one, within a wait of no time") {
        sim.push_events(cq.native_handle());
        executor.run_once();
        const Coroutine waiter = wait_for(notifier, 0ns, result);
        executor.run_once();
        CHECK(result == ok);
    }
    SECTION("the next one, if the one who waited is destroyed before he is resumed") {
        Result first;
        std::optional<Coroutine> waiter(wait(notifier, first));
        Pipe pipe;
        EpollNotifier readable = executor.notifier(pipe.reader());
        const auto destroy = [&]() -> Coroutine {
            co_await readable.readable();
            waiter.reset();
        };
        const Coroutine destroyer = destroy();
        pipe.put(); // ready before the event, and in the same turn
        sim.push_events(cq.native_handle());
        executor.run_once();
        CHECK(destroyer.done());
        CHECK(!first);
        const Coroutine next = wait(notifier, result);
        executor.run_once();
        CHECK(result == ok);
    }
    SECTION("and no more, though it is not read") {
        sim.push_events(cq.native_handle());
        Coroutine waiter = wait(notifier, result);
        executor.run_once();
        CHECK(result == ok);
        result.reset();
        waiter = wait(notifier, result);
        executor.run_once();
        CHECK(!result);
        sim.push_events(cq.native_handle());
        executor.run_once();
        CHECK(result == ok);
    }
}

TEST_CASE("EpollNotifier: a hang-up wakes, and does not spin with nobody waiting",
          "[epoll_notifier]") {
    Fixture f;
    SECTION("while somebody waits") {
        const Coroutine waiter = wait(*f.notifier, f.result);
        f.pipe.close_writer();
        f.executor.run_once();
        CHECK(f.result == ok);
    }
    SECTION("while nobody waits") { f.pipe.close_writer(); }
    SECTION("after it was readable while nobody waited") {
        f.pipe.put();
        f.executor.run_once();
        f.pipe.close_writer();
    }
    f.executor.run_once();
    const auto before = counters();
    const auto body = [&]() -> Task<> { co_await f.executor.sleep_for(5ms); };
    f.executor.run(body());
    CHECK((counters() - before).epoll_wait == 1);

    for (int i = 0; i < 3; ++i) {
        f.result.reset();
        const Coroutine waiter = wait(*f.notifier, f.result);
        f.executor.run_once();
        CHECK(f.result == ok);
        if (i == 1) f.executor.run_once();
    }
    const Coroutine abandoned = wait(*f.notifier, f.result);
    f.notifier.reset();
}

TEST_CASE("EpollNotifier: an error without data wakes", "[epoll_notifier]") {
    EpollExecutor executor;
    Pipe pipe;
    EpollNotifier notifier(executor, pipe.writer()); // gets EPOLLERR when the reader goes
    Result result;
    const Coroutine waiter = wait(notifier, result);
    CHECK(!executor.run_once());
    pipe.close_reader();
    CHECK(executor.run_once());
    CHECK(result == ok);
}

TEST_CASE("EpollNotifier: stop", "[epoll_notifier]") {
    Fixture f;
    std::stop_source stop;
    SECTION("requested before: it does not suspend, readable or not") {
        f.pipe.put();
        stop.request_stop();
        const Coroutine waiter = wait(*f.notifier, f.result, stop.get_token());
        CHECK(f.result == std::errc::operation_canceled);
    }
    SECTION("requested meanwhile: resumed by the executor, not by the request") {
        const Coroutine waiter = wait(*f.notifier, f.result, stop.get_token());
        stop.request_stop();
        CHECK(!f.result);
        CHECK(f.executor.run_once());
        CHECK(f.result == std::errc::operation_canceled);
        CHECK(!f.executor.run_once());
    }
    SECTION("requested by another thread while the executor sleeps") {
        const auto body = [&]() -> Task<> {
            std::thread thread([&] { stop.request_stop(); });
            const std::error_code error = co_await f.notifier->readable(stop.get_token());
            thread.join();
            CHECK(error == std::errc::operation_canceled);
        };
        f.executor.run(body());
    }
    SECTION("requested after it became readable: one result, one resume") {
        const Coroutine waiter = wait(*f.notifier, f.result, stop.get_token());
        f.pipe.put();
        stop.request_stop();
        CHECK(f.executor.run_once());
        CHECK(f.result);
        CHECK(waiter.done());
    }
    SECTION("requested by a function that is called in the turn of the wake") {
        f.executor.post([&] { stop.request_stop(); });
        f.pipe.put();
        Coroutine waiter = wait(*f.notifier, f.result, stop.get_token());
        CHECK(f.executor.run_once());
        CHECK(f.result == ok);
        f.pipe.take();
        f.result.reset();
        waiter = wait(*f.notifier, f.result);
        f.executor.run_once();
        CHECK(!f.result);
    }
    SECTION("requested while nobody waits, by the token of an earlier wait") {
        f.pipe.put();
        Coroutine waiter = wait(*f.notifier, f.result, stop.get_token());
        f.executor.run_once();
        f.pipe.take();
        stop.request_stop();
        f.result.reset();
        SECTION("which is the token of the next wait, too") {
            waiter = wait(*f.notifier, f.result, stop.get_token());
            CHECK(f.result == std::errc::operation_canceled);
        }
        SECTION("which is not the token of the next wait") {
            std::stop_source next;
            waiter = wait(*f.notifier, f.result, next.get_token());
            f.executor.run_once();
            CHECK(!f.result);
            next.request_stop();
            f.executor.run_once();
            CHECK(f.result == std::errc::operation_canceled);
        }
        SECTION("and the notifier is destroyed") {
            f.notifier.reset();
            CHECK(!f.executor.run_once());
        }
    }
    SECTION("of an earlier wait's token does not end a wait with another one") {
        f.pipe.put();
        Coroutine waiter = wait(*f.notifier, f.result, stop.get_token());
        f.executor.run_once();
        f.pipe.take();
        f.result.reset();
        waiter = wait(*f.notifier, f.result, std::stop_source().get_token());
        stop.request_stop();
        f.executor.run_once();
        CHECK(!f.result);
    }
    SECTION("ends one of many waits with the same token") {
        for (int i = 0; i < 3; ++i) {
            f.pipe.put();
            f.result.reset();
            const Coroutine waiter = wait(*f.notifier, f.result, stop.get_token());
            f.executor.run_once();
            CHECK(f.result == ok);
            f.pipe.take();
        }
        f.result.reset();
        const Coroutine waiter = wait_for(*f.notifier, 1h, f.result, stop.get_token());
        stop.request_stop();
        f.executor.run_once();
        CHECK(f.result == std::errc::operation_canceled);
    }
    SECTION("the next wait is not affected") {
        Coroutine waiter = wait(*f.notifier, f.result, stop.get_token());
        stop.request_stop();
        f.executor.run_once();
        f.result.reset();
        waiter = wait(*f.notifier, f.result);
        CHECK(!f.executor.run_once());
        f.pipe.put();
        f.executor.run_once();
        CHECK(f.result == ok);
    }
}

TEST_CASE("EpollNotifier: bounded waits", "[epoll_notifier]") {
    Fixture f;
    SECTION("time out") {
        const auto start = std::chrono::steady_clock::now();
        const Coroutine waiter = wait_for(*f.notifier, 2ms, f.result);
        while (!f.result) f.executor.run_once();
        CHECK(f.result == std::errc::timed_out);
        CHECK(std::chrono::steady_clock::now() - start >= 2ms);
        f.pipe.put();
        CHECK(!f.executor.run_once());
    }
    SECTION("or are readable before") {
        const Coroutine waiter = wait_for(*f.notifier, 1h, f.result);
        f.pipe.put();
        f.executor.run_once();
        CHECK(f.result == ok);
    }
    SECTION("or both at once, which is readable") {
        const Coroutine waiter = wait_for(*f.notifier, 1us, f.result);
        f.pipe.put();
        std::this_thread::sleep_for(1ms);
        f.executor.run_once();
        CHECK(f.result == ok);
    }
    SECTION("or are stopped") {
        std::stop_source stop;
        const Coroutine waiter = wait_for(*f.notifier, 1h, f.result, stop.get_token());
        stop.request_stop();
        f.executor.run_once();
        CHECK(f.result == std::errc::operation_canceled);
    }
    SECTION("of no time take one turn, unreadable") {
        const Coroutine waiter = wait_for(*f.notifier, 0ns, f.result);
        CHECK(!f.result);
        CHECK(f.executor.run_once());
        CHECK(f.result == std::errc::timed_out);
    }
    SECTION("of no time take one turn, readable") {
        f.pipe.put();
        const Coroutine waiter = wait_for(*f.notifier, -1ns, f.result);
        CHECK(!f.result);
        CHECK(f.executor.run_once());
        CHECK(f.result == ok);
    }
    SECTION("of no time let others run, by turns") {
        int others = 0;
        const auto yields = [&](int& count) -> Coroutine {
            for (int i = 0; i < 10; ++i) {
                co_await f.executor.schedule();
                ++count;
            }
        };
        const auto body = [&]() -> Task<> {
            const Coroutine other = yields(others);
            for (int i = 0; i < 10; ++i) co_await f.notifier->readable({}, 0ns);
            CHECK(others >= 9);
        };
        f.executor.run(body());
    }
}

TEST_CASE("EpollNotifier: one wait at a time", "[epoll_notifier]") {
    Fixture f;
    Result second;
    const Coroutine a = wait(*f.notifier, f.result);
    const Coroutine b = wait(*f.notifier, second);
    CHECK(second == std::errc::device_or_resource_busy);
    f.pipe.put();
    f.executor.run_once();
    CHECK(f.result == ok);
}

TEST_CASE("EpollNotifier: a suspended wait can be destroyed at any time", "[epoll_notifier]") {
    Fixture f;
    std::stop_source stop;
    Coroutine waiter = wait_for(*f.notifier, 1h, f.result, stop.get_token());
    SECTION("waiting") { waiter.destroy(); }
    SECTION("readable") {
        f.pipe.put();
        waiter.destroy();
        f.pipe.take();
    }
    SECTION("in the turn that would resume it") {
        Pipe first;
        EpollNotifier other(f.executor, first.reader());
        const auto destroyer = [&]() -> Coroutine {
            co_await other.readable();
            waiter.destroy();
        };
        const Coroutine destroys = destroyer();
        first.put();
        f.pipe.put();
        stop.request_stop();
        f.executor.run_once();
        CHECK(destroys.done());
        f.pipe.take();
    }
    SECTION("stopped, on the way") {
        stop.request_stop();
        waiter.destroy();
    }
    f.executor.run_once();
    CHECK(!f.result);
    // The notifier is as good as new.
    waiter = wait(*f.notifier, f.result);
    f.executor.run_once();
    CHECK(!f.result);
    f.pipe.put();
    f.executor.run_once();
    CHECK(f.result == ok);
}

TEST_CASE("EpollNotifier: a wait that has ended is not resumed again, however long it lives",
          "[epoll_notifier]") {
    Fixture f;
    std::stop_source stop;
    Pipe never;
    EpollNotifier other(f.executor, never.reader());
    bool resumed = false;
    // The first awaiter lives until the end of the expression, while the second one waits.
    const auto body = [&]() -> Coroutine {
        (co_await f.notifier->readable(stop.get_token()), co_await other.readable());
        resumed = true;
    };
    SECTION("ready before it was stopped") {
        const Coroutine coroutine = body();
        f.pipe.put();
        stop.request_stop();
        CHECK(f.executor.run_once());
        f.executor.run_once();
        CHECK(!resumed);
    }
    SECTION("ready when the stop request, left over from the turn before, comes first") {
        f.executor.post([] { throw std::runtime_error("posted"); });
        const Coroutine coroutine = body();
        stop.request_stop();
        CHECK_THROWS(f.executor.run_once());
        f.pipe.put();
        CHECK(f.executor.run_once());
        f.executor.run_once();
        CHECK(!resumed);
    }
    SECTION("stopped while it was queued because its notifier was destroyed") {
        f.executor.post([&] { f.notifier.reset(); });
        const Coroutine coroutine = body();
        stop.request_stop();
        CHECK(f.executor.run_once());
        f.executor.run_once();
        CHECK(!resumed);
    }
}

TEST_CASE("EpollNotifier: one that is destroyed cancels its wait", "[epoll_notifier]") {
    Fixture f;
    SECTION("unreadable") {
        const Coroutine waiter = wait(*f.notifier, f.result);
        f.notifier.reset();
        f.pipe.put();
        f.executor.run_once();
        CHECK(f.result == std::errc::operation_canceled);
        CHECK(!f.executor.run_once());
    }
    SECTION("by another coroutine, in the turn that would resume it") {
        Pipe first;
        EpollNotifier other(f.executor, first.reader());
        const auto destroys = [&]() -> Coroutine {
            co_await other.readable();
            f.notifier.reset();
        };
        const Coroutine destroyer = destroys();
        const Coroutine waiter = wait(*f.notifier, f.result);
        first.put();
        f.pipe.put();
        f.executor.run_once();
        CHECK(destroyer.done());
        CHECK(f.result == std::errc::operation_canceled);
        CHECK(!f.executor.run_once());
    }
    SECTION("and by the coroutine that it has just resumed") {
        const auto destroys = [&]() -> Coroutine {
            f.result = co_await f.notifier->readable();
            f.notifier.reset();
        };
        const Coroutine waiter = destroys();
        f.pipe.put();
        f.executor.run_once();
        CHECK(f.result == ok);
    }
    SECTION("bounded, and its time passes") {
        const Coroutine waiter = wait_for(*f.notifier, 1us, f.result);
        f.notifier.reset();
        std::this_thread::sleep_for(1ms);
        while (f.executor.run_once()) {
        }
        CHECK(f.result == std::errc::operation_canceled);
    }
}

TEST_CASE("EpollNotifier: it can be moved, also while it is waited for", "[epoll_notifier]") {
    Fixture f;
    const Coroutine waiter = wait(*f.notifier, f.result);
    EpollNotifier moved = std::move(*f.notifier);
    f.notifier.reset();
    Pipe other;
    EpollNotifier target(f.executor, other.reader());
    target = std::move(moved);
    CHECK(!f.executor.run_once());
    f.pipe.put();
    f.executor.run_once();
    CHECK(f.result == ok);
    // What `target` was registered for is free again.
    const EpollNotifier again(f.executor, other.reader());
}

TEST_CASE("EpollNotifier: what cannot be registered is an error", "[epoll_notifier]") {
    EpollExecutor executor;
    Pipe pipe;
    const EpollNotifier notifier(executor, pipe.reader());
    const char* const call = "epoll_ctl(EPOLL_CTL_ADD)";
    CHECK_THAT(registration_error(executor, -1, std::errc::bad_file_descriptor), contains(call));
    CHECK_THAT(registration_error(executor, pipe.reader(), std::errc::file_exists), contains(call));
    std::FILE* const file = std::tmpfile();
    REQUIRE(file != nullptr);
    CHECK_THAT(registration_error(executor, ::fileno(file), std::errc::operation_not_permitted),
               contains(call));
    std::fclose(file);
}

TEST_CASE("EpollNotifier: it leaves the fd registered nowhere", "[epoll_notifier]") {
    EpollExecutor executor;
    Pipe pipe;
    for (int i = 0; i < 2; ++i) {
        const EpollNotifier notifier(executor, pipe.reader());
        if (i == 1) pipe.put();
        executor.run_once(); // masked
    }
    {
        const EpollNotifier notifier = executor.notifier(pipe.reader());
    }
    epoll_event event{};
    CHECK(::epoll_ctl(executor.native_handle(), EPOLL_CTL_DEL, pipe.reader(), &event) == -1);
    CHECK(errno == ENOENT);
    CHECK(::fcntl(pipe.reader(), F_GETFD) >= 0);
}

TEST_CASE("EpollNotifier: it may outlive the executor", "[epoll_notifier]") {
    auto executor = std::make_unique<EpollExecutor>();
    Pipe pipe;
    auto notifier = std::make_unique<EpollNotifier>(*executor, pipe.reader());
    std::stop_source stop;
    Result result;
    Coroutine waiter = wait_for(*notifier, 1us, result, stop.get_token());
    executor.reset();
    pipe.put();
    SECTION("the wait goes first") {
        stop.request_stop();
        waiter.destroy();
        notifier.reset();
    }
    SECTION("the notifier goes first") {
        notifier.reset();
        stop.request_stop();
    }
    CHECK(!result);
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
    Fixture f;
    f.pipe.put();
    const auto body = [&]() -> Task<> {
        auto operation = f.notifier->readable();
        auto moved = std::move(operation);
        const std::error_code error = co_await std::move(moved);
        CHECK(error == ok);
        const auto [readable, slept] =
            co_await when_all(f.notifier->readable(), f.executor.sleep_for(1us));
        CHECK(readable == ok);
        CHECK(slept == ok);
    };
    f.executor.run(body());
}
