// SPDX-License-Identifier: MIT
//
// Two queue pairs for the tests of the simulated verbs, brought up by plain verbs calls, each with
// its completion queues and registered memory.
#pragma once

#include "support/simulated_verbs_fixture.hpp"

#include <string_view>

namespace asyncverbs::simulated {

inline constexpr int all_access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE |
                                  IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC;
inline constexpr int init_mask =
    IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
inline constexpr int rtr_mask = IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
                                IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
inline constexpr int rts_mask = IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
                                IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC;

inline ibv_qp_attr init_attr() {
    ibv_qp_attr attr{};
    attr.qp_state = IBV_QPS_INIT;
    attr.port_num = 1;
    attr.qp_access_flags = all_access;
    return attr;
}

inline ibv_qp_attr rtr_attr(std::uint32_t dest_qp_num) {
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

inline ibv_qp_attr rts_attr(std::uint8_t rnr_retry) {
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

inline std::vector<ibv_wc_status> flushed(std::size_t count) {
    return std::vector<ibv_wc_status>(count, IBV_WC_WR_FLUSH_ERR);
}

} // namespace asyncverbs::simulated
