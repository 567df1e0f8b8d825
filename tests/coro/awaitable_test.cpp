// SPDX-License-Identifier: MIT
// Archetypes of awaitables and schedulers, and of types that are none; checked at compile time.
#include <asyncverbs/coro/awaitable.hpp>

#include <memory>
#include <string>
#include <type_traits>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include "support/catch.hpp"
#include "support/coroutine.hpp"

using namespace asyncverbs;
using asyncverbs::support::Coroutine;

namespace {

template <class Suspend, class Result>
struct Awaiter {
    bool await_ready() const noexcept { return true; }
    Suspend await_suspend(std::coroutine_handle<>) const { return Suspend(); }
    Result await_resume() const { return Result(); }
};
using IntAwaiter = Awaiter<void, int>;

struct Immovable : IntAwaiter {
    Immovable() = default;
    Immovable(const Immovable&) = delete;
};

struct Member {
    IntAwaiter operator co_await() const { return {}; }
};
struct RvalueMember {
    Immovable operator co_await() && { return {}; }
};
struct LvalueMember {
    IntAwaiter operator co_await() & { return {}; }
};
struct Free {};
IntAwaiter operator co_await(const Free&) { return {}; }
struct RvalueFree {};
IntAwaiter operator co_await(RvalueFree&&) { return {}; }

// co_await prefers the operator, although the type is an awaiter as well.
struct AwaiterWithOperator : Awaiter<void, std::string> {
    IntAwaiter operator co_await() const { return {}; }
};

struct Nothing {};
struct YieldsNothing {
    Nothing operator co_await() const { return {}; }
};
struct NoReady {
    void await_suspend(std::coroutine_handle<>);
    void await_resume();
};
struct ReadyIsNotABool : NoReady {
    Nothing await_ready();
};
struct NoResume {
    bool await_ready();
    void await_suspend(std::coroutine_handle<>);
};
struct OwnHandleOnly : NoReady {
    struct Promise {};
    bool await_ready();
    void await_suspend(std::coroutine_handle<Promise>);
};
struct PrivateAwaiter {
private:
    IntAwaiter operator co_await() const { return {}; }
};

static_assert(awaitable<IntAwaiter> && awaitable<IntAwaiter&> && awaitable<const IntAwaiter&>);
static_assert(awaitable<Awaiter<bool, void>>);
static_assert(awaitable<Awaiter<std::coroutine_handle<>, void>>);
static_assert(awaitable<Awaiter<std::noop_coroutine_handle, void>>);
static_assert(awaitable<Immovable>);
static_assert(awaitable<std::suspend_always> && awaitable<std::suspend_never>);
static_assert(awaitable<Member> && awaitable<const Member&>);
static_assert(awaitable<RvalueMember> && !awaitable<RvalueMember&>);
static_assert(!awaitable<LvalueMember> && awaitable<LvalueMember&>);
static_assert(awaitable<Free> && awaitable<Free&>);
static_assert(awaitable<RvalueFree> && !awaitable<RvalueFree&>);
static_assert(awaitable<Task<int>> && !awaitable<Task<int>&>);

static_assert(!awaitable<int> && !awaitable<void> && !awaitable<Nothing> && !awaitable<int*>);
static_assert(!awaitable<std::coroutine_handle<>>);
static_assert(!awaitable<YieldsNothing>);
static_assert(!awaitable<NoReady> && !awaitable<NoResume> && !awaitable<ReadyIsNotABool>);
static_assert(!awaitable<Awaiter<int, void>>, "await_suspend returns void, bool or a handle");
static_assert(!awaitable<OwnHandleOnly>, "it can be awaited by one coroutine type only");
static_assert(!awaitable<PrivateAwaiter>);

static_assert(std::is_same_v<await_result_t<IntAwaiter>, int>);
static_assert(std::is_same_v<await_result_t<RvalueMember>, int>);
static_assert(std::is_same_v<await_result_t<Free>, int>);
static_assert(std::is_same_v<await_result_t<AwaiterWithOperator>, int>);
static_assert(std::is_same_v<await_result_t<std::suspend_always>, void>);
static_assert(std::is_same_v<await_result_t<Task<int&>>, int&>);
static_assert(std::is_same_v<await_result_t<Task<>>, void>);

static_assert(awaitable_of<IntAwaiter, int> && awaitable_of<IntAwaiter, long>);
static_assert(!awaitable_of<IntAwaiter, std::string> && !awaitable_of<IntAwaiter, void>);
static_assert(awaitable_of<std::suspend_always, void> && !awaitable_of<std::suspend_always, int>);
static_assert(awaitable_of<Task<std::unique_ptr<int>>, std::unique_ptr<int>>);
static_assert(!awaitable_of<int, int>);

template <class A>
struct Schedules {
    A schedule() const { return {}; }
};
struct RvalueAwaiter {
    Awaiter<void, void> operator co_await() && { return {}; }
};
struct SchedulesIfMutable {
    RvalueAwaiter schedule() { return {}; }
};

static_assert(Scheduler<EpollExecutor>);
static_assert(Scheduler<Schedules<Awaiter<void, void>>>);
static_assert(Scheduler<const Schedules<Awaiter<void, void>>>);
static_assert(Scheduler<SchedulesIfMutable> && !Scheduler<const SchedulesIfMutable>);
static_assert(!Scheduler<Schedules<Awaiter<bool, void>>>, "it must always suspend");
static_assert(!Scheduler<Schedules<IntAwaiter>>, "it must return nothing");
static_assert(!Scheduler<Schedules<void>> && !Scheduler<Schedules<Nothing>> && !Scheduler<Nothing>);

Coroutine await_each(int& sum) {
    sum += co_await IntAwaiter();
    sum += co_await Member();
    sum += co_await RvalueMember();
    sum += co_await Free();
    sum += co_await RvalueFree();
    sum += co_await AwaiterWithOperator();
}

} // namespace

TEST_CASE("awaitable: what the concept accepts, co_await accepts", "[awaitable]") {
    int sum = 1;
    const Coroutine coroutine = await_each(sum);
    REQUIRE(coroutine.done());
    coroutine.get();
    CHECK(sum == 1);
}
