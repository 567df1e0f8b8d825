// SPDX-License-Identifier: MIT
#include <asyncverbs/coro/task.hpp>

#include <coroutine>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <asyncverbs/coro/awaitable.hpp>

#include "coro/tasks.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using namespace asyncverbs::support;

static_assert(std::movable<Task<int>> && !std::copyable<Task<int>>);
static_assert(std::is_nothrow_move_constructible_v<Task<>>);

namespace {

// Records when it is destroyed.
struct Traced {
    Traced(std::vector<std::string>& l, std::string n) : log(l), name(std::move(n)) {}
    Traced(const Traced&) = delete;
    ~Traced() { log.push_back(name); }
    std::vector<std::string>& log;
    std::string name;
};

Task<const std::string&> same(const std::string& s) { co_return s; }
Task<std::pair<int, std::string>> braced() { co_return {1, "one"}; }
Task<std::string> converted() { co_return "text"; }

Coroutine drive(Task<> task) { co_await std::move(task); }

template <class T>
T result_of(Task<T> task) {
    std::unique_ptr<T> result;
    const Coroutine coroutine = store(std::move(task), result);
    REQUIRE(coroutine.done());
    coroutine.get();
    return std::move(*result);
}

struct ThrowsOnMove {
    ThrowsOnMove() = default;
    ThrowsOnMove(ThrowsOnMove&&) { throw std::runtime_error("moved"); }
    ThrowsOnMove& operator=(ThrowsOnMove&&) = default;
};
Task<ThrowsOnMove> throws_on_return() { co_return ThrowsOnMove(); }

struct NoDefault {
    explicit NoDefault(int n) : value(n) {}
    int value;
};
Task<NoDefault> no_default() { co_return NoDefault(5); }

} // namespace

TEST_CASE("Task: returns values, references and nothing", "[task]") {
    CHECK(result_of(number(42)) == 42);
    CHECK(*result_of(owned(7)) == 7);
    CHECK(result_of(braced()) == std::pair<int, std::string>(1, "one"));
    CHECK(result_of(converted()) == "text");
    CHECK(result_of(no_default()).value == 5);

    int target = 1;
    const std::string text = "abc";
    const auto body = [&]() -> Task<> {
        int& reference = co_await same(target);
        reference = 2;
        const std::string& same_text = co_await same(text);
        CHECK(&same_text == &text);
        co_await nothing();
    };
    drive(body()).get();
    CHECK(target == 2);
}

TEST_CASE("Task: rethrows exceptions through several levels", "[task]") {
    const auto outer = []() -> Task<int> {
        const int n = co_await fails("failed");
        co_return n + 1;
    };
    CHECK_THROWS_WITH(result_of(outer()), "failed");
    const auto handled = []() -> Task<int> {
        try {
            co_await fails("failed");
        } catch (const std::runtime_error&) {
        }
        co_return 3;
    };
    CHECK(result_of(handled()) == 3);
    const auto moves = []() -> Task<> { co_await throws_on_return(); };
    CHECK_THROWS_WITH(drive(moves()).get(), "moved");
}

TEST_CASE("Task: starts when it is awaited", "[task]") {
    bool ran = false;
    const auto body = [&]() -> Task<> {
        ran = true;
        co_return;
    };
    Task<> task = body();
    CHECK(!ran);
    CHECK(task);
    SECTION("awaited") {
        const Coroutine coroutine = drive(std::move(task));
        CHECK(ran);
    }
    SECTION("dropped") {
        task = Task<>();
        CHECK(!task);
        CHECK(!ran);
    }
}

TEST_CASE("Task: an empty one cannot be awaited", "[task]") {
    CHECK_THROWS_AS(drive(Task<>()).get(), std::logic_error);
    Task<> task = nothing();
    const auto twice = [&]() -> Task<> {
        co_await std::move(task);
        co_await std::move(task);
    };
    CHECK_THROWS_AS(drive(twice()).get(), std::logic_error);
}

TEST_CASE("Task: its locals are destroyed at the end of the expression that awaits it", "[task]") {
    std::vector<std::string> log;
    const auto inner = [&]() -> Task<> {
        const Traced local(log, "inner");
        co_return;
    };
    const auto with_argument = [&](std::unique_ptr<Traced>) -> Task<> { co_return; };
    const auto outer = [&]() -> Task<> {
        const Traced local(log, "outer");
        Task<> task = inner();
        co_await std::move(task);
        log.push_back("after inner");
        Task<> other = with_argument(std::make_unique<Traced>(log, "argument"));
        co_await std::move(other);
        log.push_back("after argument");
    };
    drive(outer()).get();
    CHECK(log ==
          std::vector<std::string>{"inner", "after inner", "argument", "after argument", "outer"});
}

TEST_CASE("Task: destroying a suspended one destroys what it awaits, innermost first", "[task]") {
    std::vector<std::string> log;
    Gate gate;
    // A parameter: GCC 12 would copy an awaiter that is captured.
    const auto inner = [&log](Gate& g) -> Task<> {
        const Traced local(log, "inner");
        co_await g;
        log.push_back("resumed");
    };
    const auto middle = [&]() -> Task<> {
        const Traced local(log, "middle");
        co_await inner(gate);
    };
    const auto outer = [&]() -> Task<> {
        const Traced local(log, "outer");
        co_await middle();
    };
    Coroutine coroutine = drive(outer());
    REQUIRE(gate.waiting);
    SECTION("destroyed") {
        coroutine.destroy();
        CHECK(log == std::vector<std::string>{"inner", "middle", "outer"});
    }
    SECTION("resumed") {
        gate.open();
        CHECK(coroutine.done());
        CHECK(log == std::vector<std::string>{"resumed", "inner", "middle", "outer"});
    }
}

TEST_CASE("Task: assignment destroys the old task", "[task]") {
    std::vector<std::string> log;
    const auto body = [](std::unique_ptr<Traced>) -> Task<> { co_return; };
    Task<> task = body(std::make_unique<Traced>(log, "first"));
    task = body(std::make_unique<Traced>(log, "second"));
    CHECK(log == std::vector<std::string>{"first"});
    Task<>& same = task;
    task = std::move(same);
    CHECK(task);
}
