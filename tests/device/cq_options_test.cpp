// SPDX-License-Identifier: MIT
// The options of a CQ on a real device: busy polling, solicited completions, extended CQs, and
// features that a device may lack (timestamps, moderation).
#include <asyncverbs/cq/async_cq.hpp>

#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include <array>
#include <chrono>
#include <cstdint>
#include <span>
#include <system_error>
#include <vector>

#include "device/pair.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using asyncverbs::device::gid_index;
using asyncverbs::device::open_device;
using asyncverbs::device::Pair;
using asyncverbs::device::run_bounded;

namespace {

Task<ibv_wc> next_completion(AsyncCq& cq) {
    std::array<ibv_wc, 1> wcs{};
    const std::span<ibv_wc> done = co_await cq.poll(wcs);
    co_return done[0];
}

} // namespace

TEST_CASE("device: a CQ is never armed if busy polling finds every completion") {
    EpollExecutor executor;
    Pair pair(executor, {.busy_poll = {.limit = 10s}});
    for (std::uint64_t id = 0; id < 100; ++id) {
        pair.post_recv(id);
        pair.post_send(id);
        CHECK(run_bounded(executor, next_completion(*pair.recv_cq)).wr_id == id);
        CHECK(run_bounded(executor, next_completion(*pair.send_cq)).wr_id == id);
    }
    CHECK(pair.recv_cq->statistics().arms == 0);
    CHECK(pair.send_cq->statistics().arms == 0);
    CHECK(pair.recv_cq->statistics().completions == 100);
}

TEST_CASE("device: an unsolicited message does not wake the receiver, a solicited one does",
          "[field-9]") {
    EpollExecutor executor;
    Pair pair(executor, {.solicited_only = true});
    struct Local {
        static Task<> receive(AsyncCq& cq, std::vector<std::uint64_t>& got) {
            std::array<ibv_wc, 4> wcs{};
            for (const ibv_wc& wc : co_await cq.poll(wcs)) got.push_back(wc.wr_id);
        }
        // A send completes when its message has arrived.
        static Task<> wait_for_send(EpollExecutor& loop, AsyncCq& cq) {
            std::array<ibv_wc, 1> wcs{};
            while (cq.try_poll(wcs).empty()) co_await loop.sleep_for(1ms);
        }
        static Task<> join(Scope& scope) { co_await scope.join(); }
    };
    std::vector<std::uint64_t> got;
    Scope scope;
    scope.spawn(Local::receive(*pair.recv_cq, got));
    pair.post_recv(1);
    pair.post_recv(2);
    pair.post_send(1);
    run_bounded(executor, Local::wait_for_send(executor, *pair.send_cq));
    for (int turn = 0; turn < 10; ++turn) executor.run_once();
    CHECK(got.empty());
    pair.post_send(2, IBV_SEND_SIGNALED | IBV_SEND_SOLICITED);
    run_bounded(executor, Local::join(scope));
    CHECK(got == std::vector<std::uint64_t>{1, 2});
    CHECK(pair.recv_cq->statistics().wakes == 1);
}

TEST_CASE("device: a failed send, or max_wait, ends a wait for solicited completions") {
    EpollExecutor executor;
    RtsOptions once;
    once.retry_cnt = 1;
    once.timeout = 8;
    Pair pair(executor, {.max_wait = 20ms, .solicited_only = true}, once);
    pair.receiver.reset();
    pair.post_send(1);
    CHECK(run_bounded(executor, next_completion(*pair.send_cq)).status == IBV_WC_RETRY_EXC_ERR);
    if (pair.send_cq->statistics().events == 0) {
        WARN("errors of sends wake no solicited-only CQ of " << pair.context.name());
    }
}

TEST_CASE("device: an extended CQ delivers the same completions as an ordinary one") {
    EpollExecutor executor;
    const Context context = open_device();
    const ProtectionDomain domain(context);
    std::vector<std::byte> bytes(128);
    const MemoryRegion region(domain, bytes);
    AsyncCq cq = AsyncCq::create(CompletionQueue::extended(context, 64, 0), executor);
    std::vector<QueuePair> ends;
    for (int i = 0; i < 2; ++i) {
        ends.emplace_back(domain, cq.completion_queue(), cq.completion_queue());
        ends.back().init({.gid_index = gid_index()});
    }
    ends[0].connect(ends[1].local_address());
    ends[1].connect(ends[0].local_address());
    ibv_sge from = region.slice(0, 24).sge(), to = region.slice(64, 64).sge();
    ibv_recv_wr receive{};
    receive.wr_id = 1;
    receive.sg_list = &to;
    receive.num_sge = 1;
    ends[1].post_recv(receive);
    ibv_send_wr send{};
    send.wr_id = 2;
    send.sg_list = &from;
    send.num_sge = 1;
    send.opcode = IBV_WR_SEND_WITH_IMM;
    send.imm_data = 0x01020304;
    send.send_flags = IBV_SEND_SIGNALED;
    ends[0].post_send(send);
    struct Local {
        static Task<std::array<ibv_wc, 2>> both(AsyncCq& queue) {
            std::array<ibv_wc, 2> all{};
            for (std::size_t count = 0; count < 2;) {
                std::array<ibv_wc, 2> wcs{};
                for (const ibv_wc& wc : co_await queue.poll(wcs)) {
                    all[wc.wr_id - 1] = wc;
                    ++count;
                }
            }
            co_return all;
        }
    };
    const auto [received, sent] = run_bounded(executor, Local::both(cq));
    CHECK(received.status == IBV_WC_SUCCESS);
    CHECK(received.opcode == IBV_WC_RECV);
    CHECK(received.byte_len == 24);
    CHECK(received.imm_data == 0x01020304);
    CHECK((received.wc_flags & IBV_WC_WITH_IMM) != 0);
    CHECK(received.qp_num == ends[1].native_handle()->qp_num);
    CHECK(sent.status == IBV_WC_SUCCESS);
    CHECK(sent.opcode == IBV_WC_SEND);
    CHECK(sent.qp_num == ends[0].native_handle()->qp_num);
}

TEST_CASE("device: timestamps and moderation work, or the error names the verb") {
    const Context context = open_device();
    try {
        const CompletionQueue cq =
            CompletionQueue::extended(context, 16, IBV_WC_EX_WITH_COMPLETION_TIMESTAMP);
        CHECK(cq.wc_flags() == IBV_WC_EX_WITH_COMPLETION_TIMESTAMP);
    } catch (const std::system_error& error) {
        CHECK(error.code() == std::errc::operation_not_supported);
        CHECK_THAT(error.what(), support::contains("ibv_create_cq_ex"));
        WARN("completion timestamps: not offered by " << context.name());
    }
    try {
        CompletionQueue(context, 16).moderate(4, 10us);
    } catch (const std::system_error& error) {
        CHECK(error.code() == std::errc::operation_not_supported);
        CHECK_THAT(error.what(), support::contains("ibv_modify_cq"));
        WARN("moderation: not offered by " << context.name());
    }
}
