// SPDX-License-Identifier: MIT
#include <asyncverbs/cm/connect.hpp>

#include <asyncverbs/cm/listener.hpp>

#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/router.hpp>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "cm/fixture.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using asyncverbs::support::bytes;
using asyncverbs::support::CmFixture;
using asyncverbs::support::contains;
using asyncverbs::support::Outcome;
using asyncverbs::support::QueuePairOwner;
using asyncverbs::support::Running;
using asyncverbs::support::text;

namespace {

// A loop whose only notifiers are those for descriptors, and which can fail.
struct OwnLoop {
    struct Notifier {
        Task<std::error_code> readable(std::stop_token stop) {
            const std::error_code error = co_await inner.readable(stop);
            co_return loop.broken ? std::make_error_code(std::errc::io_error) : error;
        }
        EpollNotifier inner;
        OwnLoop& loop;
    };
    Notifier notifier(int fd) { return {executor.notifier(fd), *this}; }

    EpollExecutor& executor;
    bool broken = false;
};

ibv_qp_attr query(const QueuePair& qp, int mask) {
    ibv_qp_attr attr{};
    ibv_qp_init_attr init{};
    REQUIRE(ibv_query_qp(qp.native_handle(), &attr, mask, &init) == 0);
    return attr;
}

OutgoingConnection resolved(CmFixture& f) {
    std::optional<OutgoingConnection> outgoing;
    const auto find_route = [&]() -> Task<> {
        outgoing.emplace(co_await resolve(f.loop, CmFixture::host, f.port));
    };
    const Running resolving(find_route());
    f.run();
    REQUIRE(outgoing);
    return std::move(*outgoing);
}

// Whether `attempt(time)` succeeds with any time. Steps that need no waiting must fit into it, and
// how long they take depends on the machine.
template <class Attempt>
bool in_enough_time(Attempt attempt) {
    for (std::chrono::milliseconds time = 4ms; time < 1min; time *= 4) {
        if (attempt(time)) return true;
    }
    return false;
}

} // namespace

TEST_CASE("connect: both ends get each other's private data and address") {
    CmFixture f;
    f.handshake({.private_data = bytes("yes")}, {.private_data = bytes("please")});
    REQUIRE(f.server);
    REQUIRE(f.client);
    CHECK(text(f.incoming->private_data()) == "please");
    CHECK(text(f.client->private_data()) == "yes");
    CHECK(f.client->peer_address().text() == "10.7.0.1:" + f.port);
    CHECK(f.server->local_address().port() == f.listener->port());
    CHECK(f.server->peer_address().text() == f.client->local_address().text());
    CHECK(f.client_state() == IBV_QPS_RTS);
    CHECK(f.server_state() == IBV_QPS_RTS);
}

TEST_CASE("connect: reads and atomics are limited by both ends and their devices") {
    struct Depths {
        std::uint8_t responder_resources;
        std::uint8_t initiator_depth;
    };
    const Depths asked = GENERATE(Depths{255, 255}, Depths{3, 2}, Depths{0, 0});
    const Depths offered = GENERATE(Depths{255, 255}, Depths{1, 4});
    CmFixture f;
    f.handshake({.responder_resources = offered.responder_resources,
                 .initiator_depth = offered.initiator_depth},
                {.responder_resources = asked.responder_resources,
                 .initiator_depth = asked.initiator_depth});
    REQUIRE(f.client);
    REQUIRE(f.server);
    const auto depths = [](const QueuePair& qp) {
        const auto attr = query(qp, IBV_QP_MAX_QP_RD_ATOMIC | IBV_QP_MAX_DEST_RD_ATOMIC);
        return std::pair<int, int>(attr.max_dest_rd_atomic, attr.max_rd_atomic);
    };
    const ibv_device_attr device = f.client_end->context.query_device();
    const int served = std::min({int{asked.responder_resources}, int{offered.initiator_depth},
                                 device.max_qp_rd_atom, device.max_qp_init_rd_atom});
    const int own = std::min({int{asked.initiator_depth}, int{offered.responder_resources},
                              device.max_qp_rd_atom, device.max_qp_init_rd_atom});
    CHECK(depths(f.client_end->qp) == std::pair(served, own));
    CHECK(depths(f.server_end->qp) == std::pair(own, served));
}

TEST_CASE("connect: each end sets its own min_rnr_timer") {
    CmFixture f;
    f.handshake({.min_rnr_timer = 31});
    REQUIRE(f.client);
    REQUIRE(f.server);
    // The default is not 0, which would be 655 ms.
    CHECK(int{query(f.client_end->qp, IBV_QP_MIN_RNR_TIMER).min_rnr_timer} == 12);
    CHECK(int{query(f.server_end->qp, IBV_QP_MIN_RNR_TIMER).min_rnr_timer} == 31);
}

TEST_CASE("connect: on iWARP the kernel takes the queue pairs to RTS") {
    CmFixture f;
    f.make_device_iwarp();
    f.handshake({.private_data = bytes("yes")}, {.private_data = bytes("please")});
    REQUIRE(f.server);
    REQUIRE(f.client);
    CHECK(text(f.incoming->private_data()) == "please");
    CHECK(text(f.client->private_data()) == "yes");
    CHECK(f.client_state() == IBV_QPS_RTS);
    CHECK(f.server_state() == IBV_QPS_RTS);
    CHECK(f.sim.calls("rdma_establish") == 0);
    const Running left(f.server->disconnected());
    const Running leaving(f.client->disconnect());
    f.run();
    CHECK(leaving.succeeded());
    CHECK(left.event == RDMA_CM_EVENT_DISCONNECTED);
}

TEST_CASE("connect: on iWARP the kernel is asked for all reads that the options allow") {
    CmFixture f;
    f.make_device_iwarp();
    f.handshake({.responder_resources = 3, .initiator_depth = 2});
    REQUIRE(f.server);
    const ibv_device_attr device = f.client_end->context.query_device();
    const rdma_conn_param client = f.cm.parameters(f.client->native_handle());
    CHECK(int{client.responder_resources} == device.max_qp_rd_atom);
    CHECK(int{client.initiator_depth} == device.max_qp_init_rd_atom);
    const rdma_conn_param server = f.cm.parameters(f.server->native_handle());
    CHECK(int{server.responder_resources} == 3);
    CHECK(int{server.initiator_depth} == 2);
}

TEST_CASE("connect: receives can be posted to a prepared queue pair") {
    CmFixture f;
    const OutgoingConnection outgoing = resolved(f);
    QueuePairOwner end(outgoing.context());
    outgoing.prepare(end.qp);
    CHECK(f.sim.qp_state(end.qp.native_handle()) == IBV_QPS_INIT);
    end.qp.post_recv({.wr_id = 1, .next = nullptr, .sg_list = nullptr, .num_sge = 0});
    CHECK(f.sim.posted_receives(end.qp.native_handle()) == 1);
}

TEST_CASE("resolve: takes the first of several addresses that has a route") {
    CmFixture f;
    // "Any address" stands for a name with two addresses.
    if (detail::find_addresses("", "1").size() < 2) {
        WARN("left out: this system has no IPv6");
        return;
    }
    std::stop_source stop;
    const auto start = [&] { return resolve(f.loop, "", f.port, {}, stop.get_token()); };

    f.cm.answer("rdma_resolve_addr", RDMA_CM_EVENT_ADDR_ERROR, -ENODEV);
    const Running second(start());
    f.run();
    CHECK(second.succeeded());

    f.sim.fail("rdma_resolve_addr", {.error = ENODEV});
    f.sim.fail("rdma_resolve_addr", {.error = EINVAL, .nth = 2});
    const Running none(start());
    f.run();
    CHECK(none.failed(std::errc::no_such_device));

    f.sim.fail("rdma_resolve_addr", {.error = ENODEV});
    f.cm.hold("rdma_resolve_addr");
    const Running cancelled(start());
    f.run();
    CHECK(!cancelled.done);
    stop.request_stop();
    f.run();
    CHECK(cancelled.failed(std::errc::operation_canceled));
}

TEST_CASE("resolve, Listener: a link-local IPv6 address needs its interface") {
    CmFixture f;
    const Running resolving(resolve(f.loop, "fe80::1", "7471"));
    f.run();
    REQUIRE(resolving.failed(std::errc::invalid_argument));
    CHECK_THAT(resolving.error->what(), contains("[fe80::1]:7471 is a link-local address"));
    CHECK_THROWS_WITH(Listener(f.loop, "fe80::1", "7471"), contains("needs its interface"));
    CHECK(f.sim.calls("rdma_resolve_addr") + f.sim.calls("rdma_bind_addr") == 1); // the fixture's
}

TEST_CASE("connect: tries the addresses of a name, each with its share of the time") {
    CmFixture f;
    // "Any address" stands for a name with an IPv6 and an IPv4 address. The listener serves IPv4.
    if (detail::find_addresses("", "1").size() < 2) {
        WARN("left out: this system has no IPv6");
        return;
    }
    int made = 0;
    const auto make_qp = [&](const OutgoingConnection& outgoing) -> QueuePair& {
        ++made;
        return f.client_end.emplace(outgoing.context()).qp;
    };
    std::stop_source stop;
    const auto dial = [&](ConnectOptions options = {}) {
        return connect(f.loop, "", f.port, make_qp, options, stop.get_token());
    };
    SECTION("the first has no route") {
        f.sim.fail("rdma_resolve_addr", {.error = ENETUNREACH});
        f.start_server();
        const Running dialing(dial());
        f.run();
        CHECK(dialing.succeeded());
        CHECK(made == 1);
    }
    SECTION("the first rejects") {
        f.start_server();
        const Running dialing(dial());
        f.run();
        CHECK(dialing.succeeded());
        CHECK(made == 2);
    }
    SECTION("all reject: the error of the first") {
        f.listener.reset();
        f.sim.fail("rdma_resolve_addr", {.error = ENETUNREACH});
        const Running dialing(dial());
        f.run();
        CHECK(dialing.failed(std::errc::network_unreachable));
        CHECK(made == 1);
    }
    SECTION("a stop ends all attempts") {
        f.listener.emplace(f.loop, "", f.port);
        const Running dialing(dial());
        f.run();
        stop.request_stop();
        f.run();
        CHECK(dialing.failed(std::errc::operation_canceled));
        CHECK(made == 1);
        CHECK(f.sim.calls("rdma_resolve_addr") == 1);
    }
}

TEST_CASE("connect: each event that fails resolve() is an error") {
    struct Case {
        const char* call;
        rdma_cm_event_type event;
        int status;
        std::errc code;
    };
    const Case failing = GENERATE(
        Case{"rdma_resolve_addr", RDMA_CM_EVENT_ADDR_ERROR, -ETIMEDOUT, std::errc::timed_out},
        Case{"rdma_resolve_addr", RDMA_CM_EVENT_ADDR_ERROR, 0, std::errc::host_unreachable},
        Case{"rdma_resolve_addr", RDMA_CM_EVENT_ADDR_ERROR, -ENETUNREACH,
             std::errc::network_unreachable},
        Case{"rdma_resolve_addr", RDMA_CM_EVENT_DEVICE_REMOVAL, 0, std::errc::no_such_device},
        Case{"rdma_resolve_route", RDMA_CM_EVENT_ROUTE_ERROR, -EHOSTUNREACH,
             std::errc::host_unreachable},
        Case{"rdma_resolve_route", RDMA_CM_EVENT_DEVICE_REMOVAL, 0, std::errc::no_such_device});
    CmFixture f;
    f.cm.answer(failing.call, failing.event, failing.status);
    f.run_client();
    CHECK(f.dialed.failed(failing.code));
    CHECK_THAT(f.dialed.error->what(), contains(std::string(failing.call) + " to 10.7.0.1:"));
    CHECK(!f.client_end);
}

TEST_CASE("connect: each event that fails the handshake is an error") {
    struct Case {
        rdma_cm_event_type event;
        int status;
        std::errc code;
    };
    const Case failing =
        GENERATE(Case{RDMA_CM_EVENT_UNREACHABLE, -ETIMEDOUT, std::errc::timed_out},
                 Case{RDMA_CM_EVENT_UNREACHABLE, 7, std::errc::host_unreachable},
                 Case{RDMA_CM_EVENT_CONNECT_ERROR, -ECONNRESET, std::errc::connection_reset},
                 Case{RDMA_CM_EVENT_REJECTED, 9, std::errc::connection_refused},
                 Case{RDMA_CM_EVENT_DISCONNECTED, 0, std::errc::connection_reset},
                 Case{RDMA_CM_EVENT_DEVICE_REMOVAL, 0, std::errc::no_such_device});
    CmFixture f;
    SECTION("of connect") {
        f.start_server();
        f.cm.answer("rdma_accept", failing.event, failing.status);
        f.run_client();
        CHECK(f.dialed.failed(failing.code));
        CHECK_THAT(f.dialed.error->what(), contains("rdma_connect to 10.7.0.1:"));
        CHECK(f.client_state() == IBV_QPS_ERR);
        CHECK(f.served.failed(std::errc::connection_reset)); // the peer is told
    }
    SECTION("of accept") {
        f.start_server();
        f.cm.answer("rdma_establish", failing.event, failing.status);
        f.run_client();
        CHECK(f.served.failed(failing.code));
        CHECK_THAT(f.served.error->what(), contains("rdma_accept"));
        CHECK(f.server_state() == IBV_QPS_ERR);
    }
}

TEST_CASE("connect: a step that succeeds and an end that is read with it") {
    struct Case {
        const char* call;
        rdma_cm_event_type answer;
    };
    const Case step = GENERATE(Case{"rdma_resolve_addr", RDMA_CM_EVENT_ADDR_RESOLVED},
                               Case{"rdma_resolve_route", RDMA_CM_EVENT_ROUTE_RESOLVED},
                               Case{"rdma_connect", RDMA_CM_EVENT_CONNECT_RESPONSE});
    const auto [end, code] =
        GENERATE(std::pair(RDMA_CM_EVENT_DEVICE_REMOVAL, std::errc::no_such_device),
                 std::pair(RDMA_CM_EVENT_DISCONNECTED, std::errc::connection_reset));
    CAPTURE(step.call, end);
    CmFixture f;
    f.cm.hold(step.call);
    f.run_client();
    f.cm.push(f.cm.newest(), step.answer);
    f.cm.push(f.cm.newest(), end);
    f.run();
    CHECK(f.dialed.failed(code));
    CHECK_THAT(f.dialed.error->what(), contains(step.call));
}

TEST_CASE("connect: an end between the steps of the program") {
    const auto [end, code] =
        GENERATE(std::pair(RDMA_CM_EVENT_DEVICE_REMOVAL, std::errc::no_such_device),
                 std::pair(RDMA_CM_EVENT_DISCONNECTED, std::errc::connection_reset));
    CmFixture f;
    SECTION("before connect()") {
        OutgoingConnection outgoing = resolved(f);
        const QueuePairOwner own(outgoing.context());
        f.cm.push(f.cm.newest(), end);
        f.run();
        const Running connecting(outgoing.connect(own.qp));
        CHECK(connecting.failed(code));
        CHECK_THAT(connecting.error->what(), contains("rdma_connect to 10.7.0.1:"));
        CHECK(f.sim.calls("rdma_connect") == 0);
    }
    SECTION("before accept()") {
        const auto take = [&]() -> Task<> { f.incoming.emplace(co_await f.listener->accept()); };
        const Running taking(take());
        f.run_client();
        const QueuePairOwner own(f.incoming->context());
        f.cm.push(f.cm.newest(), end);
        f.run();
        const Running accepting(f.incoming->accept(own.qp));
        CHECK(accepting.failed(code));
        CHECK_THAT(accepting.error->what(), contains("rdma_accept"));
        CHECK(f.sim.calls("rdma_accept") == 0);
    }
}

TEST_CASE("connect: a rejection carries the reason and the peer's private data") {
    CmFixture f;
    const auto reject = [&]() -> Task<> {
        IncomingConnection request = co_await f.listener->accept();
        request.reject(bytes("not today"));
    };
    const Running rejecting(reject());
    std::optional<ConnectionRejected> rejected;
    const auto dial = [&]() -> Task<> {
        try {
            co_await f.dial();
        } catch (const ConnectionRejected& error) {
            rejected = error;
        }
    };
    const Running dialing(dial());
    f.run();
    REQUIRE(rejected);
    CHECK(rejected->code() == std::errc::connection_refused);
    CHECK(rejected->reason() == ConnectionRejected::by_program);
    CHECK(text(rejected->private_data()) == "not today");
    CHECK_THAT(rejected->what(), contains("by the peer's program"));
}

TEST_CASE("connect: a rejection on iWARP has an errno as its reason") {
    CmFixture f;
    f.cm.answer("rdma_accept", RDMA_CM_EVENT_REJECTED, -ECONNRESET);
    f.handshake();
    REQUIRE(f.dialed.failed(std::errc::connection_refused));
    CHECK_THAT(f.dialed.error->what(), contains("rejected (Connection reset by peer)"));
}

TEST_CASE("connect: without a listener it is refused") {
    CmFixture f;
    f.listener.reset();
    f.run_client();
    CHECK(f.dialed.failed(std::errc::connection_refused));
}

TEST_CASE("connect: events that answer nothing are ignored") {
    CmFixture f;
    f.cm.hold("rdma_resolve_addr");
    f.handshake();
    rdma_cm_id* const id = f.cm.newest();
    for (const rdma_cm_event_type event :
         {RDMA_CM_EVENT_ADDR_CHANGE, RDMA_CM_EVENT_TIMEWAIT_EXIT, RDMA_CM_EVENT_MULTICAST_JOIN,
          RDMA_CM_EVENT_ROUTE_RESOLVED, RDMA_CM_EVENT_ESTABLISHED}) {
        f.cm.push(id, event);
    }
    f.run();
    CHECK(!f.dialed.done);
    CHECK(!f.loop.run_once()); // it sleeps
    f.cm.push(id, RDMA_CM_EVENT_ADDR_RESOLVED);
    f.run();
    CHECK(f.client);
    CHECK(f.server);
}

TEST_CASE("connect: an address that does not answer gets its share of the time") {
    if (detail::find_addresses("", "1").size() < 2) {
        WARN("left out: this system has no IPv6");
        return;
    }
    // How many queue pairs were made, and whether it is connected.
    struct Attempt {
        int made;
        bool connected;
    };
    const auto attempt = [](std::chrono::milliseconds time, bool until_done) -> Attempt {
        CmFixture f;
        int made = 0;
        const auto make_qp = [&](const OutgoingConnection& outgoing) -> QueuePair& {
            ++made;
            return f.client_end.emplace(outgoing.context()).qp;
        };
        f.listener.emplace(f.loop, "", f.port);
        const auto serve = [&]() -> Task<> {
            const IncomingConnection silent = co_await f.listener->accept();
            co_await f.serve();
        };
        const Running serving(serve());
        const Running dialing(connect(f.loop, "", f.port, make_qp, {.timeout = time}));
        f.run();
        if (until_done) f.run_until_done(dialing);
        return {made, dialing.done && dialing.succeeded()};
    };
    const Attempt waits = attempt(1h, false);
    CHECK(waits.made == 1);
    CHECK(!waits.connected);
    CHECK(in_enough_time([&](std::chrono::milliseconds time) {
        const Attempt ended = attempt(time, true);
        return ended.connected && ended.made == 2;
    }));
}

TEST_CASE("connect: every step can time out") {
    const std::string held =
        GENERATE("rdma_resolve_addr", "rdma_resolve_route", "rdma_connect", "rdma_establish");
    const bool of_server = held == "rdma_establish";
    CHECK(in_enough_time([&](std::chrono::milliseconds time) {
        CmFixture f;
        f.cm.hold(held.c_str());
        Outcome& outcome = of_server ? f.served : f.dialed;
        f.start_server({.timeout = of_server ? time : 1h});
        const std::chrono::milliseconds of_client = of_server ? 1h : time;
        f.start_client({.timeout = of_client, .resolve = {.timeout = of_client}});
        f.run_until_done(outcome);
        const std::string text = outcome.error ? outcome.error->what() : "";
        return outcome.failed(std::errc::timed_out) &&
               text.find(of_server ? "rdma_accept" : held) != std::string::npos;
    }));
}

TEST_CASE("connect: every step can be cancelled, and be destroyed") {
    const std::string held =
        GENERATE("rdma_resolve_addr", "rdma_resolve_route", "rdma_connect", "rdma_establish");
    const bool of_server = held == "rdma_establish";
    CmFixture f;
    f.cm.hold(held.c_str());
    Outcome& outcome = of_server ? f.served : f.dialed;
    std::stop_source stop;
    SECTION("stop") {
        f.start_server({}, stop.get_token());
        f.run_client({}, stop.get_token());
        CHECK(!outcome.done);
        stop.request_stop();
        CHECK(!outcome.done); // not inside request_stop()
        f.run();
        CHECK(outcome.failed(std::errc::operation_canceled));
        CHECK_THAT(outcome.error->what(), contains(of_server ? "rdma_accept" : held));
    }
    SECTION("destruction") {
        f.start_server({}, stop.get_token());
        f.run_client({}, stop.get_token());
        (of_server ? f.serving : f.dialing).destroy();
        f.run();
        CHECK(!outcome.done);
    }
}

TEST_CASE("connect: a token that was stopped before") {
    CmFixture f;
    std::stop_source stop;
    stop.request_stop();
    f.run_client({}, stop.get_token());
    CHECK(f.dialed.failed(std::errc::operation_canceled));
}

TEST_CASE("connect: options out of range are refused before the peer is asked") {
    CmFixture f;
    for (const auto& [name, options] :
         {std::pair("min_rnr_timer", ConnectOptions{.min_rnr_timer = 32}),
          std::pair("retry_count", ConnectOptions{.retry_count = 8}),
          std::pair("rnr_retry_count", ConnectOptions{.rnr_retry_count = 8})}) {
        const Running refused(f.dial(options));
        f.run();
        CHECK(refused.failed(std::errc::invalid_argument));
        CHECK_THAT(refused.error->what(), contains(name));
    }
    CHECK(f.sim.calls("rdma_connect") == 0);
    const Running resolving(
        resolve(f.loop, CmFixture::host, "1", {.timeout = std::chrono::hours(1000)}));
    CHECK(resolving.failed(std::errc::invalid_argument));
}

TEST_CASE("accept: options out of range are refused") {
    CmFixture f;
    f.handshake({.rnr_retry_count = 8});
    CHECK(f.served.failed(std::errc::invalid_argument));
    CHECK_THAT(f.served.error->what(), contains("rnr_retry_count"));
    CHECK(f.dialed.failed(std::errc::connection_refused));
}

TEST_CASE("connect: too much private data") {
    CmFixture f;
    const std::vector<std::byte> data(256);
    const auto up_to = [&](std::size_t size) { return std::span(data).first(size); };
    SECTION("in the request") {
        f.run_client({.private_data = up_to(57)});
        CHECK(f.dialed.failed(std::errc::invalid_argument));
        CHECK_THAT(f.dialed.error->what(), contains("57"));
    }
    SECTION("in the answer") {
        f.handshake({.private_data = up_to(197)}, {.private_data = up_to(56)});
        CHECK(f.served.failed(std::errc::invalid_argument));
        CHECK(f.dialed.failed(std::errc::connection_refused)); // the request is not lost
    }
    SECTION("in a rejection") {
        const auto take = [&]() -> Task<> { f.incoming.emplace(co_await f.listener->accept()); };
        const Running taking(take());
        f.run_client();
        CHECK_THROWS_WITH(f.incoming->reject(up_to(149)), contains("149"));
        f.incoming->reject(up_to(148)); // it can still be rejected
        f.run();
        CHECK(f.dialed.failed(std::errc::connection_refused));
    }
}

TEST_CASE("connect: a queue pair of another device") {
    CmFixture f;
    f.sim.add_device({.name = "sim1"});
    f.client_end.emplace(Context::open("sim1"));
    f.run_client();
    CHECK(f.dialed.failed(std::errc::invalid_argument));
    CHECK_THAT(f.dialed.error->what(), contains("sim1"));
    CHECK_THAT(f.dialed.error->what(), contains("sim0"));
}

TEST_CASE("connect: a queue pair on another context of the same device") {
    CmFixture f;
    f.client_end.emplace(Context::open("sim0"));
    f.make_connection();
    CHECK(f.client_state() == IBV_QPS_RTS);
}

TEST_CASE("Connection: a disconnect ends both ends and fails both queue pairs") {
    const bool client_leaves = GENERATE(true, false);
    CmFixture f;
    f.make_connection();
    Connection& leaving = client_leaves ? *f.client : *f.server;
    Connection& left = client_leaves ? *f.server : *f.client;
    const Running first(left.disconnected());
    const Running second(left.disconnected());
    const Running own(leaving.disconnected());
    const Running disconnecting(leaving.disconnect());
    CHECK(!disconnecting.done);
    f.run();
    CHECK(disconnecting.succeeded());
    for (const Running* end : {&first, &second, &own}) {
        CHECK(end->event == RDMA_CM_EVENT_DISCONNECTED);
    }
    CHECK(f.client_state() == IBV_QPS_ERR);
    CHECK(f.server_state() == IBV_QPS_ERR);

    // Later calls complete at once.
    CHECK(Running(leaving.disconnected()).event == RDMA_CM_EVENT_DISCONNECTED);
    CHECK(Running(left.disconnect()).succeeded());
}

TEST_CASE("Connection: a peer that disconnects is answered even if nobody waits") {
    CmFixture f;
    f.make_connection();
    f.cm.hold("rdma_disconnect");
    f.cm.push(f.client->native_handle(), RDMA_CM_EVENT_DISCONNECTED);
    f.run();
    CHECK(f.sim.calls("rdma_disconnect") == 1);
    CHECK(f.client_state() == IBV_QPS_ERR);
}

TEST_CASE("Connection: established and disconnected before its events are read") {
    CmFixture f;
    f.cm.hold("rdma_establish");
    f.handshake();
    rdma_cm_id* const id = f.cm.newest();
    f.cm.push(id, RDMA_CM_EVENT_ESTABLISHED);
    f.cm.push(id, RDMA_CM_EVENT_DISCONNECTED);
    f.run();
    REQUIRE(f.server);
    CHECK(Running(f.server->disconnected()).event == RDMA_CM_EVENT_DISCONNECTED);
}

TEST_CASE("Connection: a peer that rejects in the last step of the handshake has disconnected") {
    CmFixture f;
    f.make_connection();
    const Running end(f.client->disconnected());
    f.cm.push(f.client->native_handle(), RDMA_CM_EVENT_REJECTED, 28);
    f.run();
    CHECK(end.event == RDMA_CM_EVENT_DISCONNECTED);
    CHECK(f.client_state() == IBV_QPS_ERR);
}

TEST_CASE("Connection: its device is removed") {
    CmFixture f;
    f.make_connection();
    const Running end(f.client->disconnected());
    f.cm.push(f.client->native_handle(), RDMA_CM_EVENT_DEVICE_REMOVAL);
    f.cm.push(f.client->native_handle(), RDMA_CM_EVENT_DISCONNECTED);
    f.run();
    CHECK(end.event == RDMA_CM_EVENT_DEVICE_REMOVAL);
    CHECK(f.client_state() == IBV_QPS_ERR);
    // The first event is kept.
    CHECK(Running(f.client->disconnected()).event == RDMA_CM_EVENT_DEVICE_REMOVAL);
}

TEST_CASE("Connection: a peer that does not answer the disconnect") {
    CmFixture f;
    f.make_connection();
    f.cm.hold("rdma_disconnect");
    const auto check_failed = [&](const Running& leaving, std::errc code) {
        CHECK(leaving.failed(code));
        CHECK_THAT(leaving.error->what(), contains("rdma_disconnect"));
        CHECK(f.client_state() == IBV_QPS_ERR);
    };
    SECTION("until the timeout") {
        const Running leaving(f.client->disconnect(1ms));
        f.run_until_done(leaving);
        check_failed(leaving, std::errc::timed_out);
    }
    SECTION("until it is cancelled") {
        std::stop_source stop;
        const Running leaving(f.client->disconnect(60s, stop.get_token()));
        f.run();
        CHECK(!leaving.done);
        stop.request_stop();
        f.run();
        check_failed(leaving, std::errc::operation_canceled);
    }
    SECTION("and the call fails") {
        f.sim.fail("rdma_disconnect", {.error = EINVAL});
        check_failed(Running(f.client->disconnect()), std::errc::invalid_argument);
    }
}

TEST_CASE("Connection: destroyed while coroutines wait") {
    CmFixture f;
    f.make_connection();
    f.cm.hold("rdma_disconnect");
    Running ending(f.client->disconnected());
    const Running leaving(f.client->disconnect(60s));
    f.run();
    SECTION("they are resumed with an error") {
        f.client.reset();
        CHECK(!ending.error); // not inside the destructor
        f.run();
        CHECK(ending.failed(std::errc::operation_canceled));
        CHECK(leaving.failed(std::errc::operation_canceled));
    }
    SECTION("a later wait has the same error") {
        auto disconnect = f.client->disconnect();
        f.client.reset();
        const Running late(std::move(disconnect));
        f.run();
        CHECK(late.failed(std::errc::operation_canceled));
    }
    SECTION("one is destroyed before it is resumed") {
        f.client.reset();
        ending.coroutine.destroy();
        f.run();
        CHECK(!ending.error);
        CHECK(leaving.failed(std::errc::operation_canceled));
    }
    CHECK(f.client_state() == IBV_QPS_ERR);
}

TEST_CASE("Connection: the destructor tells the peer") {
    const bool client_goes = GENERATE(true, false);
    CmFixture f;
    f.make_connection();
    const Running end((client_goes ? *f.server : *f.client).disconnected());
    (client_goes ? f.client : f.server).reset();
    f.run();
    CHECK(end.event == RDMA_CM_EVENT_DISCONNECTED);
    CHECK(f.client_state() == IBV_QPS_ERR);
    CHECK(f.server_state() == IBV_QPS_ERR);
}

TEST_CASE("Connection: its queue pair may be destroyed first") {
    CmFixture f;
    f.make_connection();
    f.client_end.reset();
    const Running leaving(f.client->disconnect());
    f.run();
    CHECK(leaving.succeeded());
}

TEST_CASE("Connection: it may outlive its loop") {
    CmFixture f;
    auto loop = std::make_unique<EpollExecutor>();
    f.start_server();
    const Running dialing(f.dial_on(*loop));
    while (!f.client) {
        loop->run_once();
        f.loop.run_once();
    }
    Running ending(f.client->disconnected());
    loop.reset();
    SECTION("and be destroyed before the waiter") {
        f.client.reset();
        ending.coroutine.destroy();
    }
    SECTION("and be destroyed after the waiter") {
        ending.coroutine.destroy();
        f.client.reset();
    }
    CHECK(!ending.event);
    CHECK(!ending.error);
}

TEST_CASE("Connection: if its events cannot be read, all waiters fail, also later ones") {
    CmFixture f;
    f.make_connection();
    const Running waiting(f.client->disconnected());
    f.sim.fail("rdma_get_cm_event", {.error = EIO});
    f.cm.push(f.client->native_handle(), RDMA_CM_EVENT_ADDR_CHANGE);
    f.run();
    const Running late(f.client->disconnected());
    for (const Running* end : {&waiting, &late}) {
        REQUIRE(end->error);
        CHECK_THAT(end->error->what(), contains("rdma_get_cm_event"));
    }
}

TEST_CASE("Connection: a move keeps its waiters, a move assignment closes the old connection") {
    CmFixture f;
    f.make_connection();
    const Running waiting(f.client->disconnected());
    std::vector<Connection> connections;
    connections.push_back(std::move(*f.client));
    f.client.reset();
    f.run();
    CHECK(!waiting.error);
    connections[0] = std::move(*f.server);
    f.run();
    CHECK(waiting.failed(std::errc::operation_canceled));
    CHECK(connections[0].local_address().port() == f.listener->port());
}

TEST_CASE("Connection: waiters get the error of the loop, which may be a type of the program") {
    CmFixture f;
    OwnLoop loop{f.loop};
    f.start_server();
    const Running dialing(f.dial_on(loop));
    f.run();
    REQUIRE(f.client);
    loop.broken = true;
    f.server.reset();
    const Running waiting(f.client->disconnected());
    f.run();
    CHECK(waiting.failed(std::errc::io_error));
}

TEST_CASE("Connection: using a moved-from or answered object is an error") {
    CmFixture f;
    OutgoingConnection outgoing = resolved(f);
    const QueuePairOwner end(outgoing.context());
    const auto first = outgoing.connect(end.qp);
    CHECK(Running(outgoing.connect(end.qp)).failed(std::errc::invalid_argument));
    CHECK_THROWS_WITH(outgoing.context(), contains("moved from"));

    f.make_connection();
    CHECK_THROWS_WITH(f.incoming->reject(), contains("moved from"));
    const Connection moved = std::move(*f.client);
    CHECK(f.client->native_handle() == nullptr);
    CHECK(moved.native_handle() != nullptr);
    CHECK_THROWS_WITH(f.client->disconnect(), contains("moved from"));
    CHECK_THROWS_WITH(f.client->peer_address(), contains("moved from"));
    const Listener listener = std::move(*f.listener);
    CHECK_THROWS_WITH(f.listener->accept(), contains("moved from"));
}

TEST_CASE("Connection: once ended, it does not touch its queue pair any more") {
    CmFixture f;
    f.make_connection();
    std::optional<Connection> old(std::move(*f.client));
    f.server.reset();
    f.run();
    CHECK(f.client_state() == IBV_QPS_ERR);
    ibv_qp_attr reset{};
    REQUIRE(ibv_modify_qp(f.client_end->qp.native_handle(), &reset, IBV_QP_STATE) == 0);
    f.server_end.reset();
    f.make_connection(); // with the same queue pair
    old.reset();
    CHECK(f.client_state() == IBV_QPS_RTS);
}

TEST_CASE("AsyncQp: on iWARP the end of its connection ends its operations") {
    CmFixture f;
    f.make_device_iwarp();
    f.take_request();
    const ProtectionDomain domain(f.incoming->context());
    const MemoryRegion region = MemoryRegion::allocate(domain, 64);
    Router sends = Router::create(f.incoming->context(), 8, f.loop);
    Router receives = Router::create(f.incoming->context(), 8, f.loop);
    const bool two_queues = GENERATE(false, true);
    CAPTURE(two_queues);
    AsyncQp qp(two_queues ? sends : receives, receives, domain,
               {.max_send_wr = 2, .max_recv_wr = 2});
    f.incoming->prepare(qp.queue_pair());
    Operation message = qp.recv(region.slice(0, 1));
    const auto accept = [&]() -> Task<> {
        f.server.emplace(co_await f.incoming->accept(qp.queue_pair()));
    };
    const Running accepting(accept());
    f.run();
    REQUIRE(f.server);

    // The router looks for the last message because the connection has ended: its event is lost.
    f.sim.drop_events(receives.completion_queue().native_handle());
    const MemoryRegion sent = MemoryRegion::allocate(f.client_end->domain, 1);
    f.client_end->qp.post_send(1, sent.slice(0, 1));
    CHECK(!message.done());
    SECTION("the peer leaves") { f.client.reset(); }
    SECTION("the peer disconnects") {
        const Running leaving(f.client->disconnect());
        f.run();
    }
    SECTION("this end disconnects") {
        const Running leaving(f.server->disconnect());
        f.run();
    }
    SECTION("this end leaves") { f.server.reset(); }
    // Three of each, so some wait for room. The device completes none.
    std::vector<std::unique_ptr<Running>> lost;
    const auto post = [&] {
        lost.push_back(std::make_unique<Running>(qp.send(region.slice(0, 1))));
        lost.push_back(std::make_unique<Running>(qp.recv(region.slice(0, 1))));
    };
    for (int i = 0; i < 3; ++i) post();
    f.run();
    post();
    CHECK(message.done());
    CHECK(Running(std::move(message)).succeeded());
    for (const auto& operation : lost) {
        REQUIRE(operation->error);
        CHECK(operation->error->code() == make_wc_error(IBV_WC_WR_FLUSH_ERR));
    }
    CHECK(Running(qp.drain()).succeeded());
}

TEST_CASE("AsyncQp: on iWARP it is made of a queue pair whose connection has ended") {
    CmFixture f;
    f.make_device_iwarp();
    f.take_request();
    const ProtectionDomain domain(f.incoming->context());
    Router router = Router::create(f.incoming->context(), 8, f.loop);
    const CompletionQueue& cq = router.completion_queue();
    QueuePair connected(domain, cq, cq, {.max_send_wr = 2, .max_recv_wr = 2});
    const auto accept = [&]() -> Task<> {
        f.server.emplace(co_await f.incoming->accept(connected));
    };
    const Running accepting(accept());
    f.run();
    REQUIRE(f.server);
    f.client.reset();
    f.run();
    AsyncQp qp(router, std::move(connected));
    const Running lost(qp.recv(Slices()));
    f.run();
    REQUIRE(lost.error);
    CHECK(lost.error->code() == make_wc_error(IBV_WC_WR_FLUSH_ERR));
}
