// SPDX-License-Identifier: MIT
// An overrun completion queue of a real device: the error reaches the waiter.
#include <asyncverbs/cq/device_events.hpp>

#include <asyncverbs/coro/when_all.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/verbs/memory.hpp>

#include <array>
#include <cstdlib>
#include <memory>
#include <system_error>

#include "support/catch.hpp"

using namespace asyncverbs;

namespace {

// Creates a queue pair without the check that its work requests fit the completion queue, like code
// that uses the verbs directly.
std::shared_ptr<ibv_qp> create_unaccounted(const ProtectionDomain& domain, ibv_cq* cq,
                                           std::uint32_t receives) {
    ibv_qp_init_attr attr{};
    attr.send_cq = attr.recv_cq = cq;
    attr.cap = {1, receives, 1, 1, 0};
    attr.qp_type = IBV_QPT_UD;
    ibv_qp* const qp = ibv_create_qp(domain.native_handle(), &attr);
    REQUIRE(qp != nullptr);
    return {qp, ibv_destroy_qp};
}

void modify(ibv_qp* qp, ibv_qp_state state) {
    ibv_qp_attr attr{};
    attr.qp_state = state;
    attr.port_num = 1;
    int mask = IBV_QP_STATE;
    if (state == IBV_QPS_INIT) mask |= IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY;
    REQUIRE(ibv_modify_qp(qp, &attr, mask) == 0);
}

} // namespace

TEST_CASE("device: an overrun completion queue fails its waiter", "[I10]") {
    const char* const name = std::getenv("RDMA_DEVICE");
    const Context context = Context::open(name ? name : "");
    EpollExecutor executor;
    DeviceEvents events(context, executor.notifier(context.native_handle()->async_fd));
    AsyncCq cq = AsyncCq::create(context, 1, executor);
    const auto depth = static_cast<std::uint32_t>(cq.native_handle()->cqe);
    const ProtectionDomain domain(context);
    const auto qp = create_unaccounted(domain, cq.native_handle(), 4 * depth + 4);

    modify(qp.get(), IBV_QPS_INIT);
    ibv_recv_wr wr{};
    ibv_recv_wr* bad = nullptr;
    for (std::uint32_t i = 0; i < 4 * depth + 4; ++i) {
        REQUIRE(ibv_post_recv(qp.get(), &wr, &bad) == 0);
    }
    modify(qp.get(), IBV_QPS_ERR);

    std::uint32_t flushed = 0;
    const auto consume = [&]() -> Task<> {
        std::array<ibv_wc, 1> wcs;
        for (;;) {
            const std::span<ibv_wc> got = co_await cq.poll(wcs);
            flushed += got[0].status == IBV_WC_WR_FLUSH_ERR ? 1 : 0;
        }
    };
    const auto watch = [&]() -> Task<> {
        const ibv_async_event event = co_await events.next();
        CHECK(event.event_type == IBV_EVENT_CQ_ERR);
        CHECK(event.element.cq == cq.native_handle());
    };
    CHECK_THROWS_WITH(executor.run([](auto& a, auto& b) -> Task<> {
        co_await when_all(a(), b());
    }(consume, watch)),
                      support::contains("CQ error"));
    CHECK(flushed > 0);
    CHECK(flushed < 4 * depth + 4); // an overrun loses the rest
}
