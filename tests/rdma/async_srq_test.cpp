// SPDX-License-Identifier: MIT
// Receives that several queue pairs share.
#include "rdma/fixture.hpp"

#include <asyncverbs/rdma/async_srq.hpp>

#include <system_error>
#include <vector>

using namespace asyncverbs;
using namespace asyncverbs::support;

namespace {

constexpr QueuePairOptions few_requests{.max_send_wr = 4, .max_recv_wr = 4};

// Two queue pairs that share their receives, each with a peer.
struct AsyncSrqFixture : RouterFixture {
    AsyncSrqFixture() {
        connect(to_first, *first);
        connect(to_second, *second);
    }

    static void connect(AsyncQp& one, AsyncQp& other) {
        one.queue_pair().init();
        other.queue_pair().connect(one.queue_pair().local_address());
        one.queue_pair().connect(other.queue_pair().local_address());
    }

    std::optional<AsyncSrq> srq{std::in_place, *router, domain,
                                SharedReceiveQueueOptions{.max_wr = 4}};
    std::optional<AsyncQp> first{std::in_place, *router, domain, *srq, few_requests};
    std::optional<AsyncQp> second{std::in_place, *router, domain, *srq, few_requests};
    AsyncQp to_first{*router, domain, few_requests};
    AsyncQp to_second{*router, domain, few_requests};
};

} // namespace

TEST_CASE("AsyncSrq: the queue pair that gets a message takes a receive", "[rdma]") {
    AsyncSrqFixture f;
    Awaited one;
    Awaited two;
    const Coroutine waiters[] = {await(f.srq->post_recv(f.slice(100, 8)), one),
                                 await(f.srq->post_recv(f.slice(200, 8)), two)};
    f.write(0, "to second, to first");
    Operation sends[] = {f.to_second.send(f.slice(0, 9)), Operation()};
    f.run();
    sends[1] = f.to_first.send(f.slice(11, 8));
    f.run();
    REQUIRE(one.operation_error); // 9 bytes do not fit
    REQUIRE(two.completion);
    CHECK(one.operation_error->completion().qp_num() == f.second->queue_pair().qp_num());
    CHECK(two.completion->qp_num() == f.first->queue_pair().qp_num());
    CHECK(f.read(200, 8) == "to first");
}

TEST_CASE("AsyncSrq: receives wait for room in a full queue", "[rdma][I10]") {
    AsyncSrqFixture f;
    std::vector<Operation> receives;
    for (std::size_t i = 0; i < 9; ++i) receives.push_back(f.srq->recv(f.slice(100 + i, 1)));
    std::vector<Operation> sends;
    f.write(0, "123456789");
    for (std::size_t i = 0; i < 9; ++i) {
        sends.push_back((i % 2 == 0 ? f.to_first : f.to_second).send(f.slice(i, 1)));
        f.run();
    }
    for (const Operation& receive : receives) CHECK(receive.done());
    CHECK(f.read(100, 9) == "123456789");
}

TEST_CASE("AsyncSrq: its queue pairs have no receives of their own", "[rdma]") {
    AsyncSrqFixture f;
    CHECK_THROWS_WITH(f.first->recv(f.slice(0, 1)), contains("made for no work requests"));
    ManualNotifier notifier;
    Router other(AsyncCq(CompletionQueue(f.context, 64), notifier));
    CHECK_THROWS_WITH(AsyncQp(other, f.domain, *f.srq), contains("another Router"));
}

TEST_CASE("AsyncSrq: queue pairs keep it, and the regions of its receives", "[rdma][I12]") {
    AsyncSrqFixture f;
    Awaiting outcome(f.srq->recv(f.slice(100, 8)));
    f.srq.reset();
    f.region.reset();
    f.run();
    CHECK(!outcome.done());
    CHECK(f.sim.calls("ibv_dereg_mr") == 0);
    f.first.reset();
    CHECK(f.sim.calls("ibv_destroy_srq") == 0);
    f.second.reset();
    CHECK(f.sim.calls("ibv_destroy_srq") == 1);
    CHECK(f.sim.calls("ibv_dereg_mr") == 1);
    f.run();
    CHECK(outcome.code() == std::errc::operation_canceled);
}
