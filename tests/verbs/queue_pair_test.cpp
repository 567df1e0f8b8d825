// SPDX-License-Identifier: MIT
#include <asyncverbs/verbs/queue_pair.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/verbs/memory.hpp>

#include "support/catch.hpp"
#include "verbs/failure.hpp"
#include "verbs/fixture.hpp"

using namespace asyncverbs;
using simulated::DeviceOptions;
using simulated::PortOptions;
using simulated::SimulatedVerbs;
using support::contains;
using support::failure_text;
using support::Parents;
using support::poll;
using support::port_in;

static_assert(!std::is_copy_constructible_v<QueuePair>);
static_assert(std::is_nothrow_move_constructible_v<QueuePair>);
static_assert(std::is_nothrow_move_assignable_v<QueuePair>);

// Safe as temporaries in a full-expression that awaits, which GCC 12 destroys twice.
static_assert(std::is_trivially_destructible_v<QueuePairOptions>);
static_assert(std::is_trivially_destructible_v<InitOptions>);
static_assert(std::is_trivially_destructible_v<RtrOptions>);
static_assert(std::is_trivially_destructible_v<RtsOptions>);
static_assert(std::is_trivially_destructible_v<QueuePairAddress>);

namespace {

ibv_qp_attr attributes(const QueuePair& qp) {
    ibv_qp_attr attr{};
    ibv_qp_init_attr init_attr{};
    REQUIRE(ibv_query_qp(qp.native_handle(), &attr, IBV_QP_STATE, &init_attr) == 0);
    return attr;
}

ibv_send_wr send_request(ibv_sge& sge, std::uint64_t id = 1) {
    ibv_send_wr wr{};
    wr.wr_id = id;
    wr.sg_list = &sge;
    wr.num_sge = 1;
    wr.opcode = IBV_WR_SEND;
    wr.send_flags = IBV_SEND_SIGNALED;
    return wr;
}

ibv_recv_wr recv_request(ibv_sge& sge, std::uint64_t id = 2) {
    ibv_recv_wr wr{};
    wr.wr_id = id;
    wr.sg_list = &sge;
    wr.num_sge = 1;
    return wr;
}

DeviceOptions infiniband_device() {
    PortOptions port;
    port.attr.link_layer = IBV_LINK_LAYER_INFINIBAND;
    port.attr.lid = 17;
    port.attr.active_mtu = IBV_MTU_2048;
    port.gids = {{simulated::link_local_gid(1), IBV_GID_TYPE_IB}};
    return {.name = "ib0", .ports = {port}};
}

} // namespace

// --- creation, ownership ---

TEST_CASE("a queue pair is created with its options", "[verbs][queue_pair]") {
    SimulatedVerbs verbs;
    const Parents parents;
    const CompletionQueue recv_cq(parents.context, 64);
    const QueuePair qp(parents.domain, parents.cq, recv_cq,
                       {.type = IBV_QPT_UD,
                        .max_send_wr = 3,
                        .max_recv_wr = 4,
                        .max_send_sge = 5,
                        .max_recv_sge = 6,
                        .max_inline_data = 7,
                        .sq_sig_all = true});
    ibv_qp_attr attr{};
    ibv_qp_init_attr made{};
    REQUIRE(ibv_query_qp(qp.native_handle(), &attr, IBV_QP_STATE, &made) == 0);
    CHECK(made.qp_type == IBV_QPT_UD);
    CHECK(made.send_cq == parents.cq.native_handle());
    CHECK(made.recv_cq == recv_cq.native_handle());
    CHECK(made.cap.max_send_wr == 3);
    CHECK(made.cap.max_recv_wr == 4);
    CHECK(made.cap.max_send_sge == 5);
    CHECK(made.cap.max_recv_sge == 6);
    CHECK(made.cap.max_inline_data == 7);
    CHECK(made.sq_sig_all == 1);
    CHECK(qp.native_handle()->pd == parents.domain.native_handle());
    CHECK(qp.qp_num() == qp.native_handle()->qp_num);
    CHECK(qp.options().max_send_wr == 3);
    CHECK(qp.granted().max_recv_sge == 6);
    CHECK(qp.state() == IBV_QPS_RESET);
    CHECK(qp.shared_handle().get() == qp.native_handle());
}

TEST_CASE("a queue pair keeps its parents", "[verbs][queue_pair]") {
    SimulatedVerbs verbs;
    {
        auto parents = std::make_unique<Parents>();
        QueuePair qp = parents->queue_pair();
        const std::weak_ptr<ibv_qp> watcher = qp.shared_handle();
        parents.reset();
        CHECK(verbs.calls("ibv_destroy_cq") == 0);
        CHECK(verbs.calls("ibv_dealloc_pd") == 0);
        qp.init();
        CHECK(qp.state() == IBV_QPS_INIT);
        {
            const QueuePair taken(std::move(qp));
        }
        // A remaining weak pointer must not keep the parents.
        CHECK(verbs.live_objects() == 0);
    }
}

TEST_CASE("each queue pair has its own PSN", "[verbs][queue_pair]") {
    SimulatedVerbs verbs;
    const Parents parents;
    const QueuePair first = parents.queue_pair();
    const QueuePair second = parents.queue_pair();
    CHECK(first.local_address().psn != second.local_address().psn);
    CHECK(first.local_address().psn <= 0xffffff);
    CHECK(detail::arbitrary_psn(0xffffffff) <= 0xffffff);
}

TEST_CASE("completion queues of another context are rejected", "[verbs][queue_pair]") {
    SimulatedVerbs verbs;
    const Parents ours;
    const Parents others;
    const auto text = [&](const CompletionQueue& send, const CompletionQueue& recv) {
        return failure_text(std::errc::invalid_argument,
                            [&] { QueuePair qp(ours.domain, send, recv); });
    };
    CHECK_THAT(text(others.cq, ours.cq), contains("belongs to another Context"));
    CHECK_THAT(text(ours.cq, others.cq), contains("belongs to another Context"));
    CHECK(verbs.calls("ibv_create_qp") == 0);
}

TEST_CASE("capacities beyond the device are reported with its limits", "[verbs][queue_pair]") {
    DeviceOptions device;
    device.attr.max_qp_wr = 100;
    device.attr.max_sge = 4;
    SimulatedVerbs verbs({device});
    const Parents parents(1000);
    const auto text = [&](const QueuePairOptions& options) {
        return failure_text(std::errc::invalid_argument,
                            [&] { (void)parents.queue_pair(options); });
    };
    CHECK_THAT(text({.max_send_wr = 101}),
               contains("max_send_wr 101 is out of range for sim0: valid are 0 to 100"));
    CHECK_THAT(text({.max_recv_wr = 0xffffffff}),
               contains("max_recv_wr 4294967295 is out of range for sim0: valid are 0 to 100"));
    CHECK_THAT(text({.max_send_sge = 5}), contains("max_send_sge 5 is out of range"));
    CHECK_THAT(text({.max_recv_sge = 5}), contains("max_recv_sge 5 is out of range"));
    CHECK_THAT(text({.type = IBV_QPT_UC}), contains("type 3 is not covered"));
    CHECK(verbs.calls("ibv_create_qp") == 0);
    CHECK(parents.cq.reserved() == 0);
    CHECK(parents.queue_pair({.max_send_wr = 100, .max_recv_wr = 100}).qp_num() != 0);
    // The only limit that no device reports.
    CHECK_THAT(text({.max_inline_data = 100000}),
               contains("ibv_create_qp (max_inline_data 100000): Invalid argument"));
    CHECK(parents.cq.reserved() == 0);
}

// --- capacity ---

TEST_CASE("completions of a queue pair fit their queues (I10)", "[verbs][queue_pair][I10]") {
    SimulatedVerbs verbs;
    const Parents parents(32);
    std::optional<QueuePair> first = parents.queue_pair({.max_send_wr = 10, .max_recv_wr = 6});
    CHECK(parents.cq.reserved() == 16);
    {
        const QueuePair second = parents.queue_pair({.max_send_wr = 8, .max_recv_wr = 8});
        CHECK(parents.cq.reserved() == 32);
        const auto created = verbs.calls("ibv_create_qp");
        CHECK_THAT(
            failure_text(std::errc::no_buffer_space,
                         [&] { (void)parents.queue_pair({.max_send_wr = 1, .max_recv_wr = 0}); }),
            contains("1 send and 0 receive work requests need 1 entries of their completion "
                     "queue, which has 32, 32 of them reserved by other queue pairs"));
        CHECK(verbs.calls("ibv_create_qp") == created);
        CHECK(parents.queue_pair({.max_send_wr = 0, .max_recv_wr = 0}).qp_num() != 0);
    }
    CHECK(parents.cq.reserved() == 16);
    first.reset();
    CHECK(parents.cq.reserved() == 0);
}

TEST_CASE("send and receive queues are counted separately (I10)", "[verbs][queue_pair][I10]") {
    SimulatedVerbs verbs;
    const Parents parents(16);
    const CompletionQueue recv_cq(parents.context, 8);
    const QueuePairOptions fits{.max_send_wr = 16, .max_recv_wr = 8};
    {
        const QueuePair qp(parents.domain, parents.cq, recv_cq, fits);
        CHECK(parents.cq.reserved() == 16);
        CHECK(recv_cq.reserved() == 8);
    }
    const auto text = [&](const QueuePairOptions& options) {
        return failure_text(std::errc::no_buffer_space,
                            [&] { QueuePair qp(parents.domain, parents.cq, recv_cq, options); });
    };
    CHECK_THAT(text({.max_send_wr = 17, .max_recv_wr = 8}), contains("17 send work requests"));
    CHECK_THAT(text({.max_send_wr = 16, .max_recv_wr = 9}), contains("9 receive work requests"));
    CHECK(parents.cq.reserved() == 0);
    CHECK(recv_cq.reserved() == 0);
}

TEST_CASE("the reserved entries outlive the owner of the completion queue", "[verbs][queue_pair]") {
    SimulatedVerbs verbs;
    auto parents = std::make_unique<Parents>(32);
    const auto capacity = parents->cq.capacity();
    std::optional<QueuePair> qp = parents->queue_pair();
    parents.reset();
    CHECK(capacity->reserved() == 32);
    qp.reset();
    CHECK(capacity->reserved() == 0);
}

TEST_CASE("the slots of a queue pair that stays alive stay reserved", "[verbs][queue_pair]") {
    SimulatedVerbs verbs;
    const Parents parents(32);
    verbs.fail("ibv_destroy_qp", {.error = EBUSY});
    ibv_qp* left_over = nullptr;
    {
        const QueuePair qp = parents.queue_pair();
        left_over = qp.native_handle();
    }
    CHECK(parents.cq.reserved() == 32);
    CHECK(ibv_destroy_qp(left_over) == 0);
}

// --- connecting ---

TEST_CASE("connecting uses the documented defaults", "[verbs][queue_pair]") {
    SimulatedVerbs verbs;
    const Parents parents;
    QueuePair qp = parents.queue_pair();
    const QueuePair peer = parents.queue_pair();
    const QueuePairAddress remote = peer.local_address();

    qp.init();
    CHECK(attributes(qp).qp_state == IBV_QPS_INIT);
    CHECK(attributes(qp).port_num == 1);
    CHECK(attributes(qp).pkey_index == 0);
    CHECK(attributes(qp).qp_access_flags ==
          (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE));

    qp.to_rtr(remote);
    const ibv_qp_attr rtr = attributes(qp);
    CHECK(rtr.qp_state == IBV_QPS_RTR);
    CHECK(rtr.path_mtu == IBV_MTU_4096);
    CHECK(rtr.dest_qp_num == remote.qp_num);
    CHECK(rtr.rq_psn == remote.psn);
    CHECK(rtr.max_dest_rd_atomic == 1);
    CHECK(rtr.min_rnr_timer == 12);
    CHECK(rtr.ah_attr.port_num == 1);
    CHECK(rtr.ah_attr.is_global == 1);
    CHECK(rtr.ah_attr.sl == 0);
    CHECK(rtr.ah_attr.grh.sgid_index == 1);
    CHECK(rtr.ah_attr.grh.hop_limit == 64);
    CHECK(gid_text(rtr.ah_attr.grh.dgid) == "::ffff:10.7.0.1");

    qp.to_rts();
    const ibv_qp_attr rts = attributes(qp);
    CHECK(rts.qp_state == IBV_QPS_RTS);
    CHECK(rts.sq_psn == qp.local_address().psn);
    CHECK(rts.timeout == 14);
    CHECK(rts.retry_cnt == 7);
    CHECK(rts.rnr_retry == 7);
    CHECK(rts.max_rd_atomic == 1);
}

TEST_CASE("connecting uses the given options", "[verbs][queue_pair]") {
    PortOptions second;
    second.gids.resize(4);
    second.gids[3] = {simulated::ipv4_gid(10, 7, 0, 9)};
    second.attr.pkey_tbl_len = 2;
    SimulatedVerbs verbs({{.name = "sim0", .ports = {PortOptions{}, second}}});
    const Parents parents;
    QueuePair qp = parents.queue_pair();
    qp.init({.port = 2,
             .gid_index = 3,
             .psn = 0xffffff,
             .pkey_index = 1,
             .access = IBV_ACCESS_REMOTE_ATOMIC});
    CHECK(attributes(qp).port_num == 2);
    CHECK(attributes(qp).pkey_index == 1);
    CHECK(attributes(qp).qp_access_flags == IBV_ACCESS_REMOTE_ATOMIC);
    const QueuePairAddress local = qp.local_address();
    CHECK(local.psn == 0xffffff);
    CHECK(gid_text(local.gid) == "::ffff:10.7.0.9");
    CHECK(local.qp_num == qp.qp_num());

    qp.connect(local,
               {.path_mtu = IBV_MTU_1024,
                .max_dest_rd_atomic = 4,
                .min_rnr_timer = 31,
                .service_level = 3,
                .hop_limit = 9,
                .traffic_class = 5,
                .flow_label = 0xfffff},
               {.timeout = 0, .retry_cnt = 1, .rnr_retry = 2, .max_rd_atomic = 8});
    const ibv_qp_attr attr = attributes(qp);
    CHECK(attr.qp_state == IBV_QPS_RTS);
    CHECK(attr.port_num == 2); // connect() does not repeat init()
    CHECK(attr.path_mtu == IBV_MTU_1024);
    CHECK(attr.max_dest_rd_atomic == 4);
    CHECK(attr.min_rnr_timer == 31);
    CHECK(attr.ah_attr.sl == 3);
    CHECK(attr.ah_attr.port_num == 2);
    CHECK(attr.ah_attr.grh.sgid_index == 3);
    CHECK(attr.ah_attr.grh.hop_limit == 9);
    CHECK(attr.ah_attr.grh.traffic_class == 5);
    CHECK(attr.ah_attr.grh.flow_label == 0xfffff);
    CHECK(attr.timeout == 0);
    CHECK(attr.retry_cnt == 1);
    CHECK(attr.rnr_retry == 2);
    CHECK(attr.max_rd_atomic == 8);
    CHECK(attr.sq_psn == 0xffffff);
}

TEST_CASE("without a port the first active one is used", "[verbs][queue_pair]") {
    SimulatedVerbs verbs({{.name = "sim0", .ports = {port_in(IBV_PORT_DOWN), PortOptions{}}}});
    const Parents parents;
    QueuePair qp = parents.queue_pair();
    qp.init();
    CHECK(attributes(qp).port_num == 2);
}

TEST_CASE("the local address is available before init", "[verbs][queue_pair]") {
    SimulatedVerbs verbs;
    const Parents parents;
    QueuePair qp = parents.queue_pair();
    const QueuePairAddress before = qp.local_address();
    CHECK(qp.state() == IBV_QPS_RESET);
    CHECK(before.qp_num == qp.qp_num());
    CHECK(before.lid == 0);
    CHECK(gid_text(before.gid) == "::ffff:10.7.0.1");
    qp.init();
    CHECK(before == qp.local_address());
    qp.init({.gid_index = 0, .psn = 5}); // may be repeated
    CHECK(gid_text(qp.local_address().gid) == "fe80::ff:fe00:1");
    CHECK(qp.local_address().psn == 5);
}

TEST_CASE("a failed init changes nothing", "[verbs][queue_pair]") {
    SimulatedVerbs verbs;
    const Parents parents;
    QueuePair qp = parents.queue_pair();
    const QueuePairAddress before = qp.local_address();
    verbs.fail("ibv_modify_qp", {.error = EINVAL});
    CHECK_THROWS_AS(qp.init({.gid_index = 0, .psn = before.psn ^ 1}), std::system_error);
    CHECK(qp.local_address() == before);
}

TEST_CASE("an InfiniBand peer is reached by LID", "[verbs][queue_pair]") {
    SimulatedVerbs verbs({infiniband_device()});
    const Parents parents;
    QueuePair qp = parents.queue_pair();
    const QueuePairAddress local = qp.local_address();
    CHECK(local.lid == 17);
    CHECK(is_empty_gid(local.gid));
    qp.connect(local);
    const ibv_qp_attr attr = attributes(qp);
    CHECK(attr.ah_attr.is_global == 0);
    CHECK(attr.ah_attr.dlid == 17);
    CHECK(attr.path_mtu == IBV_MTU_2048);
}

TEST_CASE("an InfiniBand peer with a GID is reached by GID", "[verbs][queue_pair]") {
    SimulatedVerbs verbs({infiniband_device()});
    const Parents parents;
    QueuePair qp = parents.queue_pair();
    qp.init({.gid_index = 0});
    const QueuePairAddress local = qp.local_address();
    CHECK(gid_text(local.gid) == "fe80::ff:fe00:1");
    qp.connect(local);
    CHECK(attributes(qp).ah_attr.is_global == 1);
    CHECK(attributes(qp).ah_attr.dlid == 17);

    QueuePair other = parents.queue_pair();
    CHECK_THAT(
        failure_text(std::errc::invalid_argument, [&] { other.connect({.lid = 0, .qp_num = 1}); }),
        contains("neither a LID nor a GID"));
}

TEST_CASE("a UD queue pair is activated", "[verbs][queue_pair]") {
    SimulatedVerbs verbs;
    const Parents parents;
    QueuePair qp = parents.queue_pair({.type = IBV_QPT_UD});
    qp.activate();
    CHECK(qp.state() == IBV_QPS_RTS);
    CHECK(attributes(qp).qkey == 0x11111111);
    CHECK(attributes(qp).sq_psn == qp.local_address().psn);

    QueuePair other = parents.queue_pair({.type = IBV_QPT_UD});
    other.init({.gid_index = 0, .qkey = 0x22222222});
    other.activate();
    CHECK(attributes(other).qkey == 0x22222222);
    CHECK(gid_text(other.local_address().gid) == "fe80::ff:fe00:1");
}

TEST_CASE("steps of the wrong type of queue pair are rejected", "[verbs][queue_pair]") {
    SimulatedVerbs verbs;
    const Parents parents;
    QueuePair ud = parents.queue_pair({.type = IBV_QPT_UD});
    QueuePair rc = parents.queue_pair();
    const QueuePairAddress remote = rc.local_address();
    CHECK_THAT(failure_text(std::errc::invalid_argument, [&] { ud.connect(remote); }),
               contains("see activate()"));
    CHECK_THAT(failure_text(std::errc::invalid_argument, [&] { rc.activate(); }),
               contains("see connect()"));
    CHECK(rc.state() == IBV_QPS_RESET);
    CHECK(ud.state() == IBV_QPS_RESET);
}

TEST_CASE("steps out of order are rejected", "[verbs][queue_pair]") {
    SimulatedVerbs verbs;
    const Parents parents;
    QueuePair qp = parents.queue_pair();
    const QueuePairAddress remote = qp.local_address();
    CHECK_THAT(failure_text(std::errc::invalid_argument, [&] { qp.to_rtr(remote); }),
               contains("init() comes first"));
    CHECK(failure_text(std::errc::invalid_argument, [&] { qp.to_rts(); }) ==
          "ibv_modify_qp (to RTS): Invalid argument");
    qp.connect(remote);
    CHECK(failure_text(std::errc::invalid_argument, [&] { qp.init(); }) ==
          "ibv_modify_qp (to INIT): Invalid argument");
    CHECK(failure_text(std::errc::invalid_argument, [&] { qp.connect(remote); }) ==
          "ibv_modify_qp (to RTR) from GID ::ffff:10.7.0.1 to GID ::ffff:10.7.0.1: "
          "Invalid argument");
}

TEST_CASE("a port that is down is reported with its state", "[verbs][queue_pair]") {
    SimulatedVerbs verbs;
    const Parents parents;
    QueuePair qp = parents.queue_pair();
    verbs.set_port_state("sim0", 1, IBV_PORT_DOWN);
    const std::string state = ibv_port_state_str(IBV_PORT_DOWN);
    CHECK_THAT(failure_text(std::errc::network_down, [&] { qp.init({.port = 1}); }),
               contains("port 1 of sim0 is not active but in state " + state));
    CHECK_THAT(failure_text(std::errc::network_down, [&] { qp.init(); }),
               contains("no port of sim0 is active: port 1 " + state));
    CHECK_THAT(failure_text(std::errc::network_down, [&] { (void)qp.local_address(); }),
               contains("no port of sim0 is active"));
    CHECK(qp.state() == IBV_QPS_RESET);
}

TEST_CASE("bad ports, GIDs and PSNs are reported", "[verbs][queue_pair]") {
    SimulatedVerbs verbs;
    std::vector<simulated::GidEntry> gids(300, {simulated::ipv4_gid(10, 7, 0, 1)});
    gids[2] = {};
    verbs.set_gids("sim0", 1, gids);
    const Parents parents;
    QueuePair qp = parents.queue_pair();
    const auto text = [&](const InitOptions& options) {
        return failure_text(std::errc::invalid_argument, [&] { qp.init(options); });
    };
    CHECK_THAT(text({.port = 2}), contains("port number 2 is out of range for sim0"));
    CHECK_THAT(text({.port = -1}), contains("port number -1 is out of range for sim0"));
    CHECK_THAT(text({.gid_index = 1024}), contains("valid are 0 to 1023"));
    CHECK_THAT(text({.gid_index = -1}), contains("GID index -1"));
    CHECK_THAT(text({.gid_index = 2}), contains("is empty"));
    CHECK_THAT(text({.gid_index = 256}),
               contains("GID index 256 is out of range for an address vector: valid are 0 to 255"));
    CHECK_THAT(text({.psn = 0x1000000}), contains("psn 16777216 is out of range"));
    CHECK(qp.state() == IBV_QPS_RESET);
    qp.init({.gid_index = 255});
}

TEST_CASE("what iWARP lacks is reported at the call", "[verbs][queue_pair]") {
    SimulatedVerbs verbs;
    const Parents parents;
    QueuePair qp = parents.queue_pair();
    parents.context.native_handle()->device->transport_type = IBV_TRANSPORT_IWARP;
    CHECK_THAT(failure_text(std::errc::operation_not_supported, [&] { qp.init(); }),
               contains("sim0 is an iWARP device: connect its queue pairs by address"));
    CHECK_THAT(failure_text(std::errc::operation_not_supported,
                            [&] { parents.queue_pair({.type = IBV_QPT_UD}); }),
               contains("sim0 is an iWARP device, which has no UD"));
    const auto post = [&](ibv_wr_opcode opcode) {
        return failure_text(std::errc::invalid_argument, [&] {
            ibv_send_wr request{};
            request.opcode = opcode;
            qp.post_send(request);
        });
    };
    for (const ibv_wr_opcode opcode : {IBV_WR_SEND_WITH_IMM, IBV_WR_RDMA_WRITE_WITH_IMM}) {
        CHECK_THAT(post(opcode), contains("iWARP has no immediate data"));
    }
    for (const ibv_wr_opcode opcode : {IBV_WR_ATOMIC_CMP_AND_SWP, IBV_WR_ATOMIC_FETCH_AND_ADD}) {
        CHECK_THAT(post(opcode), contains("iWARP has no atomics"));
    }
    CHECK(post(IBV_WR_SEND) == "ibv_post_send: Invalid argument"); // in RESET
}

TEST_CASE("invalid peers and options are reported", "[verbs][queue_pair]") {
    PortOptions slow;
    slow.attr.active_mtu = IBV_MTU_1024;
    SimulatedVerbs verbs({{.name = "sim0", .ports = {slow}}});
    const Parents parents;
    QueuePair qp = parents.queue_pair();
    const QueuePairAddress good = qp.local_address();
    qp.init();
    const auto receive = [&](const QueuePairAddress& remote, const RtrOptions& options = {}) {
        return failure_text(std::errc::invalid_argument, [&] { qp.to_rtr(remote, options); });
    };
    CHECK_THAT(receive({.lid = 1, .qp_num = 1}), contains("the peer's GID is empty"));
    CHECK_THAT(receive({.qp_num = 1 << 24, .gid = good.gid}), contains("the peer's qp_num"));
    CHECK_THAT(receive({.qp_num = 1, .psn = 1 << 24, .gid = good.gid}), contains("the peer's psn"));
    CHECK_THAT(receive(good, {.path_mtu = IBV_MTU_2048}),
               contains("path MTU (of enum ibv_mtu) 4 is out of range for port 1 of sim0: "
                        "valid are 1 to 3"));
    CHECK_THAT(receive(good, {.min_rnr_timer = 32}), contains("min_rnr_timer 32"));
    CHECK_THAT(receive(good, {.service_level = 16}), contains("service_level 16"));
    CHECK_THAT(receive(good, {.flow_label = 1 << 20}), contains("flow_label 1048576"));
    CHECK(qp.state() == IBV_QPS_INIT);
    qp.ready_to_receive(good);
    const auto send = [&](const RtsOptions& options) {
        return failure_text(std::errc::invalid_argument, [&] { qp.to_rts(options); });
    };
    CHECK_THAT(send({.timeout = 32}), contains("timeout 32 is out of range"));
    CHECK_THAT(send({.retry_cnt = 8}), contains("retry_cnt 8 is out of range"));
    CHECK_THAT(send({.rnr_retry = 8}), contains("rnr_retry 8 is out of range"));
    CHECK(qp.state() == IBV_QPS_RTR);
    qp.ready_to_send();
    CHECK(qp.state() == IBV_QPS_RTS);
}

TEST_CASE("a peer that cannot be reached: both GIDs, and what is wrong with them",
          "[verbs][queue_pair]") {
    SimulatedVerbs verbs;
    const Parents parents;
    QueuePair qp = parents.queue_pair();
    qp.init();
    QueuePairAddress remote = qp.local_address();
    const auto text = [&] {
        verbs.fail("ibv_modify_qp", {.error = EINVAL});
        return failure_text(std::errc::invalid_argument, [&] { qp.to_rtr(remote); });
    };
    remote.gid = simulated::link_local_gid(1);
    CHECK(text() == "ibv_modify_qp (to RTR) from GID ::ffff:10.7.0.1 to GID fe80::ff:fe00:1, which "
                    "do not reach each other: one is IPv4, one is IPv6: Invalid argument");
    std::vector<simulated::GidEntry> gids = simulated::default_gids();
    gids[1].gid = GENERATE(ibv_gid{}, simulated::ipv4_gid(10, 7, 0, 9));
    verbs.set_gids("sim0", 1, gids);
    CHECK_THAT(text(), contains("of which the first is gone: its interface has lost the address"));
}

// --- posting ---

TEST_CASE("a slice is posted in one call", "[verbs][queue_pair]") {
    SimulatedVerbs verbs;
    const Parents parents;
    std::array<std::byte, 8> text{};
    for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<std::byte>(i + 1);
    std::array<std::byte, 8> received{};
    const MemoryRegion source(parents.domain, text);
    const MemoryRegion target(parents.domain, received);
    QueuePair qp = parents.queue_pair();
    qp.connect(qp.local_address());
    const auto polled = [&] {
        std::vector<ibv_wc> wcs = poll(parents.cq);
        std::ranges::sort(wcs, {}, &ibv_wc::wr_id);
        return wcs;
    };

    SECTION("signaled, unless the flags say otherwise") {
        const bool signaled = GENERATE(true, false);
        qp.post_recv(7, target.slice(2, 4));
        if (signaled) {
            qp.post_send(8, source.slice(3, 4));
        } else {
            qp.post_send(8, source.slice(3, 4), 0);
        }
        const std::vector<ibv_wc> wcs = polled();
        REQUIRE(wcs.size() == (signaled ? 2 : 1));
        CHECK(wcs[0].wr_id == 7);
        CHECK(wcs[0].status == IBV_WC_SUCCESS);
        CHECK(wcs[0].opcode == IBV_WC_RECV);
        CHECK(wcs[0].byte_len == 4);
        if (signaled) {
            CHECK(wcs[1].wr_id == 8);
            CHECK(wcs[1].status == IBV_WC_SUCCESS);
            CHECK(wcs[1].opcode == IBV_WC_SEND);
        }
        const std::array<std::byte, 8> expected{{{}, {}, text[3], text[4], text[5], text[6]}};
        CHECK(received == expected);
    }
    SECTION("a receive takes no more than the slice") {
        qp.post_recv(7, target.slice(2, 4));
        qp.post_send(8, source.slice(0, 5));
        CHECK(polled()[0].status == IBV_WC_LOC_LEN_ERR);
        CHECK(received == std::array<std::byte, 8>{});
    }
    SECTION("errors are those of the other forms") {
        verbs.fail("ibv_post_send", {.error = ENOMEM});
        CHECK(failure_text(std::errc::not_enough_memory, [&] {
                  qp.post_send(8, source.slice());
              }) == "ibv_post_send: Cannot allocate memory");
        verbs.fail("ibv_post_recv", {.error = ENOMEM});
        CHECK(failure_text(std::errc::not_enough_memory, [&] {
                  qp.post_recv(7, target.slice());
              }) == "ibv_post_recv: Cannot allocate memory");
        const Slice endless(text.data(), std::size_t{1} << 32, source.lkey());
        CHECK_THAT(failure_text(std::errc::invalid_argument, [&] { qp.post_send(8, endless); }),
                   contains("does not fit a scatter/gather element"));
        CHECK_THAT(failure_text(std::errc::invalid_argument, [&] { qp.post_recv(7, endless); }),
                   contains("does not fit a scatter/gather element"));
        CHECK(verbs.posted_receives(qp.native_handle()) == 0);
    }
}

TEST_CASE("a full queue is reported with the first request that was not posted",
          "[verbs][queue_pair]") {
    SimulatedVerbs verbs;
    const Parents parents;
    std::array<std::byte, 16> memory{};
    const MemoryRegion region(parents.domain, memory);
    QueuePair qp = parents.queue_pair({.max_send_wr = 2, .max_recv_wr = 2});
    qp.connect(qp.local_address());
    verbs.hold_delivery();
    ibv_sge sge = region.slice().sge();
    std::array<ibv_recv_wr, 3> recvs{};
    std::array<ibv_send_wr, 3> sends{};
    for (std::size_t i = 0; i < 3; ++i) {
        recvs[i] = recv_request(sge, i);
        recvs[i].next = i < 2 ? &recvs[i + 1] : nullptr;
        sends[i] = send_request(sge, i);
        sends[i].next = i < 2 ? &sends[i + 1] : nullptr;
    }
    std::error_code error;
    CHECK(qp.post_recv(recvs[0], error) == &recvs[2]);
    CHECK(error == std::errc::not_enough_memory);
    CHECK(qp.post_send(sends[0], error) == &sends[2]);
    CHECK(error == std::errc::not_enough_memory);
    CHECK(verbs.posted_sends(qp.native_handle()) == 2);
    CHECK(verbs.posted_receives(qp.native_handle()) == 2);
    verbs.release_delivery();
    CHECK(poll(parents.cq).size() == 4);
    CHECK(qp.post_recv(recvs[2], error) == nullptr); // and clears the error
    CHECK_FALSE(error);
    CHECK(qp.post_send(sends[2], error) == nullptr);
    CHECK_FALSE(error);
}

TEST_CASE("in the error state outstanding requests are flushed", "[verbs][queue_pair][I12]") {
    SimulatedVerbs verbs;
    const Parents parents;
    std::array<std::byte, 16> memory{};
    const MemoryRegion region(parents.domain, memory);
    QueuePair qp = parents.queue_pair();
    qp.init();
    qp.post_recv(7, region.slice());
    std::error_code error = make_wc_error(IBV_WC_GENERAL_ERR);
    qp.to_error(error);
    CHECK_FALSE(error);
    CHECK(qp.state() == IBV_QPS_ERR);
    const std::vector<ibv_wc> wcs = poll(parents.cq);
    REQUIRE(wcs.size() == 1);
    CHECK(wcs[0].wr_id == 7);
    CHECK(wcs[0].status == IBV_WC_WR_FLUSH_ERR);
    qp.to_error();
    CHECK(qp.state() == IBV_QPS_ERR);
}

TEST_CASE("a moved-from queue pair owns nothing", "[verbs][queue_pair]") {
    SimulatedVerbs verbs;
    Parents parents;
    QueuePair first = parents.queue_pair();
    first.init();
    QueuePair second(std::move(first));
    CHECK(first.native_handle() == nullptr);
    CHECK(first.shared_handle() == nullptr);
    const auto inert = [&](auto use) {
        CHECK_THAT(failure_text(std::errc::invalid_argument, use),
                   contains("this QueuePair was moved from"));
    };
    const QueuePairAddress remote = second.local_address();
    inert([&] { (void)first.qp_num(); });
    inert([&] { (void)first.local_address(); });
    inert([&] { (void)first.state(); });
    inert([&] { (void)first.path_to(remote); });
    inert([&] { first.init(); });
    inert([&] { first.connect(remote); });
    inert([&] { first.to_rtr(remote); });
    inert([&] { first.to_rts(); });
    inert([&] { first.to_error(); });
    std::error_code error;
    first.to_error(error);
    CHECK(error == std::errc::invalid_argument);
    ibv_send_wr send{};
    CHECK(first.post_send(send, error) == &send);
    CHECK(error == std::errc::invalid_argument);
    CHECK_THROWS_AS(first.post_send(send), std::system_error);
    ibv_recv_wr recv{};
    CHECK(first.post_recv(recv, error) == &recv);
    CHECK(error == std::errc::invalid_argument);

    // The new owner keeps the selection of init().
    second.connect(remote);
    CHECK(second.state() == IBV_QPS_RTS);
    first = std::move(second);
    CHECK(first.state() == IBV_QPS_RTS);

    const auto moved = [&](auto& owner, const char* name) {
        const auto taken(std::move(owner));
        CHECK_THAT(failure_text(std::errc::invalid_argument, [&] { (void)parents.queue_pair(); }),
                   contains(std::string("this ") + name + " was moved from"));
    };
    moved(parents.cq, "CompletionQueue");
    moved(parents.domain, "ProtectionDomain");
}

TEST_CASE("queue pair addresses are equal if all fields are", "[verbs][queue_pair]") {
    const QueuePairAddress address{1, 2, 3, simulated::ipv4_gid(10, 7, 0, 1)};
    CHECK(address == address);
    CHECK(QueuePairAddress{} == QueuePairAddress{});
    CHECK_FALSE(address == QueuePairAddress{2, 2, 3, address.gid});
    CHECK_FALSE(address == QueuePairAddress{1, 3, 3, address.gid});
    CHECK_FALSE(address == QueuePairAddress{1, 2, 2, address.gid});
    CHECK_FALSE(address == QueuePairAddress{1, 2, 3, simulated::ipv4_gid(10, 7, 0, 2)});
}
