// SPDX-License-Identifier: MIT
#include <asyncverbs/coro/awaitable.hpp>

#include <coroutine>

#include <asyncverbs/executor/epoll_executor.hpp>

using namespace asyncverbs;

namespace {

struct Awaiter {
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<>) const noexcept {}
    void await_resume() const noexcept {}
};

struct Plain {
    Awaiter schedule() const noexcept { return {}; }
};

struct WithOperation {
    struct Operation {
        Awaiter operator co_await() && noexcept { return {}; }
    };
    Operation schedule() noexcept { return {}; }
};

// It may decide to go on at once, on the thread that asks.
struct MayNotSuspend {
    struct Hesitant : Awaiter {
        bool await_suspend(std::coroutine_handle<>) const noexcept { return false; }
    };
    Hesitant schedule() const noexcept { return {}; }
};

struct GivesSomething {
    struct Giver : Awaiter {
        int await_resume() const noexcept { return 1; }
    };
    Giver schedule() const noexcept { return {}; }
};

struct NotAwaitable {
    void schedule() const noexcept {}
};

struct Nothing {};

} // namespace

static_assert(Scheduler<EpollExecutor>);
static_assert(Scheduler<Plain>);
static_assert(Scheduler<const Plain>);
static_assert(Scheduler<WithOperation>);
static_assert(!Scheduler<const WithOperation>);
static_assert(!Scheduler<MayNotSuspend>);
static_assert(!Scheduler<GivesSomething>);
static_assert(!Scheduler<NotAwaitable>);
static_assert(!Scheduler<Nothing>);
