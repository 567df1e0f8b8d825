// SPDX-License-Identifier: MIT
// The simulated queue pairs where other tests rely on them without asserting it. The tests of rdma/
// and verbs/ assert the operations, their errors and flushes.

#include <asyncverbs/simulation/simulated_verbs.hpp>
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
    explicit End(const asyncverbs::ProtectionDomain& domain)
        : send_cq(domain.context(), 16), recv_cq(domain.context(), 16),
          region(asyncverbs::MemoryRegion::allocate(domain, 256)),
          qp(domain, send_cq, recv_cq, {.max_send_wr = 4, .max_recv_wr = 4}) {}

    // Posts one request; 0 or an errno.
    int send(std::uint64_t wr_id, const Slice& slice, unsigned flags = IBV_SEND_SIGNALED) {
        ibv_sge sge = slice.sge();
        ibv_send_wr wr{};
        wr.wr_id = wr_id;
        wr.sg_list = &sge;
        wr.num_sge = 1;
        wr.opcode = IBV_WR_SEND;
        wr.send_flags = flags;
        std::error_code error;
        qp.post_send(wr, error);
        return error.value();
    }
    int send(std::uint64_t wr_id, unsigned flags = IBV_SEND_SIGNALED) {
        return send(wr_id, region.slice(0, 8), flags);
    }
    int receive(std::uint64_t wr_id, const Slice& slice) {
        ibv_sge sge = slice.sge();
        ibv_recv_wr wr{wr_id, nullptr, &sge, 1};
        std::error_code error;
        qp.post_recv(wr, error);
        return error.value();
    }
    int receive(std::uint64_t wr_id) { return receive(wr_id, region.slice(0, 8)); }

    asyncverbs::CompletionQueue send_cq;
    asyncverbs::CompletionQueue recv_cq;
    asyncverbs::MemoryRegion region;
    asyncverbs::QueuePair qp;
};

// Two connected ends.
struct Pair {
    explicit Pair(const ProviderModel& provider = rxe, std::uint8_t rnr_retry = 7) : sim(provider) {
        a.qp.connect(b.qp.local_address(), {}, {.rnr_retry = rnr_retry});
        b.qp.connect(a.qp.local_address(), {}, {.rnr_retry = rnr_retry});
    }

    SimulatedVerbs sim;
    asyncverbs::ProtectionDomain domain{asyncverbs::Context::open()};
    End a{domain};
    End b{domain};
};

} // namespace

TEST_CASE("simulated posting: a slot is free after the completion or after its poll",
          "[simulated]") {
    const ProviderModel provider = GENERATE(rxe, mlx5);
    Pair p(provider);
    const int full = provider.slots_freed_by_poll ? ENOMEM : 0;
    for (std::uint64_t id = 0; id < 4; ++id) {
        REQUIRE(p.b.receive(id) == 0);
        REQUIRE(p.a.send(id, id < 3 ? 0 : IBV_SEND_SIGNALED) == 0);
    }
    p.sim.hold_delivery();
    CHECK(p.a.send(4) == full);
    CHECK(p.b.receive(4) == full);
    const std::vector<ibv_wc> sent = poll(p.a.send_cq);
    REQUIRE(sent.size() == 1); // unsignaled sends have no completion
    CHECK(sent[0].wr_id == 3);
    CHECK(poll(p.b.recv_cq).size() == 4);
    while (p.sim.posted_sends(p.a.qp.native_handle()) < 4) {
        REQUIRE(p.a.send(5, 0) == 0);
    }
    CHECK(p.a.send(5, 0) == ENOMEM);
}

TEST_CASE("simulated audit: a region is not deregistered under a request", "[simulated]") {
    Pair p;
    std::optional<asyncverbs::MemoryRegion> region =
        asyncverbs::MemoryRegion::allocate(p.domain, 64);
    const Slice slice = region->slice(0, 8);
    bool reported = false;
    SECTION("a posted receive") {
        REQUIRE(p.a.receive(1, slice) == 0);
        reported = true;
    }
    SECTION("a waiting send") {
        REQUIRE(p.a.send(1, slice) == 0);
        reported = true;
    }
    SECTION("a flushed receive") {
        REQUIRE(p.a.receive(1, slice) == 0);
        p.a.qp.to_error();
    }
    region.reset();
    const std::vector<std::string> problems = p.sim.take_problems();
    REQUIRE(problems.size() == (reported ? 1 : 0));
    if (reported) {
        CHECK_THAT(problems[0], contains("is still used by a request that is posted to queue"));
    }
}

TEST_CASE("simulated RC: without a receive a send waits, or fails with a retry limit",
          "[simulated]") {
    const std::uint8_t rnr_retry = GENERATE(std::uint8_t{7}, std::uint8_t{6});
    Pair p(rxe, rnr_retry);
    REQUIRE(p.a.send(1) == 0);
    if (rnr_retry < 7) {
        CHECK(statuses(p.a.send_cq) == Statuses{IBV_WC_RNR_RETRY_EXC_ERR});
        CHECK(p.a.qp.state() == IBV_QPS_ERR);
        CHECK(p.b.qp.state() == IBV_QPS_RTS);
        return;
    }
    p.sim.time_out();
    CHECK(poll(p.a.send_cq).empty());
    REQUIRE(p.b.receive(3) == 0);
    CHECK(statuses(p.a.send_cq) == Statuses{IBV_WC_SUCCESS});
    CHECK(statuses(p.b.recv_cq) == Statuses{IBV_WC_SUCCESS});
}
