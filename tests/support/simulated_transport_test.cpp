// SPDX-License-Identifier: MIT
// The simulated queue pairs: the state machine, posting, and every way in which a request fails or
// waits. The tests of rdma/ and verbs/ assert the successful operations.
#include "support/simulated_verbs.hpp"

#include <asyncverbs/verbs/address_handle.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

#include "support/catch.hpp"

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

using namespace asyncverbs;
using namespace asyncverbs::simulated;
using support::contains;
using Statuses = std::vector<ibv_wc_status>;

namespace {

constexpr int all_access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE |
                           IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC;

std::vector<ibv_wc> poll(const asyncverbs::CompletionQueue& cq) {
    std::vector<ibv_wc> wcs(16);
    const int count = ibv_poll_cq(cq.native_handle(), 16, wcs.data());
    wcs.resize(static_cast<std::size_t>(count));
    return wcs;
}

Statuses statuses(const asyncverbs::CompletionQueue& cq) {
    Statuses all;
    for (const ibv_wc& wc : poll(cq)) {
        all.push_back(wc.status);
    }
    return all;
}

// One end of a connection: 4 sends and 4 receives, 256 bytes of memory.
struct End {
    explicit End(const asyncverbs::ProtectionDomain& domain, ibv_qp_type type = IBV_QPT_RC)
        : send_cq(domain.context(), 16), recv_cq(domain.context(), 16),
          region(asyncverbs::MemoryRegion::allocate(domain, 256, all_access)),
          qp(std::in_place, domain, send_cq, recv_cq,
             QueuePairOptions{.type = type,
                              .max_send_wr = 4,
                              .max_recv_wr = 4,
                              .max_send_sge = 2,
                              .max_inline_data = 64}) {}

    ibv_qp* native() const { return qp->native_handle(); }

    static ibv_send_wr request(std::uint64_t wr_id, ibv_wr_opcode opcode = IBV_WR_SEND) {
        ibv_send_wr wr{};
        wr.wr_id = wr_id;
        wr.opcode = opcode;
        wr.send_flags = IBV_SEND_SIGNALED;
        return wr;
    }

    // Posts one request; 0 or an errno.
    int post(ibv_send_wr wr, const Slice& slice) {
        ibv_sge sge = slice.sge();
        wr.sg_list = &sge;
        wr.num_sge = 1;
        std::error_code error;
        const auto* bad = qp->post_send(wr, error);
        CHECK(bad == (error ? &wr : nullptr));
        return error.value();
    }
    int send(std::uint64_t wr_id) { return post(request(wr_id), region.slice(0, 8)); }
    int receive(std::uint64_t wr_id, const Slice& slice) {
        ibv_sge sge = slice.sge();
        ibv_recv_wr wr{wr_id, nullptr, &sge, 1};
        std::error_code error;
        const auto* bad = qp->post_recv(wr, error);
        CHECK(bad == (error ? &wr : nullptr));
        return error.value();
    }
    int receive(std::uint64_t wr_id) { return receive(wr_id, region.slice(0, 8)); }

    asyncverbs::CompletionQueue send_cq;
    asyncverbs::CompletionQueue recv_cq;
    asyncverbs::MemoryRegion region;
    std::optional<asyncverbs::QueuePair> qp;
};

// Two connected ends.
struct Pair {
    explicit Pair(const ProviderModel& provider = rxe, std::uint8_t rnr_retry = 7) : sim(provider) {
        a.qp->connect(b.qp->local_address(), {}, {.rnr_retry = rnr_retry});
        b.qp->connect(a.qp->local_address(), {}, {.rnr_retry = rnr_retry});
    }

    ibv_event_type async_event() {
        ibv_async_event event{};
        REQUIRE(ibv_get_async_event(domain.context().native_handle(), &event) == 0);
        ibv_ack_async_event(&event);
        return event.event_type;
    }

    SimulatedVerbs sim;
    asyncverbs::ProtectionDomain domain{asyncverbs::Context::open()};
    End a{domain};
    End b{domain};
};

} // namespace

// --- states and posting ---

TEST_CASE("simulated queue pairs require the attributes of each state", "[simulated]") {
    SimulatedVerbs sim;
    const asyncverbs::ProtectionDomain domain(asyncverbs::Context::open());
    End end(domain);
    ibv_qp_attr attr{};
    attr.port_num = 1;
    attr.path_mtu = IBV_MTU_1024;
    attr.dest_qp_num = 99;
    attr.ah_attr.is_global = 1;
    attr.ah_attr.port_num = 1;
    attr.ah_attr.grh.sgid_index = 1;
    attr.ah_attr.grh.dgid = ipv4_gid(10, 7, 0, 1);
    const auto modify = [&](ibv_qp_state state, int mask) {
        attr.qp_state = state;
        return ibv_modify_qp(end.native(), &attr, IBV_QP_STATE | mask);
    };
    // A value that is invalid in this step only.
    const auto with = [&](auto& field, auto value, ibv_qp_state state, int mask) {
        const auto valid = std::exchange(field, value);
        const int error = modify(state, mask);
        field = valid;
        return error;
    };
    const auto each_is_required = [&](ibv_qp_state state, int mask) {
        for (int bit = 1; bit <= mask; bit <<= 1) {
            if ((mask & bit) != 0) {
                CHECK(modify(state, mask & ~bit) == EINVAL);
            }
        }
    };
    constexpr int init = IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
    constexpr int rtr = IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                        IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
    constexpr int rts = IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
                        IBV_QP_MAX_QP_RD_ATOMIC;
    CHECK(modify(IBV_QPS_RTR, rtr) == EINVAL); // not from RESET
    CHECK(modify(IBV_QPS_ERR, 0) == EINVAL);
    each_is_required(IBV_QPS_INIT, init);
    CHECK(modify(IBV_QPS_INIT, init | IBV_QP_QKEY) == EINVAL);
    CHECK(with(attr.port_num, std::uint8_t{2}, IBV_QPS_INIT, init) == EINVAL);
    CHECK(end.receive(1) == EINVAL);
    CHECK(modify(IBV_QPS_INIT, init) == 0);
    CHECK(end.receive(1) == 0);
    CHECK(end.send(1) == EINVAL);

    each_is_required(IBV_QPS_RTR, rtr);
    CHECK(with(attr.path_mtu, static_cast<ibv_mtu>(6), IBV_QPS_RTR, rtr) == EINVAL);
    CHECK(with(attr.ah_attr.grh.sgid_index, std::uint8_t{2}, IBV_QPS_RTR, rtr) == EINVAL);
    CHECK(with(attr.ah_attr.is_global, std::uint8_t{0}, IBV_QPS_RTR, rtr) == EINVAL);
    CHECK(with(attr.ah_attr.grh.dgid, ibv_gid{}, IBV_QPS_RTR, rtr) == EINVAL);
    CHECK(modify(IBV_QPS_RTR, rtr) == 0);

    each_is_required(IBV_QPS_RTS, rts);
    CHECK(with(attr.rnr_retry, std::uint8_t{8}, IBV_QPS_RTS, rts) == EINVAL);
    for (const ibv_qp_state state : {IBV_QPS_RTS, IBV_QPS_SQD, IBV_QPS_RTS, IBV_QPS_ERR}) {
        CHECK(modify(state, end.qp->state() == IBV_QPS_RTR ? rts : 0) == 0);
        CHECK(end.qp->state() == state);
    }
    CHECK(modify(IBV_QPS_RTS, rts) == EINVAL);
    CHECK(modify(IBV_QPS_RESET, 0) == 0);
    sim.disassociate(domain.context().native_handle());
    CHECK(modify(IBV_QPS_INIT, init) == EIO);
    CHECK(end.receive(1) == EIO);
}

TEST_CASE("simulated posting: limits and inline data", "[simulated]") {
    Pair p;
    ibv_send_wr wr = End::request(9);
    std::array<ibv_sge, 3> sges{};
    wr.sg_list = sges.data();
    wr.num_sge = 3;
    ibv_send_wr* bad = nullptr;
    CHECK(ibv_post_send(p.b.native(), &wr, &bad) == EINVAL);
    CHECK(bad == &wr);
    CHECK(p.b.post(End::request(9, IBV_WR_LOCAL_INV), p.b.region.slice(0, 8)) == EINVAL);
    wr.send_flags |= IBV_SEND_INLINE;
    CHECK(p.b.post(wr, p.b.region.slice(0, 65)) == EINVAL);

    // Inline data needs no key, and the memory may be reused at once.
    std::array<std::byte, 1> byte{std::byte{1}};
    CHECK(p.a.post(wr, Slice(byte.data(), 1, 0)) == 0);
    byte[0] = std::byte{2};
    CHECK(p.b.receive(2) == 0);
    CHECK(p.b.region.bytes()[0] == std::byte{1});
}

TEST_CASE("simulated posting: a slot is free after the completion or after its poll",
          "[simulated]") {
    const ProviderModel provider = GENERATE(rxe, mlx5);
    Pair p(provider);
    const int full = provider.slots_freed_by_poll ? ENOMEM : 0;
    ibv_send_wr unsignaled = End::request(1);
    unsignaled.send_flags = 0;
    const Slice slice = p.a.region.slice(0, 8);
    for (std::uint64_t id = 0; id < 4; ++id) {
        REQUIRE(p.b.receive(id) == 0);
        REQUIRE(p.a.post(id < 3 ? unsignaled : End::request(2), slice) == 0);
    }
    p.sim.hold_delivery();
    CHECK(p.a.send(3) == full);
    CHECK(p.b.receive(4) == full);
    const std::vector<ibv_wc> sent = poll(p.a.send_cq);
    REQUIRE(sent.size() == 1); // unsignaled sends have no completion
    CHECK(sent[0].wr_id == 2);
    CHECK(poll(p.b.recv_cq).size() == 4);
    while (p.sim.posted_sends(p.a.native()) < 4) {
        REQUIRE(p.a.post(unsignaled, slice) == 0);
    }
    CHECK(p.a.post(unsignaled, slice) == ENOMEM);
}

TEST_CASE("simulated audit: a region is not deregistered under a request", "[simulated]") {
    Pair p;
    std::optional<asyncverbs::MemoryRegion> region =
        asyncverbs::MemoryRegion::allocate(p.domain, 64, all_access);
    // Without an owner, so that the slice does not keep the region.
    const Slice slice(region->bytes().data(), 8, region->lkey());
    bool reported = false;
    SECTION("a posted receive") {
        REQUIRE(p.a.receive(1, slice) == 0);
        reported = true;
    }
    SECTION("a waiting send") {
        REQUIRE(p.a.post(End::request(1), slice) == 0);
        reported = true;
    }
    SECTION("a flushed receive") {
        REQUIRE(p.a.receive(1, slice) == 0);
        p.a.qp->to_error();
    }
    SECTION("allowed") {
        REQUIRE(p.a.receive(1, slice) == 0);
        p.sim.allow_dereg_in_use();
    }
    region.reset();
    const std::vector<std::string> problems = p.sim.take_problems();
    REQUIRE(problems.size() == (reported ? 1 : 0));
    if (reported) {
        CHECK_THAT(problems[0], contains("is still used by a request that is posted to queue"));
    }
}

TEST_CASE("simulated destruction: completions stay on rxe and are purged on mlx5", "[simulated]") {
    const ProviderModel provider = GENERATE(rxe, mlx5);
    Pair p(provider);
    REQUIRE(p.b.receive(2) == 0);
    REQUIRE(p.a.send(1) == 0);
    const std::uint32_t qp_num = p.a.qp->qp_num();
    p.a.qp.reset();
    CHECK(poll(p.a.send_cq).size() == (provider.purges_on_destroy_qp ? 0 : 1));
    CHECK(poll(p.b.recv_cq).size() == 1);
    p.sim.set_next_qp_num(qp_num);
    CHECK(End(p.domain).qp->qp_num() == qp_num);
}

// --- requests that fail ---

TEST_CASE("simulated RC: access that the responder does not allow", "[simulated]") {
    Pair p;
    ibv_send_wr wr = End::request(1, IBV_WR_RDMA_WRITE);
    wr.wr.rdma.remote_addr = p.b.region.slice().sge().addr;
    wr.wr.rdma.rkey = p.b.region.rkey();
    REQUIRE(p.b.receive(3) == 0);
    SECTION("an lkey") { wr.wr.rdma.rkey = p.b.region.lkey(); }
    SECTION("beyond the region") { wr.wr.rdma.remote_addr += 253; }
    SECTION("before the region") { wr.wr.rdma.remote_addr -= 1; }
    SECTION("access that the queue pair does not grant") {
        ibv_qp_attr attr{};
        attr.qp_access_flags = IBV_ACCESS_REMOTE_READ;
        REQUIRE(ibv_modify_qp(p.b.native(), &attr, IBV_QP_ACCESS_FLAGS) == 0);
    }
    REQUIRE(p.a.post(wr, p.a.region.slice(0, 4)) == 0);
    CHECK(statuses(p.a.send_cq) == Statuses{IBV_WC_REM_ACCESS_ERR});
    CHECK(statuses(p.b.recv_cq) == Statuses{IBV_WC_WR_FLUSH_ERR});
    CHECK(p.async_event() == IBV_EVENT_QP_ACCESS_ERR);
    CHECK(p.sim.qp_state(p.b.native()) == IBV_QPS_ERR);
    CHECK(p.a.native()->state == IBV_QPS_RTS); // until the application queries it
    CHECK(p.a.qp->state() == IBV_QPS_ERR);
    CHECK(p.a.native()->state == IBV_QPS_ERR);
}

TEST_CASE("simulated RC: local protection and length errors", "[simulated]") {
    struct Case {
        const char* name;
        Slice from;
        Slice to;
        ibv_wc_status sent;
        std::optional<ibv_wc_status> received = std::nullopt;
    };
    Pair p;
    const Slice from = p.a.region.slice(0, 8);
    const Slice to = p.b.region.slice(0, 8);
    const std::array cases{
        Case{"an rkey", {from.address, 8, p.a.region.rkey()}, to, IBV_WC_LOC_PROT_ERR},
        Case{"beyond the region", {from.address, 257, from.lkey}, to, IBV_WC_LOC_PROT_ERR},
        Case{"a short receive", from, to.slice(0, 7), IBV_WC_REM_INV_REQ_ERR, IBV_WC_LOC_LEN_ERR},
        Case{"a receive without a key",
             from,
             {to.address, 8, 0},
             IBV_WC_REM_OP_ERR,
             IBV_WC_LOC_PROT_ERR}};
    const Case& c = cases[GENERATE(0u, 1u, 2u, 3u)];
    CAPTURE(c.name);
    REQUIRE(p.b.receive(2, c.to) == 0);
    REQUIRE(p.a.post(End::request(1), c.from) == 0);
    CHECK(statuses(p.a.send_cq) == Statuses{c.sent});
    CHECK(statuses(p.b.recv_cq) == (c.received ? Statuses{*c.received} : Statuses{}));
    CHECK(p.a.qp->state() == IBV_QPS_ERR);
}

TEST_CASE("simulated RC: without a receive a send waits, or fails with a retry limit",
          "[simulated]") {
    const std::uint8_t rnr_retry = GENERATE(std::uint8_t{7}, std::uint8_t{6});
    Pair p(rxe, rnr_retry);
    REQUIRE(p.a.send(1) == 0);
    if (rnr_retry < 7) {
        CHECK(statuses(p.a.send_cq) == Statuses{IBV_WC_RNR_RETRY_EXC_ERR});
        CHECK(p.a.qp->state() == IBV_QPS_ERR);
        CHECK(p.b.qp->state() == IBV_QPS_RTS);
        return;
    }
    p.sim.time_out();
    CHECK(poll(p.a.send_cq).empty());
    REQUIRE(p.b.receive(3) == 0);
    CHECK(statuses(p.a.send_cq) == Statuses{IBV_WC_SUCCESS});
    CHECK(statuses(p.b.recv_cq) == Statuses{IBV_WC_SUCCESS});
}

TEST_CASE("simulated RC: ERR flushes posted requests, and later ones", "[simulated]") {
    Pair p;
    p.sim.hold_delivery();
    for (std::uint64_t id = 0; id < 3; ++id) {
        REQUIRE(p.a.send(id) == 0);
        REQUIRE(p.a.receive(id) == 0);
    }
    ibv_send_wr unsignaled = End::request(3);
    unsignaled.send_flags = 0;
    REQUIRE(p.a.post(unsignaled, p.a.region.slice(0, 8)) == 0);
    p.a.qp->to_error();
    CHECK(statuses(p.a.send_cq) == Statuses(4, IBV_WC_WR_FLUSH_ERR));
    CHECK(statuses(p.a.recv_cq) == Statuses(3, IBV_WC_WR_FLUSH_ERR));
    REQUIRE(p.a.send(4) == 0);
    REQUIRE(p.a.receive(4) == 0);
    CHECK(statuses(p.a.send_cq) == Statuses{IBV_WC_WR_FLUSH_ERR});
    CHECK(statuses(p.a.recv_cq) == Statuses{IBV_WC_WR_FLUSH_ERR});
}

TEST_CASE("simulated RC: a peer that never answers", "[simulated]") {
    Pair p;
    SECTION("in ERR") {
        p.b.qp->to_error();
        REQUIRE(p.a.send(1) == 0);
    }
    SECTION("into ERR while a send waits") {
        REQUIRE(p.a.send(1) == 0);
        p.b.qp->to_error();
    }
    SECTION("a fatal error of the peer") {
        REQUIRE(p.a.send(1) == 0);
        p.sim.break_qp(p.b.native());
        CHECK(p.async_event() == IBV_EVENT_QP_FATAL);
    }
    SECTION("the peer fails by its own send while a send waits") {
        REQUIRE(p.a.send(1) == 0);
        REQUIRE(p.b.post(End::request(2), Slice(p.b.region.bytes().data(), 8, 0)) == 0);
        CHECK(statuses(p.b.send_cq) == Statuses{IBV_WC_LOC_PROT_ERR});
    }
    SECTION("destroyed while a send waits") {
        REQUIRE(p.a.send(1) == 0);
        p.b.qp.reset();
    }
    SECTION("connected to another queue pair") {
        ibv_qp_attr reset{};
        REQUIRE(ibv_modify_qp(p.b.native(), &reset, IBV_QP_STATE) == 0);
        p.b.qp->init();
        p.b.qp->connect(p.b.qp->local_address());
        REQUIRE(p.a.send(1) == 0);
    }
    CHECK(statuses(p.a.send_cq) == Statuses{IBV_WC_RETRY_EXC_ERR});
    CHECK(p.a.qp->state() == IBV_QPS_ERR);
}

// --- requests that wait ---

TEST_CASE("simulated RC: sends wait for a peer that is not ready", "[simulated]") {
    SimulatedVerbs sim;
    const asyncverbs::ProtectionDomain domain(asyncverbs::Context::open());
    End a(domain);
    End b(domain);
    b.qp->init();
    a.qp->connect(b.qp->local_address());
    REQUIRE(b.receive(2) == 0);
    REQUIRE(a.send(1) == 0);
    CHECK(poll(a.send_cq).empty());
    SECTION("until it is ready") {
        b.qp->ready_to_receive(a.qp->local_address());
        CHECK(statuses(a.send_cq) == Statuses{IBV_WC_SUCCESS});
        CHECK(statuses(b.recv_cq) == Statuses{IBV_WC_SUCCESS});
    }
    SECTION("until the retries are exhausted") {
        sim.time_out();
        CHECK(statuses(a.send_cq) == Statuses{IBV_WC_RETRY_EXC_ERR});
    }
}

TEST_CASE("simulated ports: no message passes a port that is down", "[simulated]") {
    SimulatedVerbs sim(std::vector<DeviceOptions>{{.name = "sim0"}, {.name = "sim1"}});
    const asyncverbs::ProtectionDomain here(asyncverbs::Context::open("sim0"));
    const asyncverbs::ProtectionDomain there(asyncverbs::Context::open("sim1"));
    End a(here);
    End b(there);
    a.qp->connect(b.qp->local_address());
    b.qp->connect(a.qp->local_address());
    REQUIRE(b.receive(2) == 0);
    const char* down = GENERATE("sim0", "sim1");
    sim.set_port_state(down, 1, IBV_PORT_DOWN);
    REQUIRE(a.send(1) == 0);
    REQUIRE(a.send(2) == 0);
    CHECK(poll(a.send_cq).empty());
    SECTION("until it is active again") {
        sim.set_port_state(down, 1, IBV_PORT_ACTIVE);
        CHECK(statuses(a.send_cq) == Statuses{IBV_WC_SUCCESS});
        CHECK(statuses(b.recv_cq) == Statuses{IBV_WC_SUCCESS});
    }
    SECTION("until the retries are exhausted") {
        sim.time_out();
        CHECK(statuses(a.send_cq) == Statuses{IBV_WC_RETRY_EXC_ERR, IBV_WC_WR_FLUSH_ERR});
    }
}

TEST_CASE("simulated delivery: held, from one queue pair, step by step, released", "[simulated]") {
    Pair p;
    p.sim.hold_delivery();
    for (std::uint64_t id = 0; id < 3; ++id) {
        REQUIRE(p.a.receive(id) == 0);
        REQUIRE(p.b.receive(id) == 0);
        REQUIRE(p.a.send(id) == 0);
    }
    REQUIRE(p.b.send(9) == 0);
    CHECK(p.sim.deliver_from(p.b.native()) == 1);
    CHECK(poll(p.b.send_cq).size() == 1);
    CHECK(poll(p.a.recv_cq).size() == 1);
    CHECK(poll(p.a.send_cq).empty());
    CHECK(p.sim.deliver(1) == 1);
    CHECK(poll(p.a.send_cq)[0].wr_id == 0);
    CHECK(p.sim.deliver_from(p.a.native(), 9) == 2);
    CHECK(p.sim.deliver() == 0);
    REQUIRE(p.b.send(10) == 0);
    CHECK(poll(p.b.send_cq).empty());
    p.sim.release_delivery();
    CHECK(poll(p.b.send_cq)[0].wr_id == 10);
}

TEST_CASE("simulated RC: solicited sends fire a solicited arm", "[simulated]") {
    Pair p;
    ibv_cq* const recv_cq = p.b.recv_cq.native_handle();
    REQUIRE(p.b.receive(1) == 0);
    REQUIRE(p.b.receive(2) == 0);
    CHECK(ibv_req_notify_cq(recv_cq, 1) == 0);
    REQUIRE(p.a.send(1) == 0);
    CHECK(p.sim.armed(recv_cq));
    ibv_send_wr wr = End::request(2);
    wr.send_flags |= IBV_SEND_SOLICITED;
    REQUIRE(p.a.post(wr, p.a.region.slice(0, 8)) == 0);
    CHECK_FALSE(p.sim.armed(recv_cq));
}

TEST_CASE("simulated UD: datagrams arrive with a header, or are dropped", "[simulated]") {
    SimulatedVerbs sim;
    const asyncverbs::ProtectionDomain domain(asyncverbs::Context::open());
    End a(domain, IBV_QPT_UD);
    End b(domain, IBV_QPT_UD);
    a.qp->activate();
    b.qp->activate();
    const asyncverbs::AddressHandle handle(domain, *a.qp, b.qp->local_address());
    ibv_send_wr wr = End::request(1);
    wr.wr.ud = {handle.native_handle(), b.qp->qp_num(), InitOptions{}.qkey};
    const auto sent = [&] {
        REQUIRE(a.post(wr, a.region.slice(0, 4)) == 0);
        CHECK(statuses(a.send_cq) == Statuses{IBV_WC_SUCCESS});
        return poll(b.recv_cq);
    };
    CHECK(sent().empty()); // no receive
    REQUIRE(b.receive(2, b.region.slice(0, 43)) == 0);
    CHECK(sent().empty()); // no space
    b.qp->to_error();
    poll(b.recv_cq);
    End c(domain, IBV_QPT_UD);
    c.qp->activate();
    wr.wr.ud.remote_qpn = c.qp->qp_num();
    REQUIRE(c.receive(2, c.region.slice(0, 44)) == 0);
    wr.wr.ud.remote_qkey = 1;
    CHECK(sent().empty());
    CHECK(poll(c.recv_cq).empty()); // wrong Q_Key
    wr.wr.ud.remote_qkey = InitOptions{}.qkey;
    sent();
    const std::vector<ibv_wc> received = poll(c.recv_cq);
    REQUIRE(received.size() == 1);
    CHECK(received[0].byte_len == 44);
    CHECK(received[0].src_qp == a.qp->qp_num());
    CHECK(received[0].wc_flags == IBV_WC_GRH);
    CHECK(a.post(End::request(1, IBV_WR_RDMA_WRITE), a.region.slice(0, 4)) == EINVAL);
}

TEST_CASE("simulated shared receives: a queue pair in ERR flushes none of them", "[simulated]") {
    SimulatedVerbs sim;
    const asyncverbs::ProtectionDomain domain(asyncverbs::Context::open());
    const asyncverbs::CompletionQueue cq(domain.context(), 64);
    asyncverbs::SharedReceiveQueue receives(domain);
    asyncverbs::QueuePair qp(domain, cq, cq, receives);
    qp.connect(qp.local_address());
    receives.post_recv(1, Slice());
    qp.to_error();
    CHECK(poll(cq).empty());
    ibv_async_event event{};
    REQUIRE(ibv_get_async_event(domain.context().native_handle(), &event) == 0);
    CHECK(event.event_type == IBV_EVENT_QP_LAST_WQE_REACHED);
    ibv_ack_async_event(&event);
}
