// SPDX-License-Identifier: MIT
// The simulated verbs that other tests rely on without asserting them: arm models, events, injected
// failures, and every problem that the audit must find.

#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/memory.hpp>

#include "support/catch.hpp"
#include "support/epoll.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

using namespace asyncverbs;
using namespace asyncverbs::simulated;
using support::contains;
using support::Epoll;
using Ids = std::vector<std::uint64_t>;

namespace {

// A completion queue of 8 entries with its channel.
struct Fixture {
    explicit Fixture(const ProviderModel& provider = rxe) : sim(provider) {}

    // The wr_id of each completion of one poll.
    Ids poll(int entries = 16) {
        std::array<ibv_wc, 16> wcs;
        const int count = ibv_poll_cq(cq, entries, wcs.data());
        Ids ids;
        for (int i = 0; i < count; ++i) {
            ids.push_back(wcs[static_cast<std::size_t>(i)].wr_id);
        }
        return ids;
    }

    int arm(bool solicited_only = false) { return ibv_req_notify_cq(cq, solicited_only); }

    void push(std::uint64_t wr_id, bool solicited = false) {
        ibv_wc wc{};
        wc.wr_id = wr_id;
        sim.push(cq, wc, solicited);
    }

    int events() { return sim.queued_events(channel); }

    // Reads one event; 0 or the errno.
    int get_event() {
        ibv_cq* source = nullptr;
        void* cq_context = nullptr;
        if (ibv_get_cq_event(channel, &source, &cq_context) != 0) {
            return errno;
        }
        CHECK(source == cq);
        return 0;
    }

    int get_and_ack() {
        const int error = get_event();
        if (error == 0) {
            ibv_ack_cq_events(cq, 1);
        }
        return error;
    }

    ibv_async_event async_event() {
        ibv_async_event event{};
        REQUIRE(ibv_get_async_event(context.native_handle(), &event) == 0);
        return event;
    }

    // The problems as one text; clears them, so that they do not fail the test.
    std::string problems() {
        std::string text;
        for (const std::string& problem : sim.take_problems()) {
            text += problem + "\n";
        }
        return text;
    }

    SimulatedVerbs sim;
    asyncverbs::Context context = asyncverbs::Context::open();
    std::optional<asyncverbs::CompletionQueue> owner{std::in_place, context, 8};
    ibv_cq* cq = owner->native_handle();
    ibv_comp_channel* channel = owner->channel().native_handle();
};

} // namespace

// --- poll and arm ---

TEST_CASE("simulated error completions contain garbage in invalid fields", "[simulated]") {
    Fixture f;
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
    Fixture f;
    f.sim.complete(f.cq, 1);
    CHECK(f.events() == 0); // not armed
    CHECK(f.arm() == 0);
    CHECK(f.sim.armed(f.cq));
    CHECK(f.events() == 0); // queued completions fire no event
    f.sim.complete(f.cq, 2);
    CHECK_FALSE(f.sim.armed(f.cq));
    f.sim.complete(f.cq, 3);
    CHECK(f.events() == 1);
    CHECK(f.get_and_ack() == 0);
    CHECK(f.get_event() == EAGAIN);
    // An arm is effective while an event is unread.
    CHECK(f.arm() == 0);
    f.sim.complete(f.cq, 4);
    CHECK(f.arm() == 0);
    f.sim.complete(f.cq, 5);
    CHECK(f.events() == 2);
}

TEST_CASE("simulated arm, index model: fires for unpolled completions, once per read event",
          "[simulated]") {
    Fixture f(mlx5);
    f.sim.complete(f.cq, 1);
    CHECK(f.arm() == 0);
    CHECK_FALSE(f.sim.armed(f.cq));
    CHECK(f.events() == 1); // at once
    CHECK(f.poll() == Ids{1});
    CHECK(f.arm() == 0);
    CHECK_FALSE(f.sim.armed(f.cq)); // ignored: the event is unread
    f.sim.complete(f.cq, 2);
    CHECK(f.events() == 1);
    CHECK(f.get_and_ack() == 0);
    CHECK(f.arm() == 0);
    CHECK(f.events() == 1);
    CHECK(f.get_and_ack() == 0);
    CHECK(f.poll() == Ids{2});
    CHECK(f.arm() == 0); // all completions were polled
    CHECK(f.sim.armed(f.cq));
    CHECK(f.events() == 0);
    f.sim.complete(f.cq, 3);
    CHECK(f.events() == 1);
}

TEST_CASE("simulated arm for solicited completions", "[simulated]") {
    const ProviderModel provider = GENERATE(rxe, siw, mlx5);
    Fixture f(provider);
    CHECK(f.arm(true) == 0);
    f.push(1);
    CHECK(f.events() == 0);
    CHECK(f.sim.armed(f.cq));
    SECTION("a solicited completion fires, and again at once in the index model") {
        f.push(2, true);
        CHECK(f.get_and_ack() == 0);
        CHECK(f.arm(true) == 0);
        CHECK(f.events() == (provider.arm_model == ArmModel::index ? 1 : 0));
    }
    SECTION("an error fires") {
        f.sim.complete(f.cq, 2, IBV_WC_WR_FLUSH_ERR);
        CHECK(f.events() == 1);
    }
    SECTION("an arm for any completion replaces it") {
        f.poll();
        CHECK(f.arm() == 0);
        f.push(2);
        CHECK(f.events() == 1);
    }
    SECTION("after an arm for any completion it is effective on siw only") {
        f.poll();
        CHECK(f.arm() == 0);
        CHECK(f.arm(true) == 0);
        f.push(2);
        CHECK(f.events() == (provider.solicited_arm_downgrades ? 0 : 1));
    }
}

// --- events and descriptors ---

TEST_CASE("simulated channels block in blocking mode", "[simulated]") {
    Fixture f;
    ::fcntl(f.channel->fd, F_SETFL, 0);
    f.sim.push_false_readiness(f.channel);
    std::atomic<bool> pushed = false;
    std::thread device([&] {
        while (f.events() != 0) { // until the reader has consumed the false readiness
            std::this_thread::yield();
        }
        pushed = true;
        f.sim.push_events(f.cq);
    });
    CHECK(f.get_and_ack() == 0);
    CHECK(pushed);
    device.join();
}

TEST_CASE("simulated disassociation: a fatal event, then an error without data", "[simulated]") {
    Fixture f;
    Epoll channel(f.channel->fd);
    Epoll async(f.context.native_handle()->async_fd);
    f.sim.push_events(f.cq);
    f.sim.disassociate(f.context.native_handle());

    CHECK(channel.events() == EPOLLIN); // queued events can still be read
    CHECK(f.get_and_ack() == 0);
    CHECK(channel.events() == EPOLLERR);
    CHECK(f.get_event() == EIO);
    CHECK(channel.events() == EPOLLERR);

    CHECK(async.events() == EPOLLIN);
    ibv_async_event event = f.async_event();
    CHECK(event.event_type == IBV_EVENT_DEVICE_FATAL);
    ibv_ack_async_event(&event);
    CHECK(async.events() == EPOLLERR);
    CHECK(ibv_get_async_event(f.context.native_handle(), &event) == -1);
    CHECK(errno == EIO);

    CHECK(f.arm() == EIO);
    CHECK(ibv_alloc_pd(f.context.native_handle()) == nullptr);
    CHECK(errno == EIO);
    CHECK(f.poll().empty());
}

// --- failures and hooks ---

TEST_CASE("simulated failures: the nth call, in any sign", "[simulated]") {
    Fixture f;
    f.sim.fail("ibv_req_notify_cq", {.error = ENOMEM, .nth = 2});
    CHECK(f.arm() == 0);
    CHECK(f.arm() == ENOMEM);
    CHECK(errno == ENOANO);
    CHECK(f.arm() == 0);
    CHECK(f.sim.failures_injected() == 1);
    CHECK(f.sim.counters(f.cq).arms == 2);

    f.sim.fail("ibv_req_notify_cq", {.error = ENOMEM, .sign = ErrnoSign::negative});
    CHECK(f.arm() == -ENOMEM);
    f.sim.fail("ibv_req_notify_cq", {.error = ENOMEM, .sign = ErrnoSign::minus_one});
    CHECK(f.arm() == -1);
    CHECK(errno == ENOMEM);
    f.sim.fail("ibv_get_cq_event", {.error = EINTR, .times = 2});
    CHECK(f.get_event() == EINTR);
    CHECK(f.get_event() == EINTR);
    CHECK(f.get_event() == EAGAIN);
    f.sim.fail("ibv_alloc_pd", {.error = ENOMEM});
    CHECK(ibv_alloc_pd(f.context.native_handle()) == nullptr);
    CHECK(errno == ENOMEM);
    f.sim.fail("ibv_poll_cq", {.error = EIO, .sign = ErrnoSign::positive});
    ibv_wc wc;
    CHECK(ibv_poll_cq(f.cq, 1, &wc) == -EIO);
    CHECK(errno == ENOANO);
    CHECK_THROWS_AS(f.sim.fail("ibv_pol_cq"), std::invalid_argument);
}

// --- the audit ---

TEST_CASE("simulated audit: acknowledged and read events", "[simulated]") {
    Fixture f;
    f.sim.push_events(f.cq, 2);
    SECTION("an unacknowledged event: destroying the queue would hang") {
        CHECK(f.get_event() == 0);
        f.owner.reset();
        CHECK_THAT(f.problems(), contains("ibv_destroy_cq: would hang: of completion queue 1, "
                                          "1 completion events were read and 0"));
    }
    SECTION("an unread event needs no acknowledgement, and is dropped with its queue") {
        const asyncverbs::CompletionChannel channel = asyncverbs::CompletionChannel(f.context);
        ibv_cq* cq =
            ibv_create_cq(f.context.native_handle(), 1, nullptr, channel.native_handle(), 0);
        Epoll epoll(channel.fd());
        f.sim.push_events(cq, 1);
        CHECK(epoll.events() == EPOLLIN);
        CHECK(ibv_destroy_cq(cq) == 0);
        CHECK(epoll.events() == 0);
        CHECK(f.sim.queued_events(channel.native_handle()) == 0);
    }
    SECTION("an unread event is acknowledged") {
        ibv_ack_cq_events(f.cq, 1);
        CHECK_THAT(f.problems(), contains("1 acknowledged, but of completion queue 1 only 0"));
        f.owner.reset();
        CHECK_THAT(f.problems(), contains("would hang"));
    }
    SECTION("counts wrap around") {
        f.sim.start_event_counts_at(f.cq, 0xffffffffu);
        CHECK(f.get_and_ack() == 0);
        CHECK(f.get_and_ack() == 0);
        CHECK(f.cq->comp_events_completed == 1);
    }
}

TEST_CASE("simulated audit: acknowledged asynchronous events", "[simulated]") {
    Fixture f;
    f.sim.break_cq(f.cq);
    ibv_async_event event = f.async_event();
    SECTION("once") { ibv_ack_async_event(&event); }
    SECTION("twice") {
        ibv_ack_async_event(&event);
        ibv_ack_async_event(&event);
        CHECK_THAT(f.problems(), contains("an event that was not read, or twice"));
    }
    SECTION("never") {
        f.owner.reset();
        CHECK_THAT(f.problems(), contains("ibv_destroy_cq: would hang"));
    }
}

TEST_CASE("simulated audit: leaks, by kind and number", "[simulated]") {
    Fixture f;
    const int objects = f.sim.live_objects();
    ibv_device** list = ibv_get_device_list(nullptr);
    ibv_pd* pd = ibv_alloc_pd(f.context.native_handle());
    CHECK(f.sim.live_objects() == objects + 2);
    f.sim.audit();
    const std::string problems = f.problems();
    for (const char* leaked : {"protection domain 1", "context 1", "completion queue 1",
                               "completion channel 1", "a device list"}) {
        CHECK_THAT(problems, contains(std::string("leaked: ") + leaked));
    }
    ibv_dealloc_pd(pd);
    ibv_free_device_list(list);
}

TEST_CASE("simulated audit: a leak fails the test", "[simulated][!shouldfail]") {
    SimulatedVerbs sim;
    const asyncverbs::DeviceList devices;
    ibv_open_device(devices[0]);
}

TEST_CASE("simulated audit: parents are destroyed after their children", "[simulated]") {
    Fixture f;
    const asyncverbs::ProtectionDomain domain(f.context);
    std::array<std::byte, 16> memory{};
    const asyncverbs::MemoryRegion region(domain, memory);
    CHECK(ibv_destroy_comp_channel(f.channel) == EBUSY);
    CHECK_THAT(f.problems(), contains("completion channel 1 is needed by 1"));
    CHECK(ibv_dealloc_pd(domain.native_handle()) == EBUSY);
    CHECK_THAT(f.problems(), contains("ibv_dealloc_pd: protection domain 1 is needed by 1"));
    CHECK(ibv_close_device(f.context.native_handle()) == EBUSY);
    CHECK_THAT(f.problems(), contains("context 1 is needed by 3"));
}

TEST_CASE("simulated audit: use after destroy", "[simulated]") {
    Fixture f;
    f.owner.reset();
    CHECK(ibv_destroy_cq(f.cq) == EINVAL);
    CHECK_THAT(f.problems(), contains("ibv_destroy_cq: completion queue 1 was destroyed before"));
    ibv_wc wc;
    CHECK(ibv_poll_cq(f.cq, 1, &wc) < 0);
    CHECK_THAT(f.problems(), contains("ibv_poll_cq: completion queue 1 was destroyed before"));
    ibv_ack_cq_events(f.cq, 1);
    CHECK_THAT(f.problems(), contains("ibv_ack_cq_events: completion queue 1 was destroyed"));

    ibv_device** list = ibv_get_device_list(nullptr);
    ibv_device* device = list[0];
    f.sim.add_device({.name = "sim1"});
    ibv_free_device_list(list);
    list = ibv_get_device_list(nullptr);
    ibv_device* second = list[1];
    ibv_free_device_list(list);
    CHECK(ibv_open_device(second) == nullptr); // a device pointer is valid as long as its list
    CHECK_THAT(f.problems(), contains("the list that sim1 was found in has been freed"));
    CHECK(device->name == std::string("sim0"));
}

TEST_CASE("simulated audit: only verbs may read or close a channel", "[simulated]") {
    Fixture f;
    f.sim.push_events(f.cq);
    char token = 0;
    SECTION("raw read") { CHECK(::read(f.channel->fd, &token, 1) == 1); }
    SECTION("close") { ::close(f.channel->fd); }
    f.owner.reset();
    CHECK_THAT(f.problems(), contains("was read or closed by the application"));
}

TEST_CASE("one simulation at a time, and verbs without one fail", "[simulated]") {
    {
        SimulatedVerbs sim;
        CHECK_THROWS_AS(SimulatedVerbs(), std::logic_error);
        CHECK(asyncverbs::DeviceList().size() == 1);
    }
    CHECK(ibv_get_device_list(nullptr) == nullptr);
    CHECK(errno == ENODEV);
}
