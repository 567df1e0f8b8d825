// SPDX-License-Identifier: MIT
// AsyncCq on a real device: it loses no completion, and a wait costs the documented number of
// system calls and allocations. cmake/soft-roce/run runs it and names the device in the
// environment.
#include <asyncverbs/cq/async_cq.hpp>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/coro/when_all.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include <sys/syscall.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stop_token>
#include <system_error>
#include <vector>

#include "device/pair.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"
#include "support/system_calls.hpp"

using namespace asyncverbs;
using asyncverbs::device::Pair;
using asyncverbs::support::Coroutine;
using asyncverbs::support::counters;
using asyncverbs::support::Counters;

namespace {

Task<ibv_wc> next(AsyncCq& cq, std::stop_token stop = {}) {
    std::array<ibv_wc, 1> wcs{};
    const std::span<ibv_wc> done = co_await cq.poll(wcs, stop);
    co_return done[0];
}

// A loop whose notifier calls `before` just before it waits. A message that is sent there always
// finds its receiver asleep.
struct BeforeWaiting {
    struct Notifier {
        EpollNotifier inner;
        const std::function<void()>* before;
        auto readable(std::stop_token stop) {
            if (*before) (*before)();
            return inner.readable(std::move(stop));
        }
    };
    Notifier notifier(int fd) { return {executor.notifier(fd), &before}; }

    EpollExecutor& executor;
    std::function<void()> before;
};

} // namespace

TEST_CASE("device: a queue pair in the error state flushes its receives to the waiter") {
    EpollExecutor executor;
    Pair pair(executor);
    pair.post_recv(1);
    pair.post_recv(2);
    executor.post([&] { pair.receiver->to_error(); });
    for (std::uint64_t id = 1; id <= 2; ++id) {
        const ibv_wc wc = executor.run(next(*pair.recv_cq));
        CHECK(wc.wr_id == id);
        CHECK(wc.status == IBV_WC_WR_FLUSH_ERR);
    }
}

TEST_CASE("device: teardown in any order, with read and unread, acked and unacked events") {
    // ibv_destroy_cq waits for the acks of all read events: a wrong count hangs here.
    EpollExecutor executor;
    for (int round = 0; round < 16; ++round) {
        Pair pair(executor, {.ack_batch = 3});
        std::vector<std::uint64_t> got;
        for (std::uint64_t id = 0; id < 4; ++id) {
            pair.post_recv(id);
            executor.post([&pair, id] { pair.post_send(id); });
            const ibv_wc wc = executor.run(next(*pair.recv_cq));
            REQUIRE(wc.wr_id == id);
        }
        if (round & 1) { // leave an event unread
            const auto park = [](AsyncCq& cq) -> Coroutine { co_await next(cq); };
            Coroutine parked = park(*pair.recv_cq);
            pair.post_recv(9);
            pair.post_send(9);
            std::array<ibv_wc, 8> wcs{};
            while (pair.send_cq->try_poll(wcs).empty()) {
            }
            parked.destroy();
        }
        if (round & 2) {
            pair.sender.reset();
            pair.receiver.reset();
        }
        if (round & 4) pair.send_cq.reset();
        if (round & 8) pair.recv_cq.reset();
    }
}

TEST_CASE("device: a ready poll makes no system call and no allocation") {
    constexpr int messages = 200;
    const support::SystemCalls calls = support::count_system_calls([] {
        EpollExecutor executor;
        Pair pair(executor);
        for (std::uint64_t id = 0; id < messages; ++id) pair.post_recv(id);
        std::array<ibv_wc, 16> wcs{};
        for (std::uint64_t id = 0; id < messages; ++id) {
            pair.post_send(id);
            while (pair.send_cq->try_poll(wcs).empty()) { // a completed send was also received
            }
        }
        struct Local {
            static Task<> run(AsyncCq& cq) {
                std::array<ibv_wc, 1> one{};
                const Counters before = counters();
                support::begin_counting();
                for (int i = 0; i < messages; ++i) co_await cq.poll(one);
                support::end_counting();
                if ((counters() - before).allocations != 0) throw std::runtime_error("allocates");
            }
        };
        executor.run(Local::run(*pair.recv_cq));
    });
    CHECK(calls.empty());
}

TEST_CASE("device: a sleeping poll makes three system calls and no allocation") {
    constexpr int messages = 200;
    support::SystemCalls calls = support::count_system_calls([] {
        EpollExecutor executor;
        BeforeWaiting loop{executor, nullptr};
        Pair pair(loop);
        struct Local {
            static Task<> run(Pair<BeforeWaiting>& p) {
                std::array<ibv_wc, 1> one{};
                std::uint64_t id = 0;
                p.loop.before = [&p, &id] { p.post_send(id++, 0); };
                p.post_recv(id);
                co_await p.recv_cq->poll(one); // warm up: start the wait loop
                const Counters before = counters();
                support::begin_counting();
                for (int i = 0; i < messages; ++i) {
                    p.post_recv(id);
                    co_await p.recv_cq->poll(one);
                }
                support::end_counting();
                p.loop.before = nullptr;
                if ((counters() - before).allocations != 0) throw std::runtime_error("allocates");
                if (p.recv_cq->statistics().wakes != messages + 1) {
                    throw std::runtime_error("it did not sleep each time");
                }
            }
        };
        executor.run(Local::run(pair));
    });
    // Per message: wait, read the event, arm, and the send. libibverbs passes the last two to the
    // kernel by write or ioctl, depending on its version.
    int total = 0;
    for (const auto& [number, count] : calls) total += count;
    CHECK(calls[SYS_epoll_wait] == messages);
    CHECK(calls[SYS_read] == messages);
    CHECK(calls[SYS_write] + calls[SYS_ioctl] == 2 * messages);
    CHECK(total == 4 * messages);
}
