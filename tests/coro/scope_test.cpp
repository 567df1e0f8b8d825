// SPDX-License-Identifier: MIT
#include <asyncverbs/coro/scope.hpp>

#include <coroutine>
#include <memory>
#include <stdexcept>
#include <utility>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/coro/when_all.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include "coro/tasks.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using namespace asyncverbs::support;
using namespace std::chrono_literals;

namespace {

using Owner = std::unique_ptr<Scope>;

Coroutine join(Scope& scope) { co_await scope.join(); }

// The awaiter is destroyed after the scope.
Coroutine join_and_destroy(Owner& scope) {
    auto operation = scope->join();
    co_await operation;
    scope.reset();
}

} // namespace

TEST_CASE("Scope: spawn runs a child up to its first suspension", "[scope]") {
    Scope scope;
    bool ran = false;
    const auto run = [&]() -> Task<int> {
        ran = true;
        co_return 1;
    };
    scope.spawn(run());
    CHECK(ran);
    Gate gate;
    scope.spawn(wait_at(gate));
    CHECK(gate.waiting);
    gate.open();
    CHECK(join(scope).done());
}

TEST_CASE("Scope: join waits for the last child", "[scope]") {
    Scope scope;
    Gate a, b, c, d;
    scope.spawn(wait_at(a));
    scope.spawn(wait_at(b));
    const Coroutine joiner = join(scope);
    CHECK(!joiner.done());
    a.open();
    CHECK(!joiner.done());

    SECTION("of those spawned before") { b.open(); }
    SECTION("also for one spawned in the meantime") {
        scope.spawn(wait_at(c));
        b.open();
        CHECK(!joiner.done());
        c.open();
    }
    SECTION("also for one that a child spawns before it ends") {
        const auto spawner = [](Scope& s, Gate& until, Gate& next) -> Task<> {
            co_await until;
            s.spawn(wait_at(next));
        };
        scope.spawn(spawner(scope, c, d));
        b.open();
        c.open();
        CHECK(!joiner.done());
        d.open();
    }
    CHECK(joiner.done());
}

TEST_CASE("Scope: can be used again after join", "[scope]") {
    Scope scope;
    for (int i = 0; i < 3; ++i) {
        Gate gate;
        scope.spawn(wait_at(gate));
        const Coroutine joiner = join(scope);
        CHECK(!joiner.done());
        gate.open();
        CHECK(joiner.done());
    }
}

TEST_CASE("Scope: join rethrows the first exception, once", "[scope]") {
    Scope scope;
    Gate a, b;
    SECTION("of children that suspended") {
        scope.spawn(fails_after(a, "late"));
        scope.spawn(fails_after(b, "first"));
        const Coroutine joiner = join(scope);
        b.open();
        CHECK(!joiner.done());
        a.open();
        REQUIRE(joiner.done());
        CHECK_THROWS_WITH(joiner.get(), "first");
    }
    SECTION("of a child that never suspended") {
        scope.spawn(fails("at once"));
        CHECK_THROWS_WITH(join(scope).get(), "at once");
    }
    join(scope).get();
}

TEST_CASE("Scope: one join at a time", "[scope]") {
    Scope scope;
    Gate gate;
    scope.spawn(wait_at(gate));
    Coroutine first = join(scope);
    const Coroutine second = join(scope);
    REQUIRE(second.done());
    CHECK_THROWS_AS(second.get(), std::logic_error);

    SECTION("a second one does not disturb the first") {
        gate.open();
        CHECK(first.done());
    }
    SECTION("another one is possible after the first was destroyed") {
        first.destroy();
        const Coroutine third = join(scope);
        CHECK(!third.done());
        gate.open();
        CHECK(third.done());
    }
    SECTION("a destroyed one is not resumed") {
        first.destroy();
        gate.open();
    }
}

TEST_CASE("Scope: its destructor destroys suspended children and does not block", "[scope]") {
    const auto alive = std::make_shared<int>();
    Owner scope = std::make_unique<Scope>();
    Gate a, b;
    scope->spawn(wait_at(a, alive));
    scope->spawn(wait_at(b, alive));
    const Coroutine joiner = join(*scope);
    [[maybe_unused]] const auto not_awaited = scope->join();
    CHECK(alive.use_count() == 3);
    scope.reset();
    CHECK(alive.use_count() == 1);
    CHECK(!joiner.done());
}

TEST_CASE("Scope: a finished task is destroyed, with its locals", "[scope]") {
    const auto alive = std::make_shared<int>();
    const auto run = [](Gate& gate, std::shared_ptr<int> held) -> Task<> {
        co_await wait_at(gate, std::move(held));
    };
    Scope scope;
    Gate gate;
    scope.spawn(run(gate, alive));
    CHECK(alive.use_count() == 2);
    gate.open();
    CHECK(alive.use_count() == 1);
    CHECK(join(scope).done());
}

TEST_CASE("Scope: the joiner may destroy it", "[scope]") {
    Owner scope = std::make_unique<Scope>();
    Gate gate;
    scope->spawn(wait_at(gate));
    const Coroutine joiner = join_and_destroy(scope);
    SECTION("when it is resumed by the last child") { gate.open(); }
    SECTION("when it is resumed inside a spawn") {
        // The new child lets the other one end, and is then the last one itself.
        const auto opens = [](Gate& other) -> Task<> {
            other.open();
            co_return;
        };
        scope->spawn(opens(gate));
    }
    CHECK(joiner.done());
    CHECK(!scope);
}

TEST_CASE("Scope: a child may destroy it before its first suspension", "[scope]") {
    enum class Then { end, fail, suspend };
    const auto alive = std::make_shared<int>();
    Owner scope = std::make_unique<Scope>();
    Gate other, gate;
    scope->spawn(wait_at(other, alive));
    const auto destroy = [](Owner& owned, Gate& at, Then then, std::shared_ptr<int>) -> Task<> {
        owned.reset();
        if (then == Then::fail) throw std::runtime_error("lost");
        if (then == Then::suspend) co_await at; // which destroys it
    };
    SECTION("and end, fail or suspend") {
        const auto then = GENERATE(Then::end, Then::fail, Then::suspend);
        scope->spawn(destroy(scope, gate, then, alive));
    }
    SECTION("two spawns deep") {
        const auto outer = [&destroy](Owner& owned, Gate& at, std::shared_ptr<int> held) -> Task<> {
            owned->spawn(destroy(owned, at, Then::end, held));
            co_await at;
        };
        scope->spawn(outer(scope, gate, alive));
    }
    CHECK(!scope);
    CHECK(alive.use_count() == 1);
}

TEST_CASE("Scope: spawns any awaitable", "[scope]") {
    EpollExecutor executor;
    const auto body = [&]() -> Task<> {
        Scope scope;
        scope.spawn(executor.sleep_for(1us));
        scope.spawn(executor.schedule());
        scope.spawn(std::suspend_never());
        scope.spawn(when_all(executor.schedule(), executor.sleep_for(0s)));
        co_await scope.join();
        Scope outer;
        Gate gate;
        scope.spawn(wait_at(gate));
        outer.spawn(scope.join());
        gate.open();
        co_await outer.join();
    };
    executor.run(body());
}

TEST_CASE("Scope: thousands of children", "[scope]") {
    EpollExecutor executor;
    int ended = 0;
    const auto child = [&](int iterations) -> Task<> {
        for (int i = 0; i < iterations; ++i) co_await executor.schedule();
        ++ended;
    };
    const auto body = [&]() -> Task<> {
        Scope scope;
        for (int i = 0; i < 5000; ++i) {
            scope.spawn(child(i % 7));
            if (i % 100 == 0) co_await executor.schedule();
        }
        co_await scope.join();
    };
    executor.run(body());
    CHECK(ended == 5000);
}
