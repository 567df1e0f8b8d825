// SPDX-License-Identifier: MIT
// ExecutorPool: where its tasks run, how a run ends, and what is passed between cores.
#include <asyncverbs/executor/executor_pool.hpp>

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <memory>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "support/counters.hpp"

using namespace asyncverbs;
using asyncverbs::support::contains;
using asyncverbs::support::Counters;
using asyncverbs::support::counters;

namespace {

// Catch2 can assert on the main thread only: tasks record here what they saw.
struct Seen {
    std::thread::id thread;
    std::vector<int> cpus;
    int calls = 0;
};

Task<> no_work(EpollExecutor&, std::size_t) { co_return; }

Task<> forever(EpollExecutor& executor, std::size_t) {
    for (;;) co_await executor.schedule();
}

// Counts the objects that hold one.
struct Alive {
    explicit Alive(std::atomic<int>& c) : count(c) { ++count; }
    Alive(const Alive&) = delete;
    ~Alive() { --count; }
    std::atomic<int>& count;
};

} // namespace

TEST_CASE("ExecutorPool: each executor runs one task, each on another thread", "[executor_pool]") {
    const std::vector<int> cpus = detail::usable_cpus();
    const std::size_t size = GENERATE(0u, 1u, 2u, 7u); // 0: the CPUs; 7: more than these, perhaps
    const bool pin = GENERATE(true, false);
    ExecutorPool pool({.size = size, .pin = pin});
    REQUIRE(pool.size() == (size == 0 ? cpus.size() : size));
    CHECK(pool.end() - pool.begin() == static_cast<std::ptrdiff_t>(pool.size()));

    std::vector<Seen> seen(pool.size());
    pool.run([&](EpollExecutor& executor, std::size_t index) -> Task<> {
        if (&executor != &pool[index]) throw std::logic_error("another executor");
        seen[index].thread = std::this_thread::get_id();
        seen[index].cpus = detail::usable_cpus();
        ++seen[index].calls;
        co_return;
    });
    std::set<std::thread::id> threads{std::this_thread::get_id()};
    for (std::size_t i = 0; i < pool.size(); ++i) {
        CHECK(seen[i].calls == 1);
        CHECK(seen[i].cpus == (pin ? std::vector{cpus[i % cpus.size()]} : cpus));
        threads.insert(seen[i].thread);
    }
    CHECK(threads.size() == pool.size() + 1);
    CHECK(detail::usable_cpus() == cpus); // the caller stays where it was
}

TEST_CASE("ExecutorPool: the CPUs are those of the thread that makes it", "[executor_pool]") {
    std::size_t size = 0;
    std::thread([&] {
        detail::pin_this_thread(detail::usable_cpus().back());
        size = ExecutorPool().size();
    }).join();
    CHECK(size == 1);
}

TEST_CASE("ExecutorPool: a CPU that is not available is an error", "[executor_pool]") {
    for (const int cpu : {1023, 5000}) { // the mask of the second is longer than a cpu_set_t
        try {
            detail::pin_this_thread(cpu);
            FAIL("pinned to CPU " << cpu);
        } catch (const std::system_error& error) {
            CHECK(error.code() == std::errc::invalid_argument);
            CHECK_THAT(error.what(), contains("pthread_setaffinity_np"));
        }
    }
    ExecutorPool pool({.size = 3});
    support::fail_pinning(2);
    std::atomic<int> called = 0;
    try {
        pool.run([&](EpollExecutor& executor, std::size_t index) {
            ++called;
            return forever(executor, index);
        });
        FAIL("run returned");
    } catch (const std::system_error& error) {
        CHECK_THAT(error.what(), contains("pthread_setaffinity_np"));
    }
    CHECK(called < 3);
    pool.run(no_work);
}

TEST_CASE("ExecutorPool: more executors than there are descriptors", "[executor_pool]") {
    support::fail_system_call(4); // each has an epoll, an event and a timer descriptor
    CHECK_THROWS_AS(ExecutorPool({.size = 2}), std::system_error);
    CHECK(support::stop_failing());
}

TEST_CASE("ExecutorPool: an exception ends the run and reaches the caller", "[executor_pool]") {
    constexpr std::size_t size = 4;
    ExecutorPool pool({.size = size});
    std::atomic<int> alive = 0;
    std::atomic<int> ready = 0;
    const auto run = [&](auto at_core_2) {
        pool.run([&, at_core_2](EpollExecutor& executor, std::size_t index) -> Task<> {
            const Alive here(alive);
            for (++ready; ready < static_cast<int>(size);) co_await executor.schedule();
            if (index == 2) at_core_2();
            co_await forever(executor, index);
        });
    };
    SECTION("of a task") {
        CHECK_THROWS_WITH(run([] { throw std::runtime_error("core 2"); }), "core 2");
    }
    SECTION("of a posted function") {
        CHECK_THROWS_WITH(run([&] { pool[3].post([] { throw std::runtime_error("posted"); }); }),
                          "posted");
    }
    SECTION("of the function, before there is a task") {
        CHECK_THROWS_WITH(pool.run([](EpollExecutor& executor, std::size_t index) {
            if (index == 1) throw std::runtime_error("no task");
            return forever(executor, index);
        }),
                          "no task");
    }
    SECTION("of each task: one of them") {
        const auto fails = [](EpollExecutor& executor, std::size_t index) -> Task<> {
            co_await executor.schedule();
            throw std::runtime_error("core " + std::to_string(index));
        };
        for (int i = 0; i < 100; ++i) CHECK_THROWS_WITH(pool.run(fails), contains("core "));
    }
    SECTION("of an empty task") {
        CHECK_THROWS_AS(pool.run([](EpollExecutor&, std::size_t) { return Task<>(); }),
                        std::logic_error);
    }
    CHECK(alive == 0);
    pool.run(no_work);
}

TEST_CASE("ExecutorPool: stop ends the run", "[executor_pool]") {
    ExecutorPool pool({.size = 3});
    std::atomic<int> alive = 0;
    const auto waits = [&](EpollExecutor& executor, std::size_t index) -> Task<> {
        const Alive here(alive);
        co_await forever(executor, index);
    };
    const auto is_canceled = [&](auto&& function) {
        try {
            pool.run(function);
            return false;
        } catch (const std::system_error& error) {
            CHECK_THAT(error.what(), contains("ExecutorPool::run: stopped before"));
            return error.code() == std::errc::operation_canceled;
        }
    };
    SECTION("from another thread") {
        std::thread thread([&] {
            while (alive < 3) std::this_thread::yield();
            pool.stop();
        });
        CHECK(is_canceled(waits));
        thread.join();
    }
    SECTION("from a task, without waiting for the end of the others") {
        CHECK(is_canceled([&](EpollExecutor& executor, std::size_t index) -> Task<> {
            if (index == 1) {
                pool.stop();
                co_return;
            }
            co_await waits(executor, index);
        }));
    }
    SECTION("from a posted function, twice") {
        pool[2].post([&] {
            pool.stop();
            pool.stop();
        });
        CHECK(is_canceled(waits));
    }
    SECTION("before it begins") {
        pool.stop();
        std::atomic<int> called = 0;
        CHECK(is_canceled([&](EpollExecutor& executor, std::size_t index) {
            ++called;
            return no_work(executor, index);
        }));
        CHECK(called == 0);
    }
    CHECK(alive == 0);
    pool.run(no_work); // used up
}

TEST_CASE("ExecutorPool: it runs once at a time", "[executor_pool]") {
    ExecutorPool pool({.size = 2});
    std::atomic<int> rejected = 0;
    pool.run([&](EpollExecutor&, std::size_t) -> Task<> {
        try {
            pool.run(no_work);
        } catch (const std::logic_error&) {
            ++rejected;
        }
        co_return;
    });
    CHECK(rejected == 2);
}

TEST_CASE("ExecutorPool: an executor whose task has ended serves the others", "[executor_pool]") {
    ExecutorPool pool({.size = 3});
    std::atomic<int> ended = 0;
    std::vector<int> visited(3);
    int posted = 0;
    pool.run([&](EpollExecutor& executor, std::size_t index) -> Task<> {
        const std::thread::id home = std::this_thread::get_id();
        if (index != 1) {
            ++ended;
            co_return;
        }
        while (ended < 2) co_await executor.schedule();
        for (std::size_t i = 0; i < 3; ++i) {
            co_await pool[i].schedule();
            if (i != 1 && std::this_thread::get_id() == home) throw std::logic_error("at home");
            ++visited[i];
        }
        co_await executor.schedule();
        if (std::this_thread::get_id() != home) throw std::logic_error("not at home");
        for (int i = 0; i < 100; ++i) pool[0].post([&posted] { ++posted; });
    });
    CHECK(visited == std::vector<int>{1, 1, 1});
    CHECK(posted == 100); // before the last task ended
}

TEST_CASE("ExecutorPool: a coroutine moves between cores 100,000 times", "[executor_pool]") {
    constexpr int moves = 100000;
    const std::size_t size = GENERATE(1u, 2u, 3u);
    ExecutorPool pool({.size = size});
    std::vector<long> visits(size);
    pool.run([&](EpollExecutor&, std::size_t index) -> Task<> {
        if (index != 0) co_return;
        for (int i = 0; i < moves; ++i) {
            const std::size_t next = static_cast<std::size_t>(i) % size;
            co_await pool[next].schedule();
            ++visits[next]; // a data race if it continued on another thread
        }
        co_await pool[0].schedule();
    });
    CHECK(std::accumulate(visits.begin(), visits.end(), 0L) == moves);
}

TEST_CASE("ExecutorPool: each post from any core to any core is called once, in order",
          "[executor_pool]") {
    constexpr std::size_t size = 4;
    constexpr int posts = 5000;
    ExecutorPool pool({.size = size});
    struct alignas(64) Inbox {
        std::vector<int> last = std::vector<int>(size, -1);
        int called = 0;
        int out_of_order = 0;
    };
    std::vector<Inbox> inboxes(size);
    pool.run([&](EpollExecutor& executor, std::size_t from) -> Task<> {
        for (int i = 0; i < posts; ++i) {
            for (std::size_t to = 0; to < size; ++to) {
                pool[to].post([&inbox = inboxes[to], from, i] {
                    ++inbox.called;
                    if (inbox.last[from] != i - 1) ++inbox.out_of_order;
                    inbox.last[from] = i;
                });
            }
            if (i % 64 == 0) co_await executor.schedule();
        }
    });
    for (const Inbox& inbox : inboxes) {
        CHECK(inbox.called == posts * static_cast<int>(size));
        CHECK(inbox.out_of_order == 0);
    }
}

TEST_CASE("ExecutorPool: destroyed with posts and coroutines in its queues", "[executor_pool]") {
    std::atomic<int> alive = 0;
    bool called = false;
    {
        ExecutorPool pool({.size = 2});
        const auto post = [&](std::size_t to) {
            pool[to].post([&called, held = std::make_unique<Alive>(alive)] { called = true; });
        };
        SECTION("before any run") {
            post(0);
            post(1);
        }
        SECTION("after a run that was stopped") {
            CHECK_THROWS_AS(pool.run([&](EpollExecutor& executor, std::size_t index) -> Task<> {
                const Alive here(alive);
                if (index == 0) {
                    // Busy until the other core has queued its work here; it never runs it.
                    while (alive < 4) std::this_thread::yield();
                    pool.stop();
                    co_await executor.schedule();
                }
                post(0);
                const Alive moving(alive);
                co_await pool[0].schedule();
                called = true;
            }),
                            std::system_error);
        }
        CHECK(alive > 0);
    }
    CHECK(alive == 0);
    CHECK(!called);
}

TEST_CASE("ExecutorPool: stopped at any moment, with coroutines everywhere", "[executor_pool]") {
    constexpr std::size_t size = 3;
    ExecutorPool pool({.size = size});
    std::atomic<int> alive = 0;
    int canceled = 0;
    for (int round = 0; round < 300; ++round) {
        std::thread stopper([&, round] {
            for (int i = 0; i < round % 50; ++i) std::this_thread::yield();
            pool.stop();
        });
        try {
            pool.run([&](EpollExecutor& executor, std::size_t index) -> Task<> {
                const Alive here(alive);
                for (std::size_t i = 0; i < 200; ++i) {
                    co_await pool[(index + i) % size].schedule();
                    const Alive there(alive);
                    if (i % 5 == 0) pool[i % size].post([] {});
                    co_await executor.schedule();
                }
            });
        } catch (const std::system_error& error) {
            canceled += error.code() == std::errc::operation_canceled;
        }
        stopper.join();
        REQUIRE(alive == 0);
    }
    CHECK(canceled > 0);
}

TEST_CASE("ExecutorPool: it may be destroyed before stop() returns", "[executor_pool]") {
    for (int i = 0; i < 200; ++i) {
        auto pool = std::make_unique<ExecutorPool>(ExecutorPoolOptions{.size = 2});
        std::atomic<bool> running = false;
        std::thread stopper([&running, &stopped = *pool] {
            while (!running) std::this_thread::yield();
            stopped.stop();
        });
        CHECK_THROWS_AS(pool->run([&](EpollExecutor& executor, std::size_t index) -> Task<> {
            running = true;
            co_await forever(executor, index);
        }),
                        std::system_error);
        pool.reset();
        stopper.join();
    }
}

TEST_CASE("ExecutorPool: a post to a busy core makes no system call, a move no allocation",
          "[executor_pool]") {
    constexpr std::size_t messages = 1000;
    ExecutorPool pool({.size = 2});
    std::atomic<bool> busy = false;
    std::atomic<bool> posted = false;
    std::size_t received = 0;
    Counters posts;
    Counters moves;
    pool.run([&](EpollExecutor& executor, std::size_t index) -> Task<> {
        if (index == 1) {
            busy = true;
            while (!posted) std::this_thread::yield();
            co_return;
        }
        while (!busy) std::this_thread::yield();
        const Counters before = counters();
        for (std::size_t i = 0; i < messages; ++i) pool[1].post([&received] { ++received; });
        posts = counters() - before;
        posted = true;
        co_await executor.schedule();
        const Counters start = counters();
        for (std::size_t i = 0; i < messages; ++i) {
            co_await pool[1].schedule();
            co_await executor.schedule();
        }
        moves = counters() - start;
    });
    CHECK(received == messages);
    CHECK(posts.system_calls() == 0);
    CHECK(posts.allocations == messages);
    CHECK(moves.allocations == 0);
}
