// SPDX-License-Identifier: MIT
// The owners of verbs/ on a real device, where only a device shows the answer: what it grants, what
// it rejects, and with which errors. async_qp_test.cpp moves data in every way.
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <system_error>
#include <vector>

#include "device/pair.hpp"
#include "support/catch.hpp"
#include "verbs/failure.hpp"

using namespace asyncverbs;
using device::open_device;
using device::Pair;
using support::failure_text;

TEST_CASE("device: a queue pair in RESET cannot move to ERR", "[verbs]") {
    const Context context = open_device();
    const ProtectionDomain domain(context);
    const CompletionQueue cq(context, 64);
    QueuePair qp(domain, cq, cq);
    CHECK(qp.state() == IBV_QPS_RESET);
    std::error_code error;
    qp.to_error(error);
    CHECK(error == std::errc::invalid_argument);
    CHECK(qp.state() == IBV_QPS_RESET);
}

TEST_CASE("device: posting to a full send queue returns an error code", "[verbs]") {
    EpollExecutor executor;
    Pair pair(executor); // no receive is posted, so sends stay in the queue
    ibv_sge sge = pair.region.slice(0, 8).sge();
    ibv_send_wr send{};
    send.sg_list = &sge;
    send.num_sge = 1;
    send.opcode = IBV_WR_SEND;
    send.send_flags = IBV_SEND_SIGNALED;
    std::error_code error;
    std::uint32_t posted = 0;
    while (pair.sender->post_send(send, error) == nullptr && posted < 4 * pair.depth) {
        ++posted;
    }
    CHECK(error == std::errc::not_enough_memory);
    // Do not check "at most granted()": soft-RoCE accepts more than it grants.
    CHECK(posted >= pair.depth);
    CHECK(posted < 4 * pair.depth);
}

TEST_CASE("device: the address is the one that the environment names", "[verbs]") {
    EpollExecutor executor;
    const Pair pair(executor);
    if (const auto index = device::gid_index()) {
        CHECK(select_gid(pair.context, pair.context.active_port()) == *index);
    }
    if (const char* const address = std::getenv("RDMA_ADDRESS")) {
        CHECK(gid_text(pair.sender->local_address().gid) == "::ffff:" + std::string(address));
    }
    CHECK(pair.sender->local_address().qp_num != pair.receiver->local_address().qp_num);
    CHECK(Context::open().active_port() >= 1);
}

TEST_CASE("device: it grants at least the requested sizes", "[verbs]") {
    const Context context = open_device();
    const ProtectionDomain domain(context);
    for (int depth : {1, 2, 31, 32, 33, 100}) {
        const CompletionQueue cq(context, depth);
        CHECK(cq.depth() >= depth);
        // The sum of the requested work requests is enough depth, even if the device grants more.
        const auto sends = static_cast<std::uint32_t>(depth) / 2;
        const QueuePairOptions options{.max_send_wr = sends,
                                       .max_recv_wr = static_cast<std::uint32_t>(depth) - sends};
        const QueuePair qp(domain, cq, cq, options);
        CHECK(qp.granted().max_send_wr >= options.max_send_wr);
        CHECK(qp.granted().max_recv_wr >= options.max_recv_wr);
        CHECK(cq.reserved() == depth);
    }
    CHECK(CompletionQueue(context, context.query_device().max_cqe).depth() > 0);
}

TEST_CASE("device: soft-RoCE cannot register a dma-buf, and says so", "[verbs]") {
    const ProtectionDomain domain(open_device());
    CHECK(failure_text(std::errc::operation_not_supported, [&] {
              (void)MemoryRegion::dmabuf(domain, 0, 0, 4096, 4096);
          }).starts_with("ibv_reg_dmabuf_mr"));
}

TEST_CASE("device: memory that cannot be registered is reported", "[verbs]") {
    const ProtectionDomain domain(open_device());
    std::vector<std::byte> memory(64);
    CHECK(failure_text(std::errc::invalid_argument, [&] {
              MemoryRegion region(domain, memory, IBV_ACCESS_REMOTE_WRITE);
          }) == "ibv_reg_mr: Invalid argument");
    const std::span<std::byte> nowhere(reinterpret_cast<std::byte*>(4096), 4096);
    CHECK(failure_text(std::errc::bad_address, [&] { MemoryRegion region(domain, nowhere); }) ==
          "ibv_reg_mr: Bad address");
}
