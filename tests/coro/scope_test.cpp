// SPDX-License-Identifier: MIT
// Scope: spawning, joining, failure, destruction from wherever it may come.
#include <asyncverbs/coro/scope.hpp>

#include <coroutine>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/coro/when_all.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/gate.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using asyncverbs::support::Coroutine;
using asyncverbs::support::Gate;

namespace {

Task<> wait_at(Gate& gate) { co_await gate; }
Task<> wait_holding(Gate& gate, std::shared_ptr<int>) { co_await gate; }
Task<int> ready(int& ran) {
    ++ran;
    co_return 1;
}
Task<> fails(const char* text) {
    throw std::runtime_error(text);
    co_return;
}
Task<> fails_at(Gate& gate, const char* text) {
    co_await gate;
    throw std::runtime_error(text);
}
Coroutine join(Scope& scope) { co_await scope.join(); }

} // namespace

TEST_CASE("Scope: a child runs at once and up to its first suspension", "[scope]") {
    Scope scope;
    int ran = 0;
    scope.spawn(ready(ran));
    CHECK(ran == 1);
    Gate gate;
    scope.spawn(wait_at(gate));
    CHECK(gate.waiting);
    gate.open();
    const Coroutine joiner = join(scope);
    CHECK(joiner.done());
}

TEST_CASE("Scope: join waits for the last child", "[scope]") {
    Scope scope;
    Gate a;
    Gate b;
    scope.spawn(wait_at(a));
    scope.spawn(wait_at(b));
    const Coroutine joiner = join(scope);
    CHECK(!joiner.done());
    a.open();
    CHECK(!joiner.done());

    SECTION("and no other is spawned") {
        b.open();
        CHECK(joiner.done());
    }
    SECTION("and for one that is spawned meanwhile from outside") {
        Gate c;
        scope.spawn(wait_at(c));
        b.open();
        CHECK(!joiner.done());
        c.open();
        CHECK(joiner.done());
    }
    SECTION("and for one that a child spawns as its last act") {
        Gate c;
        Gate d;
        const auto spawner = [](Scope& s, Gate& until, Gate& next) -> Task<> {
            co_await until;
            s.spawn(wait_at(next));
        };
        scope.spawn(spawner(scope, c, d));
        b.open();
        c.open();
        CHECK(!joiner.done());
        d.open();
        CHECK(joiner.done());
    }
}

TEST_CASE("Scope: it can be used again after join", "[scope]") {
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

TEST_CASE("Scope: join rethrows the exception that came first, once", "[scope]") {
    Scope scope;
    Gate a;
    Gate b;
    scope.spawn(fails_at(a, "late"));
    scope.spawn(fails_at(b, "first"));
    const Coroutine joiner = join(scope);
    b.open();
    CHECK(!joiner.done());
    a.open();
    REQUIRE(joiner.done());
    CHECK_THROWS_WITH(joiner.get(), "first");
    join(scope).get();
}

TEST_CASE("Scope: join rethrows the exception of a child that never suspended", "[scope]") {
    Scope scope;
    scope.spawn(fails("at once"));
    CHECK_THROWS_WITH(join(scope).get(), "at once");
}

TEST_CASE("Scope: one join at a time", "[scope]") {
    Scope scope;
    Gate gate;
    scope.spawn(wait_at(gate));
    Coroutine first = join(scope);
    const Coroutine second = join(scope);
    REQUIRE(second.done());
    CHECK_THROWS_AS(second.get(), std::logic_error);

    SECTION("a second one leaves the first alone") {
        gate.open();
        CHECK(first.done());
    }
    SECTION("one that is destroyed makes room") {
        first.destroy();
        const Coroutine third = join(scope);
        CHECK(!third.done());
        gate.open();
        CHECK(third.done());
    }
    SECTION("one that is destroyed is not resumed") {
        first.destroy();
        gate.open();
    }
}

TEST_CASE("Scope: destroying it destroys suspended children and never blocks", "[scope]") {
    const auto alive = std::make_shared<int>();
    auto scope = std::make_unique<Scope>();
    Gate a;
    Gate b;
    scope->spawn(wait_holding(a, alive));
    scope->spawn(wait_holding(b, alive));
    const Coroutine joiner = join(*scope);
    CHECK(alive.use_count() == 3);
    scope.reset();
    CHECK(alive.use_count() == 1);
    CHECK(!joiner.done());
}

TEST_CASE("Scope: what a finished child took is gone after the next spawn or join", "[scope]") {
    const auto alive = std::make_shared<int>();
    struct Holder {
        std::shared_ptr<int> held;
        Gate& gate;
        Holder(std::shared_ptr<int> h, Gate& g) : held(std::move(h)), gate(g) {}
        Task<> run() { co_await gate; }
    };
    const auto run = [](std::unique_ptr<Holder> holder) -> Task<> { co_await holder->run(); };
    Scope scope;
    Gate a;
    scope.spawn(run(std::make_unique<Holder>(alive, a)));
    a.open();
    CHECK(alive.use_count() == 1); // a task's locals end with the task
    const Coroutine joiner = join(scope);
    CHECK(joiner.done());
}

TEST_CASE("Scope: the joiner may destroy it, on top of the last child", "[scope]") {
    auto scope = std::make_unique<Scope>();
    Gate gate;
    scope->spawn(wait_at(gate));
    const auto owner = [](std::unique_ptr<Scope>& owned) -> Coroutine {
        co_await owned->join();
        owned.reset();
    };
    const Coroutine joiner = owner(scope);
    gate.open();
    CHECK(joiner.done());
    CHECK(!scope);
}

TEST_CASE("Scope: the joiner may destroy it inside a spawn", "[scope]") {
    auto scope = std::make_unique<Scope>();
    Gate first;
    const auto owner = [](std::unique_ptr<Scope>& owned) -> Coroutine {
        co_await owned->join();
        owned.reset();
    };
    scope->spawn(wait_at(first));
    const Coroutine joiner = owner(scope);
    // The spawned child ends the other one; after that it is the last and ends the join.
    const auto ends_other = [](Gate& gate) -> Task<> {
        gate.open();
        co_return;
    };
    scope->spawn(ends_other(first));
    CHECK(joiner.done());
    CHECK(!scope);
}

TEST_CASE("Scope: a child may destroy it while spawn runs that child", "[scope]") {
    const auto alive = std::make_shared<int>();
    auto scope = std::make_unique<Scope>();
    Gate other;
    Gate mine;
    scope->spawn(wait_holding(other, alive));

    SECTION("and end") {
        const auto child = [](std::unique_ptr<Scope>& owned, std::shared_ptr<int>) -> Task<> {
            owned.reset();
            co_return;
        };
        scope->spawn(child(scope, alive));
    }
    SECTION("and fail") {
        const auto child = [](std::unique_ptr<Scope>& owned, std::shared_ptr<int>) -> Task<> {
            owned.reset();
            throw std::runtime_error("lost");
            co_return;
        };
        scope->spawn(child(scope, alive));
    }
    SECTION("and suspend, which destroys it") {
        const auto child = [](std::unique_ptr<Scope>& owned, Gate& gate,
                              std::shared_ptr<int>) -> Task<> {
            owned.reset();
            co_await gate;
        };
        scope->spawn(child(scope, mine, alive));
    }
    SECTION("two spawns deep") {
        const auto inner = [](std::unique_ptr<Scope>& owned, std::shared_ptr<int>) -> Task<> {
            owned.reset();
            co_return;
        };
        const auto outer = [&inner](std::unique_ptr<Scope>& owned, Gate& gate,
                                    std::shared_ptr<int> held) -> Task<> {
            owned->spawn(inner(owned, held));
            co_await gate;
        };
        scope->spawn(outer(scope, mine, alive));
    }
    CHECK(!scope);
    CHECK(alive.use_count() == 1);
}

TEST_CASE("Scope: takes any awaitable", "[scope]") {
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

TEST_CASE("Scope: thousands of children that come and go", "[scope]") {
    EpollExecutor executor;
    int ended = 0;
    const auto child = [&](int turns) -> Task<> {
        for (int i = 0; i < turns; ++i) co_await executor.schedule();
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
