// SPDX-License-Identifier: MIT
// close() of all owners: it destroys the native object, or returns why that is not possible and
// changes nothing.
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/verbs/address_handle.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>
#include <asyncverbs/verbs/shared_receive_queue.hpp>

#include <array>
#include <cerrno>
#include <cstddef>
#include <memory>
#include <system_error>

#include "support/catch.hpp"
#include "verbs/fixture.hpp"

using namespace asyncverbs;
using asyncverbs::simulated::SimulatedVerbs;
using asyncverbs::support::Parents;

namespace {

// Something needs `owner` until release() is called.
template <class Owner, class Release>
void check_close(SimulatedVerbs& sim, Owner& owner, Release release) {
    const auto* const native = owner.native_handle();
    const int objects = sim.live_objects();
    CHECK(owner.close() == std::errc::device_or_resource_busy);
    sim.take_problems(); // the simulation takes EBUSY for a mistake of the application
    CHECK(owner.native_handle() == native);
    CHECK(sim.live_objects() == objects);
    release();
    CHECK(owner.close() == std::error_code());
    CHECK(owner.native_handle() == nullptr);
    CHECK(owner.close() == std::error_code()); // as of an owner that was moved from
}

ibv_qp* raw_queue_pair(const Parents& parents, ibv_srq* receives = nullptr) {
    ibv_qp_init_attr attr{};
    attr.send_cq = attr.recv_cq = parents.cq.native_handle();
    attr.srq = receives;
    attr.cap = {.max_send_wr = 1,
                .max_recv_wr = receives == nullptr ? 1u : 0u,
                .max_send_sge = 1,
                .max_recv_sge = 1,
                .max_inline_data = 0};
    attr.qp_type = IBV_QPT_RC;
    return ibv_create_qp(parents.domain.native_handle(), &attr);
}

} // namespace

TEST_CASE("close: a native object that the program created keeps its parent", "[verbs][close]") {
    SimulatedVerbs sim;
    Parents parents;

    SECTION("a queue pair, its completion queue") {
        ibv_qp* const raw = raw_queue_pair(parents);
        check_close(sim, parents.cq, [&] { ibv_destroy_qp(raw); });
        CHECK(sim.live_objects() == 2); // the device and the domain: the channel is closed, too
    }
    SECTION("a queue pair, its shared receive queue") {
        SharedReceiveQueue receives(parents.domain);
        ibv_qp* const raw = raw_queue_pair(parents, receives.native_handle());
        check_close(sim, receives, [&] { ibv_destroy_qp(raw); });
    }
    SECTION("a memory region, its domain") {
        std::array<std::byte, 8> bytes{};
        ibv_mr* const raw =
            ibv_reg_mr(parents.domain.native_handle(), bytes.data(), bytes.size(), 0);
        check_close(sim, parents.domain, [&] { ibv_dereg_mr(raw); });
    }
    SECTION("a completion queue, a channel") {
        CompletionChannel channel(parents.context);
        ibv_cq* const raw =
            ibv_create_cq(parents.context.native_handle(), 1, nullptr, channel.native_handle(), 0);
        check_close(sim, channel, [&] { ibv_destroy_cq(raw); });
    }
    SECTION("a completion queue, the channel of another one") {
        ibv_cq* const raw = ibv_create_cq(parents.context.native_handle(), 1, nullptr,
                                          parents.cq.channel().native_handle(), 0);
        CHECK(parents.cq.close() == std::errc::device_or_resource_busy);
        sim.take_problems();
        CHECK(parents.cq.native_handle() == nullptr);
        CHECK(parents.cq.channel().native_handle() != nullptr);
        ibv_destroy_cq(raw);
        CHECK(parents.cq.close() == std::error_code());
        CHECK(parents.cq.channel().native_handle() == nullptr);
    }
}

TEST_CASE("close: another owner keeps the native object", "[verbs][close]") {
    SimulatedVerbs sim;
    Parents parents;

    SECTION("a queue pair") {
        QueuePair queue_pair = parents.queue_pair();
        check_close(sim, parents.cq, [&] { CHECK(queue_pair.close() == std::error_code()); });
    }
    SECTION("a memory region") {
        MemoryRegion region = MemoryRegion::allocate(parents.domain, 8);
        auto handle = region.shared_handle();
        check_close(sim, region, [&] { handle.reset(); });
    }
    SECTION("a shared handle") {
        QueuePair queue_pair = parents.queue_pair();
        auto handle = queue_pair.shared_handle();
        check_close(sim, queue_pair, [&] { handle.reset(); });
    }
    SECTION("a domain") {
        Context context = Context::open();
        ProtectionDomain domain(context);
        check_close(sim, context, [&] { CHECK(domain.close() == std::error_code()); });
    }
}

TEST_CASE("close: returns the error of the verb in any sign, and can be repeated",
          "[verbs][close][I5]") {
    SimulatedVerbs sim;
    Parents parents;
    QueuePair queue_pair = parents.queue_pair();
    queue_pair.init();
    AddressHandle address(parents.domain, queue_pair, queue_pair.local_address());
    SharedReceiveQueue receives(parents.domain);
    MemoryRegion region = MemoryRegion::allocate(parents.domain, 8);
    CompletionChannel channel(parents.context);

    const auto check = [&](const char* verb, auto& owner) {
        CAPTURE(verb);
        for (const auto sign : {simulated::ErrnoSign::usual, simulated::ErrnoSign::negative,
                                simulated::ErrnoSign::minus_one}) {
            sim.fail(verb, {.error = ENOTTY, .sign = sign});
            CHECK(owner.close() == std::error_code(ENOTTY, std::system_category()));
            CHECK(owner.native_handle() != nullptr);
        }
        CHECK(owner.close() == std::error_code());
    };
    check("ibv_destroy_ah", address);
    check("ibv_destroy_qp", queue_pair);
    CHECK(parents.cq.reserved() == 0);
    check("ibv_destroy_srq", receives);
    check("ibv_dereg_mr", region);
    check("ibv_destroy_comp_channel", channel);
    check("ibv_destroy_cq", parents.cq);
    check("ibv_dealloc_pd", parents.domain);
    check("ibv_close_device", parents.context);
    CHECK(sim.live_objects() == 0);
}

TEST_CASE("close: a device that other code has opened stays open", "[verbs][close]") {
    const SimulatedVerbs sim;
    const Context opened = Context::open();
    const auto leave_open = [](ibv_context*) {};
    Context context(std::shared_ptr<ibv_context>(opened.native_handle(), leave_open));
    CHECK(context.close() == std::error_code());
    CHECK(context.native_handle() == nullptr);
    CHECK(opened.query_port().state == IBV_PORT_ACTIVE);
}
