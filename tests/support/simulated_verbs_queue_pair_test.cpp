// SPDX-License-Identifier: MIT
//
// The simulated queue pairs: limits, the state machine, posting, destruction, and shared receive
// queues. What moves between them is tested beside this.
#include "support/simulated_verbs_pair.hpp"

#include <string>

using namespace asyncverbs::simulated;
using asyncverbs::support::contains;

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
    CHECK(ibv_modify_qp(end.qp, &rtr, rtr_mask) == EINVAL); // not from RESET
    ibv_qp_attr error{};
    error.qp_state = IBV_QPS_ERR;
    CHECK(ibv_modify_qp(end.qp, &error, IBV_QP_STATE) == EINVAL); // nor that
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
    rtr.ah_attr.grh.sgid_index = 2; // an empty entry
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
    for (const int attribute : {IBV_QP_TIMEOUT, IBV_QP_RETRY_CNT, IBV_QP_RNR_RETRY, IBV_QP_SQ_PSN,
                                IBV_QP_MAX_QP_RD_ATOMIC}) {
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
    domain.sim.allow_dereg_in_use(); // the shared queue outlives the ends and their memory
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
        CHECK(b.nothing()); // its requests belong to no queue pair
    }
    CHECK(ibv_destroy_srq(srq) == 0);
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
