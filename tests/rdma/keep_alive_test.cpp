// SPDX-License-Identifier: MIT
// A peer that vanishes while nothing is sent. The loop's time passes when the test says so.
#include <asyncverbs/rdma/keep_alive.hpp>

#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/rdma/stream.hpp>

#include <array>
#include <cerrno>
#include <chrono>
#include <coroutine>
#include <limits>
#include <list>
#include <optional>
#include <stop_token>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "rdma/fixture.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using support::Awaiting;
using support::contains;
using support::Coroutine;
using support::RouterFixture;

namespace {

using Clock = std::chrono::steady_clock;

// A loop for sleeping only. pass() ends all sleeps that have begun.
class ManualTimers {
    struct Sleep {
        bool await_ready() const { return stop.stop_requested(); }
        void await_suspend(std::coroutine_handle<> sleeper) {
            coroutine = sleeper;
            timers.sleeps_.push_back(this);
        }
        std::error_code await_resume() const {
            if (timers.error) return timers.error;
            return stop.stop_requested() ? std::make_error_code(std::errc::operation_canceled)
                                         : std::error_code();
        }
        ~Sleep() { timers.sleeps_.remove(this); }

        ManualTimers& timers;
        std::stop_token stop;
        std::coroutine_handle<> coroutine{};
    };

public:
    Sleep sleep_until(Clock::time_point, std::stop_token stop = {}) {
        return {*this, std::move(stop)};
    }

    void pass() {
        const std::list<Sleep*> ended = std::exchange(sleeps_, {});
        for (Sleep* const sleep : ended) sleep->coroutine.resume();
    }
    std::size_t sleeping() const { return sleeps_.size(); }

    std::error_code error; // the result of the sleeps that end

private:
    std::list<Sleep*> sleeps_;
};

template <class Connection, class Duration>
Coroutine watch(ManualTimers& timers, Connection& connection, Duration interval,
                std::optional<std::error_code>& result, std::stop_token stop = {}) {
    Task<std::error_code> task = keep_alive(timers, connection, interval, std::move(stop));
    result = co_await std::move(task);
}

struct KeepAliveFixture : RouterFixture {
    using RouterFixture::RouterFixture;

    template <class Duration = std::chrono::seconds>
    Coroutine start(Duration interval = 5s) {
        return watch(timers, *a, interval, result, stop.get_token());
    }
    void pass() {
        timers.pass();
        run();
    }

    ManualTimers timers;
    std::stop_source stop;
    std::optional<std::error_code> result;
};

// Two streams on connected queue pairs.
struct StreamPair {
    explicit StreamPair(RouterFixture& f) : left(make(f)), right(make(f)) {
        left->queue_pair().connect(right->queue_pair().local_address());
        right->queue_pair().connect(left->queue_pair().local_address());
    }
    static std::optional<Stream> make(RouterFixture& f) {
        const StreamOptions options{.buffer_size = 64, .buffers = 2};
        AsyncQp qp(*f.router, f.domain, Stream::queue_pair_options(options));
        qp.queue_pair().init();
        return Stream(std::move(qp), f.domain, options);
    }

    std::optional<Stream> left;
    std::optional<Stream> right;
};

Coroutine read_all(Stream& stream, std::optional<std::error_code>& failure) {
    std::array<std::byte, 16> bytes{};
    try {
        while (co_await stream.read_some(bytes) > 0) continue;
        failure.emplace();
    } catch (const std::system_error& error) {
        failure = error.code();
    }
}

} // namespace

TEST_CASE("keep_alive: an idle connection gets one empty write per interval") {
    KeepAliveFixture f;
    const Coroutine watcher = f.start();
    CHECK(f.sim.calls("ibv_post_send") == 0); // not before an interval has passed
    for (int i = 1; i <= 3; ++i) {
        f.pass(); // the sleep; the answer comes at once
        CHECK(f.sim.calls("ibv_post_send") == static_cast<std::uint64_t>(i));
        CHECK(f.timers.sleeping() == 1);
    }
    CHECK_FALSE(f.result);
    CHECK(f.sim.posted_receives(f.b->queue_pair().native_handle()) == 0);
    f.stop.request_stop();
    f.timers.pass();
    CHECK(f.result == std::make_error_code(std::errc::operation_canceled));
}

TEST_CASE("keep_alive: a peer that does not answer within an interval ends all operations") {
    KeepAliveFixture f;
    const Coroutine watcher = f.start();
    const Awaiting receive(f.a->recv(f.slice(0, 8)));
    f.sim.hold_delivery();
    f.pass();
    CHECK_FALSE(f.result);
    const Awaiting send(f.a->send(f.slice(8, 8))); // behind the empty write
    f.pass();                                      // half of the interval
    CHECK_FALSE(f.result);
    f.pass();
    CHECK(f.result == std::make_error_code(std::errc::timed_out));
    CHECK(f.sim.qp_state(f.a->queue_pair().native_handle()) == IBV_QPS_ERR);
    for (const Awaiting* awaiting : {&receive, &send}) {
        REQUIRE(awaiting->operation_error);
        CHECK(awaiting->operation_error->completion().status() == IBV_WC_WR_FLUSH_ERR);
        CHECK(awaiting->code() == make_wc_error(IBV_WC_RESP_TIMEOUT_ERR));
    }
}

TEST_CASE("keep_alive: the device gives up before") {
    KeepAliveFixture f;
    const Coroutine watcher = f.start();
    const Awaiting receive(f.a->recv(f.slice(0, 8)));
    f.sim.hold_delivery();
    f.pass();
    f.sim.time_out();
    f.run();
    CHECK(f.result == make_wc_error(IBV_WC_RETRY_EXC_ERR));
    CHECK(receive.code() == make_wc_error(IBV_WC_RETRY_EXC_ERR));
}

TEST_CASE("keep_alive: an answer at the last moment counts") {
    KeepAliveFixture f;
    const Coroutine watcher = f.start();
    f.sim.hold_delivery();
    f.pass();
    f.sim.release_delivery();
    f.timers.pass(); // before the router has looked
    f.run();
    CHECK_FALSE(f.result);
    CHECK(f.sim.qp_state(f.a->queue_pair().native_handle()) == IBV_QPS_RTS);
    CHECK(f.timers.sleeping() == 1);
}

TEST_CASE("keep_alive: nothing is added to sends that are in flight") {
    KeepAliveFixture f;
    const Coroutine watcher = f.start();
    const Awaiting send(f.a->send(f.slice(0, 8))); // the peer has no receive
    for (int i = 0; i < 3; ++i) f.pass();
    CHECK(f.sim.calls("ibv_post_send") == 1);
    CHECK_FALSE(f.result);
    const Awaiting receive(f.b->recv(f.slice(8, 8)));
    f.run();
    REQUIRE(send.completion);
    f.pass();
    CHECK(f.sim.calls("ibv_post_send") == 2);
}

TEST_CASE("keep_alive: a queue pair that is in ERR ends it") {
    KeepAliveFixture f;
    const Coroutine watcher = f.start();
    f.sim.break_qp(f.a->queue_pair().native_handle());
    f.pass();
    CHECK(f.result == make_wc_error(IBV_WC_WR_FLUSH_ERR));
}

TEST_CASE("keep_alive: a request that the device rejects ends it") {
    KeepAliveFixture f;
    const Coroutine watcher = f.start();
    f.sim.fail("ibv_post_send", {.error = ENOMEM});
    f.pass();
    CHECK(f.result.value() == std::errc::not_enough_memory);
}

TEST_CASE("keep_alive: a queue pair that cannot go to ERR is reported") {
    KeepAliveFixture f;
    const Coroutine watcher = f.start();
    f.sim.hold_delivery();
    f.pass();
    f.sim.fail("ibv_modify_qp", {.error = EIO});
    f.pass();
    f.pass();
    CHECK(f.result.value() == std::errc::io_error);
}

TEST_CASE("keep_alive: an error of the loop ends it") {
    KeepAliveFixture f;
    const Coroutine watcher = f.start();
    f.timers.error = std::make_error_code(std::errc::bad_file_descriptor);
    f.pass();
    CHECK(f.result == f.timers.error);
}

TEST_CASE("keep_alive: a stop ends it while it waits for the answer") {
    KeepAliveFixture f;
    const Coroutine watcher = f.start();
    f.sim.hold_delivery();
    f.pass();
    std::thread([&f] { f.stop.request_stop(); }).join();
    f.run();
    CHECK(f.result == std::make_error_code(std::errc::operation_canceled));
    CHECK(f.sim.qp_state(f.a->queue_pair().native_handle()) == IBV_QPS_RTS);
    f.sim.release_delivery(); // its slot and its memory stay with the device until then
}

TEST_CASE("keep_alive: destroyed while it sleeps, or waits for the answer") {
    KeepAliveFixture f;
    const bool sent = GENERATE(false, true);
    {
        Scope scope;
        scope.spawn(keep_alive(f.timers, *f.a, 5s));
        f.sim.hold_delivery();
        if (sent) f.pass();
    }
    CHECK(f.timers.sleeping() == 0);
    f.sim.release_delivery();
    f.run();
    CHECK(f.sim.calls("ibv_post_send") == (sent ? 1 : 0));
    CHECK(f.sim.qp_state(f.a->queue_pair().native_handle()) == IBV_QPS_RTS);
}

TEST_CASE("keep_alive: on iWARP it reads, because a write has no answer") {
    KeepAliveFixture f;
    const bool iwarp = GENERATE(false, true);
    if (iwarp) f.context.native_handle()->device->transport_type = IBV_TRANSPORT_IWARP;
    const Coroutine watcher = f.start();
    f.sim.hold_delivery();
    f.pass();
    const std::vector<RequestInFlight> requests = f.router->in_flight();
    REQUIRE(requests.size() == 1);
    CHECK(requests.front().opcode == (iwarp ? IBV_WC_RDMA_READ : IBV_WC_RDMA_WRITE));
    f.sim.release_delivery();
    f.run();
    CHECK(f.timers.sleeping() == 1);
    CHECK_FALSE(f.result);
}

TEST_CASE("keep_alive: bad arguments") {
    KeepAliveFixture f;
    const auto refused = contains("keep_alive: the interval must be longer than zero");
    CHECK_THROWS_WITH(keep_alive(f.timers, *f.a, 0s), refused);
    CHECK_THROWS_WITH(keep_alive(f.timers, *f.a, -1ns), refused);
    const auto nan = std::numeric_limits<double>::quiet_NaN();
    CHECK_THROWS_WITH(keep_alive(f.timers, *f.a, std::chrono::duration<double>(nan)), refused);
    AsyncQp datagrams(*f.router, f.domain, {.type = IBV_QPT_UD});
    CHECK_THROWS_WITH(keep_alive(f.timers, datagrams, 1s), contains("must be RC"));
    AsyncQp no_sends(*f.router, f.domain, {.max_send_wr = 0});
    no_sends.queue_pair().init();
    Task<std::error_code> task = keep_alive(f.timers, no_sends, 1s);
    std::optional<std::error_code> error;
    const auto run = [&]() -> Coroutine {
        try {
            co_await std::move(task);
        } catch (const std::system_error& failure) {
            error = failure.code();
        }
    };
    const Coroutine coroutine = run();
    f.pass();
    CHECK(error == std::make_error_code(std::errc::invalid_argument));
}

TEST_CASE("keep_alive: a stream whose peer does not answer fails") {
    KeepAliveFixture f;
    StreamPair streams(f);
    f.run();
    const Coroutine watcher = watch(f.timers, *streams.left, 5s, f.result);
    std::optional<std::error_code> failure;
    const Coroutine reader = read_all(*streams.left, failure);
    const Coroutine other = read_all(*streams.right, failure);
    f.run();
    f.pass();
    CHECK_FALSE(failure);
    Stream moved = std::move(*streams.left); // is watched on
    f.sim.hold_delivery();
    for (int i = 0; i < 3; ++i) f.pass();
    CHECK(f.result == std::make_error_code(std::errc::timed_out));
    CHECK(failure == make_wc_error(IBV_WC_RESP_TIMEOUT_ERR));
    f.sim.release_delivery();
}

TEST_CASE("keep_alive: a stream that was destroyed ends it without an error") {
    KeepAliveFixture f;
    StreamPair streams(f);
    f.run();
    const Coroutine watcher = watch(f.timers, *streams.left, 5s, f.result);
    const bool sent = GENERATE(false, true);
    f.sim.hold_delivery();
    if (sent) f.pass();
    streams.left.reset();
    f.pass();
    CHECK(f.result == std::error_code());
    f.sim.release_delivery();
}

TEST_CASE("keep_alive: without memory it throws, and the connection stays", "[no_memory]") {
    for (std::size_t n = 0;; ++n) {
        KeepAliveFixture f;
        CAPTURE(n);
        bool threw = false;
        const auto run = [&]() -> Coroutine {
            try {
                f.result = co_await keep_alive(f.timers, *f.a, 5s);
            } catch (const std::bad_alloc&) {
                threw = true;
            }
        };
        const Coroutine watcher = run();
        support::fail_allocation(n);
        f.timers.pass();
        const bool failed = support::stop_failing();
        f.run();
        CHECK(threw == failed);
        CHECK(f.sim.qp_state(f.a->queue_pair().native_handle()) == IBV_QPS_RTS);
        CHECK_FALSE(f.result);
        if (!failed) break;
    }
}
