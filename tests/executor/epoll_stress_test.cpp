// SPDX-License-Identifier: MIT
// Threads that post to, stop and interrupt a running executor. To be run with the thread sanitizer;
// every wait must end exactly once. Posts and coroutines between executors: executor_pool_test.cpp.
#include <asyncverbs/executor/epoll_executor.hpp>

#include <atomic>
#include <cstddef>
#include <stdexcept>
#include <stop_token>
#include <system_error>
#include <thread>
#include <vector>

#include <asyncverbs/coro/sync_wait.hpp>

#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/pipe.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using asyncverbs::support::Coroutine;
using asyncverbs::support::Pipe;

TEST_CASE("stress: posts to an embedded executor are never missed", "[epoll_stress]") {
    constexpr int posts = 3000;
    EpollExecutor outer;
    EpollExecutor embedded;
    int called = 0;
    std::thread poster([&] {
        for (int i = 0; i < posts; ++i) {
            embedded.post([&] { ++called; });
            if (i % 16 == 0) std::this_thread::yield();
        }
    });
    const auto body = [&]() -> Task<> {
        EpollNotifier notifier = outer.notifier(embedded.native_handle());
        while (called < posts) {
            co_await notifier.readable();
            embedded.run_once();
        }
    };
    outer.run(body());
    poster.join();
    CHECK(called == posts);
}

namespace {

// Stops one source after the other on another thread, each as soon as its round has begun.
class Stopper {
public:
    explicit Stopper(std::size_t count) : stops_(count), thread_([this] { run(); }) {}
    ~Stopper() {
        begun_ = stops_.size();
        thread_.join();
    }

    std::stop_token begin(std::size_t round) {
        begun_ = round + 1;
        return stops_[round].get_token();
    }

private:
    void run() {
        for (std::size_t done = 0; done < stops_.size();) {
            const std::size_t begun = begun_;
            if (done == begun) std::this_thread::yield();
            for (; done < begun; ++done) stops_[done].request_stop();
        }
    }

    std::vector<std::stop_source> stops_;
    std::atomic<std::size_t> begun_{0};
    std::thread thread_;
};

} // namespace

TEST_CASE("stress: a stop request races with readiness and time", "[epoll_stress]") {
    constexpr std::size_t rounds = 6000;
    EpollExecutor executor;
    Pipe pipe;
    EpollNotifier notifier = executor.notifier(pipe.reader());
    Stopper stopper(rounds);
    std::size_t ended = 0;
    const auto body = [&]() -> Task<> {
        for (std::size_t i = 0; i < rounds; ++i) {
            const auto time = std::chrono::microseconds(i % 40);
            const std::stop_token stop = stopper.begin(i);
            std::error_code error;
            if (i % 3 == 0) {
                pipe.put();
                error = co_await notifier.readable(stop);
                pipe.take();
            } else if (i % 3 == 1) {
                error = co_await notifier.readable(stop, time);
            } else {
                error = co_await executor.sleep_for(time, stop);
            }
            if (!error || error == std::errc::operation_canceled || error == std::errc::timed_out) {
                ++ended;
            }
        }
    };
    executor.run(body());
    CHECK(ended == rounds);
}

TEST_CASE("stress: a coroutine is destroyed while another thread stops it", "[epoll_stress]") {
    constexpr std::size_t rounds = 3000;
    EpollExecutor executor;
    Pipe pipe;
    EpollNotifier notifier = executor.notifier(pipe.reader());
    Stopper stopper(rounds);
    int resumed = 0;
    const auto waits = [&](std::stop_token stop) -> Coroutine {
        co_await notifier.readable(stop, 1h);
        ++resumed;
    };
    const auto body = [&]() -> Task<> {
        for (std::size_t i = 0; i < rounds; ++i) {
            Coroutine waiter = waits(stopper.begin(i));
            if (i % 2 == 0) co_await executor.schedule();
            const int before = resumed;
            waiter.destroy();
            co_await executor.schedule();
            if (resumed != before) throw std::logic_error("resumed after it was destroyed");
        }
    };
    executor.run(body());
}

TEST_CASE("stress: stop from another thread ends every run", "[epoll_stress]") {
    EpollExecutor executor;
    std::atomic<int> begun{0};
    std::atomic<int> ended{0};
    constexpr int rounds = 2000;
    std::thread stopper([&] {
        for (int i = 1; i <= rounds; ++i) {
            while (begun < i) std::this_thread::yield();
            executor.stop();
            while (ended < i) std::this_thread::yield();
        }
    });
    for (int i = 1; i <= rounds; ++i) {
        begun = i;
        executor.run();
        ended = i;
    }
    stopper.join();
    CHECK(ended == rounds);
}

TEST_CASE(
    "stress: the executor may be destroyed while another thread still stops it or posts to it",
    "[epoll_stress]") {
    for (int i = 0; i < 300; ++i) {
        std::thread thread;
        {
            EpollExecutor executor;
            thread = std::thread([&executor, i] {
                if (i % 2 == 0) {
                    executor.stop();
                } else {
                    executor.post([&executor] { executor.stop(); });
                }
            });
            executor.run();
        }
        thread.join();
    }
}

TEST_CASE("stress: the executor may be destroyed before schedule() returns on another thread",
          "[epoll_stress]") {
    for (int i = 0; i < 300; ++i) {
        std::thread thread;
        {
            EpollExecutor executor;
            const auto body = [&executor]() -> Task<> {
                co_await executor.schedule();
                executor.stop();
            };
            thread = std::thread([&body] { sync_wait(body()); });
            executor.run();
        }
        thread.join();
    }
}
