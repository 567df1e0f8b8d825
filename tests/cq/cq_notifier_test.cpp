// SPDX-License-Identifier: MIT
// Types that are and are not notifiers, and the model from the concept's documentation, on a loop
// over poll(2).
#include <asyncverbs/cq/cq_notifier.hpp>

#include <poll.h>

#include <algorithm>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/pipe.hpp"

using namespace asyncverbs;
using asyncverbs::support::Coroutine;
using asyncverbs::support::Pipe;

namespace {

template <class Result>
struct Awaiter {
    bool await_ready() const;
    void await_suspend(std::coroutine_handle<>) const;
    Result await_resume() const;
    Awaiter(Awaiter&&) = delete;
};

template <class Readable>
struct Returns {
    Readable readable(std::stop_token stop);
};
using Plain = Returns<Awaiter<std::error_code>>;

struct ByReference {
    Awaiter<std::error_code>& readable(const std::stop_token& stop);
};
struct DefaultArguments {
    Task<std::error_code> readable(std::stop_token stop = {}, int flags = 0);
};
struct Template {
    template <class Token>
    Task<std::error_code> readable(Token stop);
};
struct Optional : Plain {
    using Plain::readable;
    Task<std::error_code> readable(std::stop_token stop, std::chrono::nanoseconds max_wait);
};
struct CoarserTime : Plain {
    using Plain::readable;
    Task<std::error_code> readable(std::stop_token stop, std::chrono::duration<double> max_wait);
};

static_assert(CqNotifier<Plain>);
static_assert(CqNotifier<Returns<Task<std::error_code>>>);
static_assert(CqNotifier<Returns<Awaiter<const std::error_code&>>>);
static_assert(CqNotifier<ByReference> && CqNotifier<DefaultArguments> && CqNotifier<Template>);
static_assert(CqNotifier<EpollNotifier>);

struct NoToken {
    Task<std::error_code> readable();
};
struct Const {
    Task<std::error_code> readable(std::stop_token stop) const;
};
struct RvalueOnly {
    Task<std::error_code> readable(std::stop_token stop) &&;
};
class Private {
    Task<std::error_code> readable(std::stop_token stop);
};

static_assert(CqNotifier<Const> && CqNotifier<const Const>);
static_assert(!CqNotifier<const Plain>);
static_assert(!CqNotifier<int>);
static_assert(!CqNotifier<NoToken> && !CqNotifier<RvalueOnly> && !CqNotifier<Private>);
static_assert(!CqNotifier<Returns<void>> && !CqNotifier<Returns<std::error_code>>);
static_assert(!CqNotifier<Returns<Awaiter<void>>> && !CqNotifier<Returns<Awaiter<bool>>>);
static_assert(!CqNotifier<Returns<Awaiter<int>>> && !CqNotifier<Returns<Awaiter<std::errc>>>);

static_assert(TimedCqNotifier<Optional> && TimedCqNotifier<CoarserTime>);
static_assert(TimedCqNotifier<EpollNotifier>);
static_assert(!TimedCqNotifier<Plain>);
static_assert(!TimedCqNotifier<DefaultArguments>, "the second argument is a duration");

// The loop that the documentation describes, over poll(2).
class MyLoop {
public:
    void watch(int fd, std::coroutine_handle<> waiting) { watched_.push_back({fd, waiting}); }
    void unwatch(std::coroutine_handle<> waiting) {
        std::erase_if(watched_, [&](const Watch& watch) { return watch.waiting == waiting; });
    }
    void wake(std::coroutine_handle<> waiting) {
        const std::lock_guard lock(mutex_);
        woken_.push_back(waiting);
        interrupt_.put();
    }
    void run_once() {
        std::vector<pollfd> fds{{interrupt_.reader(), POLLIN, 0}};
        for (const Watch& watch : watched_) fds.push_back({watch.fd, POLLIN, 0});
        REQUIRE(::poll(fds.data(), fds.size(), 5000) > 0);
        std::vector<std::coroutine_handle<>> ready;
        while (interrupt_.take()) {
            const std::lock_guard lock(mutex_);
            ready.insert(ready.end(), woken_.begin(), woken_.end());
            woken_.clear();
        }
        for (std::size_t i = 1; i < fds.size(); ++i) {
            if (fds[i].revents != 0) ready.push_back(watched_[i - 1].waiting);
        }
        for (const std::coroutine_handle<> waiting : ready) {
            const bool is_watched =
                std::any_of(watched_.begin(), watched_.end(),
                            [&](const Watch& watch) { return watch.waiting == waiting; });
            if (!is_watched) continue;
            unwatch(waiting);
            waiting.resume();
        }
    }
    bool idle() const { return watched_.empty(); }

private:
    struct Watch {
        int fd;
        std::coroutine_handle<> waiting;
    };
    std::vector<Watch> watched_;
    std::mutex mutex_;
    std::vector<std::coroutine_handle<>> woken_;
    Pipe interrupt_;
};

class MyNotifier {
public:
    MyNotifier(MyLoop& loop, int fd) : loop_(&loop), fd_(fd) {}

    struct Readable {
        struct Wake {
            Readable& self;
            void operator()() const { self.loop.wake(self.waiting); }
        };
        Readable(MyLoop& l, int f, std::stop_token st) : loop(l), fd(f), stop(st) {}
        ~Readable() {
            on_stop.reset();
            if (waiting) loop.unwatch(waiting);
        }
        bool await_ready() const { return stop.stop_requested(); }
        void await_suspend(std::coroutine_handle<> coroutine) {
            waiting = coroutine;
            loop.watch(fd, waiting);
            on_stop.emplace(stop, Wake{*this});
        }
        std::error_code await_resume() const {
            if (!stop.stop_requested()) return {};
            return std::make_error_code(std::errc::operation_canceled);
        }
        MyLoop& loop;
        int fd;
        std::stop_token stop;
        std::coroutine_handle<> waiting;
        std::optional<std::stop_callback<Wake>> on_stop;
    };
    Readable readable(std::stop_token stop) { return {*loop_, fd_, stop}; }

private:
    MyLoop* loop_;
    int fd_;
};
static_assert(CqNotifier<MyNotifier>);

template <CqNotifier N>
Coroutine wait_once(N& notifier, std::stop_token stop, std::optional<std::error_code>& result) {
    result = co_await notifier.readable(stop);
}

} // namespace

TEST_CASE("CqNotifier: the documented model waits, stops and cancels", "[cq_notifier]") {
    detail::check_cq_notifier<MyNotifier>();
    MyLoop loop;
    Pipe pipe;
    MyNotifier notifier(loop, pipe.reader());
    std::stop_source stop;
    std::optional<std::error_code> result;

    SECTION("readable") {
        const Coroutine waiter = wait_once(notifier, stop.get_token(), result);
        CHECK(!result);
        pipe.put();
        loop.run_once();
        CHECK(result == std::error_code());
    }
    SECTION("stopped before") {
        stop.request_stop();
        const Coroutine waiter = wait_once(notifier, stop.get_token(), result);
        CHECK(result == std::errc::operation_canceled);
    }
    SECTION("stopped by another thread") {
        const Coroutine waiter = wait_once(notifier, stop.get_token(), result);
        std::thread([&] { stop.request_stop(); }).join();
        CHECK(!result);
        loop.run_once();
        CHECK(result == std::errc::operation_canceled);
    }
    SECTION("destroyed while it waits, readable and stopped at the same time") {
        Coroutine waiter = wait_once(notifier, stop.get_token(), result);
        pipe.put();
        stop.request_stop();
        waiter.destroy();
        loop.run_once();
        CHECK(!result);
    }
    CHECK(loop.idle());
}
