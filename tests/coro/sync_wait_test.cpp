// SPDX-License-Identifier: MIT
#include <asyncverbs/coro/sync_wait.hpp>

#include <stdexcept>
#include <string>
#include <thread>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include "coro/tasks.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using namespace asyncverbs::support;

namespace {

struct ImmovableText {
    ImmovableText() = default;
    ImmovableText(const ImmovableText&) = delete;
    bool await_ready() const noexcept { return true; }
    void await_suspend(std::coroutine_handle<>) const noexcept {}
    std::string&& await_resume() noexcept { return std::move(text); }
    std::string text = "text";
};

} // namespace

TEST_CASE("sync_wait: returns the result of the awaitable", "[sync_wait]") {
    CHECK(sync_wait(number(1)) == 1);
    CHECK(*sync_wait(owned(9)) == 9);
    int n = 0;
    int& reference = sync_wait(same(n));
    CHECK(&reference == &n);
    sync_wait(std::suspend_never());
    Task<int> task = number(3);
    CHECK(sync_wait(std::move(task)) == 3);

    static_assert(std::is_same_v<decltype(sync_wait(ImmovableText())), std::string>);
    CHECK(sync_wait(ImmovableText()) == "text");
    ImmovableText lvalue;
    CHECK(sync_wait(lvalue) == "text");
    CHECK_THROWS_WITH(sync_wait(fails("failed")), "failed");
}

TEST_CASE("sync_wait: blocks until another thread completes it", "[sync_wait]") {
    EpollExecutor executor;
    std::thread thread([&] { executor.run(); });
    const auto there = [&](int n) -> Task<int> {
        co_await executor.schedule();
        if (n % 10 == 9) throw std::runtime_error("failed there");
        co_return n;
    };
    for (int i = 0; i < 1000; ++i) {
        if (i % 10 == 9) {
            CHECK_THROWS_WITH(sync_wait(there(i)), "failed there");
        } else {
            CHECK(sync_wait(there(i)) == i);
        }
    }
    executor.stop();
    thread.join();
}
