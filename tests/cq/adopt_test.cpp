// SPDX-License-Identifier: MIT
// Completion queues that the program has made itself, and goes on to use.
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/cq/cq_poller.hpp>
#include <asyncverbs/cq/shared_channel.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/device.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <system_error>

#include "support/catch.hpp"
#include "support/coroutine.hpp"

using namespace asyncverbs;
using namespace asyncverbs::support;

namespace {

// Two queues on one channel. If an event was read and not acked, destroying its queue fails the
// test, where the real library would hang.
struct NativeQueues {
    explicit NativeQueues(const simulated::ProviderModel& provider) : sim(provider) {
        ibv_device** devices = ibv_get_device_list(nullptr);
        context = ibv_open_device(devices[0]);
        ibv_free_device_list(devices);
        channel = ibv_create_comp_channel(context);
        for (ibv_cq*& cq : cqs) cq = ibv_create_cq(context, 7, nullptr, channel, 0);
    }
    NativeQueues(const NativeQueues&) = delete;
    NativeQueues& operator=(const NativeQueues&) = delete;
    ~NativeQueues() {
        for (ibv_cq* const cq : cqs) ibv_destroy_cq(cq);
        ibv_destroy_comp_channel(channel);
        ibv_close_device(context);
    }

    // The loop of the program. Returns the wr_id of the next completion.
    std::uint64_t next(ibv_cq* cq) const {
        for (;;) {
            ibv_wc wc{};
            if (ibv_poll_cq(cq, 1, &wc) == 1) return wc.wr_id;
            REQUIRE(ibv_req_notify_cq(cq, 0) == 0);
            if (ibv_poll_cq(cq, 1, &wc) == 1) return wc.wr_id;
            ibv_cq* named = nullptr;
            void* context_of_cq = nullptr;
            REQUIRE(ibv_get_cq_event(channel, &named, &context_of_cq) == 0);
            ibv_ack_cq_events(named, 1);
        }
    }

    simulated::SimulatedVerbs sim;
    ibv_context* context = nullptr;
    ibv_comp_channel* channel = nullptr;
    std::array<ibv_cq*, 2> cqs{};
};

Coroutine take(AsyncCq& cq, std::optional<std::uint64_t>& wr_id) {
    std::array<ibv_wc, 1> wcs{};
    wr_id = (co_await cq.poll(wcs))[0].wr_id;
}

} // namespace

TEST_CASE("AsyncCq: on a queue of the program, in any state", "[adopt][I2]") {
    const auto provider = GENERATE(simulated::rxe, simulated::mlx5, simulated::mana);
    NativeQueues native(provider);
    ibv_cq* const cq = native.cqs[0];
    SECTION("new") {}
    SECTION("armed") { REQUIRE(ibv_req_notify_cq(cq, 0) == 0); }
    SECTION("with an event") { native.sim.push_events(cq); }
    SECTION("with an event and its completion") {
        REQUIRE(ibv_req_notify_cq(cq, 0) == 0);
        native.sim.complete(cq, 1);
    }
    SECTION("with the event of a completion that was polled") {
        REQUIRE(ibv_req_notify_cq(cq, 0) == 0);
        native.sim.complete(cq, 5);
        ibv_wc wc{};
        REQUIRE(ibv_poll_cq(cq, 1, &wc) == 1);
    }
    {
        ManualNotifier notifier;
        AsyncCq adopted(CompletionQueue(borrow(cq)), notifier);
        std::optional<std::uint64_t> first;
        const Coroutine one = take(adopted, first);
        for (int i = 0; i < 4; ++i) { // while the channel is readable
            if (native.sim.queued_events(native.channel) > 0) notifier.notify();
            notifier.run();
        }
        if (!first) native.sim.complete(cq, 1);
        for (int i = 0; i < 4; ++i) {
            if (native.sim.queued_events(native.channel) > 0) notifier.notify();
            notifier.run();
        }
        CHECK(first == 1);
        std::optional<std::uint64_t> second;
        const Coroutine two = take(adopted, second);
        native.sim.complete(cq, 2);
        notifier.notify();
        notifier.run();
        CHECK(second == 2);
    }
    native.sim.complete(cq, 3);
    CHECK(native.next(cq) == 3); // the program again, which polls before it waits
}

TEST_CASE("CqPoller: on a queue of the program", "[adopt]") {
    NativeQueues native(simulated::rxe);
    {
        CqPoller poller{CompletionQueue(borrow(native.cqs[0]))};
        std::array<ibv_wc, 4> wcs{};
        CHECK(poller.poll_or_arm(wcs) == 0);
        native.sim.complete(native.cqs[0], 1);
        CHECK(poller.consume());
        CHECK(poller.poll_or_arm(wcs) == 1);
    }
    native.sim.complete(native.cqs[0], 2);
    CHECK(native.next(native.cqs[0]) == 2);
}

TEST_CASE("SharedChannel: on a channel of the program", "[adopt]") {
    NativeQueues native(simulated::rxe);
    ManualNotifier notifier;
    SharedChannel channel(CompletionChannel(borrow(native.channel)), notifier);
    std::array<std::optional<std::uint64_t>, 2> taken;
    AsyncCq first = AsyncCq::create(CompletionQueue(borrow(native.cqs[0])), channel);
    AsyncCq second = AsyncCq::create(CompletionQueue(borrow(native.cqs[1])), channel);
    const Coroutine one = take(first, taken[0]);
    const Coroutine two = take(second, taken[1]);
    native.sim.complete(native.cqs[1], 2);
    notifier.notify();
    notifier.run();
    CHECK(!taken[0]);
    CHECK(taken[1] == 2);
    native.sim.complete(native.cqs[0], 1);
    notifier.notify();
    notifier.run();
    CHECK(taken[0] == 1);
}
