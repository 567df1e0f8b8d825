// SPDX-License-Identifier: MIT
// In its own file, because it needs tail calls. GCC 12 makes none at -O0 without
// -foptimize-sibling-calls, and cannot compile coroutines for gcov with that flag.
#include <asyncverbs/coro/task.hpp>

#include <memory>

#include "coro/tasks.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using namespace asyncverbs::support;

namespace {

Task<int> one() { co_return 1; } // not inline, so that it is compiled with the flags of this file

} // namespace

TEST_CASE("Task: awaiting ready tasks in a loop uses no stack", "[task]") {
    // Without tail calls, as under the sanitizers, each await costs some stack until the next
    // suspension.
#if defined(__has_feature)
#define HAS_FEATURE(name) __has_feature(name)
#else
#define HAS_FEATURE(name) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||                               \
    HAS_FEATURE(address_sanitizer) || HAS_FEATURE(thread_sanitizer)
    constexpr int count = 5'000;
#else
    constexpr int count = 1'000'000;
#endif
    const auto sum = []() -> Task<long> {
        long total = 0;
        for (int i = 0; i < count; ++i) total += co_await one();
        co_return total;
    };
    std::unique_ptr<long> result;
    const Coroutine coroutine = store(sum(), result);
    REQUIRE(coroutine.done());
    CHECK(*result == count);
}
