// SPDX-License-Identifier: MIT
// Lack of memory: each allocation fails once, and all of them from the n-th on. The operation
// throws, no coroutine is left behind, and the loop is usable afterwards.
#include <asyncverbs/executor/executor_pool.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/coro/sync_wait.hpp>
#include <asyncverbs/coro/when_all.hpp>

#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"
#include "support/pipe.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using support::Coroutine;

namespace {

// Too long for the small buffer of std::string.
std::string text() { return std::string(100, 'x'); }

Task<std::string> number(EpollExecutor& executor) {
    co_await executor.schedule();
    co_return text();
}

Task<> fail(EpollExecutor& executor) {
    co_await executor.schedule();
    throw std::system_error(std::make_error_code(std::errc::io_error), "expected");
}

Task<> sleep(EpollExecutor& executor, std::chrono::nanoseconds time, std::stop_token stop) {
    const std::error_code error = co_await executor.sleep_for(time, std::move(stop));
    if (error && error != std::errc::operation_canceled) throw std::system_error(error, "sleep");
}

Task<> read(EpollExecutor& executor, const support::Pipe& pipe, std::stop_token stop) {
    EpollNotifier notifier = executor.notifier(pipe.reader());
    const std::error_code stopped = co_await notifier.readable(std::move(stop));
    const std::error_code timed_out = co_await notifier.readable({}, 1us);
    pipe.put();
    const std::error_code readable = co_await notifier.readable();
    if (stopped != std::errc::operation_canceled || timed_out != std::errc::timed_out || readable) {
        throw std::logic_error("not what ended the wait");
    }
    pipe.take();
}

// Runs iterations until the coroutine has ended: one that is left behind does not hang the test.
Coroutine start(Task<> task) { co_await std::move(task); }
void run(EpollExecutor& executor, Task<> task) {
    const Coroutine coroutine = start(std::move(task));
    for (int i = 0; i < 1000 && !coroutine.done(); ++i) executor.run_once();
    if (!coroutine.done()) throw std::logic_error("a coroutine was left behind");
    coroutine.get();
}

Task<> all_in_a_scope(EpollExecutor& executor, const support::Pipe& pipe) {
    std::stop_source stop;
    Scope scope;
    try {
        scope.spawn(number(executor));
        scope.spawn(sleep(executor, 1h, stop.get_token()));
        scope.spawn(sleep(executor, 1us, {}));
        scope.spawn(read(executor, pipe, stop.get_token()));
        scope.spawn(fail(executor));
        executor.post([&stop, long_text = text()] { stop.request_stop(); });
    } catch (const std::bad_alloc&) {
        stop.request_stop(); // the children that were spawned end as well
    }
    try {
        co_await scope.join();
    } catch (const std::system_error& error) {
        if (error.code() != std::errc::io_error) throw;
    }
}

Task<> all_at_once(EpollExecutor& executor) {
    const auto [a, b] = co_await when_all(number(executor), number(executor));
    std::vector<Task<std::string>> tasks;
    tasks.push_back(number(executor));
    tasks.push_back(number(executor));
    const std::vector<std::string> more = co_await when_all(std::move(tasks));
    if (a + b + more[0] + more[1] != text() + text() + text() + text()) {
        throw std::logic_error("lost");
    }
}

struct ExecutorNoMemoryFixture {
    EpollExecutor executor;
    support::Pipe pipe;
};

struct NamedOperation {
    const char* name;
    void (*run)(ExecutorNoMemoryFixture&);
};

const auto operations = std::to_array<NamedOperation>({
    {"an executor", [](ExecutorNoMemoryFixture&) { EpollExecutor(); }},
    {"post",
     [](ExecutorNoMemoryFixture& f) {
         for (int i = 0; i < 2; ++i) f.executor.post([long_text = text()] {});
         f.executor.run_once();
     }},
    {"run",
     [](ExecutorNoMemoryFixture& f) { static_cast<void>(f.executor.run(number(f.executor))); }},
    {"run, stopped",
     [](ExecutorNoMemoryFixture& f) {
         f.executor.stop();
         static_cast<void>(f.executor.run(number(f.executor)));
     }},
    {"a task that fails", [](ExecutorNoMemoryFixture& f) { f.executor.run(fail(f.executor)); }},
    {"a scope of sleeps and waits",
     [](ExecutorNoMemoryFixture& f) { run(f.executor, all_in_a_scope(f.executor, f.pipe)); }},
    {"when_all", [](ExecutorNoMemoryFixture& f) { run(f.executor, all_at_once(f.executor)); }},
    {"sync_wait",
     [](ExecutorNoMemoryFixture& f) {
         static_cast<void>(
             sync_wait([](EpollExecutor&) -> Task<std::string> { co_return text(); }(f.executor)));
     }},
    {"a pool",
     [](ExecutorNoMemoryFixture&) {
         ExecutorPool pool({.size = 2});
         pool.run([&pool](EpollExecutor& executor, std::size_t index) -> Task<> {
             pool[1 - index].post([long_text = text()] {});
             co_await pool[1 - index].schedule();
             co_await executor.schedule();
             co_await all_at_once(executor);
         });
     }},
});

// Only a lack of memory may end the operation, or what the operation is expected to throw.
void attempt(const NamedOperation& operation, ExecutorNoMemoryFixture& fixture) {
    try {
        operation.run(fixture);
    } catch (const std::bad_alloc&) {
    } catch (const std::system_error& error) {
        const bool expected =
            error.code() == std::errc::io_error || error.code() == std::errc::operation_canceled;
        if (!expected) throw;
    }
}

} // namespace

TEST_CASE("no memory: the executor and coroutines", "[no_memory]") {
    const bool once = GENERATE(true, false);
    for (const NamedOperation& operation : operations) {
        bool failed = true;
        std::size_t skip = 0;
        for (; failed; ++skip) {
            INFO(operation.name << (once ? ": only allocation " : ": all from allocation ")
                                << skip);
            ExecutorNoMemoryFixture fixture;
            once ? support::fail_allocation(skip) : support::run_out_of_memory(skip);
            std::exception_ptr wrong;
            try {
                attempt(operation, fixture);
            } catch (...) {
                wrong = std::current_exception();
            }
            failed = support::stop_failing();
            if (wrong) std::rethrow_exception(wrong);
            run(fixture.executor, all_at_once(fixture.executor));
            run(fixture.executor, all_in_a_scope(fixture.executor, fixture.pipe));
            REQUIRE(skip < 1000);
        }
        CHECK(skip > 1);
    }
}
