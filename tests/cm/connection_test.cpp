// SPDX-License-Identifier: MIT
#include <asyncverbs/cm/connect.hpp>

#include <asyncverbs/cm/listener.hpp>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <optional>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "cm/fixture.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using asyncverbs::support::bytes;
using asyncverbs::support::CmFixture;
using asyncverbs::support::contains;
using asyncverbs::support::Coroutine;
using asyncverbs::support::Outcome;
using asyncverbs::support::QueuePairOwner;
using asyncverbs::support::text;

namespace {

// The end of a connection, noted.
struct End {
    std::optional<rdma_cm_event_type> event;
    std::optional<std::system_error> error;
};

Coroutine await_end(Connection& connection, End& end, std::stop_token stop = {}) {
    try {
        end.event = co_await connection.disconnected(stop);
    } catch (const std::system_error& error) {
        end.error = error;
    }
}

// A program's own loop, which has one kind of notifier.
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

} // namespace

TEST_CASE("connect: both ends get each other's private data and address") {
    CmFixture f;
    const Coroutine serving = CmFixture::start(f.serve({.private_data = bytes("yes")}), f.served);
    const Coroutine dialing = CmFixture::start(f.dial({.private_data = bytes("please")}), f.dialed);
    f.run();
    REQUIRE(f.server);
    REQUIRE(f.client);
    CHECK(text(f.incoming->private_data()) == "please");
    CHECK(text(f.client->private_data()) == "yes");
    CHECK(f.client->peer_address().text() == "10.7.0.1:" + f.port());
    CHECK(f.server->local_address().port() == f.listener->port());
    CHECK(f.server->peer_address().text() == f.client->local_address().text());
    CHECK(f.client_state() == IBV_QPS_RTS);
    CHECK(f.server_state() == IBV_QPS_RTS);
}

TEST_CASE("connect: reads and atomics are as many as both ends and their devices can do") {
    struct Depths {
        std::uint8_t responder_resources;
        std::uint8_t initiator_depth;
    };
    const Depths asked = GENERATE(Depths{255, 255}, Depths{3, 2}, Depths{0, 0});
    const Depths offered = GENERATE(Depths{255, 255}, Depths{1, 4});
    CmFixture f;
    const Coroutine serving =
        CmFixture::start(f.serve({.responder_resources = offered.responder_resources,
                                  .initiator_depth = offered.initiator_depth}),
                         f.served);
    const Coroutine dialing =
        CmFixture::start(f.dial({.responder_resources = asked.responder_resources,
                                 .initiator_depth = asked.initiator_depth}),
                         f.dialed);
    f.run();
    REQUIRE(f.client);
    REQUIRE(f.server);
    const auto depths = [](const QueuePair& qp) {
        ibv_qp_attr attr{};
        ibv_qp_init_attr init{};
        REQUIRE(ibv_query_qp(qp.native_handle(), &attr,
                             IBV_QP_MAX_QP_RD_ATOMIC | IBV_QP_MAX_DEST_RD_ATOMIC, &init) == 0);
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

TEST_CASE("connect: who is not ready to receive is asked again as soon as was chosen") {
    CmFixture f;
    const Coroutine serving = CmFixture::start(f.serve({.min_rnr_timer = 31}), f.served);
    const Coroutine dialing = CmFixture::start(f.dial(), f.dialed);
    f.run();
    REQUIRE(f.client);
    REQUIRE(f.server);
    const auto min_rnr_timer = [](const QueuePair& qp) {
        ibv_qp_attr attr{};
        ibv_qp_init_attr init{};
        REQUIRE(ibv_query_qp(qp.native_handle(), &attr, IBV_QP_MIN_RNR_TIMER, &init) == 0);
        return int{attr.min_rnr_timer};
    };
    CHECK(min_rnr_timer(f.client_end->qp) == 12); // not 0, which would be 655 ms
    CHECK(min_rnr_timer(f.server_end->qp) == 31);
}

TEST_CASE("connect: receives can be posted to a queue pair that was prepared") {
    CmFixture f;
    std::optional<OutgoingConnection> outgoing;
    const auto find_way = [&]() -> Task<> {
        outgoing.emplace(co_await resolve(f.loop, CmFixture::host, f.port()));
    };
    const Coroutine resolving = CmFixture::start(find_way(), f.dialed);
    f.run();
    REQUIRE(outgoing);
    QueuePairOwner end(outgoing->context());
    outgoing->prepare(end.qp);
    CHECK(f.sim.qp_state(end.qp.native_handle()) == IBV_QPS_INIT);
    end.qp.post_recv({.wr_id = 1, .next = nullptr, .sg_list = nullptr, .num_sge = 0});
    CHECK(f.sim.posted_receives(end.qp.native_handle()) == 1);
}

TEST_CASE("resolve: of several addresses the first to which there is a way") {
    CmFixture f;
    // "Any address" stands for a name with two addresses.
    if (detail::find_addresses("", "1").size() < 2) {
        WARN("left out: this system has no IPv6");
        return;
    }
    f.cm.answer("rdma_resolve_addr", RDMA_CM_EVENT_ADDR_ERROR, -ENODEV);
    const auto body = [&]() -> Task<OutgoingConnection> {
        co_return co_await resolve(f.loop, "", f.port());
    };
    const Coroutine second = CmFixture::start(body(), f.dialed);
    f.run();
    CHECK(f.dialed.done);
    CHECK(!f.dialed.error);

    f.sim.fail("rdma_resolve_addr", {.error = ENODEV});
    f.sim.fail("rdma_resolve_addr", {.error = EINVAL, .nth = 2});
    Outcome outcome;
    const Coroutine none = CmFixture::start(body(), outcome);
    f.run();
    CHECK(outcome.failed(std::errc::no_such_device));

    std::stop_source stop;
    const auto body_until_stop = [&]() -> Task<OutgoingConnection> {
        co_return co_await resolve(f.loop, "", f.port(), {}, stop.get_token());
    };
    f.sim.fail("rdma_resolve_addr", {.error = ENODEV});
    f.cm.hold("rdma_resolve_addr");
    Outcome cancelled;
    const Coroutine waiting = CmFixture::start(body_until_stop(), cancelled);
    f.run();
    CHECK(!cancelled.done);
    stop.request_stop();
    f.run();
    CHECK(cancelled.failed(std::errc::operation_canceled));
}

TEST_CASE("connect: what each step fails with") {
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
    const Coroutine dialing = CmFixture::start(f.dial(), f.dialed);
    f.run();
    CHECK(f.dialed.failed(failing.code));
    CHECK_THAT(f.dialed.error->what(), contains(std::string(failing.call) + " to 10.7.0.1:"));
    CHECK(!f.client_end);
}

TEST_CASE("connect: what the peer's part fails with") {
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
        const Coroutine serving = CmFixture::start(f.serve(), f.served);
        f.cm.answer("rdma_accept", failing.event, failing.status);
        const Coroutine dialing = CmFixture::start(f.dial(), f.dialed);
        f.run();
        CHECK(f.dialed.failed(failing.code));
        CHECK_THAT(f.dialed.error->what(), contains("rdma_connect to 10.7.0.1:"));
        CHECK(f.client_state() == IBV_QPS_ERR);
        CHECK(f.served.failed(std::errc::connection_reset)); // and the peer learns of it
    }
    SECTION("of accept") {
        const Coroutine serving = CmFixture::start(f.serve(), f.served);
        f.cm.answer("rdma_establish", failing.event, failing.status);
        const Coroutine dialing = CmFixture::start(f.dial(), f.dialed);
        f.run();
        CHECK(f.served.failed(failing.code));
        CHECK_THAT(f.served.error->what(), contains("rdma_accept"));
        CHECK(f.server_state() == IBV_QPS_ERR);
    }
}

TEST_CASE("connect: a rejection carries the reason and what the peer said") {
    CmFixture f;
    const auto reject = [&]() -> Task<> {
        IncomingConnection request = co_await f.listener->accept();
        request.reject(bytes("not today"));
    };
    const Coroutine serving = CmFixture::start(reject(), f.served);
    std::optional<ConnectionRejected> rejected;
    const auto dial = [&]() -> Task<> {
        try {
            co_await f.dial();
        } catch (const ConnectionRejected& error) {
            rejected = error;
        }
    };
    const Coroutine dialing = CmFixture::start(dial(), f.dialed);
    f.run();
    REQUIRE(rejected);
    CHECK(rejected->code() == std::errc::connection_refused);
    CHECK(rejected->reason() == ConnectionRejected::by_program);
    CHECK(text(rejected->private_data()) == "not today");
    CHECK_THAT(rejected->what(), contains("by the peer's program"));
}

TEST_CASE("connect: nobody listens") {
    CmFixture f;
    const std::string port = f.port();
    f.listener.reset();
    std::optional<QueuePairOwner> end;
    const auto dial = [&]() -> Task<Connection> {
        const auto make_qp = [&](const OutgoingConnection& outgoing) -> QueuePair& {
            return end.emplace(outgoing.context()).qp;
        };
        co_return co_await connect(f.loop, CmFixture::host, port, make_qp);
    };
    const Coroutine dialing = CmFixture::start(dial(), f.dialed);
    f.run();
    CHECK(f.dialed.failed(std::errc::connection_refused));
}

TEST_CASE("connect: events that answer nothing are passed over") {
    CmFixture f;
    f.cm.hold("rdma_resolve_addr");
    const Coroutine serving = CmFixture::start(f.serve(), f.served);
    const Coroutine dialing = CmFixture::start(f.dial(), f.dialed);
    f.run();
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

TEST_CASE("connect: every step has a bound") {
    const char* const call =
        GENERATE("rdma_resolve_addr", "rdma_resolve_route", "rdma_connect", "rdma_establish");
    const bool of_server = std::string(call) == "rdma_establish";
    CmFixture f;
    f.cm.hold(call);
    AcceptOptions accept;
    ConnectOptions connect;
    if (of_server) {
        accept.timeout = 1ms;
    } else {
        connect.timeout = connect.resolve.timeout = 1ms;
    }
    const Coroutine serving = CmFixture::start(f.serve(accept), f.served);
    const Coroutine dialing = CmFixture::start(f.dial(connect), f.dialed);
    const Outcome& outcome = of_server ? f.served : f.dialed;
    f.run_until_done(outcome);
    CHECK(outcome.failed(std::errc::timed_out));
    CHECK_THAT(outcome.error->what(), contains(of_server ? "rdma_accept" : call));
}

TEST_CASE("connect: every step can be cancelled, and its coroutine destroyed") {
    struct Step {
        const char* held;
        bool of_server;
    };
    const Step step = GENERATE(Step{"rdma_resolve_addr", false}, Step{"rdma_resolve_route", false},
                               Step{"rdma_connect", false}, Step{"rdma_establish", true});
    const bool destroyed = GENERATE(false, true);
    CmFixture f;
    f.cm.hold(step.held);
    std::stop_source stop;
    Coroutine serving = CmFixture::start(f.serve({}, stop.get_token()), f.served);
    Coroutine dialing = CmFixture::start(f.dial({}, stop.get_token()), f.dialed);
    f.run();
    Outcome& outcome = step.of_server ? f.served : f.dialed;
    CHECK(!outcome.done);
    if (destroyed) {
        (step.of_server ? serving : dialing).destroy();
        f.run();
        CHECK(!outcome.done);
        return;
    }
    stop.request_stop();
    CHECK(!outcome.done); // not inside request_stop()
    f.run();
    CHECK(outcome.failed(std::errc::operation_canceled));
    CHECK_THAT(outcome.error->what(), contains(step.of_server ? "rdma_accept" : step.held));
}

TEST_CASE("connect: a token that was stopped before") {
    CmFixture f;
    std::stop_source stop;
    stop.request_stop();
    const Coroutine dialing = CmFixture::start(f.dial({}, stop.get_token()), f.dialed);
    f.run();
    CHECK(f.dialed.failed(std::errc::operation_canceled));
}

TEST_CASE("connect: options out of range are refused before the peer learns of them") {
    CmFixture f;
    for (const auto& [name, options] :
         {std::pair("min_rnr_timer", ConnectOptions{.min_rnr_timer = 32}),
          std::pair("retry_count", ConnectOptions{.retry_count = 8}),
          std::pair("rnr_retry_count", ConnectOptions{.rnr_retry_count = 8})}) {
        Outcome refused;
        const Coroutine dialing = CmFixture::start(f.dial(options), refused);
        f.run();
        CHECK(refused.failed(std::errc::invalid_argument));
        CHECK_THAT(refused.error->what(), contains(name));
    }
    CHECK(f.sim.calls("rdma_connect") == 0);
    Outcome outcome;
    const auto resolve_wrongly = [&]() -> Task<> {
        static_cast<void>(
            co_await resolve(f.loop, CmFixture::host, "1", {.timeout = std::chrono::hours(1000)}));
    };
    const Coroutine resolving = CmFixture::start(resolve_wrongly(), outcome);
    CHECK(outcome.failed(std::errc::invalid_argument));
}

TEST_CASE("accept: options out of range are refused") {
    CmFixture f;
    const Coroutine serving = CmFixture::start(f.serve({.rnr_retry_count = 8}), f.served);
    const Coroutine dialing = CmFixture::start(f.dial({}), f.dialed);
    f.run();
    CHECK(f.served.failed(std::errc::invalid_argument));
    CHECK_THAT(f.served.error->what(), contains("rnr_retry_count"));
    CHECK(f.dialed.failed(std::errc::connection_refused));
}

TEST_CASE("connect: more private data than there is room for") {
    CmFixture f;
    const std::vector<std::byte> data(256);
    const auto up_to = [&](std::size_t size) { return std::span(data).first(size); };
    SECTION("of the request") {
        const Coroutine dialing = CmFixture::start(f.dial({.private_data = up_to(57)}), f.dialed);
        f.run();
        CHECK(f.dialed.failed(std::errc::invalid_argument));
        CHECK_THAT(f.dialed.error->what(), contains("57"));
    }
    SECTION("of the answers") {
        const Coroutine serving = CmFixture::start(f.serve({.private_data = up_to(197)}), f.served);
        const Coroutine dialing = CmFixture::start(f.dial({.private_data = up_to(56)}), f.dialed);
        f.run();
        CHECK(f.served.failed(std::errc::invalid_argument));
        // The request is not lost by that.
        CHECK(f.dialed.failed(std::errc::connection_refused));
    }
    SECTION("of a rejection") {
        const auto take = [&]() -> Task<> { f.incoming.emplace(co_await f.listener->accept()); };
        const Coroutine taking = CmFixture::start(take(), f.served);
        const Coroutine dialing = CmFixture::start(f.dial(), f.dialed);
        f.run();
        CHECK_THROWS_WITH(f.incoming->reject(up_to(149)), contains("149"));
        f.incoming->reject(up_to(148)); // it is still there
        f.run();
        CHECK(f.dialed.failed(std::errc::connection_refused));
    }
}

TEST_CASE("connect: a queue pair of another device") {
    CmFixture f;
    f.sim.add_device({.name = "sim1"});
    f.client_end.emplace(Context::open("sim1"));
    const Coroutine dialing = CmFixture::start(f.dial(), f.dialed);
    f.run();
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

TEST_CASE("Connection: who leaves and who is left learn the end, and the queue pairs fail") {
    const bool client_leaves = GENERATE(true, false);
    CmFixture f;
    f.make_connection();
    Connection& leaving = client_leaves ? *f.client : *f.server;
    Connection& left = client_leaves ? *f.server : *f.client;
    End ends[3];
    const Coroutine first = await_end(left, ends[0]);
    const Coroutine second = await_end(left, ends[1]);
    const Coroutine own = await_end(leaving, ends[2]);
    Outcome outcome;
    const Coroutine disconnecting = CmFixture::start(leaving.disconnect(), outcome);
    CHECK(!outcome.done);
    f.run();
    CHECK(outcome.done);
    CHECK(!outcome.error);
    for (const End& end : ends) CHECK(end.event == RDMA_CM_EVENT_DISCONNECTED);
    CHECK(f.client_state() == IBV_QPS_ERR);
    CHECK(f.server_state() == IBV_QPS_ERR);

    // Whoever comes later does not wait.
    End late;
    const Coroutine coming = await_end(leaving, late);
    CHECK(late.event == RDMA_CM_EVENT_DISCONNECTED);
    Outcome again;
    const Coroutine leaving_again = CmFixture::start(left.disconnect(), again);
    CHECK(again.done);
    CHECK(!again.error);
}

TEST_CASE("Connection: a peer that leaves is answered though nobody waits") {
    CmFixture f;
    f.make_connection();
    f.cm.hold("rdma_disconnect");
    f.cm.push(f.client->native_handle(), RDMA_CM_EVENT_DISCONNECTED);
    f.run();
    CHECK(f.sim.calls("rdma_disconnect") == 1);
    CHECK(f.client_state() == IBV_QPS_ERR);
}

TEST_CASE("Connection: established and left before anybody looks") {
    CmFixture f;
    const Coroutine serving = CmFixture::start(f.serve(), f.served);
    f.cm.hold("rdma_establish");
    const Coroutine dialing = CmFixture::start(f.dial(), f.dialed);
    f.run();
    rdma_cm_id* const id = f.cm.newest();
    f.cm.push(id, RDMA_CM_EVENT_ESTABLISHED);
    f.cm.push(id, RDMA_CM_EVENT_DISCONNECTED);
    f.run();
    REQUIRE(f.server);
    End end;
    const Coroutine ending = await_end(*f.server, end);
    CHECK(end.event == RDMA_CM_EVENT_DISCONNECTED);
}

TEST_CASE("Connection: a peer that goes in the last step of the handshake rejects it") {
    CmFixture f;
    f.make_connection();
    End end;
    const Coroutine ending = await_end(*f.client, end);
    f.cm.push(f.client->native_handle(), RDMA_CM_EVENT_REJECTED, 28);
    f.run();
    CHECK(end.event == RDMA_CM_EVENT_DISCONNECTED);
    CHECK(f.client_state() == IBV_QPS_ERR);
}

TEST_CASE("Connection: its device is removed") {
    CmFixture f;
    f.make_connection();
    End end;
    const Coroutine ending = await_end(*f.client, end);
    f.cm.push(f.client->native_handle(), RDMA_CM_EVENT_DEVICE_REMOVAL);
    f.cm.push(f.client->native_handle(), RDMA_CM_EVENT_DISCONNECTED);
    f.run();
    CHECK(end.event == RDMA_CM_EVENT_DEVICE_REMOVAL);
    CHECK(f.client_state() == IBV_QPS_ERR);
    End late;
    const Coroutine coming = await_end(*f.client, late);
    CHECK(late.event == RDMA_CM_EVENT_DEVICE_REMOVAL); // the first stays
}

TEST_CASE("Connection: a peer that does not answer the disconnect") {
    CmFixture f;
    f.make_connection();
    f.cm.hold("rdma_disconnect");
    std::stop_source stop;
    Outcome outcome;
    SECTION("for so long") {
        const Coroutine leaving = CmFixture::start(f.client->disconnect(1ms), outcome);
        f.run_until_done(outcome);
        CHECK(outcome.failed(std::errc::timed_out));
    }
    SECTION("until it is cancelled") {
        const Coroutine leaving =
            CmFixture::start(f.client->disconnect(60s, stop.get_token()), outcome);
        f.run();
        CHECK(!outcome.done);
        stop.request_stop();
        f.run();
        CHECK(outcome.failed(std::errc::operation_canceled));
    }
    SECTION("and the call fails") {
        f.sim.fail("rdma_disconnect", {.error = EINVAL});
        const Coroutine leaving = CmFixture::start(f.client->disconnect(), outcome);
        CHECK(outcome.failed(std::errc::invalid_argument));
    }
    CHECK_THAT(outcome.error->what(), contains("rdma_disconnect"));
    CHECK(f.client_state() == IBV_QPS_ERR);
}

TEST_CASE("Connection: destroyed while others wait") {
    CmFixture f;
    f.make_connection();
    End end;
    Outcome outcome;
    f.cm.hold("rdma_disconnect");
    std::optional<Coroutine> ending = await_end(*f.client, end);
    const Coroutine leaving = CmFixture::start(f.client->disconnect(60s), outcome);
    f.run();
    SECTION("who are resumed with an error") {
        f.client.reset();
        CHECK(!end.error); // not inside the destructor
        f.run();
        REQUIRE(end.error);
        CHECK(end.error->code() == std::errc::operation_canceled);
        CHECK(outcome.failed(std::errc::operation_canceled));
    }
    SECTION("and who begins to wait afterwards has the same error") {
        auto disconnect = f.client->disconnect();
        f.client.reset();
        Outcome late;
        const Coroutine leaving_late = CmFixture::start(std::move(disconnect), late);
        f.run();
        CHECK(late.failed(std::errc::operation_canceled));
    }
    SECTION("who are destroyed before they are resumed") {
        f.client.reset();
        ending.reset();
        f.run();
        CHECK(!end.error);
        CHECK(outcome.failed(std::errc::operation_canceled));
    }
    CHECK(f.client_state() == IBV_QPS_ERR);
}

TEST_CASE("Connection: destroyed, its peer learns it") {
    const bool client_goes = GENERATE(true, false);
    CmFixture f;
    f.make_connection();
    End end;
    const Coroutine ending = await_end(client_goes ? *f.server : *f.client, end);
    (client_goes ? f.client : f.server).reset();
    f.run();
    CHECK(end.event == RDMA_CM_EVENT_DISCONNECTED);
    CHECK(f.client_state() == IBV_QPS_ERR);
    CHECK(f.server_state() == IBV_QPS_ERR);
}

TEST_CASE("Connection: its queue pair may go first") {
    CmFixture f;
    f.make_connection();
    f.client_end.reset();
    Outcome outcome;
    const Coroutine leaving = CmFixture::start(f.client->disconnect(), outcome);
    f.run();
    CHECK(outcome.done);
    CHECK(!outcome.error);
}

TEST_CASE("Connection: it may outlive its loop") {
    CmFixture f;
    auto loop = std::make_unique<EpollExecutor>();
    std::optional<Connection> connection;
    End end;
    std::optional<QueuePairOwner> client_end;
    const auto dial = [&]() -> Task<> {
        const auto make_qp = [&](const OutgoingConnection& outgoing) -> QueuePair& {
            return client_end.emplace(outgoing.context()).qp;
        };
        connection.emplace(co_await connect(*loop, CmFixture::host, f.port(), make_qp));
    };
    const Coroutine serving = CmFixture::start(f.serve(), f.served);
    const Coroutine dialing = CmFixture::start(dial(), f.dialed);
    while (!connection) {
        loop->run_once();
        f.loop.run_once();
    }
    std::optional<Coroutine> ending = await_end(*connection, end);
    loop.reset();
    SECTION("the connection first") {
        connection.reset();
        ending.reset();
    }
    SECTION("who waits first") {
        ending.reset();
        connection.reset();
    }
    CHECK(!end.event);
    CHECK(!end.error);
}

TEST_CASE("Connection: events that cannot be read any more fail who waits and who comes") {
    CmFixture f;
    f.make_connection();
    End ends[2];
    const Coroutine waiting = await_end(*f.client, ends[0]);
    f.sim.fail("rdma_get_cm_event", {.error = EIO});
    f.cm.push(f.client->native_handle(), RDMA_CM_EVENT_ADDR_CHANGE);
    f.run();
    const Coroutine coming = await_end(*f.client, ends[1]);
    for (const End& end : ends) {
        REQUIRE(end.error);
        CHECK_THAT(end.error->what(), contains("rdma_get_cm_event"));
    }
}

TEST_CASE("Connection: a move takes everything along") {
    CmFixture f;
    f.make_connection();
    End end;
    const Coroutine waiting = await_end(*f.client, end);
    std::vector<Connection> connections;
    connections.push_back(std::move(*f.client));
    f.client.reset();
    f.run();
    CHECK(!end.error);
    connections[0] = std::move(*f.server); // the old one is closed by that
    f.run();
    REQUIRE(end.error);
    CHECK(end.error->code() == std::errc::operation_canceled);
    CHECK(connections[0].local_address().port() == f.listener->port());
}

TEST_CASE("Connection: on a loop of one's own, whose failure is that of who waits") {
    CmFixture f;
    OwnLoop loop{f.loop};
    std::optional<QueuePairOwner> end;
    std::optional<Connection> connection;
    const auto dial = [&]() -> Task<> {
        const auto make_qp = [&](const OutgoingConnection& outgoing) -> QueuePair& {
            return end.emplace(outgoing.context()).qp;
        };
        connection.emplace(co_await connect(loop, CmFixture::host, f.port(), make_qp));
    };
    const Coroutine serving = CmFixture::start(f.serve(), f.served);
    const Coroutine dialing = CmFixture::start(dial(), f.dialed);
    f.run();
    REQUIRE(connection);
    loop.broken = true;
    f.server.reset();
    End ending;
    const Coroutine waiting = await_end(*connection, ending);
    f.run();
    REQUIRE(ending.error);
    CHECK(ending.error->code() == std::errc::io_error);
}

TEST_CASE("Connection: what was moved from or has been answered is an error") {
    CmFixture f;
    std::optional<OutgoingConnection> outgoing;
    const auto find_way = [&]() -> Task<> {
        outgoing.emplace(co_await resolve(f.loop, CmFixture::host, f.port()));
    };
    const Coroutine resolving = CmFixture::start(find_way(), f.dialed);
    f.run();
    REQUIRE(outgoing);
    const QueuePairOwner end(outgoing->context());
    const auto first = outgoing->connect(end.qp);
    Outcome outcome;
    const Coroutine second = CmFixture::start(outgoing->connect(end.qp), outcome);
    CHECK(outcome.failed(std::errc::invalid_argument));
    CHECK_THROWS_WITH(outgoing->context(), contains("moved from"));

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

TEST_CASE("Connection: an ended one leaves its queue pair to the next") {
    CmFixture f;
    f.make_connection();
    Connection old = std::move(*f.client);
    f.server.reset();
    f.run();
    CHECK(f.client_state() == IBV_QPS_ERR);
    ibv_qp_attr reset{};
    REQUIRE(ibv_modify_qp(f.client_end->qp.native_handle(), &reset, IBV_QP_STATE) == 0);
    f.server_end.reset();
    f.make_connection();
    {
        const Connection gone = std::move(old);
    }
    CHECK(f.client_state() == IBV_QPS_RTS);
}
