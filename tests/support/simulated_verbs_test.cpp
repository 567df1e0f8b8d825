// SPDX-License-Identifier: MIT
//
// The simulated verbs themselves: devices, failures, hooks and the audit. The tests of completion
// queues and of queue pairs are beside it.
#include "support/simulated_verbs_fixture.hpp"

#include <poll.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>

using namespace asyncverbs::simulated;
using asyncverbs::support::contains;

namespace {

// An int: the inline wrapper mixes its argument with another enumeration.
constexpr int local_write = IBV_ACCESS_LOCAL_WRITE;

// The problems of a simulation as one text, forgotten so that the test does not fail for them.
std::string taken(SimulatedVerbs& sim) {
    std::string text;
    for (const std::string& problem : sim.take_problems()) {
        text += problem + "\n";
    }
    return text;
}

ibv_port_attr query_port(ibv_context* context) {
    ibv_port_attr attr;
    REQUIRE(ibv_query_port(context, 1, &attr) == 0);
    return attr;
}

} // namespace

TEST_CASE("simulated device list: what there is, in order", "[simulated]") {
    SimulatedVerbs sim({DeviceOptions{.name = "first"}, DeviceOptions{.name = "second"}});
    int count = -1;
    ibv_device** list = ibv_get_device_list(&count);
    REQUIRE(count == 2);
    CHECK(std::string(ibv_get_device_name(list[0])) == "first");
    CHECK(std::string(ibv_get_device_name(list[1])) == "second");
    CHECK(list[2] == nullptr);
    ibv_free_device_list(list);

    sim.remove_device("first");
    sim.add_device({.name = "third"});
    list = ibv_get_device_list(&count);
    REQUIRE(count == 2);
    CHECK(std::string(ibv_get_device_name(list[0])) == "second");
    CHECK(std::string(ibv_get_device_name(list[1])) == "third");
    ibv_free_device_list(list);
}

TEST_CASE("simulated device list: none", "[simulated]") {
    SimulatedVerbs sim(std::vector<DeviceOptions>{});
    int count = -1;
    ibv_device** list = ibv_get_device_list(&count);
    REQUIRE(list != nullptr);
    CHECK(count == 0);
    CHECK(list[0] == nullptr);
    ibv_free_device_list(list);
}

TEST_CASE("simulated device list: a device is gone with the list it was found in", "[simulated]") {
    SimulatedVerbs sim;
    ibv_device** list = ibv_get_device_list(nullptr);
    ibv_device* device = list[0];
    ibv_free_device_list(list);
    CHECK(ibv_open_device(device) == nullptr);
    CHECK_THAT(taken(sim), contains("has been freed"));
}

TEST_CASE("simulated device: as rxe0 is", "[simulated]") {
    OpenDevice f;
    ibv_device_attr attr;
    REQUIRE(ibv_query_device(f.context, &attr) == 0);
    CHECK(attr.phys_port_cnt == 1);
    CHECK(attr.max_cqe == 32767);

    const ibv_port_attr port = query_port(f.context);
    CHECK(port.state == IBV_PORT_ACTIVE);
    CHECK(port.active_mtu == IBV_MTU_4096);
    CHECK(port.link_layer == IBV_LINK_LAYER_ETHERNET);
    CHECK(port.port_cap_flags2 == 0);
    ibv_port_attr none;
    CHECK(ibv_query_port(f.context, 0, &none) == EINVAL);
    CHECK(ibv_query_port(f.context, 2, &none) == EINVAL);

    __be16 pkey = 0;
    CHECK(ibv_query_pkey(f.context, 1, 0, &pkey) == 0);
    CHECK(pkey == 0xffff);
    CHECK(ibv_query_pkey(f.context, 1, 1, &pkey) == -1);
}

TEST_CASE("simulated GIDs: by index, by entry, by table", "[simulated]") {
    OpenDevice f;
    f.sim.set_gids("sim0", 1,
                   {{link_local_gid(7), IBV_GID_TYPE_ROCE_V1},
                    {},
                    {ipv4_gid(10, 7, 0, 9), IBV_GID_TYPE_ROCE_V2}});
    ibv_gid gid;
    REQUIRE(ibv_query_gid(f.context, 1, 2, &gid) == 0);
    CHECK(gid.raw[12] == 10);
    CHECK(gid.raw[15] == 9);
    REQUIRE(ibv_query_gid(f.context, 1, 1, &gid) == 0);
    CHECK(gid.raw[15] == 0);
    CHECK(ibv_query_gid(f.context, 1, 1024, &gid) == -1);
    CHECK(ibv_query_gid(f.context, 1, -1, &gid) == -1);
    CHECK(ibv_query_gid(f.context, 2, 0, &gid) == -1);

    ibv_gid_entry entry;
    REQUIRE(ibv_query_gid_ex(f.context, 1, 0, &entry, 0) == 0);
    CHECK(entry.gid_type == IBV_GID_TYPE_ROCE_V1);
    CHECK(ibv_query_gid_ex(f.context, 1, 1, &entry, 0) == ENODATA);
    CHECK(ibv_query_gid_ex(f.context, 1, 1024, &entry, 0) == EINVAL);

    std::array<ibv_gid_entry, 4> entries{};
    REQUIRE(ibv_query_gid_table(f.context, entries.data(), entries.size(), 0) == 2);
    CHECK(entries[0].gid_index == 0);
    CHECK(entries[1].gid_index == 2);
    CHECK(ibv_query_gid_table(f.context, entries.data(), 1, 0) == -EINVAL);
}

TEST_CASE("simulated port: goes down and up, with events", "[simulated]") {
    OpenDevice f;
    Epoll epoll(f.context->async_fd);
    CHECK(epoll.events() == 0);
    f.sim.set_port_state("sim0", 1, IBV_PORT_DOWN);
    CHECK(query_port(f.context).state == IBV_PORT_DOWN);
    CHECK(epoll.events() == EPOLLIN);
    ibv_async_event event;
    REQUIRE(ibv_get_async_event(f.context, &event) == 0);
    CHECK(event.event_type == IBV_EVENT_PORT_ERR);
    CHECK(event.element.port_num == 1);
    ibv_ack_async_event(&event);
    f.sim.set_port_state("sim0", 1, IBV_PORT_ACTIVE);
    REQUIRE(ibv_get_async_event(f.context, &event) == 0);
    CHECK(event.event_type == IBV_EVENT_PORT_ACTIVE);
    ibv_ack_async_event(&event);
    CHECK(epoll.events() == 0);
}

TEST_CASE("simulated memory region: keys, and what cannot be registered", "[simulated]") {
    OpenDevice f;
    ibv_pd* pd = ibv_alloc_pd(f.context);
    std::array<char, 64> memory{};
    ibv_mr* mr = ibv_reg_mr(pd, memory.data(), memory.size(), local_write);
    REQUIRE(mr != nullptr);
    CHECK(mr->addr == memory.data());
    CHECK(mr->length == memory.size());
    CHECK(mr->lkey != mr->rkey);
    // The inline wrapper takes another way when the compiler cannot see the flags.
    volatile int access = IBV_ACCESS_REMOTE_WRITE;
    CHECK(ibv_reg_mr(pd, memory.data(), memory.size(), static_cast<unsigned>(access)) == nullptr);
    CHECK(errno == EINVAL);
    CHECK(ibv_reg_mr(pd, memory.data(), 0, local_write) == nullptr);
    CHECK(f.sim.calls("ibv_reg_mr") == 3);

    CHECK(ibv_dealloc_pd(pd) == EBUSY);
    CHECK_THAT(taken(f.sim), contains("ibv_dealloc_pd: protection domain 1 is needed by 1"));
    CHECK(ibv_dereg_mr(mr) == 0);
    CHECK(ibv_dealloc_pd(pd) == 0);
}

TEST_CASE("simulated disassociation: fatal event, then an error without data", "[simulated]") {
    OpenCq f;
    Epoll channel(f.channel->fd);
    Epoll async(f.context->async_fd);
    f.sim.push_events(f.cq);
    f.sim.remove_device("sim0");

    CHECK(channel.events() == EPOLLIN); // what was queued is still read
    CHECK(f.get_and_ack() == 0);
    CHECK(channel.events() == EPOLLERR);
    CHECK(f.get_event() == EIO);
    CHECK(channel.events() == EPOLLERR);

    CHECK(async.events() == EPOLLIN);
    ibv_async_event event;
    REQUIRE(ibv_get_async_event(f.context, &event) == 0);
    CHECK(event.event_type == IBV_EVENT_DEVICE_FATAL);
    ibv_ack_async_event(&event);
    CHECK(async.events() == EPOLLERR);
    CHECK(ibv_get_async_event(f.context, &event) == -1);
    CHECK(errno == EIO);

    CHECK(ibv_req_notify_cq(f.cq, 0) == EIO);
    CHECK(ibv_alloc_pd(f.context) == nullptr);
    CHECK(errno == EIO);
    CHECK(f.poll().empty());
}

TEST_CASE("simulated disassociation: wakes a blocked reader with EIO", "[simulated]") {
    OpenCq f;
    ::fcntl(f.channel->fd, F_SETFL, 0);
    std::thread unplug([&] { f.sim.disassociate(f.context); });
    CHECK(f.get_event() == EIO);
    unplug.join();
    Epoll channel(f.channel->fd);
    CHECK(channel.events() == EPOLLERR);
}

TEST_CASE("simulated failures: the nth call, in any sign", "[simulated]") {
    OpenCq f;
    f.sim.fail("ibv_req_notify_cq", {.error = ENOMEM, .nth = 2});
    CHECK(ibv_req_notify_cq(f.cq, 0) == 0);
    CHECK(ibv_req_notify_cq(f.cq, 0) == ENOMEM);
    CHECK(errno == ENOANO);
    CHECK(ibv_req_notify_cq(f.cq, 0) == 0);
    CHECK(f.sim.failures_injected() == 1);
    CHECK(f.sim.counters(f.cq).arms == 2);

    f.sim.fail("ibv_req_notify_cq", {.error = ENOMEM, .sign = ErrnoSign::negative});
    CHECK(ibv_req_notify_cq(f.cq, 0) == -ENOMEM);
    f.sim.fail("ibv_req_notify_cq", {.error = ENOMEM, .sign = ErrnoSign::minus_one});
    CHECK(ibv_req_notify_cq(f.cq, 0) == -1);
    CHECK(errno == ENOMEM);
    f.sim.fail("ibv_get_cq_event", {.error = EINTR, .times = 2});
    CHECK(f.get_event() == EINTR);
    CHECK(f.get_event() == EINTR);
    CHECK(f.get_event() == EAGAIN);
    f.sim.fail("ibv_alloc_pd", {.error = ENOMEM});
    CHECK(ibv_alloc_pd(f.context) == nullptr);
    CHECK(errno == ENOMEM);
    f.sim.fail("ibv_poll_cq", {.error = EIO, .sign = ErrnoSign::positive});
    ibv_wc wc;
    CHECK(ibv_poll_cq(f.cq, 1, &wc) == -EIO);
    CHECK(errno == ENOANO);
    CHECK_THROWS_AS(f.sim.fail("ibv_pol_cq"), std::invalid_argument);
}

TEST_CASE("simulated failures: any verb, until the operation passes", "[simulated]") {
    std::vector<int> failed_at;
    int nth = 0;
    bool passed = false;
    while (!passed) {
        SimulatedVerbs sim;
        sim.fail_any({.nth = ++nth});
        // The operation: a list, a context, a domain. It gives up at the first failure.
        if (ibv_device** list = ibv_get_device_list(nullptr)) {
            if (ibv_context* context = ibv_open_device(list[0])) {
                if (ibv_pd* pd = ibv_alloc_pd(context)) {
                    CHECK(ibv_dealloc_pd(pd) == 0);
                    passed = true;
                }
                CHECK(ibv_close_device(context) == 0);
            }
            ibv_free_device_list(list);
        }
        CHECK(sim.failures_injected() == (passed ? 0 : 1));
    }
    CHECK(nth == 4);
}

TEST_CASE("simulated hook: before and after every verb, free to act", "[simulated]") {
    OpenCq f;
    std::vector<std::string> seen;
    f.sim.on_call([&](const Call& call) {
        const bool before = call.moment == Call::Moment::before;
        seen.push_back((before ? "before " : "after ") + std::string(call.verb));
        if (before && call.verb == "ibv_poll_cq") {
            CHECK(call.object == f.cq);
            f.sim.complete(f.cq, 42);
        }
    });
    CHECK(f.poll() == std::vector<std::uint64_t>{42});
    f.sim.fail("ibv_req_notify_cq", {.error = EIO, .sign = ErrnoSign::negative});
    int error = 0;
    f.sim.on_call([&](const Call& call) { error = call.error; });
    CHECK(ibv_req_notify_cq(f.cq, 0) == -EIO);
    CHECK(error == EIO);
    f.sim.on_call(nullptr);
    CHECK(f.poll().empty());
    CHECK(seen == std::vector<std::string>{"before ibv_poll_cq", "after ibv_poll_cq"});
}

TEST_CASE("simulated hook: what it throws is a problem, not an exception", "[simulated]") {
    OpenCq f;
    f.sim.on_call([](const Call&) { throw std::runtime_error("no"); });
    CHECK(ibv_req_notify_cq(f.cq, 0) == 0);
    f.sim.on_call(nullptr);
    CHECK_THAT(taken(f.sim), contains("ibv_req_notify_cq: the hook threw no"));
}

TEST_CASE("simulated audit: leaks, by kind and number", "[simulated]") {
    SimulatedVerbs sim;
    ibv_device** list = ibv_get_device_list(nullptr);
    ibv_context* context = ibv_open_device(list[0]);
    ibv_pd* pd = ibv_alloc_pd(context);
    CHECK(sim.live_objects() == 3);
    sim.audit();
    const std::string problems = taken(sim);
    CHECK_THAT(problems, contains("leaked: protection domain 1"));
    CHECK_THAT(problems, contains("leaked: context 1"));
    CHECK_THAT(problems, contains("leaked: a device list"));
    ibv_dealloc_pd(pd);
    ibv_close_device(context);
    ibv_free_device_list(list);
    CHECK(sim.live_objects() == 0);
}

TEST_CASE("simulated audit: a leak fails the test", "[simulated][!shouldfail]") {
    SimulatedVerbs sim;
    ibv_device** list = ibv_get_device_list(nullptr);
    ibv_open_device(list[0]);
    ibv_free_device_list(list);
}

TEST_CASE("simulated audit: parents are not destroyed before their children", "[simulated]") {
    OpenCq f;
    CHECK(ibv_destroy_comp_channel(f.channel) == EBUSY);
    CHECK_THAT(taken(f.sim), contains("completion channel 1 is needed by 1"));
    CHECK(ibv_close_device(f.context) == EBUSY);
    CHECK_THAT(taken(f.sim), contains("context 1 is needed by 2"));
}

TEST_CASE("simulated audit: use after destroy", "[simulated]") {
    OpenCq f;
    ibv_cq* cq = f.cq;
    f.cq = nullptr;
    CHECK(ibv_destroy_cq(cq) == 0);
    CHECK(ibv_destroy_cq(cq) == EINVAL);
    CHECK_THAT(taken(f.sim), contains("ibv_destroy_cq: completion queue 1 was destroyed before"));
    ibv_wc wc;
    CHECK(ibv_poll_cq(cq, 1, &wc) < 0);
    CHECK_THAT(taken(f.sim), contains("ibv_poll_cq: completion queue 1 was destroyed before"));
    ibv_ack_cq_events(cq, 1);
    CHECK_THAT(taken(f.sim), contains("ibv_ack_cq_events: completion queue 1 was destroyed"));
}

TEST_CASE("simulated audit: a descriptor is read by its verb alone", "[simulated]") {
    SimulatedVerbs sim;
    ibv_device** list = ibv_get_device_list(nullptr);
    ibv_context* context = ibv_open_device(list[0]);
    ibv_free_device_list(list);
    ibv_comp_channel* channel = ibv_create_comp_channel(context);
    ibv_cq* cq = ibv_create_cq(context, 1, nullptr, channel, 0);
    sim.push_events(cq);
    std::uint64_t event = 0;
    SECTION("raw read") { CHECK(::read(channel->fd, &event, sizeof event) > 0); }
    SECTION("closed by its user") { ::close(channel->fd); }
    ibv_destroy_cq(cq);
    ibv_destroy_comp_channel(channel);
    CHECK_THAT(taken(sim), contains("was read or closed by somebody else"));
    ibv_close_device(context);
}

TEST_CASE("simulated verbs: one simulation at a time, and none is an error", "[simulated]") {
    {
        SimulatedVerbs sim;
        CHECK_THROWS_AS(SimulatedVerbs(), std::logic_error);
        ibv_device** list = ibv_get_device_list(nullptr);
        CHECK(list != nullptr);
        ibv_free_device_list(list);
    }
    CHECK(ibv_get_device_list(nullptr) == nullptr);
    CHECK(errno == ENODEV);
}

TEST_CASE("simulated asynchronous events: read, acknowledged, audited", "[simulated]") {
    OpenCq f;
    f.sim.break_cq(f.cq);
    ibv_async_event event;
    REQUIRE(ibv_get_async_event(f.context, &event) == 0);
    CHECK(event.event_type == IBV_EVENT_CQ_ERR);
    CHECK(event.element.cq == f.cq);
    SECTION("acknowledged") { ibv_ack_async_event(&event); }
    SECTION("acknowledged twice") {
        ibv_ack_async_event(&event);
        ibv_ack_async_event(&event);
        CHECK_THAT(taken(f.sim), contains("an event that was not read, or twice"));
    }
    SECTION("forgotten") {
        ibv_destroy_cq(f.cq);
        f.cq = nullptr;
        CHECK_THAT(taken(f.sim), contains("ibv_destroy_cq: would wait for ever"));
    }
}
