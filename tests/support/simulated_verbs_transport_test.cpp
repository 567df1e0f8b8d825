// SPDX-License-Identifier: MIT
//
// What moves between simulated queue pairs, with the completions, errors and flushes that follow.
#include "support/simulated_verbs_pair.hpp"

#include <cstring>
#include <string>

using namespace asyncverbs::simulated;

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
    CHECK(p.a.post_send(2, p.a.sge(8)) == 0); // the queue is free again
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
    CHECK(p.a.sent().wr_id == 2); // and the three before it
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
    CHECK(p.a.nothing()); // waits for a receive
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
    SECTION("a key that is none") { wr.wr.rdma.rkey = p.b.mr->lkey; }
    SECTION("beyond the region") { wr.wr.rdma.remote_addr += 253; }
    SECTION("before the region") { wr.wr.rdma.remote_addr -= 1; }
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
    REQUIRE(a.post(wr, a.sge(4)) == 0); // lost: nobody receives
    CHECK(a.sent().status == IBV_WC_SUCCESS);
    CHECK(b.nothing());

    REQUIRE(b.post_recv(2, b.sge(44)) == 0);
    wr.wr.ud.remote_qkey = 1;
    REQUIRE(a.post(wr, a.sge(4)) == 0); // lost: wrong key
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

TEST_CASE("simulated RC: a queue pair that is its own peer", "[simulated]") {
    Domain domain;
    End end(domain.pd);
    end.init();
    end.ready_to_receive(end.qp->qp_num);
    end.ready_to_send();
    end.write("loop");
    REQUIRE(end.post_recv(2, end.sge(4, 100)) == 0);
    REQUIRE(end.post_send(1, end.sge(4)) == 0);
    CHECK(end.sent().wr_id == 1);
    CHECK(end.received().wr_id == 2);
    CHECK(end.read(4, 100) == "loop");
    REQUIRE(end.post_recv(3, end.sge(3, 100)) == 0);
    REQUIRE(end.post_send(4, end.sge(4)) == 0);
    CHECK(end.sent().status == IBV_WC_REM_INV_REQ_ERR);
    CHECK(end.received().status == IBV_WC_LOC_LEN_ERR);
}
