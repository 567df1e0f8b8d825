// SPDX-License-Identifier: MIT
//
// The simulated queue pairs: the state machine, posting, and what moves between them with the
// completions, errors and flushes that follow.
#include "support/simulated_verbs_fixture.hpp"

#include <cstring>
#include <string>
#include <string_view>

using namespace asyncverbs::simulated;
using asyncverbs::support::contains;

namespace {

constexpr int all_access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE |
                           IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC;
constexpr int init_mask =
    IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
constexpr int rtr_mask = IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
                         IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
constexpr int rts_mask = IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                         IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC;

ibv_qp_attr init_attr() {
    ibv_qp_attr attr{};
    attr.qp_state = IBV_QPS_INIT;
    attr.port_num = 1;
    attr.qp_access_flags = all_access;
    return attr;
}

ibv_qp_attr rtr_attr(std::uint32_t dest_qp_num) {
    ibv_qp_attr attr{};
    attr.qp_state = IBV_QPS_RTR;
    attr.path_mtu = IBV_MTU_1024;
    attr.dest_qp_num = dest_qp_num;
    attr.max_dest_rd_atomic = 1;
    attr.min_rnr_timer = 12;
    attr.ah_attr.is_global = 1;
    attr.ah_attr.port_num = 1;
    attr.ah_attr.grh.sgid_index = 1;
    attr.ah_attr.grh.dgid = ipv4_gid(10, 7, 0, 1);
    return attr;
}

ibv_qp_attr rts_attr(std::uint8_t rnr_retry) {
    ibv_qp_attr attr{};
    attr.qp_state = IBV_QPS_RTS;
    attr.timeout = 14;
    attr.retry_cnt = 7;
    attr.rnr_retry = rnr_retry;
    attr.max_rd_atomic = 1;
    return attr;
}

// One end: completion queues of its own, 4 sends and 4 receives, 256 bytes registered.
struct End {
    End(ibv_pd* pd, ibv_qp_type type = IBV_QPT_RC, ibv_srq* srq = nullptr) {
        send_cq = ibv_create_cq(pd->context, 16, nullptr, nullptr, 0);
        recv_cq = ibv_create_cq(pd->context, 16, nullptr, nullptr, 0);
        ibv_qp_init_attr attr{};
        attr.send_cq = send_cq;
        attr.recv_cq = recv_cq;
        attr.srq = srq;
        attr.qp_type = type;
        attr.cap = {4, 4, 2, 2, 64};
        qp = ibv_create_qp(pd, &attr);
        REQUIRE(qp != nullptr);
        mr = ibv_reg_mr(pd, memory.data(), memory.size(), all_access);
    }
    ~End() {
        destroy_qp();
        CHECK(ibv_dereg_mr(mr) == 0);
        CHECK(ibv_destroy_cq(send_cq) == 0);
        CHECK(ibv_destroy_cq(recv_cq) == 0);
    }
    End(const End&) = delete;
    End& operator=(const End&) = delete;

    void destroy_qp() {
        if (qp != nullptr) {
            CHECK(ibv_destroy_qp(qp) == 0);
            qp = nullptr;
        }
    }

    void init() {
        ibv_qp_attr attr = init_attr();
        REQUIRE(ibv_modify_qp(qp, &attr, init_mask) == 0);
    }
    void ready_to_receive(std::uint32_t dest_qp_num) {
        ibv_qp_attr attr = rtr_attr(dest_qp_num);
        REQUIRE(ibv_modify_qp(qp, &attr, rtr_mask) == 0);
    }
    void ready_to_send(std::uint8_t rnr_retry = 7) {
        ibv_qp_attr attr = rts_attr(rnr_retry);
        REQUIRE(ibv_modify_qp(qp, &attr, rts_mask) == 0);
    }
    void to(ibv_qp_state state) {
        ibv_qp_attr attr{};
        attr.qp_state = state;
        REQUIRE(ibv_modify_qp(qp, &attr, IBV_QP_STATE) == 0);
    }

    void write(std::string_view text, std::size_t at = 0) {
        text.copy(memory.data() + at, text.size());
    }
    std::string_view read(std::size_t length, std::size_t at = 0) const {
        return {memory.data() + at, length};
    }

    ibv_sge sge(std::uint32_t length, std::size_t at = 0) const {
        return {reinterpret_cast<std::uintptr_t>(memory.data()) + at, length, mr->lkey};
    }

    int post_recv(std::uint64_t wr_id, ibv_sge sge) {
        ibv_recv_wr wr{};
        wr.wr_id = wr_id;
        wr.sg_list = &sge;
        wr.num_sge = 1;
        ibv_recv_wr* bad = nullptr;
        const int error = ibv_post_recv(qp, &wr, &bad);
        CHECK((error == 0 || bad == &wr));
        return error;
    }

    static ibv_send_wr request(std::uint64_t wr_id, ibv_wr_opcode opcode = IBV_WR_SEND) {
        ibv_send_wr wr{};
        wr.wr_id = wr_id;
        wr.opcode = opcode;
        wr.send_flags = IBV_SEND_SIGNALED;
        return wr;
    }

    int post(ibv_send_wr wr, ibv_sge sge) {
        wr.sg_list = &sge;
        wr.num_sge = 1;
        ibv_send_wr* bad = nullptr;
        const int error = ibv_post_send(qp, &wr, &bad);
        CHECK((error == 0 || bad == &wr));
        return error;
    }
    int post_send(std::uint64_t wr_id, ibv_sge sge) { return post(request(wr_id), sge); }

    // The one completion that is there.
    static ibv_wc one(ibv_cq* cq) {
        std::array<ibv_wc, 2> wcs{};
        REQUIRE(ibv_poll_cq(cq, 2, wcs.data()) == 1);
        return wcs[0];
    }
    ibv_wc sent() { return one(send_cq); }
    ibv_wc received() { return one(recv_cq); }
    bool nothing() {
        ibv_wc wc;
        return ibv_poll_cq(send_cq, 1, &wc) == 0 && ibv_poll_cq(recv_cq, 1, &wc) == 0;
    }
    // The statuses of everything in a queue.
    static std::vector<ibv_wc_status> statuses(ibv_cq* cq) {
        std::vector<ibv_wc_status> all;
        ibv_wc wc;
        while (ibv_poll_cq(cq, 1, &wc) == 1) {
            all.push_back(wc.status);
        }
        return all;
    }

    std::array<char, 256> memory{};
    ibv_cq* send_cq = nullptr;
    ibv_cq* recv_cq = nullptr;
    ibv_qp* qp = nullptr;
    ibv_mr* mr = nullptr;
};

struct Domain : OpenDevice {
    explicit Domain(const ProviderModel& provider = rxe)
        : OpenDevice(provider), pd(ibv_alloc_pd(context)) {}
    ~Domain() { CHECK(ibv_dealloc_pd(pd) == 0); }
    ibv_pd* pd;
};

// Two ends, connected.
struct Pair {
    explicit Pair(const ProviderModel& provider = rxe, std::uint8_t rnr_retry = 7)
        : domain(provider), a(domain.pd), b(domain.pd) {
        a.init();
        b.init();
        a.ready_to_receive(b.qp->qp_num);
        b.ready_to_receive(a.qp->qp_num);
        a.ready_to_send(rnr_retry);
        b.ready_to_send(rnr_retry);
    }

    // What a device does besides completing: the event, acknowledged.
    ibv_event_type async_event() {
        ibv_async_event event{};
        REQUIRE(ibv_get_async_event(domain.context, &event) == 0);
        ibv_ack_async_event(&event);
        return event.event_type;
    }

    Domain domain;
    SimulatedVerbs& sim = domain.sim;
    End a;
    End b;
};

std::vector<ibv_wc_status> flushed(std::size_t count) {
    return std::vector<ibv_wc_status>(count, IBV_WC_WR_FLUSH_ERR);
}

}  // namespace

TEST_CASE("simulated queue pair: creation keeps to the limits", "[simulated]") {
    Domain domain;
    End end(domain.pd);
    CHECK(end.qp->state == IBV_QPS_RESET);
    ibv_qp_init_attr attr{};
    attr.send_cq = end.send_cq;
    attr.recv_cq = end.recv_cq;
    attr.qp_type = IBV_QPT_RC;
    attr.cap = {1, 1, 33, 1, 0};
    CHECK(ibv_create_qp(domain.pd, &attr) == nullptr);
    CHECK(errno == EINVAL);
    attr.cap = {(1u << 14) + 1, 1, 1, 1, 0};
    CHECK(ibv_create_qp(domain.pd, &attr) == nullptr);
    attr.cap = {1, 1, 1, 1, 257};
    CHECK(ibv_create_qp(domain.pd, &attr) == nullptr);
    attr.cap = {1, 1, 1, 1, 0};
    attr.qp_type = IBV_QPT_UC;
    CHECK(ibv_create_qp(domain.pd, &attr) == nullptr);
    CHECK(errno == EOPNOTSUPP);

    CHECK(ibv_destroy_cq(end.send_cq) == EBUSY);
    const std::vector<std::string> problems = domain.sim.take_problems();
    REQUIRE(problems.size() == 1);
    CHECK_THAT(problems[0], contains("completion queue 1 is needed by 1"));
}

TEST_CASE("simulated queue pair: the states, in order, with their attributes", "[simulated]") {
    Domain domain;
    End end(domain.pd);
    ibv_qp_attr rtr = rtr_attr(99);
    CHECK(ibv_modify_qp(end.qp, &rtr, rtr_mask) == EINVAL);  // not from RESET
    ibv_qp_attr error{};
    error.qp_state = IBV_QPS_ERR;
    CHECK(ibv_modify_qp(end.qp, &error, IBV_QP_STATE) == EINVAL);  // nor that
    ibv_qp_attr init = init_attr();
    CHECK(ibv_modify_qp(end.qp, &init, init_mask & ~IBV_QP_PORT) == EINVAL);
    CHECK(ibv_modify_qp(end.qp, &init, init_mask | IBV_QP_QKEY) == EINVAL);
    init.port_num = 2;
    CHECK(ibv_modify_qp(end.qp, &init, init_mask) == EINVAL);
    end.init();
    CHECK(end.qp->state == IBV_QPS_INIT);

    rtr.path_mtu = static_cast<ibv_mtu>(6);
    CHECK(ibv_modify_qp(end.qp, &rtr, rtr_mask) == EINVAL);
    rtr = rtr_attr(99);
    rtr.ah_attr.grh.sgid_index = 2;  // an empty entry
    CHECK(ibv_modify_qp(end.qp, &rtr, rtr_mask) == EINVAL);
    rtr = rtr_attr(99);
    rtr.ah_attr.is_global = 0;
    CHECK(ibv_modify_qp(end.qp, &rtr, rtr_mask) == EINVAL);
    rtr = rtr_attr(99);
    rtr.ah_attr.grh.dgid = {};
    CHECK(ibv_modify_qp(end.qp, &rtr, rtr_mask) == EINVAL);
    for (const int attribute : {IBV_QP_AV, IBV_QP_PATH_MTU, IBV_QP_DEST_QPN, IBV_QP_RQ_PSN,
                                IBV_QP_MAX_DEST_RD_ATOMIC, IBV_QP_MIN_RNR_TIMER}) {
        rtr = rtr_attr(99);
        CHECK(ibv_modify_qp(end.qp, &rtr, rtr_mask & ~attribute) == EINVAL);
    }
    end.ready_to_receive(99);
    for (const int attribute : {IBV_QP_TIMEOUT, IBV_QP_RETRY_CNT, IBV_QP_RNR_RETRY,
                                IBV_QP_SQ_PSN, IBV_QP_MAX_QP_RD_ATOMIC}) {
        ibv_qp_attr rts = rts_attr(7);
        CHECK(ibv_modify_qp(end.qp, &rts, rts_mask & ~attribute) == EINVAL);
    }
    ibv_qp_attr rts = rts_attr(8);
    CHECK(ibv_modify_qp(end.qp, &rts, rts_mask) == EINVAL);
    end.ready_to_send();

    ibv_qp_attr attr;
    ibv_qp_init_attr created;
    REQUIRE(ibv_query_qp(end.qp, &attr, IBV_QP_STATE, &created) == 0);
    CHECK(attr.qp_state == IBV_QPS_RTS);
    CHECK(attr.dest_qp_num == 99);
    CHECK(attr.path_mtu == IBV_MTU_1024);
    CHECK(attr.timeout == 14);
    CHECK(attr.cap.max_send_wr == 4);
    CHECK(created.send_cq == end.send_cq);
    end.to(IBV_QPS_SQD);
    end.to(IBV_QPS_RTS);
    end.to(IBV_QPS_ERR);
    CHECK(ibv_modify_qp(end.qp, &rts, rts_mask) == EINVAL);
    end.to(IBV_QPS_RESET);
    end.init();
}

TEST_CASE("simulated queue pair: nothing but a release once the device is gone", "[simulated]") {
    Domain domain;
    End end(domain.pd);
    domain.sim.disassociate(domain.context);
    ibv_qp_attr init = init_attr();
    CHECK(ibv_modify_qp(end.qp, &init, init_mask) == EIO);
    CHECK(end.post_recv(1, end.sge(8)) == EIO);
}

TEST_CASE("simulated post: not in every state, not beyond the queue", "[simulated]") {
    Pair p;
    Domain& domain = p.domain;
    End fresh(domain.pd);
    CHECK(fresh.post_recv(1, fresh.sge(8)) == EINVAL);
    fresh.init();
    CHECK(fresh.post_recv(1, fresh.sge(8)) == 0);
    CHECK(fresh.post_send(1, fresh.sge(8)) == EINVAL);

    for (std::uint64_t id = 0; id < 4; ++id) {
        CHECK(p.a.post_recv(id, p.a.sge(8)) == 0);
    }
    CHECK(p.a.post_recv(4, p.a.sge(8)) == ENOMEM);
    CHECK(p.sim.posted_receives(p.a.qp) == 4);

    p.sim.hold_delivery();
    std::array<ibv_send_wr, 6> list;
    for (std::size_t index = 0; index < list.size(); ++index) {
        list[index] = End::request(index);
        list[index].next = index + 1 < list.size() ? &list[index + 1] : nullptr;
    }
    ibv_send_wr* bad = nullptr;
    CHECK(ibv_post_send(p.a.qp, list.data(), &bad) == ENOMEM);
    CHECK(bad == &list[4]);
    CHECK(p.sim.posted_sends(p.a.qp) == 4);

    ibv_send_wr wide = End::request(9);
    std::array<ibv_sge, 3> sges{};
    wide.sg_list = sges.data();
    wide.num_sge = 3;
    CHECK(ibv_post_send(p.b.qp, &wide, &bad) == EINVAL);
    wide.num_sge = 1;
    wide.opcode = IBV_WR_LOCAL_INV;
    CHECK(ibv_post_send(p.b.qp, &wide, &bad) == EINVAL);
    wide.opcode = IBV_WR_SEND;
    wide.send_flags = IBV_SEND_INLINE;
    sges[0] = p.b.sge(65);
    CHECK(ibv_post_send(p.b.qp, &wide, &bad) == EINVAL);

    p.sim.fail("ibv_post_send", {.error = ENOMEM, .sign = ErrnoSign::negative});
    bad = nullptr;
    CHECK(ibv_post_send(p.b.qp, &wide, &bad) == -ENOMEM);
    CHECK(bad == &wide);
}

TEST_CASE("simulated RC: a message, gathered and scattered", "[simulated]") {
    Pair p;
    p.a.write("hello ");
    p.a.write("world", 100);
    std::array<ibv_sge, 2> from{p.a.sge(6), p.a.sge(5, 100)};
    std::array<ibv_sge, 2> to{p.b.sge(4), p.b.sge(64, 50)};
    ibv_recv_wr receive{};
    receive.wr_id = 2;
    receive.sg_list = to.data();
    receive.num_sge = 2;
    ibv_recv_wr* bad_receive = nullptr;
    REQUIRE(ibv_post_recv(p.b.qp, &receive, &bad_receive) == 0);
    ibv_send_wr wr = End::request(1, IBV_WR_SEND_WITH_IMM);
    wr.imm_data = 0x01020304;
    wr.sg_list = from.data();
    wr.num_sge = 2;
    ibv_send_wr* bad = nullptr;
    REQUIRE(ibv_post_send(p.a.qp, &wr, &bad) == 0);

    const ibv_wc sent = p.a.sent();
    CHECK(sent.wr_id == 1);
    CHECK(sent.status == IBV_WC_SUCCESS);
    CHECK(sent.opcode == IBV_WC_SEND);
    CHECK(sent.qp_num == p.a.qp->qp_num);
    const ibv_wc received = p.b.received();
    CHECK(received.wr_id == 2);
    CHECK(received.opcode == IBV_WC_RECV);
    CHECK(received.byte_len == 11);
    CHECK(received.wc_flags == IBV_WC_WITH_IMM);
    CHECK(received.imm_data == 0x01020304);
    CHECK(received.qp_num == p.b.qp->qp_num);
    CHECK(p.b.read(4) == "hell");
    CHECK(p.b.read(7, 50) == "o world");
}

TEST_CASE("simulated RC: inline data may be reused at once", "[simulated]") {
    Pair p;
    p.a.write("inline");
    ibv_send_wr wr = End::request(1);
    wr.send_flags |= IBV_SEND_INLINE;
    ibv_sge sge = p.a.sge(6);
    sge.lkey = 0;
    REQUIRE(p.a.post(wr, sge) == 0);
    p.a.write("zzzzzz");
    REQUIRE(p.b.post_recv(2, p.b.sge(6)) == 0);
    CHECK(p.b.read(6) == "inline");
}

TEST_CASE("simulated RC: an unsignaled send completes in silence", "[simulated]") {
    Pair p;
    ibv_send_wr wr = End::request(1);
    wr.send_flags = 0;
    for (std::uint64_t id = 0; id < 4; ++id) {
        REQUIRE(p.b.post_recv(id, p.b.sge(8)) == 0);
        REQUIRE(p.a.post(wr, p.a.sge(8)) == 0);
    }
    CHECK(p.sim.queued_completions(p.a.send_cq) == 0);
    CHECK(p.sim.queued_completions(p.b.recv_cq) == 4);
    CHECK(p.a.post_send(2, p.a.sge(8)) == 0);  // the queue is free again
}

TEST_CASE("simulated RC: slots that a poll frees", "[simulated]") {
    Pair p(mlx5);
    ibv_send_wr wr = End::request(1);
    wr.send_flags = 0;
    for (std::uint64_t id = 0; id < 4; ++id) {
        REQUIRE(p.b.post_recv(id, p.b.sge(8)) == 0);
    }
    for (int count = 0; count < 3; ++count) {
        REQUIRE(p.a.post(wr, p.a.sge(8)) == 0);
    }
    REQUIRE(p.a.post_send(2, p.a.sge(8)) == 0);
    CHECK(p.a.post(wr, p.a.sge(8)) == ENOMEM);
    CHECK(p.b.post_recv(9, p.b.sge(8)) == ENOMEM);
    CHECK(p.a.sent().wr_id == 2);  // and the three before it
    ibv_wc wc;
    REQUIRE(ibv_poll_cq(p.b.recv_cq, 1, &wc) == 1);
    CHECK(p.b.post_recv(9, p.b.sge(8)) == 0);
    CHECK(p.b.post_recv(10, p.b.sge(8)) == ENOMEM);
    p.sim.hold_delivery();
    for (int count = 0; count < 4; ++count) {
        CHECK(p.a.post(wr, p.a.sge(8)) == 0);
    }
    CHECK(p.a.post(wr, p.a.sge(8)) == ENOMEM);
}

TEST_CASE("simulated RC: solicited messages", "[simulated]") {
    Pair p;
    REQUIRE(p.b.post_recv(1, p.b.sge(8)) == 0);
    REQUIRE(p.b.post_recv(2, p.b.sge(8)) == 0);
    CHECK(ibv_req_notify_cq(p.b.recv_cq, 1) == 0);
    REQUIRE(p.a.post_send(1, p.a.sge(8)) == 0);
    CHECK(p.sim.armed(p.b.recv_cq));
    ibv_send_wr wr = End::request(2);
    wr.send_flags |= IBV_SEND_SOLICITED;
    REQUIRE(p.a.post(wr, p.a.sge(8)) == 0);
    CHECK_FALSE(p.sim.armed(p.b.recv_cq));
}

TEST_CASE("simulated RC: RDMA write, with and without immediate data", "[simulated]") {
    Pair p;
    p.a.write("data");
    ibv_send_wr wr = End::request(1, IBV_WR_RDMA_WRITE);
    wr.wr.rdma.remote_addr = p.b.sge(0, 32).addr;
    wr.wr.rdma.rkey = p.b.mr->rkey;
    REQUIRE(p.a.post(wr, p.a.sge(4)) == 0);
    CHECK(p.a.sent().opcode == IBV_WC_RDMA_WRITE);
    CHECK(p.b.read(4, 32) == "data");
    CHECK(p.b.nothing());

    wr.opcode = IBV_WR_RDMA_WRITE_WITH_IMM;
    wr.imm_data = 7;
    REQUIRE(p.a.post(wr, p.a.sge(4)) == 0);
    CHECK(p.a.nothing());  // waits for a receive
    REQUIRE(p.b.post_recv(5, p.b.sge(0)) == 0);
    CHECK(p.a.sent().status == IBV_WC_SUCCESS);
    const ibv_wc received = p.b.received();
    CHECK(received.opcode == IBV_WC_RECV_RDMA_WITH_IMM);
    CHECK(received.byte_len == 4);
    CHECK(received.imm_data == 7);
}

TEST_CASE("simulated RC: RDMA read and atomics", "[simulated]") {
    Pair p;
    p.b.write("remote", 16);
    ibv_send_wr wr = End::request(1, IBV_WR_RDMA_READ);
    wr.wr.rdma.remote_addr = p.b.sge(0, 16).addr;
    wr.wr.rdma.rkey = p.b.mr->rkey;
    REQUIRE(p.a.post(wr, p.a.sge(6)) == 0);
    const ibv_wc read = p.a.sent();
    CHECK(read.opcode == IBV_WC_RDMA_READ);
    CHECK(read.byte_len == 6);
    CHECK(p.a.read(6) == "remote");

    alignas(8) std::uint64_t counter = 40;
    ibv_mr* mr = ibv_reg_mr(p.domain.pd, &counter, sizeof counter, all_access);
    wr = End::request(2, IBV_WR_ATOMIC_FETCH_AND_ADD);
    wr.wr.atomic.remote_addr = reinterpret_cast<std::uintptr_t>(&counter);
    wr.wr.atomic.rkey = mr->rkey;
    wr.wr.atomic.compare_add = 2;
    REQUIRE(p.a.post(wr, p.a.sge(8, 64)) == 0);
    CHECK(p.a.sent().opcode == IBV_WC_FETCH_ADD);
    CHECK(counter == 42);
    std::uint64_t before = 0;
    std::memcpy(&before, p.a.memory.data() + 64, sizeof before);
    CHECK(before == 40);
    wr.opcode = IBV_WR_ATOMIC_CMP_AND_SWP;
    wr.wr.atomic.compare_add = 41;
    wr.wr.atomic.swap = 1;
    REQUIRE(p.a.post(wr, p.a.sge(8, 64)) == 0);
    CHECK(p.a.sent().opcode == IBV_WC_COMP_SWAP);
    CHECK(counter == 42);
    wr.wr.atomic.compare_add = 42;
    REQUIRE(p.a.post(wr, p.a.sge(8, 64)) == 0);
    CHECK(p.a.sent().status == IBV_WC_SUCCESS);
    CHECK(counter == 1);
    CHECK(ibv_dereg_mr(mr) == 0);
}

TEST_CASE("simulated RC: what the responder does not allow", "[simulated]") {
    Pair p;
    ibv_send_wr wr = End::request(1, IBV_WR_RDMA_WRITE);
    wr.wr.rdma.remote_addr = p.b.sge(0).addr;
    wr.wr.rdma.rkey = p.b.mr->rkey;
    REQUIRE(p.b.post_recv(3, p.b.sge(8)) == 0);
    SECTION("a key that is none") {
        wr.wr.rdma.rkey = p.b.mr->lkey;
    }
    SECTION("beyond the region") {
        wr.wr.rdma.remote_addr += 253;
    }
    SECTION("before the region") {
        wr.wr.rdma.remote_addr -= 1;
    }
    SECTION("access that the queue pair does not grant") {
        ibv_qp_attr attr{};
        attr.qp_access_flags = IBV_ACCESS_REMOTE_READ;
        REQUIRE(ibv_modify_qp(p.b.qp, &attr, IBV_QP_ACCESS_FLAGS) == 0);
    }
    REQUIRE(p.a.post(wr, p.a.sge(4)) == 0);
    const ibv_wc failed = p.a.sent();
    CHECK(failed.status == IBV_WC_REM_ACCESS_ERR);
    CHECK(failed.wr_id == 1);
    CHECK(p.async_event() == IBV_EVENT_QP_ACCESS_ERR);
    CHECK(p.sim.qp_state(p.a.qp) == IBV_QPS_ERR);
    CHECK(p.sim.qp_state(p.b.qp) == IBV_QPS_ERR);
    CHECK(p.b.received().status == IBV_WC_WR_FLUSH_ERR);
    // The application finds out by asking.
    CHECK(p.a.qp->state == IBV_QPS_RTS);
    ibv_qp_attr attr;
    ibv_qp_init_attr created;
    CHECK(ibv_query_qp(p.a.qp, &attr, IBV_QP_STATE, &created) == 0);
    CHECK(p.a.qp->state == IBV_QPS_ERR);
}

TEST_CASE("simulated RC: local protection and length errors", "[simulated]") {
    Pair p;
    ibv_sge bad = p.a.sge(8);
    SECTION("a key that is none") {
        bad.lkey = p.a.mr->rkey;
        REQUIRE(p.a.post_send(1, bad) == 0);
        CHECK(p.a.sent().status == IBV_WC_LOC_PROT_ERR);
    }
    SECTION("beyond the region") {
        bad.length = 257;
        REQUIRE(p.a.post_send(1, bad) == 0);
        CHECK(p.a.sent().status == IBV_WC_LOC_PROT_ERR);
    }
    SECTION("a receive that is too short") {
        REQUIRE(p.b.post_recv(2, p.b.sge(7)) == 0);
        REQUIRE(p.a.post_send(1, p.a.sge(8)) == 0);
        CHECK(p.a.sent().status == IBV_WC_REM_INV_REQ_ERR);
        CHECK(p.b.received().status == IBV_WC_LOC_LEN_ERR);
    }
    SECTION("a receive without access") {
        ibv_sge elsewhere = p.b.sge(8);
        elsewhere.lkey = 0;
        REQUIRE(p.b.post_recv(2, elsewhere) == 0);
        REQUIRE(p.a.post_send(1, p.a.sge(8)) == 0);
        CHECK(p.a.sent().status == IBV_WC_REM_OP_ERR);
        CHECK(p.b.received().status == IBV_WC_LOC_PROT_ERR);
    }
    CHECK(p.sim.qp_state(p.a.qp) == IBV_QPS_ERR);
}

TEST_CASE("simulated RC: no receive", "[simulated]") {
    SECTION("waits for ever with rnr_retry 7") {
        Pair p;
        REQUIRE(p.a.post_send(1, p.a.sge(8)) == 0);
        REQUIRE(p.a.post_send(2, p.a.sge(8)) == 0);
        p.sim.time_out();
        CHECK(p.a.nothing());
        REQUIRE(p.b.post_recv(3, p.b.sge(8)) == 0);
        CHECK(p.a.sent().wr_id == 1);
        CHECK(p.b.received().wr_id == 3);
    }
    SECTION("fails otherwise") {
        Pair p(rxe, 6);
        REQUIRE(p.a.post_send(1, p.a.sge(8)) == 0);
        CHECK(p.a.sent().status == IBV_WC_RNR_RETRY_EXC_ERR);
        CHECK(p.sim.qp_state(p.a.qp) == IBV_QPS_ERR);
        CHECK(p.sim.qp_state(p.b.qp) == IBV_QPS_RTS);
    }
}

TEST_CASE("simulated RC: ERR flushes what is posted, then and later", "[simulated]") {
    Pair p;
    p.sim.hold_delivery();
    for (std::uint64_t id = 0; id < 3; ++id) {
        REQUIRE(p.a.post_send(id, p.a.sge(8)) == 0);
        REQUIRE(p.a.post_recv(id, p.a.sge(8)) == 0);
    }
    ibv_send_wr unsignaled = End::request(3);
    unsignaled.send_flags = 0;
    REQUIRE(p.a.post(unsignaled, p.a.sge(8)) == 0);
    p.a.to(IBV_QPS_ERR);
    CHECK(End::statuses(p.a.send_cq) == flushed(4));
    CHECK(End::statuses(p.a.recv_cq) == flushed(3));
    REQUIRE(p.a.post_send(4, p.a.sge(8)) == 0);
    CHECK(p.a.sent().status == IBV_WC_WR_FLUSH_ERR);
    REQUIRE(p.a.post_recv(4, p.a.sge(8)) == 0);
    CHECK(p.a.received().status == IBV_WC_WR_FLUSH_ERR);
}

TEST_CASE("simulated RC: a peer that is gone, or never was", "[simulated]") {
    Pair p;
    SECTION("in ERR") {
        p.b.to(IBV_QPS_ERR);
        REQUIRE(p.a.post_send(1, p.a.sge(8)) == 0);
    }
    SECTION("into ERR while a send waits for its receive") {
        REQUIRE(p.a.post_send(1, p.a.sge(8)) == 0);
        p.b.to(IBV_QPS_ERR);
    }
    SECTION("a fatal error of the peer") {
        REQUIRE(p.a.post_send(1, p.a.sge(8)) == 0);
        p.sim.break_qp(p.b.qp);
        CHECK(p.async_event() == IBV_EVENT_QP_FATAL);
    }
    SECTION("fails on its own while a send waits") {
        REQUIRE(p.a.post_send(1, p.a.sge(8)) == 0);
        REQUIRE(p.b.post_send(2, p.a.sge(8, 252)) == 0);
        CHECK(p.b.sent().status == IBV_WC_LOC_PROT_ERR);
    }
    SECTION("destroyed while a send waits") {
        REQUIRE(p.a.post_send(1, p.a.sge(8)) == 0);
        p.b.destroy_qp();
    }
    SECTION("connected to another") {
        p.b.to(IBV_QPS_RESET);
        p.b.init();
        p.b.ready_to_receive(p.b.qp->qp_num);
        REQUIRE(p.a.post_send(1, p.a.sge(8)) == 0);
    }
    CHECK(p.a.sent().status == IBV_WC_RETRY_EXC_ERR);
    CHECK(p.sim.qp_state(p.a.qp) == IBV_QPS_ERR);
}

TEST_CASE("simulated RC: a peer that is not up yet is waited for", "[simulated]") {
    Domain domain;
    End a(domain.pd);
    End b(domain.pd);
    a.init();
    b.init();
    a.ready_to_receive(b.qp->qp_num);
    a.ready_to_send();
    REQUIRE(b.post_recv(2, b.sge(8)) == 0);
    REQUIRE(a.post_send(1, a.sge(8)) == 0);
    CHECK(a.nothing());
    SECTION("it comes up") {
        b.ready_to_receive(a.qp->qp_num);
        CHECK(a.sent().status == IBV_WC_SUCCESS);
        CHECK(b.received().wr_id == 2);
    }
    SECTION("the retries run out") {
        domain.sim.time_out();
        CHECK(a.sent().status == IBV_WC_RETRY_EXC_ERR);
    }
}

TEST_CASE("simulated port: nothing moves while it is down", "[simulated]") {
    Pair p;
    p.sim.set_port_state("sim0", 1, IBV_PORT_DOWN);
    CHECK(p.async_event() == IBV_EVENT_PORT_ERR);
    REQUIRE(p.b.post_recv(2, p.b.sge(8)) == 0);
    REQUIRE(p.a.post_send(1, p.a.sge(8)) == 0);
    REQUIRE(p.a.post_send(2, p.a.sge(8)) == 0);
    CHECK(p.a.nothing());
    SECTION("it comes back") {
        p.sim.set_port_state("sim0", 1, IBV_PORT_ACTIVE);
        CHECK(p.async_event() == IBV_EVENT_PORT_ACTIVE);
        CHECK(p.a.sent().status == IBV_WC_SUCCESS);
    }
    SECTION("the retries run out") {
        p.sim.time_out();
        CHECK(End::statuses(p.a.send_cq) ==
              std::vector<ibv_wc_status>{IBV_WC_RETRY_EXC_ERR, IBV_WC_WR_FLUSH_ERR});
    }
}

TEST_CASE("simulated port: nothing leaves by one that is down", "[simulated]") {
    Domain here;
    here.sim.add_device({.name = "sim1"});
    ibv_device** list = ibv_get_device_list(nullptr);
    ibv_context* context = ibv_open_device(list[1]);
    ibv_free_device_list(list);
    ibv_pd* pd = ibv_alloc_pd(context);
    {
        End a(here.pd);
        End b(pd);
        a.init();
        b.init();
        a.ready_to_receive(b.qp->qp_num);
        b.ready_to_receive(a.qp->qp_num);
        a.ready_to_send();
        REQUIRE(b.post_recv(2, b.sge(8)) == 0);
        here.sim.set_port_state("sim0", 1, IBV_PORT_DOWN);
        REQUIRE(a.post_send(1, a.sge(8)) == 0);
        CHECK(a.nothing());
        here.sim.set_port_state("sim0", 1, IBV_PORT_ACTIVE);
        CHECK(a.sent().status == IBV_WC_SUCCESS);
        CHECK(b.received().wr_id == 2);
    }
    CHECK(ibv_dealloc_pd(pd) == 0);
    CHECK(ibv_close_device(context) == 0);
}

TEST_CASE("simulated delivery: from one queue pair", "[simulated]") {
    Pair p;
    p.sim.hold_delivery();
    for (std::uint64_t id = 0; id < 2; ++id) {
        REQUIRE(p.a.post_recv(id, p.a.sge(8)) == 0);
        REQUIRE(p.b.post_recv(id, p.b.sge(8)) == 0);
        REQUIRE(p.a.post_send(id, p.a.sge(8)) == 0);
        REQUIRE(p.b.post_send(id, p.b.sge(8)) == 0);
    }
    CHECK(p.sim.deliver_from(p.b.qp) == 1);
    CHECK(p.b.sent().wr_id == 0);
    CHECK(p.a.received().wr_id == 0);
    CHECK(p.a.nothing());
    CHECK(p.sim.deliver_from(p.a.qp, 9) == 2);
    CHECK(p.sim.posted_sends(p.b.qp) == 1);
}

TEST_CASE("simulated audit: a region is not released under a request", "[simulated]") {
    Pair p;
    ibv_mr* mr = ibv_reg_mr(p.domain.pd, p.a.memory.data(), 64, all_access);
    ibv_sge sge = p.a.sge(8);
    sge.lkey = mr->lkey;
    std::size_t expected = 0;
    SECTION("a receive that is posted") {
        REQUIRE(p.a.post_recv(1, sge) == 0);
        expected = 1;
    }
    SECTION("a send that waits") {
        REQUIRE(p.a.post_send(1, sge) == 0);
        expected = 1;
    }
    SECTION("one that was flushed") {
        REQUIRE(p.a.post_recv(1, sge) == 0);
        p.a.to(IBV_QPS_ERR);
    }
    SECTION("allowed") {
        REQUIRE(p.a.post_recv(1, sge) == 0);
        p.sim.allow_dereg_in_use();
    }
    CHECK(ibv_dereg_mr(mr) == 0);
    const std::vector<std::string> problems = p.sim.take_problems();
    REQUIRE(problems.size() == expected);
    if (expected == 1) {
        CHECK_THAT(problems[0], contains("is still used by a request that is posted to queue"));
    }
}

TEST_CASE("simulated delivery: held, step by step, released", "[simulated]") {
    Pair p;
    p.sim.hold_delivery();
    for (std::uint64_t id = 0; id < 3; ++id) {
        REQUIRE(p.b.post_recv(id, p.b.sge(8)) == 0);
        REQUIRE(p.a.post_send(id, p.a.sge(8)) == 0);
    }
    CHECK(p.a.nothing());
    CHECK(p.sim.deliver(1) == 1);
    CHECK(p.a.sent().wr_id == 0);
    CHECK(p.sim.deliver() == 2);
    CHECK(p.sim.deliver() == 0);
    CHECK(End::statuses(p.a.send_cq).size() == 2);
    REQUIRE(p.b.post_recv(3, p.b.sge(8)) == 0);
    REQUIRE(p.a.post_send(3, p.a.sge(8)) == 0);
    CHECK(p.a.nothing());
    p.sim.release_delivery();
    CHECK(p.a.sent().wr_id == 3);
}

TEST_CASE("simulated destroy: completions stay on rxe and go on mlx5", "[simulated]") {
    const ProviderModel provider = GENERATE(rxe, mlx5);
    Pair p(provider);
    REQUIRE(p.b.post_recv(2, p.b.sge(8)) == 0);
    REQUIRE(p.a.post_send(1, p.a.sge(8)) == 0);
    const std::uint32_t qp_num = p.a.qp->qp_num;
    p.a.destroy_qp();
    CHECK(p.sim.queued_completions(p.a.send_cq) == (provider.purges_on_destroy_qp ? 0 : 1));
    CHECK(p.sim.queued_completions(p.b.recv_cq) == 1);

    p.sim.set_next_qp_num(qp_num);
    End reborn(p.domain.pd);
    CHECK(reborn.qp->qp_num == qp_num);
}

TEST_CASE("simulated shared receive queue", "[simulated]") {
    Domain domain;
    domain.sim.allow_dereg_in_use();  // the shared queue outlives the ends and their memory
    ibv_srq_init_attr attr{};
    attr.attr = {2, 1, 0};
    ibv_srq* srq = ibv_create_srq(domain.pd, &attr);
    REQUIRE(srq != nullptr);
    {
        End a(domain.pd);
        End b(domain.pd, IBV_QPT_RC, srq);
        a.init();
        b.init();
        a.ready_to_receive(b.qp->qp_num);
        b.ready_to_receive(a.qp->qp_num);
        a.ready_to_send();
        b.ready_to_send();
        CHECK(b.post_recv(1, b.sge(8)) == EINVAL);
        REQUIRE(a.post_send(1, a.sge(8)) == 0);
        CHECK(a.nothing());
        ibv_srq_attr limit{};
        limit.srq_limit = 2;
        REQUIRE(ibv_modify_srq(srq, &limit, IBV_SRQ_LIMIT) == 0);
        ibv_sge sge = b.sge(8);
        std::array<ibv_recv_wr, 3> list{};
        for (std::size_t index = 0; index < list.size(); ++index) {
            list[index].wr_id = index;
            list[index].sg_list = &sge;
            list[index].num_sge = 1;
            list[index].next = index + 1 < list.size() ? &list[index + 1] : nullptr;
        }
        ibv_recv_wr* bad = nullptr;
        CHECK(ibv_post_srq_recv(srq, list.data(), &bad) == ENOMEM);
        CHECK(bad == &list[2]);
        CHECK(a.sent().status == IBV_WC_SUCCESS);
        CHECK(b.received().wr_id == 0);
        ibv_async_event event{};
        REQUIRE(ibv_get_async_event(domain.context, &event) == 0);
        CHECK(event.event_type == IBV_EVENT_SRQ_LIMIT_REACHED);
        CHECK(event.element.srq == srq);
        ibv_ack_async_event(&event);
        ibv_srq_attr now{};
        REQUIRE(ibv_query_srq(srq, &now) == 0);
        CHECK(now.srq_limit == 0);
        CHECK(now.max_wr == 2);

        b.to(IBV_QPS_ERR);
        REQUIRE(ibv_get_async_event(domain.context, &event) == 0);
        CHECK(event.event_type == IBV_EVENT_QP_LAST_WQE_REACHED);
        ibv_ack_async_event(&event);
        CHECK(b.nothing());  // its requests belong to no queue pair
    }
    CHECK(ibv_destroy_srq(srq) == 0);
}

TEST_CASE("simulated UD: datagrams arrive behind a header, or not at all", "[simulated]") {
    Domain domain;
    End a(domain.pd, IBV_QPT_UD);
    End b(domain.pd, IBV_QPT_UD);
    for (End* end : {&a, &b}) {
        ibv_qp_attr attr = init_attr();
        attr.qkey = 0x11111111;
        REQUIRE(ibv_modify_qp(end->qp, &attr,
                              IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY) == 0);
        end->to(IBV_QPS_RTR);
        attr.qp_state = IBV_QPS_RTS;
        REQUIRE(ibv_modify_qp(end->qp, &attr, IBV_QP_STATE | IBV_QP_SQ_PSN) == 0);
    }
    ibv_ah_attr address = rtr_attr(0).ah_attr;
    ibv_ah* ah = ibv_create_ah(domain.pd, &address);
    REQUIRE(ah != nullptr);
    address.port_num = 2;
    CHECK(ibv_create_ah(domain.pd, &address) == nullptr);

    a.write("ping");
    ibv_send_wr wr = End::request(1);
    wr.wr.ud.ah = ah;
    wr.wr.ud.remote_qpn = b.qp->qp_num;
    wr.wr.ud.remote_qkey = 0x11111111;
    REQUIRE(a.post(wr, a.sge(4)) == 0);  // lost: nobody receives
    CHECK(a.sent().status == IBV_WC_SUCCESS);
    CHECK(b.nothing());

    REQUIRE(b.post_recv(2, b.sge(44)) == 0);
    wr.wr.ud.remote_qkey = 1;
    REQUIRE(a.post(wr, a.sge(4)) == 0);  // lost: wrong key
    CHECK(a.sent().status == IBV_WC_SUCCESS);
    CHECK(b.nothing());

    wr.wr.ud.remote_qkey = 0x11111111;
    REQUIRE(a.post(wr, a.sge(4)) == 0);
    CHECK(a.sent().status == IBV_WC_SUCCESS);
    const ibv_wc received = b.received();
    CHECK(received.byte_len == 44);
    CHECK(received.src_qp == a.qp->qp_num);
    CHECK(received.wc_flags == IBV_WC_GRH);
    CHECK(b.read(4, 40) == "ping");
    ibv_grh grh;
    std::memcpy(&grh, b.memory.data(), sizeof grh);
    ibv_wc wc = received;
    ibv_ah* reply = ibv_create_ah_from_wc(domain.pd, &wc, &grh, 1);
    REQUIRE(reply != nullptr);
    CHECK(ibv_destroy_ah(reply) == 0);

    wr.opcode = IBV_WR_RDMA_WRITE;
    CHECK(a.post(wr, a.sge(4)) == EINVAL);
    CHECK(ibv_destroy_ah(ah) == 0);
}

TEST_CASE("simulated names", "[simulated]") {
    CHECK(std::string(ibv_wc_status_str(IBV_WC_SUCCESS)) == "success");
    CHECK_THAT(ibv_wc_status_str(IBV_WC_WR_FLUSH_ERR), contains("flush"));
    CHECK_THAT(ibv_wc_status_str(IBV_WC_TM_RNDV_INCOMPLETE), contains("rendezvous"));
    CHECK_THAT(ibv_wc_status_str(static_cast<ibv_wc_status>(29)), contains("unknown"));
    CHECK_THAT(ibv_event_type_str(IBV_EVENT_WQ_FATAL), contains("WQ"));
    CHECK_THAT(ibv_port_state_str(IBV_PORT_ACTIVE), contains("active"));
    CHECK_THAT(ibv_node_type_str(IBV_NODE_UNSPECIFIED), contains("unspecified"));
    CHECK(ibv_rate_to_mbps(IBV_RATE_100_GBPS) == 103125);
    CHECK(mbps_to_ibv_rate(10000) == IBV_RATE_10_GBPS);
    CHECK(ibv_rate_to_mult(IBV_RATE_10_GBPS) == 4);
    CHECK(mult_to_ibv_rate(2) == IBV_RATE_5_GBPS);
}
