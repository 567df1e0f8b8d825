// SPDX-License-Identifier: MIT
#include <asyncverbs/coro/when_all.hpp>

#include <coroutine>
#include <memory>
#include <stdexcept>
#include <thread>
#include <tuple>
#include <variant>
#include <vector>

#include <asyncverbs/coro/sync_wait.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include "coro/tasks.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using namespace asyncverbs::support;
using namespace std::chrono_literals;

namespace {

template <class... T>
auto vector_of(Task<T>... tasks) {
    std::vector<Task<std::common_type_t<T...>>> all;
    (all.push_back(std::move(tasks)), ...);
    return all;
}

} // namespace

TEST_CASE("when_all: returns a tuple of the results, monostate for void", "[when_all]") {
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

TEST_CASE("when_all: returns a vector of the results", "[when_all]") {
    std::vector<Task<int>> tasks;
    std::vector<int> expected;
    for (int i = 0; i < 100; ++i) {
        tasks.push_back(number(i));
        expected.push_back(i);
    }
    CHECK(sync_wait(when_all(std::move(tasks))) == expected);
    CHECK(sync_wait(when_all(std::vector<Task<int>>())).empty());
    CHECK(sync_wait(when_all(vector_of(nothing(), nothing()))).size() == 2);
    const auto yes = []() -> Task<bool> { co_return true; };
    CHECK(sync_wait(when_all(vector_of(yes()))) == std::vector<bool>{true});
    CHECK(*sync_wait(when_all(vector_of(owned(8)))).front() == 8);
}

TEST_CASE("when_all: starts in order and continues after the last", "[when_all]") {
    Gate a, b;
    std::unique_ptr<std::tuple<int, int>> result;
    const Coroutine coroutine = store(when_all(number_after(a, 1), number_after(b, 2)), result);
    REQUIRE(a.waiting);
    REQUIRE(b.waiting);
    const bool in_order = GENERATE(true, false);
    (in_order ? a : b).open();
    CHECK(!result);
    (in_order ? b : a).open();
    REQUIRE(result);
    CHECK(*result == std::tuple(1, 2));
}

TEST_CASE("when_all: awaits lvalues in place", "[when_all]") {
    Gate a, b;
    std::unique_ptr<std::tuple<std::monostate, std::monostate>> result;
    const Coroutine coroutine = store(when_all(a, b), result);
    a.open();
    b.open();
    CHECK(result);
}

TEST_CASE("when_all: all complete before the first exception is rethrown", "[when_all]") {
    Gate a, b, c;
    std::unique_ptr<std::tuple<int, int, int>> result;
    const Coroutine coroutine = store(
        when_all(fails_after(a, "late"), fails_after(b, "first"), number_after(c, 1)), result);
    b.open();
    a.open();
    CHECK(!coroutine.done());
    c.open();
    REQUIRE(coroutine.done());
    CHECK_THROWS_WITH(coroutine.get(), "first");
    CHECK(!result);
}

TEST_CASE("when_all: destroying it destroys its tasks", "[when_all]") {
    const auto alive = std::make_shared<int>();
    Gate a, b;
    SECTION("of a tuple, suspended") {
        std::unique_ptr<std::tuple<std::monostate, std::monostate>> result;
        Coroutine coroutine = store(when_all(wait_at(a, alive), wait_at(b, alive)), result);
        CHECK(alive.use_count() == 3);
        a.open();
        coroutine.destroy();
    }
    SECTION("of a vector, suspended") {
        std::unique_ptr<std::vector<std::monostate>> result;
        Coroutine coroutine =
            store(when_all(vector_of(wait_at(a, alive), wait_at(b, alive))), result);
        CHECK(alive.use_count() == 3);
        b.open();
        coroutine.destroy();
    }
    SECTION("never started") {
        auto task = when_all(wait_at(a, alive));
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

TEST_CASE("when_all: tasks may end on different threads", "[when_all]") {
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
