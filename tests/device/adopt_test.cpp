// SPDX-License-Identifier: MIT
// Objects that the program has made itself, on a real device.
#include <asyncverbs/coro/when_all.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/router.hpp>

#include <array>
#include <cstddef>
#include <cstring>
#include <optional>

#include "device/pair.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using namespace asyncverbs::device;

namespace {

// Native objects, with two queue pairs whose sends and receives complete into two queues.
struct Program {
    explicit Program(ibv_context* opened, ibv_qp_type type) : context(opened) {
        pd = ibv_alloc_pd(context);
        mr = ibv_reg_mr(pd, memory.data(), memory.size(),
                        IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
        for (std::size_t i = 0; i < 2; ++i) {
            channels[i] = ibv_create_comp_channel(context);
            cqs[i] = ibv_create_cq(context, 32, nullptr, channels[i], 0);
        }
        for (ibv_qp*& qp : qps) {
            ibv_qp_init_attr attr{};
            attr.send_cq = cqs[0];
            attr.recv_cq = cqs[1];
            attr.qp_type = type;
            attr.sq_sig_all = 1;
            attr.cap = {4, 4, 1, 1, 0};
            qp = ibv_create_qp(pd, &attr);
            REQUIRE(qp != nullptr);
        }
    }
    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;
    ~Program() {
        for (ibv_qp* const qp : qps) CHECK(ibv_destroy_qp(qp) == 0);
        for (ibv_cq* const cq : cqs) CHECK(ibv_destroy_cq(cq) == 0);
        for (ibv_comp_channel* const channel : channels) {
            CHECK(ibv_destroy_comp_channel(channel) == 0);
        }
        CHECK(ibv_dereg_mr(mr) == 0);
        CHECK(ibv_dealloc_pd(pd) == 0);
    }

    ibv_context* context;
    std::array<std::byte, 64> memory{};
    ibv_pd* pd = nullptr;
    ibv_mr* mr = nullptr;
    std::array<ibv_comp_channel*, 2> channels{};
    std::array<ibv_cq*, 2> cqs{};
    std::array<ibv_qp*, 2> qps{};
};

// The steps of UC, which QueuePair::connect() does not take.
void connect_uc(QueuePair& qp, const QueuePairAddress& remote) {
    ibv_qp_attr receive{};
    receive.qp_state = IBV_QPS_RTR;
    receive.path_mtu = IBV_MTU_1024;
    receive.ah_attr = qp.path_to(remote);
    receive.dest_qp_num = remote.qp_num;
    receive.rq_psn = remote.psn;
    constexpr int receive_mask =
        IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN;
    REQUIRE(ibv_modify_qp(qp.native_handle(), &receive, receive_mask) == 0);
    ibv_qp_attr send{};
    send.qp_state = IBV_QPS_RTS;
    send.sq_psn = qp.local_address().psn;
    REQUIRE(ibv_modify_qp(qp.native_handle(), &send, IBV_QP_STATE | IBV_QP_SQ_PSN) == 0);
}

} // namespace

TEST_CASE("device: the queues and queue pairs of a program, RC and UC", "[adopt]") {
    const Context context = open_device();
    const auto type = GENERATE(IBV_QPT_RC, IBV_QPT_UC);
    Program program(context.native_handle(), type);
    {
        EpollExecutor loop;
        const MemoryRegion region(borrow(program.mr));
        Router sends(AsyncCq::create(CompletionQueue(borrow(program.cqs[0])), loop));
        Router receives(AsyncCq::create(CompletionQueue(borrow(program.cqs[1])), loop));
        const auto adopt = [&](ibv_qp* native) {
            return AsyncQp(sends, receives,
                           QueuePair(borrow(native), sends.completion_queue(),
                                     receives.completion_queue(),
                                     {.max_send_wr = 4, .max_recv_wr = 4}));
        };
        AsyncQp a = adopt(program.qps[0]);
        AsyncQp b = adopt(program.qps[1]);
        for (AsyncQp* const end : {&a, &b}) end->queue_pair().init({.gid_index = gid_index()});
        if (type == IBV_QPT_RC) {
            a.queue_pair().connect(b.queue_pair().local_address());
            b.queue_pair().connect(a.queue_pair().local_address());
        } else {
            connect_uc(a.queue_pair(), b.queue_pair().local_address());
            connect_uc(b.queue_pair(), a.queue_pair().local_address());
        }
        std::memcpy(program.memory.data(), "hello", 5);
        const auto exchange = [&]() -> Task<> {
            Operation received = b.post_recv(region.slice(32, 8));
            // sq_sig_all: it completes although it is not signaled.
            Operation written = a.write(region.slice(0, 5), region.remote_slice().slice(16, 5),
                                        {.signaled = false});
            co_await a.send(region.slice(0, 5));
            const Completion message = co_await received;
            CHECK(message.bytes() == 5);
            CHECK(written.done());
        };
        loop.run(exchange());
        CHECK(std::memcmp(program.memory.data() + 16, "hello", 5) == 0);
        CHECK(std::memcmp(program.memory.data() + 32, "hello", 5) == 0);
        // The program goes on with the one queue pair; a receive is posted on the other.
        const Operation pending = b.post_recv(region.slice(32, 8));
        const auto drain = [&]() -> Task<> { co_await a.drain(); };
        loop.run(drain());
    }
    ibv_qp_attr attr{};
    ibv_qp_init_attr created{};
    REQUIRE(ibv_query_qp(program.qps[0], &attr, IBV_QP_STATE, &created) == 0);
    CHECK(attr.qp_state == IBV_QPS_ERR);
    REQUIRE(ibv_query_qp(program.qps[1], &attr, IBV_QP_STATE, &created) == 0);
    CHECK(attr.qp_state == IBV_QPS_RESET);
}
