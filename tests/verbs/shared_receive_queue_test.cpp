// SPDX-License-Identifier: MIT
#include <asyncverbs/verbs/shared_receive_queue.hpp>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

#include "support/catch.hpp"
#include "verbs/failure.hpp"
#include "verbs/fixture.hpp"

using namespace asyncverbs;
using simulated::DeviceOptions;
using simulated::SimulatedVerbs;
using support::contains;
using support::failure_text;
using support::Parents;
using support::poll;

static_assert(!std::is_copy_constructible_v<SharedReceiveQueue>);
static_assert(std::is_nothrow_move_constructible_v<SharedReceiveQueue>);
static_assert(std::is_nothrow_move_assignable_v<SharedReceiveQueue>);
static_assert(std::is_trivially_destructible_v<SharedReceiveQueueOptions>);

namespace {

ibv_recv_wr request(std::uint64_t id) {
    return {.wr_id = id, .next = nullptr, .sg_list = nullptr, .num_sge = 0};
}

ibv_send_wr send_request(ibv_sge* sge = nullptr) {
    ibv_send_wr wr{};
    wr.sg_list = sge;
    wr.num_sge = sge == nullptr ? 0 : 1;
    wr.opcode = IBV_WR_SEND;
    return wr;
}

} // namespace

TEST_CASE("a shared receive queue is created with its options", "[verbs][shared_receive_queue]") {
    SimulatedVerbs verbs;
    const Parents parents;
    const SharedReceiveQueue queue(parents.domain, {.max_wr = 5, .max_sge = 3});
    ibv_srq_attr attr{};
    REQUIRE(ibv_query_srq(queue.native_handle(), &attr) == 0);
    CHECK(attr.max_wr == 5);
    CHECK(attr.max_sge == 3);
    CHECK(queue.options().max_wr == 5);
    CHECK(queue.native_handle()->pd == parents.domain.native_handle());
    CHECK(queue.shared_handle().get() == queue.native_handle());
}

TEST_CASE("each queue pair takes the next shared receive for its message",
          "[verbs][shared_receive_queue]") {
    SimulatedVerbs verbs;
    const Parents parents;
    const CompletionQueue send_cq(parents.context, 16);
    std::array<std::byte, 16> memory{};
    const MemoryRegion region(parents.domain, memory);
    SharedReceiveQueue queue(parents.domain);
    QueuePair first = parents.queue_pair(queue);
    QueuePair second = parents.queue_pair(queue);
    const QueuePairOptions sends{.max_send_wr = 2, .max_recv_wr = 0};
    QueuePair to_first(parents.domain, send_cq, send_cq, sends);
    QueuePair to_second(parents.domain, send_cq, send_cq, sends);
    first.connect(to_first.local_address());
    second.connect(to_second.local_address());
    to_first.connect(first.local_address());
    to_second.connect(second.local_address());

    for (const std::uint64_t id : {0u, 1u, 2u}) {
        queue.post_recv(id, region.slice(4 * id, 4));
    }
    ibv_sge sge = region.slice(12, 4).sge();
    memory[12] = std::byte{7};
    for (QueuePair* sender : {&to_second, &to_first, &to_second}) {
        sender->post_send(send_request(&sge));
    }
    const std::vector<ibv_wc> received = poll(parents.cq);
    REQUIRE(received.size() == 3);
    for (std::size_t i = 0; i < 3; ++i) {
        CHECK(received[i].status == IBV_WC_SUCCESS);
        CHECK(received[i].wr_id == i);
        CHECK(received[i].qp_num == (i == 1 ? first : second).qp_num());
        CHECK(received[i].byte_len == 4);
        CHECK(memory[4 * i] == std::byte{7});
    }

    queue.post_recv(3, region.slice(0, 3)); // one byte too short
    to_first.post_send(send_request(&sge));
    CHECK(poll(parents.cq)[0].status == IBV_WC_LOC_LEN_ERR);
}

TEST_CASE("a queue pair with shared receives has no private receives",
          "[verbs][shared_receive_queue]") {
    SimulatedVerbs verbs;
    const Parents parents;
    const SharedReceiveQueue queue(parents.domain);
    QueuePair qp = parents.queue_pair(queue, {.max_send_wr = 4, .max_recv_wr = 0xffffffff});
    CHECK(qp.options().max_send_wr == 4);
    CHECK(qp.options().max_recv_wr == 0);
    CHECK(qp.options().max_recv_sge == 0);
    CHECK(qp.native_handle()->srq == queue.native_handle());
    qp.init();
    CHECK(failure_text(std::errc::invalid_argument, [&] { qp.post_recv(request(1)); }) ==
          "ibv_post_recv: Invalid argument");
}

TEST_CASE("queue pairs keep their shared receive queue", "[verbs][shared_receive_queue]") {
    SimulatedVerbs verbs;
    {
        const Parents parents;
        std::optional<SharedReceiveQueue> queue(std::in_place, parents.domain);
        std::optional<QueuePair> first = parents.queue_pair(*queue);
        const QueuePair second = parents.queue_pair(*queue);
        queue.reset();
        first.reset();
        CHECK(verbs.calls("ibv_destroy_srq") == 0);
    }
    CHECK(verbs.calls("ibv_destroy_srq") == 1);
    CHECK(verbs.live_objects() == 0);

    // It keeps the domain and the device.
    auto parents = std::make_unique<Parents>();
    const SharedReceiveQueue queue(parents->domain);
    parents.reset();
    CHECK(verbs.calls("ibv_dealloc_pd") == 1);
}

// --- capacity ---

TEST_CASE("shared receives are counted once in each queue (I10)",
          "[verbs][shared_receive_queue][I10]") {
    SimulatedVerbs verbs;
    const Parents parents(24);
    const CompletionQueue other_cq(parents.context, 16);
    const SharedReceiveQueue queue(parents.domain, {.max_wr = 16});
    {
        std::optional<QueuePair> first = parents.queue_pair(queue);
        CHECK(parents.cq.reserved() == 16 + 4);
        const QueuePair second = parents.queue_pair(queue);
        CHECK(parents.cq.reserved() == 16 + 4 + 4);
        const QueuePair elsewhere(parents.domain, parents.cq, other_cq, queue, {.max_send_wr = 0});
        CHECK(parents.cq.reserved() == 16 + 4 + 4);
        CHECK(other_cq.reserved() == 16);
        first.reset();
        CHECK(parents.cq.reserved() == 16 + 4);
    }
    CHECK(parents.cq.reserved() == 0);
    CHECK(other_cq.reserved() == 0);
    const QueuePair again = parents.queue_pair(queue);
    CHECK(parents.cq.reserved() == 16 + 4);
}

TEST_CASE("shared receives are counted after another reservation ended (I10)",
          "[verbs][shared_receive_queue][I10]") {
    SimulatedVerbs verbs;
    const Parents parents(24);
    const CompletionQueue other_cq(parents.context, 16);
    const SharedReceiveQueue queue(parents.domain, {.max_wr = 16});
    const QueuePairOptions options{.max_send_wr = 0};
    std::optional<QueuePair> destroyed = parents.queue_pair(queue);
    const QueuePair first(parents.domain, parents.cq, other_cq, queue, options);
    destroyed.reset();
    CHECK(parents.cq.reserved() == 0);
    const QueuePair second(parents.domain, parents.cq, other_cq, queue, options);
    CHECK(other_cq.reserved() == 16);
}

TEST_CASE("shared receives that do not fit are rejected (I10)",
          "[verbs][shared_receive_queue][I10]") {
    SimulatedVerbs verbs;
    const Parents parents(16);
    const SharedReceiveQueue queue(parents.domain, {.max_wr = 14});
    const auto text = [&](std::uint32_t sends) {
        return failure_text(std::errc::no_buffer_space,
                            [&] { (void)parents.queue_pair(queue, {.max_send_wr = sends}); });
    };
    // A rejected queue pair reserves nothing.
    CHECK_THAT(text(3), contains("3 send and 0 receive work requests need 3 entries of their "
                                 "completion queue, which has 16, 14 of them reserved"));
    CHECK(parents.cq.reserved() == 0);
    const QueuePair before(parents.domain, parents.cq, parents.cq,
                           {.max_send_wr = 3, .max_recv_wr = 0});
    CHECK_THAT(text(0), contains("14 receive work requests need 14 entries of their completion "
                                 "queue, which has 16, 3 of them reserved"));
    CHECK(parents.cq.reserved() == 3);
    CHECK(verbs.calls("ibv_create_qp") == 1);
}

TEST_CASE("shared receives of a queue pair that stays alive stay reserved",
          "[verbs][shared_receive_queue]") {
    SimulatedVerbs verbs;
    const Parents parents(32);
    std::optional<SharedReceiveQueue> queue(std::in_place, parents.domain);
    verbs.fail("ibv_destroy_qp", {.error = EBUSY});
    ibv_qp* left_over = nullptr;
    {
        const QueuePair qp = parents.queue_pair(*queue);
        left_over = qp.native_handle();
    }
    CHECK(parents.cq.reserved() == 16 + 4);
    CHECK(ibv_destroy_qp(left_over) == 0);
}

TEST_CASE("queue pairs are created and destroyed on several threads",
          "[verbs][shared_receive_queue][I10]") {
    SimulatedVerbs verbs;
    const Parents parents(100);
    const SharedReceiveQueue queue(parents.domain, {.max_wr = 10});
    std::atomic<bool> miscounted = false;
    const auto make = [&] {
        for (int i = 0; i < 500; ++i) {
            const QueuePair qp = parents.queue_pair(queue, {.max_send_wr = 1});
            // Up to twice as many: a new reservation may start before the previous one ends.
            miscounted = miscounted || parents.cq.reserved() < 10 + 1;
        }
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
        threads.emplace_back(make);
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    CHECK_FALSE(miscounted);
    CHECK(parents.cq.reserved() == 0);
}

// --- errors ---

TEST_CASE("shared receive queues beyond the device are reported with its limits",
          "[verbs][shared_receive_queue]") {
    DeviceOptions device;
    device.attr.max_srq_wr = 100;
    device.attr.max_srq_sge = 4;
    SimulatedVerbs verbs({device});
    const Parents parents;
    const auto text = [&](const SharedReceiveQueueOptions& options) {
        return failure_text(std::errc::invalid_argument,
                            [&] { const SharedReceiveQueue queue(parents.domain, options); });
    };
    CHECK_THAT(text({.max_wr = 101}), contains("max_wr 101 is out of range for sim0: valid are "
                                               "1 to 100"));
    CHECK_THAT(text({.max_wr = 0}), contains("max_wr 0 is out of range"));
    CHECK_THAT(text({.max_sge = 5}), contains("max_sge 5 is out of range"));
    CHECK(verbs.calls("ibv_create_srq") == 0);
    CHECK(SharedReceiveQueue(parents.domain, {.max_wr = 100, .max_sge = 4}).native_handle());
}

TEST_CASE("a shared receive queue of another domain is rejected", "[verbs][shared_receive_queue]") {
    SimulatedVerbs verbs;
    const Parents parents;
    const SharedReceiveQueue queue{ProtectionDomain(parents.context)};
    CHECK_THAT(failure_text(std::errc::invalid_argument, [&] { (void)parents.queue_pair(queue); }),
               contains("the shared receive queue belongs to another ProtectionDomain"));
    CHECK(parents.cq.reserved() == 0);
}

TEST_CASE("a full shared receive queue is reported with the first request that was not posted",
          "[verbs][shared_receive_queue]") {
    SimulatedVerbs verbs;
    const Parents parents;
    SharedReceiveQueue queue(parents.domain, {.max_wr = 2});
    std::array<ibv_recv_wr, 3> chain{request(0), request(1), request(2)};
    chain[0].next = &chain[1];
    chain[1].next = &chain[2];
    std::error_code error;
    CHECK(queue.post_recv(chain[0], error) == &chain[2]);
    CHECK(error == std::errc::not_enough_memory);
    CHECK(queue.post_recv(chain[2], error) == &chain[2]);
    CHECK(failure_text(std::errc::not_enough_memory, [&] { queue.post_recv(chain[2]); }) ==
          "ibv_post_srq_recv: Cannot allocate memory");

    SharedReceiveQueue empty(parents.domain, {.max_wr = 2});
    CHECK(empty.post_recv(chain[1], error) == nullptr);
    CHECK_FALSE(error);
}

TEST_CASE("the limit of a shared receive queue is reported once", "[verbs][shared_receive_queue]") {
    SimulatedVerbs verbs;
    const Parents parents;
    SharedReceiveQueue queue(parents.domain);
    QueuePair qp = parents.queue_pair(queue);
    qp.connect(qp.local_address());
    for (const std::uint64_t id : {0u, 1u, 2u}) {
        queue.post_recv(request(id));
    }
    queue.arm_limit(3);
    qp.post_send(send_request());
    ibv_async_event event{};
    REQUIRE(ibv_get_async_event(parents.context.native_handle(), &event) == 0);
    CHECK(event.event_type == IBV_EVENT_SRQ_LIMIT_REACHED);
    CHECK(event.element.srq == queue.native_handle());
    ibv_ack_async_event(&event);
    ibv_srq_attr attr{};
    REQUIRE(ibv_query_srq(queue.native_handle(), &attr) == 0);
    CHECK(attr.srq_limit == 0);
}

TEST_CASE("a moved-from shared receive queue owns nothing", "[verbs][shared_receive_queue]") {
    SimulatedVerbs verbs;
    const Parents parents;
    SharedReceiveQueue first(parents.domain);
    const SharedReceiveQueue second(std::move(first));
    CHECK(first.native_handle() == nullptr);
    CHECK(second.native_handle() != nullptr);
    const auto inert = [](auto use) {
        CHECK_THAT(failure_text(std::errc::invalid_argument, use),
                   contains("this SharedReceiveQueue was moved from"));
    };
    inert([&] { first.post_recv(request(1)); });
    inert([&] { first.arm_limit(1); });
    inert([&] { (void)parents.queue_pair(first); });
    inert([&] { (void)first.reserve(parents.cq); });
    ibv_recv_wr wr = request(1);
    std::error_code error;
    CHECK(first.post_recv(wr, error) == &wr);
    CHECK(error == std::errc::invalid_argument);
}
