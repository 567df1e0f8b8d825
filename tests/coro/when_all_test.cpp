// SPDX-License-Identifier: MIT
// when_all: results, order, failure, destruction, completion on several threads.
#include <asyncverbs/coro/when_all.hpp>

#include <coroutine>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <variant>
#include <vector>

#include <asyncverbs/coro/sync_wait.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/gate.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using asyncverbs::support::Coroutine;
using asyncverbs::support::Gate;

namespace {

Task<int> number(int n) { co_return n; }
Task<> nothing() { co_return; }
Task<int&> same(int& n) { co_return n; }
Task<std::unique_ptr<int>> owned(int n) { co_return std::make_unique<int>(n); }
Task<int> after(Gate& gate, int n) {
    co_await gate;
    co_return n;
}
Task<int> fails_after(Gate& gate, const char* text) {
    co_await gate;
    throw std::runtime_error(text);
}

template <class T>
Coroutine store(Task<T> task, std::unique_ptr<T>& result) {
    auto value = co_await std::move(task);
    result = std::make_unique<T>(std::move(value));
}

} // namespace

TEST_CASE("when_all: gives a tuple of the results, monostate for void", "[when_all]") {
    int n = 5;
    auto all = when_all(number(1), nothing(), owned(3), same(n));
    static_assert(
        std::is_same_v<decltype(all),
                       Task<std::tuple<int, std::monostate, std::unique_ptr<int>, int&>>>);
    const auto body = [&]() -> Task<int> {
        auto [a, b, c, d] = co_await std::move(all);
        static_cast<void>(b);
        d = 6;
        co_return a + *c;
    };
    CHECK(sync_wait(body()) == 4);
    CHECK(n == 6);
    CHECK(sync_wait(when_all()) == std::tuple<>());
}

TEST_CASE("when_all: gives a vector of the results", "[when_all]") {
    std::vector<Task<int>> tasks;
    for (int i = 0; i < 100; ++i) tasks.push_back(number(i));
    const std::vector<int> results = sync_wait(when_all(std::move(tasks)));
    REQUIRE(results.size() == 100);
    for (int i = 0; i < 100; ++i) CHECK(results[static_cast<std::size_t>(i)] == i);

    CHECK(sync_wait(when_all(std::vector<Task<int>>())).empty());
    std::vector<Task<>> voids;
    voids.push_back(nothing());
    voids.push_back(nothing());
    CHECK(sync_wait(when_all(std::move(voids))).size() == 2);
    std::vector<Task<bool>> bools;
    bools.push_back([]() -> Task<bool> { co_return true; }());
    CHECK(sync_wait(when_all(std::move(bools))) == std::vector<bool>{true});
    std::vector<Task<std::unique_ptr<int>>> owners;
    owners.push_back(owned(8));
    CHECK(*sync_wait(when_all(std::move(owners))).front() == 8);
}

TEST_CASE("when_all: starts in order and continues after the last", "[when_all]") {
    Gate a;
    Gate b;
    std::unique_ptr<std::tuple<int, int>> result;
    const Coroutine coroutine = store(when_all(after(a, 1), after(b, 2)), result);
    REQUIRE(a.waiting);
    REQUIRE(b.waiting);
    SECTION("in order") {
        a.open();
        CHECK(!result);
        b.open();
    }
    SECTION("in reverse") {
        b.open();
        CHECK(!result);
        a.open();
    }
    REQUIRE(result);
    CHECK(*result == std::tuple(1, 2));
}

TEST_CASE("when_all: awaits lvalues where they are", "[when_all]") {
    Gate a;
    Gate b;
    std::unique_ptr<std::tuple<std::monostate, std::monostate>> result;
    const Coroutine coroutine = store(when_all(a, b), result);
    a.open();
    b.open();
    CHECK(result);
}

TEST_CASE("when_all: all complete before the first exception is rethrown", "[when_all]") {
    Gate a;
    Gate b;
    Gate c;
    std::unique_ptr<std::tuple<int, int, int>> result;
    const Coroutine coroutine =
        store(when_all(fails_after(a, "late"), fails_after(b, "first"), after(c, 1)), result);
    b.open();
    a.open();
    CHECK(!coroutine.done());
    c.open();
    REQUIRE(coroutine.done());
    CHECK_THROWS_WITH(coroutine.get(), "first");
    CHECK(!result);
}

TEST_CASE("when_all: destroyed while suspended, it destroys its branches", "[when_all]") {
    const auto alive = std::make_shared<int>();
    const auto holds = [](std::shared_ptr<int>, Gate& gate) -> Task<> { co_await gate; };
    Gate a;
    Gate b;
    SECTION("a tuple") {
        std::unique_ptr<std::tuple<std::monostate, std::monostate>> result;
        Coroutine coroutine = store(when_all(holds(alive, a), holds(alive, b)), result);
        CHECK(alive.use_count() == 3);
        a.open();
        coroutine.destroy();
    }
    SECTION("a vector") {
        std::vector<Task<>> tasks;
        tasks.push_back(holds(alive, a));
        tasks.push_back(holds(alive, b));
        std::unique_ptr<std::vector<std::monostate>> result;
        Coroutine coroutine = store(when_all(std::move(tasks)), result);
        CHECK(alive.use_count() == 3);
        b.open();
        coroutine.destroy();
    }
    SECTION("never started") {
        auto task = when_all(holds(alive, a));
        CHECK(alive.use_count() == 2);
    }
    CHECK(alive.use_count() == 1);
}

TEST_CASE("when_all: takes the executor's awaitables", "[when_all]") {
    EpollExecutor executor;
    auto [slept, scheduled] = executor.run(when_all(executor.sleep_for(1us), executor.schedule()));
    CHECK(slept == std::error_code());
    CHECK(scheduled == std::monostate());
}

TEST_CASE("when_all: branches may end on different threads", "[when_all]") {
    EpollExecutor a;
    EpollExecutor b;
    std::thread thread_a([&] { a.run(); });
    std::thread thread_b([&] { b.run(); });
    const auto on = [](EpollExecutor& executor, int n) -> Task<int> {
        co_await executor.schedule();
        if (n == 0) throw std::runtime_error("zero");
        co_return n;
    };
    for (int i = 0; i < 2000; ++i) {
        if (i % 100 == 0) {
            CHECK_THROWS_WITH(sync_wait(when_all(on(a, 0), on(b, 0))), "zero");
        } else {
            CHECK(sync_wait(when_all(on(a, i), on(b, i + 1))) == std::tuple(i, i + 1));
        }
    }
    a.stop();
    b.stop();
    thread_a.join();
    thread_b.join();
}
