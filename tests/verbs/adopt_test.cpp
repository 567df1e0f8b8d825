// SPDX-License-Identifier: MIT
// Owners that are made from native objects, borrowed or with a deleter.
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>
#include <asyncverbs/verbs/shared_receive_queue.hpp>

#include <array>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "verbs/failure.hpp"

using namespace asyncverbs;

namespace {

// The objects of a C program.
struct NativeObjects {
    NativeObjects() {
        ibv_device** devices = ibv_get_device_list(nullptr);
        context = ibv_open_device(devices[0]);
        ibv_free_device_list(devices);
        pd = ibv_alloc_pd(context);
        constexpr int access = IBV_ACCESS_LOCAL_WRITE; // the macro combines it with another enum
        mr = ibv_reg_mr(pd, memory.data(), memory.size(), access);
        channel = ibv_create_comp_channel(context);
        cq = ibv_create_cq(context, 15, nullptr, channel, 0);
        ibv_srq_init_attr srq_attr{};
        srq_attr.attr.max_wr = 4;
        srq_attr.attr.max_sge = 2;
        srq = ibv_create_srq(pd, &srq_attr);
        qp = create_qp(nullptr);
    }
    NativeObjects(const NativeObjects&) = delete;
    NativeObjects& operator=(const NativeObjects&) = delete;
    // What was destroyed before is null.
    ~NativeObjects() {
        if (qp != nullptr) ibv_destroy_qp(qp);
        if (srq != nullptr) ibv_destroy_srq(srq);
        if (cq != nullptr) ibv_destroy_cq(cq);
        if (channel != nullptr) ibv_destroy_comp_channel(channel);
        if (mr != nullptr) ibv_dereg_mr(mr);
        if (pd != nullptr) ibv_dealloc_pd(pd);
        if (context != nullptr) ibv_close_device(context);
    }

    ibv_qp* create_qp(ibv_srq* receives) const {
        ibv_qp_init_attr attr{};
        attr.send_cq = cq;
        attr.recv_cq = cq;
        attr.srq = receives;
        attr.qp_type = IBV_QPT_RC;
        attr.cap = {4, 4, 1, 1, 0};
        return ibv_create_qp(pd, &attr);
    }

    simulated::SimulatedVerbs sim;
    std::array<std::byte, 64> memory{};
    ibv_context* context = nullptr;
    ibv_pd* pd = nullptr;
    ibv_mr* mr = nullptr;
    ibv_comp_channel* channel = nullptr;
    ibv_cq* cq = nullptr;
    ibv_srq* srq = nullptr;
    ibv_qp* qp = nullptr;
};

constexpr QueuePairOptions native_options{.max_send_wr = 4, .max_recv_wr = 4};

} // namespace

TEST_CASE("borrowed objects stay the program's", "[adopt]") {
    NativeObjects native;
    const int before = native.sim.live_objects();
    {
        Context context(borrow(native.context));
        CHECK(context.name() == "sim0");
        ProtectionDomain domain(borrow(native.pd));
        CHECK(domain.context().native_handle() == native.context);
        MemoryRegion region(borrow(native.mr));
        CHECK(region.slice().address == native.memory.data());
        CHECK(region.slice().length == 64);
        CHECK(region.rkey() == native.mr->rkey);
        CompletionQueue cq(borrow(native.cq));
        CHECK(cq.depth() == native.cq->cqe);
        CHECK(cq.reserved() == 0);
        CHECK(cq.context().native_handle() == native.context);
        CHECK(cq.channel().native_handle() == native.channel);
        SharedReceiveQueue srq(borrow(native.srq));
        CHECK(srq.options().max_wr == 4);
        CHECK(srq.options().max_sge == 2);
        QueuePair qp(borrow(native.qp), cq, cq, native_options);
        CHECK(qp.is_adopted());
        CHECK(qp.qp_num() == native.qp->qp_num);
        CHECK(cq.reserved() == 8);
        // New objects may be made with them.
        const MemoryRegion other = MemoryRegion::allocate(domain, 4096);
        const QueuePair own(domain, cq, cq, srq, {.max_send_wr = 2});
        CHECK(!own.is_adopted());
        CHECK(cq.reserved() == 14);
    }
    CHECK(native.sim.live_objects() == before);
    SECTION("and close() only forgets them") {
        CompletionQueue cq(borrow(native.cq));
        QueuePair qp(borrow(native.qp), cq, cq, native_options);
        CHECK(!qp.close());
        CHECK(cq.reserved() == 0);
        CHECK(!cq.close());
        CHECK(cq.native_handle() == nullptr);
        CHECK(!MemoryRegion(borrow(native.mr)).close());
        CHECK(!SharedReceiveQueue(borrow(native.srq)).close());
        CHECK(!CompletionChannel(borrow(native.channel)).close());
        CHECK(!ProtectionDomain(borrow(native.pd)).close());
        CHECK(!Context(borrow(native.context)).close());
        CHECK(native.sim.live_objects() == before);
    }
}

TEST_CASE("a deleter destroys the native object with its last owner", "[adopt]") {
    NativeObjects native;
    {
        CompletionQueue cq(std::shared_ptr<ibv_cq>(native.cq, ibv_destroy_cq));
        const std::shared_ptr<ibv_cq> kept = cq.shared_handle();
        {
            const QueuePair qp(std::shared_ptr<ibv_qp>(native.qp, ibv_destroy_qp), cq, cq,
                               native_options);
            CHECK(native.sim.calls("ibv_destroy_qp") == 0);
        }
        CHECK(native.sim.calls("ibv_destroy_qp") == 1);
        CHECK(cq.reserved() == 0);
        CHECK(cq.close() == std::errc::device_or_resource_busy);
    }
    CHECK(native.sim.calls("ibv_destroy_cq") == 1);
    native.qp = nullptr;
    native.cq = nullptr;
}

TEST_CASE("a channel that is adopted does not block", "[adopt]") {
    NativeObjects native;
    ibv_cq* cq = nullptr;
    void* context = nullptr;
    const CompletionChannel channel(borrow(native.channel));
    CHECK(ibv_get_cq_event(native.channel, &cq, &context) != 0); // it would hang the test
}

TEST_CASE("what cannot be adopted is named", "[adopt]") {
    using namespace asyncverbs::support;
    NativeObjects native;
    const auto null = std::errc::invalid_argument;
    CHECK(failure_of([] { Context{std::shared_ptr<ibv_context>()}; }).code() == null);
    CHECK(failure_of([] { ProtectionDomain{borrow<ibv_pd>(nullptr)}; }).code() == null);
    CHECK(failure_of([] { MemoryRegion{borrow<ibv_mr>(nullptr)}; }).code() == null);
    CHECK(failure_of([] { CompletionChannel{borrow<ibv_comp_channel>(nullptr)}; }).code() == null);
    CHECK(failure_of([] { SharedReceiveQueue{borrow<ibv_srq>(nullptr)}; }).code() == null);
    CHECK(std::string(failure_of([] { CompletionQueue{borrow<ibv_cq>(nullptr)}; }).what())
              .starts_with("cannot make an owner of a null ibv_cq"));

    CompletionQueue cq(borrow(native.cq), 10);
    CHECK(cq.reserved() == 10);
    CHECK(failure_of([&] { QueuePair(nullptr, cq, cq, native_options); }).code() == null);
    CHECK(failure_of([&] { QueuePair(borrow(native.qp), cq, cq, native_options); }).code() ==
          std::errc::no_buffer_space);
    CHECK(failure_of([&] { CompletionQueue(borrow(native.cq), 16); }).code() == null);
    CHECK(failure_of([&] { CompletionQueue(borrow(native.cq), -1); }).code() == null);

    Context context(borrow(native.context));
    const CompletionQueue other(context, 16);
    const std::string sends =
        failure_of([&] { QueuePair(borrow(native.qp), other, cq, native_options); }).what();
    CHECK(sends.starts_with("the sends of the ibv_qp complete into another completion queue"));
    const std::string receives =
        failure_of([&] { QueuePair(borrow(native.qp), cq, other, native_options); }).what();
    CHECK(receives.starts_with("the receives of the ibv_qp complete into another"));

    ibv_cq* const without_channel = ibv_create_cq(native.context, 1, nullptr, nullptr, 0);
    CHECK(std::string(failure_of([&] { CompletionQueue{borrow(without_channel)}; }).what())
              .starts_with("the completion queue has no channel"));
    ibv_destroy_cq(without_channel);
}

TEST_CASE("the audit finds the use of a borrowed object that was destroyed", "[adopt]") {
    NativeObjects native;
    const ProtectionDomain domain(borrow(native.pd));
    const CompletionQueue cq(borrow(native.cq));
    QueuePair qp(borrow(native.qp), cq, cq, native_options);
    SharedReceiveQueue srq(borrow(native.srq));
    REQUIRE(ibv_destroy_qp(std::exchange(native.qp, nullptr)) == 0);
    REQUIRE(ibv_destroy_srq(std::exchange(native.srq, nullptr)) == 0);
    REQUIRE(ibv_destroy_cq(std::exchange(native.cq, nullptr)) == 0);
    const char* const verb =
        GENERATE("ibv_modify_qp", "ibv_post_recv", "ibv_post_srq_recv", "ibv_create_qp");
    const std::string_view call = verb;
    support::failure_of([&] {
        if (call == "ibv_modify_qp") qp.to_error();
        if (call == "ibv_post_recv") qp.post_recv(1, Slice());
        if (call == "ibv_post_srq_recv") srq.post_recv(1, Slice());
        if (call == "ibv_create_qp")
            QueuePair(domain, cq, cq, {.max_send_wr = 1, .max_recv_wr = 1});
    });
    const std::vector<std::string> problems = native.sim.take_problems();
    REQUIRE_FALSE(problems.empty());
    CHECK_THAT(problems.front(),
               support::contains(verb) && support::contains("was destroyed before"));
}

TEST_CASE("an adopted queue pair with a shared receive queue reserves no receives", "[adopt]") {
    NativeObjects native;
    ibv_qp* const sharing = native.create_qp(native.srq);
    {
        const CompletionQueue cq(borrow(native.cq));
        const QueuePair qp(borrow(sharing), cq, cq, native_options);
        CHECK(qp.options().max_recv_wr == 0);
        CHECK(cq.reserved() == 4);
    }
    ibv_destroy_qp(sharing);
}

TEST_CASE("each failing call of an adoption loses nothing", "[adopt]") {
    NativeObjects native;
    native.sim.fail("ibv_query_srq", {.error = EIO});
    const std::system_error error =
        support::failure_of([&] { SharedReceiveQueue{borrow(native.srq)}; });
    CHECK(error.code() == std::errc::io_error);
    CHECK(std::string(error.what()).starts_with("ibv_query_srq"));
    CHECK(SharedReceiveQueue(borrow(native.srq)).options().max_wr == 4);
}
