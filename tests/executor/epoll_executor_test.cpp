// SPDX-License-Identifier: MIT
// EpollExecutor: run, stop, post, schedule, iterations, embedding in another loop, destruction.
#include <asyncverbs/executor/epoll_executor.hpp>

#include <poll.h>
#include <sys/resource.h>

#include <array>
#include <cerrno>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "executor/wait.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"
#include "support/pipe.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using asyncverbs::support::contains;
using asyncverbs::support::Coroutine;
using asyncverbs::support::ok;
using asyncverbs::support::Pipe;
using asyncverbs::support::Wait;

namespace {

Task<int> number(int n) { co_return n; }
Task<int&> same(int& n) { co_return n; }
Task<std::unique_ptr<int>> owned() { co_return std::make_unique<int>(4); }
Task<> nothing() { co_return; }
Task<> fails(EpollExecutor& executor) {
    co_await executor.schedule();
    throw std::runtime_error("failed");
}
Task<> forever(EpollExecutor& executor, std::shared_ptr<int> = {}) {
    for (;;) co_await executor.schedule();
}

bool is_readable(int fd, int timeout_ms = 0) {
    pollfd entry{fd, POLLIN, 0};
    return ::poll(&entry, 1, timeout_ms) == 1;
}

} // namespace

TEST_CASE("EpollExecutor: run returns what the task returns", "[epoll_executor]") {
    EpollExecutor executor;
    CHECK(executor.run(number(3)) == 3);
    CHECK(*executor.run(owned()) == 4);
    int n = 0;
    CHECK(&executor.run(same(n)) == &n);
    executor.run(nothing());
    CHECK_THROWS_WITH(executor.run(fails(executor)), "failed");
    CHECK_THROWS_AS(executor.run(Task<int>()), std::logic_error);
    CHECK(executor.run(number(5)) == 5);
}

TEST_CASE("EpollExecutor: a task that ends on another thread ends its run", "[epoll_executor]") {
    EpollExecutor other;
    std::thread thread([&] { other.run(); });
    for (int i = 0; i < 300; ++i) {
        EpollExecutor executor; // destroyed while the other thread leaves the task
        const auto hops = [&](int n) -> Task<int> {
            if (n % 3 == 0) co_await executor.schedule();
            co_await other.schedule();
            if (n % 3 == 1) throw std::runtime_error("there");
            co_return n;
        };
        if (i % 3 == 1) {
            CHECK_THROWS_WITH(executor.run(hops(i)), "there");
        } else {
            CHECK(executor.run(hops(i)) == i);
        }
    }
    other.stop();
    thread.join();
}

TEST_CASE("EpollExecutor: stop ends the run in progress", "[epoll_executor]") {
    EpollExecutor executor;
    SECTION("from a posted function, after which nothing else is called") {
        bool called = false;
        executor.post([&] { executor.stop(); });
        executor.post([&] { called = true; });
        executor.run();
        CHECK(!called);
        CHECK(executor.run_once());
        CHECK(called);
    }
    SECTION("from a coroutine") {
        const auto stops = [&]() -> Coroutine {
            co_await executor.schedule();
            executor.stop();
        };
        const Coroutine coroutine = stops();
        executor.run();
        CHECK(coroutine.done());
    }
    SECTION("from another thread") {
        std::thread thread([&] { executor.stop(); });
        executor.run();
        thread.join();
    }
    SECTION("and a task that it interrupts is destroyed") {
        const auto alive = std::make_shared<int>();
        executor.post([&] { executor.stop(); });
        try {
            executor.run(forever(executor, alive));
            FAIL("run returned");
        } catch (const std::system_error& error) {
            CHECK(error.code() == std::errc::operation_canceled);
            CHECK_THAT(error.what(), contains("EpollExecutor::run"));
        }
        CHECK(alive.use_count() == 1);
    }
    SECTION("but not the result of a task that ends with it") {
        const auto stops = [&]() -> Task<int> {
            executor.stop();
            co_return 1;
        };
        CHECK(executor.run(stops()) == 1);
    }
    CHECK(executor.run(number(2)) == 2); // used up
}

TEST_CASE("EpollExecutor: stop between runs ends the next one", "[epoll_executor]") {
    EpollExecutor executor;
    bool called = false;
    executor.post([&] { called = true; });
    executor.stop();
    SECTION("run()") {
        executor.run();
        CHECK(!called);
    }
    SECTION("run(task), which does not start") {
        bool started = false;
        const auto body = [&]() -> Task<> {
            started = true;
            co_return;
        };
        CHECK_THROWS_AS(executor.run(body()), std::system_error);
        CHECK(!started);
        CHECK(!called);
    }
    SECTION("not run_once()") {
        CHECK(executor.run_once());
        CHECK(called);
        executor.run();
    }
    CHECK(executor.run(number(2)) == 2);
}

TEST_CASE("EpollExecutor: it runs once at a time", "[epoll_executor]") {
    EpollExecutor executor;
    executor.post([&] {
        CHECK_THROWS_AS(executor.run(), std::logic_error);
        CHECK_THROWS_AS(executor.run_once(), std::logic_error);
        std::thread([&] { CHECK_THROWS_AS(executor.run(nothing()), std::logic_error); }).join();
        executor.stop();
    });
    executor.run();
}

TEST_CASE("EpollExecutor: posted functions are called in order", "[epoll_executor]") {
    EpollExecutor executor;
    std::vector<int> order;
    for (int i = 0; i < 5; ++i) executor.post([&order, i] { order.push_back(i); });
    executor.post([&, owner = std::make_unique<int>(5)] { order.push_back(*owner); });
    CHECK(order.empty());
    CHECK(executor.run_once());
    CHECK(order == std::vector<int>{0, 1, 2, 3, 4, 5});
    CHECK(!executor.run_once());
}

TEST_CASE("EpollExecutor: what becomes ready in an iteration waits for the next",
          "[epoll_executor]") {
    EpollExecutor executor;
    int calls = 0;
    executor.post([&] {
        ++calls;
        executor.post([&] { ++calls; });
    });
    CHECK(executor.run_once());
    CHECK(calls == 1);
    CHECK(executor.run_once());
    CHECK(calls == 2);
}

TEST_CASE("EpollExecutor: a coroutine that is always ready starves no other",
          "[epoll_executor][I9]") {
    EpollExecutor executor;
    Pipe pipe;
    EpollNotifier notifier = executor.notifier(pipe.reader());
    const auto drive = [](Task<> task) -> Coroutine { co_await std::move(task); };
    const auto sleeps = [&]() -> Task<> {
        for (;;) co_await executor.sleep_for(0s);
    };
    const auto waits = [&]() -> Task<> {
        EpollNotifier never = executor.notifier(pipe.writer());
        for (;;) co_await never.readable({}, 0ns);
    };
    Task<> busy_task;
    SECTION("by schedule") { busy_task = forever(executor); }
    SECTION("by a sleep of no time") { busy_task = sleeps(); }
    SECTION("by a wait of no time") { busy_task = waits(); }
    const Coroutine busy = drive(std::move(busy_task));
    const auto body = [&]() -> Task<> {
        executor.post([&] { pipe.put(); });
        co_await notifier.readable();
        co_await executor.sleep_for(1us);
        bool posted = false;
        std::thread([&] { executor.post([&] { posted = true; }); }).join();
        co_await executor.schedule();
        CHECK(posted);
    };
    executor.run(body());
}

TEST_CASE("EpollExecutor: an exception of a posted function leaves run", "[epoll_executor]") {
    EpollExecutor executor;
    std::vector<int> order;
    executor.post([&] { order.push_back(1); });
    executor.post([] { throw std::runtime_error("posted"); });
    executor.post([&] { order.push_back(2); });
    const auto scheduled = [&]() -> Coroutine {
        co_await executor.schedule();
        order.push_back(3);
        executor.stop();
    };
    const Coroutine coroutine = scheduled();
    CHECK_THROWS_WITH(executor.run(), "posted");
    CHECK(order == std::vector<int>{1});
    CHECK(is_readable(executor.native_handle()));
    executor.run();
    CHECK(order == std::vector<int>{1, 2, 3});
}

TEST_CASE("EpollExecutor: functions that were never called are destroyed", "[epoll_executor]") {
    const auto alive = std::make_shared<int>();
    {
        EpollExecutor executor;
        for (int i = 0; i < 3; ++i) executor.post([alive] {});
        executor.post([&, alive] { executor.stop(); });
        executor.post([alive] {});
        executor.run();
        CHECK(alive.use_count() == 2);
        executor.post([alive] {});
    }
    CHECK(alive.use_count() == 1);
}

TEST_CASE("EpollExecutor: schedule continues on the running thread", "[epoll_executor]") {
    EpollExecutor executor;
    std::thread::id runs_on;
    const auto body = [&]() -> Coroutine {
        co_await executor.schedule();
        runs_on = std::this_thread::get_id();
        executor.stop();
    };
    Coroutine coroutine;
    std::thread thread([&] { coroutine = body(); });
    executor.run();
    thread.join();
    CHECK(coroutine.done());
    CHECK(runs_on == std::this_thread::get_id());
}

TEST_CASE("EpollExecutor: a scheduled coroutine can be destroyed", "[epoll_executor]") {
    auto executor = std::make_unique<EpollExecutor>();
    Wait a(executor->schedule());
    SECTION("before it is resumed") {
        const Wait b(executor->schedule());
        a.coroutine.destroy();
        executor->run_once();
        CHECK(b.result);
    }
    SECTION("by the one before it, in the same iteration") {
        std::optional<Wait> victim;
        executor->post([&] { victim->coroutine.destroy(); });
        victim.emplace(executor->schedule());
        executor->run_once();
        CHECK(a.result);
        CHECK(!victim->result);
        CHECK(!executor->run_once());
        return;
    }
    SECTION("after the executor, and is not resumed") {
        executor.reset();
        a.coroutine.destroy();
    }
    CHECK(!a.result);
}

TEST_CASE("EpollExecutor: its descriptor is readable when an iteration has work",
          "[epoll_executor]") {
    EpollExecutor executor;
    const Pipe pipe;
    std::optional<EpollNotifier> notifier(executor.notifier(pipe.reader()));
    std::stop_source stop;
    const int fd = executor.native_handle();
    const auto check_one_iteration = [&] {
        CHECK(is_readable(fd));
        CHECK(executor.run_once());
    };
    CHECK(!is_readable(fd));
    CHECK(!executor.run_once());

    SECTION("a post") {
        executor.post([] {});
        check_one_iteration();
        CHECK(!is_readable(fd));
        std::thread([&] { executor.post([] {}); }).join();
        check_one_iteration();
    }
    SECTION("a post that was made during an iteration") {
        executor.post([&] { executor.post([] {}); });
        CHECK(executor.run_once());
        check_one_iteration();
    }
    SECTION("a post after a coroutine was destroyed before it was resumed") {
        Wait wait(executor.schedule());
        wait.coroutine.destroy();
        executor.run_once();
        executor.post([] {});
        check_one_iteration();
    }
    SECTION("a file descriptor") {
        const Wait wait(notifier->readable());
        CHECK(!is_readable(fd));
        pipe.put();
        check_one_iteration();
        CHECK(wait.result == ok);
        // Readable without a waiter: one iteration without work, then nothing.
        executor.run_once();
        CHECK(!is_readable(fd));
    }
    SECTION("a timer that is set between iterations") {
        const Wait sleep(executor.sleep_for(2ms));
        CHECK(is_readable(fd, 5000));
        CHECK(executor.run_once());
        CHECK(sleep.result == ok);
    }
    SECTION("a timer that is set in an iteration, after an earlier one was cancelled") {
        std::optional<Wait> cancelled;
        std::optional<Wait> sleep;
        executor.post([&] {
            cancelled.emplace(executor.sleep_for(1ms, stop.get_token()));
            sleep.emplace(executor.sleep_for(3ms));
        });
        CHECK(executor.run_once());
        stop.request_stop();
        check_one_iteration();
        CHECK(cancelled->result);
        while (!sleep->result) {
            REQUIRE(is_readable(fd, 5000));
            executor.run_once();
        }
    }
    SECTION("a sleep of no time, and a wait of no time, that begin between iterations") {
        for (int i = 0; i < 2; ++i) {
            const Wait sleep(executor.sleep_for(0s));
            CHECK(is_readable(fd));
            const Wait wait(notifier->readable({}, 0ns));
            CHECK(executor.run_once());
            CHECK(sleep.result == ok);
            CHECK(wait.result == std::errc::timed_out);
            CHECK(!is_readable(fd));
        }
    }
    SECTION("a wait whose notifier is destroyed between iterations") {
        const Wait wait(notifier->readable());
        notifier.reset();
        check_one_iteration();
        CHECK(wait.result == std::errc::operation_canceled);
    }
    SECTION("what a stopped run has left") {
        executor.post([&] { executor.stop(); });
        executor.post([] {});
        executor.run();
        check_one_iteration();
    }
    SECTION("what an exception has left") {
        executor.post([] { throw 1; });
        executor.post([] {});
        CHECK_THROWS_AS(executor.run_once(), int);
        check_one_iteration();
    }
    CHECK(!executor.run_once());
    CHECK(!is_readable(fd));
}

TEST_CASE("EpollExecutor: a signal that interrupts epoll_wait is no error",
          "[epoll_executor][field-15]") {
    EpollExecutor executor;
    support::interrupt_epoll_wait(3);
    const auto body = [&]() -> Task<int> {
        co_await executor.sleep_for(1us);
        co_return 1;
    };
    CHECK(executor.run(body()) == 1);
}

TEST_CASE("EpollExecutor: running out of descriptors is an error that names the call",
          "[epoll_executor]") {
    rlimit old{};
    REQUIRE(::getrlimit(RLIMIT_NOFILE, &old) == 0);
    const Pipe lowest_free;
    for (const rlim_t more : {0u, 1u, 2u}) {
        rlimit limit = old;
        limit.rlim_cur = static_cast<rlim_t>(lowest_free.writer()) + 1 + more;
        REQUIRE(::setrlimit(RLIMIT_NOFILE, &limit) == 0);
        std::string message;
        try {
            const EpollExecutor executor;
        } catch (const std::system_error& error) {
            if (error.code() == std::errc::too_many_files_open) message = error.what();
        }
        REQUIRE(::setrlimit(RLIMIT_NOFILE, &old) == 0);
        const std::array<const char*, 3> calls{"eventfd", "timerfd_create", "epoll_create1"};
        CHECK_THAT(message, contains(calls.at(more)));
    }
}

TEST_CASE("EpollExecutor: a failing allocation of post loses nothing", "[epoll_executor]") {
    EpollExecutor executor;
    int calls = 0;
    executor.post([&] { ++calls; });
    support::fail_allocation(0);
    CHECK_THROWS_AS(executor.post([&] { ++calls; }), std::bad_alloc);
    executor.post([&] { ++calls; });
    executor.run_once();
    CHECK(calls == 2);
}
