// SPDX-License-Identifier: MIT
// Sends to a receiver that has posted no receive yet, posts too few, or never posts any.
#include <asyncverbs/cq/async_cq.hpp>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/coro/when_all.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include <array>
#include <chrono>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "device/pair.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using asyncverbs::device::Pair;
using asyncverbs::device::run_bounded;

namespace {

Task<std::vector<ibv_wc>> next(AsyncCq& cq, std::size_t count) {
    std::vector<ibv_wc> all;
    std::array<ibv_wc, 1> wcs{};
    while (all.size() < count) {
        co_await cq.poll(wcs);
        all.push_back(wcs[0]);
    }
    co_return all;
}

Task<> receive_slowly(Pair<>& pair, std::uint64_t messages, std::uint64_t posted) {
    std::array<ibv_wc, 1> wcs{};
    for (std::uint64_t id = 0; id < messages; ++id) {
        co_await pair.recv_cq->poll(wcs);
        if (wcs[0].status != IBV_WC_SUCCESS || wcs[0].wr_id != id || pair.received(id) != id) {
            throw std::runtime_error("receive " + std::to_string(id) + " is wrong");
        }
        if (id % 8 == 0) co_await pair.loop.sleep_for(2ms);
        pair.post_recv(posted++);
    }
}

Task<> send_in_bursts(Pair<>& pair, std::uint64_t messages, std::uint64_t burst) {
    std::array<ibv_wc, 16> wcs{};
    std::uint64_t posted = 0;
    for (std::uint64_t sent = 0; sent < messages;) {
        while (posted < messages && posted - sent < burst) pair.post_send(posted++);
        const std::span<ibv_wc> got = co_await pair.send_cq->poll(wcs);
        for (const ibv_wc& wc : got) {
            if (wc.status != IBV_WC_SUCCESS || wc.wr_id != sent++) {
                throw std::runtime_error("send " + std::to_string(wc.wr_id) + " is wrong");
            }
        }
    }
}

} // namespace

TEST_CASE("device: a send with limited retries fails if the receiver is not ready") {
    const std::uint8_t retries = GENERATE(as<std::uint8_t>(), 0, 2);
    CAPTURE(static_cast<int>(retries));
    EpollExecutor executor;
    Pair pair(executor, {}, {.rnr_retry = retries});
    executor.post([&] {
        for (std::uint64_t id = 0; id < 3; ++id) pair.post_send(id);
    });
    const std::vector<ibv_wc> wcs = run_bounded(executor, next(*pair.send_cq, 3));
    CHECK(wcs[0].status == IBV_WC_RNR_RETRY_EXC_ERR);
    for (std::size_t id = 0; id < wcs.size(); ++id) {
        CHECK(wcs[id].wr_id == id);
        if (id > 0) CHECK(wcs[id].status == IBV_WC_WR_FLUSH_ERR);
    }
    std::array<ibv_wc, 1> more{};
    CHECK(pair.send_cq->try_poll(more).empty());
}

TEST_CASE("device: a send with unlimited retries waits until the receiver is ready") {
    EpollExecutor executor;
    Pair pair(executor, {}, {.rnr_retry = 7});
    const auto send = [](Pair<>& p, bool& sent) -> Task<> {
        p.post_send(1);
        const std::vector<ibv_wc> wcs = co_await next(*p.send_cq, 1);
        sent = true;
        CHECK(wcs[0].status == IBV_WC_SUCCESS);
    };
    const auto receive = [](Pair<>& p, const bool& sent) -> Task<> {
        co_await p.loop.sleep_for(50ms); // far longer than seven RNR timeouts
        CHECK_FALSE(sent);
        p.post_recv(1);
        co_await next(*p.recv_cq, 1);
        CHECK(p.received(1) == 1);
    };
    bool sent = false;
    run_bounded(executor, when_all(send(pair, sent), receive(pair, sent)));
    CHECK(sent);
}

TEST_CASE("device: a slow receiver loses no message of a burst") {
    constexpr std::uint64_t messages = 2000;
    constexpr std::uint64_t receives = 4;
    EpollExecutor executor;
    Pair pair(executor, {}, {.rnr_retry = 7});
    for (std::uint64_t id = 0; id < receives; ++id) pair.post_recv(id);
    run_bounded(executor, when_all(receive_slowly(pair, messages, receives),
                                   send_in_bursts(pair, messages, 64)));
    std::array<ibv_wc, 1> more{};
    CHECK(pair.send_cq->try_poll(more).empty());
    CHECK(pair.recv_cq->try_poll(more).empty());
}
