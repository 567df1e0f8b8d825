// SPDX-License-Identifier: MIT
//
// The simulated completion queues and channels: both arm models, solicited arms, lost, spurious
// and duplicate events, overrun, and what the audit says about acknowledgements.
#include "support/simulated_verbs_fixture.hpp"

#include <atomic>
#include <string>
#include <thread>

using namespace asyncverbs::simulated;
using asyncverbs::support::contains;
using Ids = std::vector<std::uint64_t>;

namespace {

std::string taken(SimulatedVerbs& sim) {
    std::string text;
    for (const std::string& problem : sim.take_problems()) {
        text += problem + "\n";
    }
    return text;
}

ibv_wc success(std::uint64_t wr_id) {
    ibv_wc wc{};
    wc.wr_id = wr_id;
    return wc;
}

} // namespace

TEST_CASE("simulated poll: in order, no more than asked for", "[simulated]") {
    OpenCq f;
    CHECK(f.poll().empty());
    for (std::uint64_t id = 1; id <= 5; ++id) {
        f.sim.complete(f.cq, id);
    }
    CHECK(f.sim.queued_completions(f.cq) == 5);
    CHECK(f.poll(2) == Ids{1, 2});
    CHECK(f.poll(0).empty());
    CHECK(f.poll() == Ids{3, 4, 5});
    const CqCounters counters = f.sim.counters(f.cq);
    CHECK(counters.polls == 4);
    CHECK(counters.empty_polls == 2);
    CHECK(counters.completions_polled == 5);
    CHECK(f.sim.calls("ibv_poll_cq") == 4);
    ibv_wc wc;
    CHECK(ibv_poll_cq(f.cq, -1, &wc) < 0);
}

TEST_CASE("simulated error completion: garbage where nothing is valid", "[simulated]") {
    OpenCq f;
    f.sim.complete(f.cq, 9, IBV_WC_WR_FLUSH_ERR, 17);
    ibv_wc wc;
    REQUIRE(ibv_poll_cq(f.cq, 1, &wc) == 1);
    CHECK(wc.wr_id == 9);
    CHECK(wc.status == IBV_WC_WR_FLUSH_ERR);
    CHECK(wc.qp_num == 17);
    CHECK(wc.byte_len == 0xdeadbeef);
    CHECK((wc.opcode & IBV_WC_RECV) == 0);
    CHECK(wc.opcode != IBV_WC_SEND);
}

TEST_CASE("simulated arm, flag model: one event for the next completion", "[simulated]") {
    OpenCq f;
    f.sim.complete(f.cq, 1);
    CHECK(f.sim.queued_events(f.channel) == 0); // not armed
    CHECK(ibv_req_notify_cq(f.cq, 0) == 0);
    CHECK(f.sim.armed(f.cq));
    CHECK(f.sim.queued_events(f.channel) == 0); // what is queued fires nothing
    f.sim.complete(f.cq, 2);
    CHECK_FALSE(f.sim.armed(f.cq));
    f.sim.complete(f.cq, 3);
    CHECK(f.sim.queued_events(f.channel) == 1);
    CHECK(f.get_and_ack() == 0);
    CHECK(f.get_event() == EAGAIN);
    // An arm while an event is unread counts.
    CHECK(ibv_req_notify_cq(f.cq, 0) == 0);
    f.sim.complete(f.cq, 4);
    CHECK(ibv_req_notify_cq(f.cq, 0) == 0);
    f.sim.complete(f.cq, 5);
    CHECK(f.sim.queued_events(f.channel) == 2);
    CHECK(f.poll() == Ids{1, 2, 3, 4, 5});
}

TEST_CASE("simulated arm, index model: fires at once for what was not polled", "[simulated]") {
    OpenCq f(mlx5);
    f.sim.complete(f.cq, 1);
    CHECK(ibv_req_notify_cq(f.cq, 0) == 0);
    CHECK_FALSE(f.sim.armed(f.cq));
    CHECK(f.sim.queued_events(f.channel) == 1);
    CHECK(f.poll() == Ids{1});
    CHECK(f.get_and_ack() == 0);
    CHECK(ibv_req_notify_cq(f.cq, 0) == 0); // all was polled
    CHECK(f.sim.armed(f.cq));
    CHECK(f.sim.queued_events(f.channel) == 0);
    f.sim.complete(f.cq, 2);
    CHECK(f.sim.queued_events(f.channel) == 1);
}

TEST_CASE("simulated arm, index model: not again until the event was read", "[simulated]") {
    OpenCq f(mlx5);
    CHECK(ibv_req_notify_cq(f.cq, 0) == 0);
    f.sim.complete(f.cq, 1);
    CHECK(f.poll() == Ids{1});
    CHECK(ibv_req_notify_cq(f.cq, 0) == 0);
    CHECK_FALSE(f.sim.armed(f.cq));
    f.sim.complete(f.cq, 2);
    CHECK(f.sim.queued_events(f.channel) == 1);
    CHECK(f.get_and_ack() == 0);
    CHECK(ibv_req_notify_cq(f.cq, 0) == 0);
    CHECK(f.sim.queued_events(f.channel) == 1);
    CHECK(f.get_and_ack() == 0);
}

TEST_CASE("simulated arm, solicited only", "[simulated]") {
    const ProviderModel provider = GENERATE(rxe, siw, mlx5);
    OpenCq f(provider);
    CHECK(ibv_req_notify_cq(f.cq, 1) == 0);
    f.sim.push(f.cq, success(1));
    CHECK(f.sim.queued_events(f.channel) == 0);
    CHECK(f.sim.armed(f.cq));
    SECTION("a solicited completion wakes") {
        f.sim.push(f.cq, success(2), true);
        CHECK(f.sim.queued_events(f.channel) == 1);
    }
    SECTION("an error wakes") {
        f.sim.complete(f.cq, 2, IBV_WC_WR_FLUSH_ERR);
        CHECK(f.sim.queued_events(f.channel) == 1);
    }
    SECTION("an arm for any completion replaces it") {
        f.poll();
        CHECK(ibv_req_notify_cq(f.cq, 0) == 0);
        f.sim.push(f.cq, success(2));
        CHECK(f.sim.queued_events(f.channel) == 1);
    }
    SECTION("after an arm for any completion it counts on siw only") {
        f.poll();
        CHECK(ibv_req_notify_cq(f.cq, 0) == 0);
        CHECK(ibv_req_notify_cq(f.cq, 1) == 0);
        f.sim.push(f.cq, success(2));
        CHECK(f.sim.queued_events(f.channel) == (provider.solicited_arm_downgrades ? 0 : 1));
    }
}

TEST_CASE("simulated arm, index model: solicited fires at once for what is", "[simulated]") {
    OpenCq f(mlx5);
    f.sim.push(f.cq, success(1));
    CHECK(ibv_req_notify_cq(f.cq, 1) == 0);
    CHECK(f.sim.queued_events(f.channel) == 0);
    f.sim.push(f.cq, success(2), true);
    CHECK(f.get_and_ack() == 0);
    CHECK(ibv_req_notify_cq(f.cq, 1) == 0);
    CHECK(f.sim.queued_events(f.channel) == 1);
}

TEST_CASE("simulated events: spurious, dropped, duplicate", "[simulated]") {
    OpenCq f;
    SECTION("an event with nothing to poll") {
        f.sim.push_events(f.cq);
        CHECK(f.get_and_ack() == 0);
        CHECK(f.poll().empty());
    }
    SECTION("a burst larger than a socket holds, each read once") {
        f.sim.push_events(f.cq, 1000);
        CHECK(f.sim.queued_events(f.channel) == 1000);
        int count = 0;
        while (f.get_event() == 0) {
            ++count;
        }
        CHECK(count == 1000);
        ibv_ack_cq_events(f.cq, 1000);
    }
    SECTION("an event that the kernel lost") {
        f.sim.drop_events(f.cq);
        CHECK(ibv_req_notify_cq(f.cq, 0) == 0);
        f.sim.complete(f.cq, 1);
        CHECK_FALSE(f.sim.armed(f.cq));
        CHECK(f.get_event() == EAGAIN);
        CHECK(f.sim.counters(f.cq).events_dropped == 1);
        CHECK(ibv_req_notify_cq(f.cq, 0) == 0);
        f.sim.complete(f.cq, 2);
        CHECK(f.get_and_ack() == 0);
    }
    SECTION("an event that comes twice") {
        f.sim.duplicate_events(f.cq);
        CHECK(ibv_req_notify_cq(f.cq, 0) == 0);
        f.sim.complete(f.cq, 1);
        CHECK(f.get_and_ack() == 0);
        CHECK(f.get_and_ack() == 0);
        CHECK(f.get_event() == EAGAIN);
    }
    SECTION("readable, but nothing to read") {
        Epoll epoll(f.channel->fd);
        f.sim.push_false_readiness(f.channel);
        CHECK(epoll.events() == EPOLLIN);
        CHECK(f.get_event() == EAGAIN);
        CHECK(epoll.events() == 0);
    }
}

TEST_CASE("simulated channel: real epoll, level- and edge-triggered", "[simulated]") {
    OpenCq f;
    Epoll level(f.channel->fd);
    Epoll edge(f.channel->fd, EPOLLET);
    CHECK(level.events() == 0);
    CHECK(edge.events() == 0);
    f.sim.push_events(f.cq);
    CHECK(level.events() == EPOLLIN);
    CHECK(level.events() == EPOLLIN);
    CHECK(edge.events() == EPOLLIN);
    CHECK(edge.events() == 0);
    f.sim.push_events(f.cq, 2);
    CHECK(edge.events() == EPOLLIN);
    CHECK(edge.events() == 0);
    CHECK(f.get_and_ack() == 0);
    CHECK(edge.events() == 0);
    CHECK(level.events() == EPOLLIN);
    CHECK(f.get_and_ack() == 0);
    CHECK(f.get_and_ack() == 0);
    CHECK(level.events() == 0);
}

TEST_CASE("simulated channel: blocks unless told not to", "[simulated]") {
    OpenCq f;
    ::fcntl(f.channel->fd, F_SETFL, 0);
    f.sim.push_false_readiness(f.channel);
    std::atomic<bool> pushed = false;
    std::thread device([&] {
        // Until the reader found out that its descriptor was readable for nothing, and blocks.
        while (f.sim.queued_events(f.channel) != 0) {
            std::this_thread::yield();
        }
        pushed = true;
        f.sim.push_events(f.cq);
    });
    CHECK(f.get_and_ack() == 0);
    CHECK(pushed);
    device.join();
}

TEST_CASE("simulated channel: two queues, each event names its own", "[simulated]") {
    OpenCq f;
    int marker = 0;
    ibv_cq* other = ibv_create_cq(f.context, 4, &marker, f.channel, 0);
    f.sim.push_events(other);
    f.sim.push_events(f.cq);
    ibv_cq* of = nullptr;
    void* of_context = nullptr;
    REQUIRE(ibv_get_cq_event(f.channel, &of, &of_context) == 0);
    CHECK(of == other);
    CHECK(of_context == &marker);
    ibv_ack_cq_events(other, 1);
    CHECK(f.get_and_ack() == 0);
    CHECK(ibv_destroy_cq(other) == 0);
}

TEST_CASE("simulated audit: acknowledged against read", "[simulated]") {
    OpenCq f;
    f.sim.push_events(f.cq, 2);
    SECTION("an event that was read is not acknowledged: destroy would hang") {
        CHECK(f.get_event() == 0);
        CHECK(ibv_destroy_cq(f.cq) == 0);
        f.cq = nullptr;
        CHECK_THAT(taken(f.sim), contains("ibv_destroy_cq: would wait for ever: of completion "
                                          "queue 1, 1 completion events were read and 0"));
    }
    SECTION("an event that was not read needs no acknowledgement, and goes with its queue") {
        Epoll epoll(f.channel->fd);
        CHECK(f.get_and_ack() == 0);
        CHECK(epoll.events() == EPOLLIN);
        CHECK(ibv_destroy_cq(f.cq) == 0);
        f.cq = nullptr;
        CHECK(epoll.events() == 0);
        CHECK(f.sim.queued_events(f.channel) == 0);
    }
    SECTION("an event that was not read is acknowledged") {
        ibv_ack_cq_events(f.cq, 1);
        CHECK_THAT(taken(f.sim), contains("1 acknowledged, but of completion queue 1 only 0"));
        ibv_destroy_cq(f.cq);
        f.cq = nullptr;
        CHECK_THAT(taken(f.sim), contains("would wait for ever"));
    }
    SECTION("counts wrap around") {
        f.sim.start_event_counts_at(f.cq, 0xffffffffu);
        CHECK(f.get_and_ack() == 0);
        CHECK(f.get_and_ack() == 0);
        CHECK(f.cq->comp_events_completed == 1);
    }
    const CqCounters all = f.sim.counters();
    CHECK(all.events_queued == 2);
}

TEST_CASE("simulated overrun: a lost completion, an event, and silence", "[simulated]") {
    const ProviderModel provider = GENERATE(rxe, mlx5);
    OpenCq f(provider);
    CHECK(ibv_req_notify_cq(f.cq, 0) == 0);
    for (std::uint64_t id = 1; id <= 9; ++id) {
        f.sim.complete(f.cq, id);
    }
    CHECK(f.sim.counters(f.cq).completions_lost == 1);
    ibv_async_event event;
    REQUIRE(ibv_get_async_event(f.context, &event) == 0);
    CHECK(event.event_type == IBV_EVENT_CQ_ERR);
    CHECK(event.element.cq == f.cq);
    ibv_ack_async_event(&event);
    CHECK(f.get_and_ack() == 0);
    CHECK(ibv_req_notify_cq(f.cq, 0) == 0);
    CHECK(f.get_event() == EAGAIN);
    CHECK(f.poll() == Ids{1, 2, 3, 4, 5, 6, 7, 8});
    f.sim.complete(f.cq, 10);
    CHECK(f.get_event() == EAGAIN);
    CHECK(f.poll().empty());
}

TEST_CASE("simulated completion queue: depth", "[simulated]") {
    OpenDevice f(ProviderModel{.rounds_up_cqe = true});
    CHECK(ibv_create_cq(f.context, 0, nullptr, nullptr, 0) == nullptr);
    CHECK(errno == EINVAL);
    CHECK(ibv_create_cq(f.context, 32768, nullptr, nullptr, 0) == nullptr);
    CHECK(ibv_create_cq(f.context, 1, nullptr, nullptr, 1) == nullptr);
    ibv_cq* cq = ibv_create_cq(f.context, 10, nullptr, nullptr, 0);
    REQUIRE(cq != nullptr);
    CHECK(cq->cqe == 15);
    CHECK(ibv_resize_cq(cq, 31) == 0);
    CHECK(cq->cqe == 31);
    f.sim.complete(cq, 1);
    f.sim.complete(cq, 2);
    CHECK(ibv_resize_cq(cq, 1) == EINVAL);
    // Without a channel an arm is accepted and reports to nobody.
    CHECK(ibv_req_notify_cq(cq, 0) == 0);
    f.sim.complete(cq, 3);
    CHECK(f.sim.counters(cq).events_queued == 0);
    CHECK(ibv_destroy_cq(cq) == 0);
    CHECK(f.sim.counters(cq).arms == 1); // counters outlive their queue
}

TEST_CASE("simulated completions from another thread", "[simulated]") {
    OpenCq f;
    constexpr std::uint64_t count = 2000;
    std::thread device([&] {
        for (std::uint64_t id = 1; id <= count; ++id) {
            while (f.sim.queued_completions(f.cq) == f.cq->cqe) {
                std::this_thread::yield();
            }
            f.sim.complete(f.cq, id);
        }
    });
    Epoll epoll(f.channel->fd);
    std::uint64_t expected = 1;
    while (expected <= count) {
        Ids ids = f.poll();
        if (ids.empty()) {
            CHECK(ibv_req_notify_cq(f.cq, 0) == 0);
            ids = f.poll();
        }
        for (const std::uint64_t id : ids) {
            REQUIRE(id == expected);
            ++expected;
        }
        if (ids.empty()) {
            REQUIRE(epoll.events(-1) == EPOLLIN);
            REQUIRE(f.get_and_ack() == 0);
        }
    }
    device.join();
}

TEST_CASE("simulated queues of several threads, while others come and go", "[simulated]") {
    constexpr std::size_t threads = 4;
    constexpr std::uint64_t count = 2000;
    OpenCq f;
    std::vector<ibv_cq*> cqs; // the first two are on one channel
    for (std::size_t i = 0; i < threads; ++i) {
        cqs.push_back(ibv_create_cq(f.context, 8, nullptr, i < 2 ? f.channel : nullptr, 0));
    }
    std::atomic<std::size_t> ended = 0;
    std::atomic<int> out_of_order = 0;
    std::vector<std::thread> pollers;
    for (ibv_cq* cq : cqs) {
        pollers.emplace_back([&, cq] {
            for (std::uint64_t id = 1; id <= count; ++id) {
                ibv_req_notify_cq(cq, 0);
                f.sim.complete(cq, id);
                ibv_wc wc{};
                while (ibv_poll_cq(cq, 1, &wc) == 0) {
                    std::this_thread::yield();
                }
                out_of_order += wc.wr_id != id;
            }
            ++ended;
        });
    }
    std::uint64_t events = 0;
    while (ended < threads || f.sim.queued_events(f.channel) > 0) {
        ibv_cq* of = nullptr;
        void* of_context = nullptr;
        if (ibv_get_cq_event(f.channel, &of, &of_context) == 0) {
            ibv_ack_cq_events(of, 1);
            ++events;
        }
        ibv_cq* const other = ibv_create_cq(f.context, 1, nullptr, nullptr, 0);
        CHECK(ibv_destroy_cq(other) == 0);
    }
    for (std::thread& poller : pollers) {
        poller.join();
    }
    CHECK(out_of_order == 0);
    CHECK(events == 2 * count); // an arm, a completion, an event
    CHECK(f.sim.calls("ibv_req_notify_cq") == threads * count);
    CHECK(f.sim.counters().completions_polled == threads * count);
    CHECK(f.sim.counters().events_acked == events);
    for (ibv_cq* cq : cqs) {
        CHECK(ibv_destroy_cq(cq) == 0);
    }
}
