// SPDX-License-Identifier: MIT
#include <asyncverbs/verbs/address_handle.hpp>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
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
using simulated::SimulatedVerbs;
using support::contains;
using support::failure_text;
using support::Parents;
using support::poll;

static_assert(!std::is_copy_constructible_v<AddressHandle>);
static_assert(std::is_nothrow_move_constructible_v<AddressHandle>);

namespace {

constexpr QueuePairOptions datagrams{.type = IBV_QPT_UD};

} // namespace

TEST_CASE("a datagram arrives at the peer of its address handle", "[verbs][address_handle]") {
    SimulatedVerbs verbs;
    const Parents ends;
    std::array<std::byte, 64> memory{std::byte{42}};
    const MemoryRegion region(ends.domain, memory);
    QueuePair sender = ends.queue_pair(datagrams);
    QueuePair receiver = ends.queue_pair(datagrams);
    sender.activate();
    receiver.activate();
    const AddressHandle handle(ends.domain, sender, receiver.local_address());

    receiver.post_recv(1, region.slice(8, 48));
    ibv_sge from = region.slice(0, 8).sge();
    ibv_send_wr send{};
    send.sg_list = &from;
    send.num_sge = 1;
    send.opcode = IBV_WR_SEND;
    send.send_flags = IBV_SEND_SIGNALED;
    send.wr.ud = {handle.native_handle(), receiver.qp_num(), InitOptions{}.qkey};
    sender.post_send(send);
    CHECK(poll(ends.cq).size() == 2);
    CHECK(memory[8 + 40] == std::byte{42}); // after the GRH
}

TEST_CASE("a reply to a datagram arrives at its sender", "[verbs][address_handle]") {
    SimulatedVerbs verbs;
    const Parents ends;
    std::array<std::byte, 128> memory{std::byte{42}};
    const MemoryRegion region(ends.domain, memory);
    QueuePair sender = ends.queue_pair(datagrams);
    QueuePair receiver = ends.queue_pair(datagrams);
    sender.activate();
    receiver.activate();
    const AddressHandle there(ends.domain, sender, receiver.local_address());
    const auto send = [&](QueuePair& from, const AddressHandle& to, std::uint32_t qp_num) {
        ibv_sge bytes = region.slice(0, 8).sge();
        ibv_send_wr request{};
        request.sg_list = &bytes;
        request.num_sge = 1;
        request.opcode = IBV_WR_SEND;
        request.wr.ud = {to.native_handle(), qp_num, InitOptions{}.qkey};
        from.post_send(request);
    };
    const Slice slice = region.slice(8, 48);
    receiver.post_recv(1, slice);
    send(sender, there, receiver.qp_num());
    const std::vector<ibv_wc> received = poll(ends.cq);
    REQUIRE(received.size() == 1);
    const ibv_wc& message = received.front();
    CHECK(message.src_qp == sender.qp_num());

    const AddressHandle back(ends.domain, receiver, message, slice);
    sender.post_recv(2, region.slice(64, 48));
    send(receiver, back, message.src_qp);
    REQUIRE(poll(ends.cq).size() == 1);
    CHECK(memory[64 + 40] == std::byte{42});

    const auto refusal = [&](const QueuePair& qp, const ibv_wc& wc, const Slice& in) {
        return failure_text(std::errc::invalid_argument,
                            [&] { const AddressHandle refused(ends.domain, qp, wc, in); });
    };
    CHECK_THAT(refusal(receiver, message, slice.slice(0, 39)), contains("GRH of 40 bytes"));
    ibv_wc failed = message;
    failed.status = IBV_WC_WR_FLUSH_ERR;
    CHECK_THAT(refusal(receiver, failed, slice), contains("completion of a received datagram"));
    ibv_wc sent = message;
    sent.opcode = IBV_WC_SEND;
    CHECK_THAT(refusal(receiver, sent, slice), contains("completion of a received datagram"));
    {
        const QueuePair taken(std::move(sender));
    }
    CHECK_THAT(refusal(ends.queue_pair(datagrams), message, slice), contains("init() comes first"));
    verbs.fail("ibv_create_ah_from_wc", {.error = ENOMEM});
    CHECK_THROWS_WITH(AddressHandle(ends.domain, receiver, message, slice),
                      contains("ibv_create_ah_from_wc"));
}

TEST_CASE("an address handle keeps its domain", "[verbs][address_handle]") {
    SimulatedVerbs verbs;
    auto ends = std::make_unique<Parents>();
    QueuePair qp = ends->queue_pair(datagrams);
    qp.init();
    {
        AddressHandle handle(ends->domain, qp, qp.local_address());
        ends.reset();
        {
            const QueuePair taken(std::move(qp));
        }
        CHECK(verbs.calls("ibv_destroy_qp") == 1);
        CHECK(verbs.calls("ibv_dealloc_pd") == 0);
        CHECK(handle.native_handle() != nullptr);
        const AddressHandle taken(std::move(handle));
        CHECK(handle.native_handle() == nullptr);
        CHECK(taken.shared_handle().get() == taken.native_handle());
    }
    CHECK(verbs.live_objects() == 0);
}

TEST_CASE("an address handle that cannot be created is reported with the reason",
          "[verbs][address_handle]") {
    SimulatedVerbs verbs;
    const Parents ends;
    QueuePair qp = ends.queue_pair(datagrams);
    const QueuePairAddress remote = qp.local_address();
    const auto text = [&](std::errc code, const QueuePairAddress& peer) {
        return failure_text(code, [&] { AddressHandle handle(ends.domain, qp, peer); });
    };
    CHECK_THAT(text(std::errc::invalid_argument, remote), contains("init() comes first"));
    qp.init();
    CHECK_THAT(text(std::errc::invalid_argument, {.lid = 1}), contains("GID is empty"));
    const ProtectionDomain other(ends.domain.context());
    CHECK_THAT(
        failure_text(std::errc::invalid_argument, [&] { AddressHandle handle(other, qp, remote); }),
        contains("belongs to another ProtectionDomain"));
    verbs.fail("ibv_create_ah", {.error = ENOMEM});
    CHECK(text(std::errc::not_enough_memory, remote) == "ibv_create_ah: Cannot allocate memory");
    CHECK(verbs.calls("ibv_create_ah") == 1);
}
