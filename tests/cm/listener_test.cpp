// SPDX-License-Identifier: MIT
#include <asyncverbs/cm/listener.hpp>

#include <sys/epoll.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "cm/fixture.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"

using namespace asyncverbs;
using asyncverbs::support::bytes;
using asyncverbs::support::CmFixture;
using asyncverbs::support::contains;
using asyncverbs::support::Coroutine;
using asyncverbs::support::Outcome;
using asyncverbs::support::QueuePairOwner;
using asyncverbs::support::Running;
using asyncverbs::support::text;

namespace {

// Several clients, which send their names, and acceptors that take one request each.
struct ListenerFixture : CmFixture {
    Coroutine client(std::string name) {
        std::optional<QueuePairOwner> end;
        const auto make_qp = [&end](const OutgoingConnection& outgoing) -> QueuePair& {
            return end.emplace(outgoing.context()).qp;
        };
        try {
            static_cast<void>(
                co_await connect(loop, host, port, make_qp, {.private_data = bytes(name)}));
        } catch (const ConnectionRejected&) {
            rejected.push_back(name);
        }
    }

    Coroutine acceptor(int number, Outcome& outcome, std::stop_token stop = {}) {
        try {
            const IncomingConnection request = co_await listener->accept(stop);
            taken.push_back(std::to_string(number) + text(request.private_data()));
        } catch (const std::system_error& error) {
            outcome.error = error;
        }
        outcome.done = true;
    }

    std::vector<std::string> taken; // number of the acceptor and name of the client
    std::vector<std::string> rejected;
    Outcome outcomes[3];
};

using Names = std::vector<std::string>;

// A loop that reports each event of a descriptor once.
struct EdgeTriggered {
    struct Notifier {
        Notifier(EpollExecutor& executor, int fd)
            : edges(::epoll_create1(0), "epoll_create1"), inner(executor, edges.get()) {
            epoll_event edge{};
            edge.events = EPOLLIN | EPOLLET;
            REQUIRE(::epoll_ctl(edges.get(), EPOLL_CTL_ADD, fd, &edge) == 0);
        }
        Task<std::error_code> readable(std::stop_token stop) {
            const std::error_code error = co_await inner.readable(stop);
            epoll_event edge{};
            ::epoll_wait(edges.get(), &edge, 1, 0);
            co_return error;
        }
        detail::FileDescriptor edges;
        EpollNotifier inner;
    };
    Notifier notifier(int fd) { return {executor, fd}; }

    EpollExecutor& executor;
};

} // namespace

TEST_CASE("Listener: requests are kept in order until they are taken") {
    ListenerFixture f;
    const Coroutine a = f.client("a");
    const Coroutine b = f.client("b");
    const Coroutine c = f.client("c");
    f.run();
    for (int number : {0, 1, 2}) {
        const Coroutine acceptor = f.acceptor(number, f.outcomes[number]);
        f.run();
    }
    CHECK(f.taken == Names{"0a", "1b", "2c"});
    CHECK(f.rejected == Names{"a", "b", "c"}); // destroying a request rejects it
}

TEST_CASE("Listener: waiters are served in the order of their arrival") {
    ListenerFixture f;
    const Coroutine first = f.acceptor(0, f.outcomes[0]);
    const Coroutine second = f.acceptor(1, f.outcomes[1]);
    const Coroutine third = f.acceptor(2, f.outcomes[2]);
    f.run();
    const Coroutine a = f.client("a");
    const Coroutine b = f.client("b");
    f.run();
    CHECK(f.taken == Names{"0a", "1b"});
    const Coroutine c = f.client("c");
    f.run();
    CHECK(f.taken == Names{"0a", "1b", "2c"});
}

TEST_CASE("Listener: an acceptor that comes after a request does not overtake the one it wakes") {
    ListenerFixture f;
    const Coroutine first = f.acceptor(0, f.outcomes[0]);
    const Coroutine a = f.client("a");
    while (f.sim.calls("rdma_connect") == 0) f.run(1);
    const std::uint64_t events = f.sim.calls("rdma_ack_cm_event");
    while (f.sim.calls("rdma_ack_cm_event") == events) f.run(1);
    CHECK(f.taken.empty());
    const Coroutine second = f.acceptor(1, f.outcomes[1]);
    CHECK(f.taken.empty());
    f.run();
    CHECK(f.taken == Names{"0a"});
}

TEST_CASE("Listener: a request that its acceptor does not take is left to the next one") {
    // After each number of iterations since the request was sent.
    for (int iterations = 0; iterations < 12; ++iterations) {
        for (const bool destroyed : {false, true}) {
            INFO(iterations << " iterations, " << (destroyed ? "destroyed" : "cancelled"));
            ListenerFixture f;
            std::stop_source stop;
            Coroutine first = f.acceptor(0, f.outcomes[0], stop.get_token());
            const Coroutine second = f.acceptor(1, f.outcomes[1]);
            const Coroutine a = f.client("a");
            f.run(iterations);
            if (destroyed) {
                first.destroy();
            } else {
                stop.request_stop();
            }
            f.run();
            REQUIRE(f.taken.size() == 1);
            CHECK((f.taken == Names{"1a"} || (f.taken == Names{"0a"} && iterations > 0)));
            CHECK(f.outcomes[1].done == (f.taken == Names{"1a"}));
            if (!destroyed && f.outcomes[1].done) {
                CHECK(f.outcomes[0].failed(std::errc::operation_canceled));
            }
        }
    }
}

TEST_CASE("Listener: an acceptor that goes before it has read on leaves that to the next one") {
    // After each number of iterations since a request was sent, which the first acceptor takes.
    for (int iterations = 0; iterations < 12; ++iterations) {
        INFO(iterations << " iterations");
        ListenerFixture f;
        const Coroutine first = f.acceptor(0, f.outcomes[0]);
        Coroutine second = f.acceptor(1, f.outcomes[1]);
        const Coroutine third = f.acceptor(2, f.outcomes[2]);
        const Coroutine a = f.client("a");
        f.run(iterations);
        second.destroy();
        f.run();
        const Coroutine b = f.client("b");
        f.run();
        CHECK(f.taken == Names{"0a", "2b"});
    }
}

TEST_CASE("Listener: a token that was stopped before takes no request") {
    ListenerFixture f;
    const Coroutine a = f.client("a");
    f.run();
    std::stop_source stop;
    stop.request_stop();
    const Coroutine cancelled = f.acceptor(0, f.outcomes[0], stop.get_token());
    CHECK(f.outcomes[0].failed(std::errc::operation_canceled));
    const Coroutine next = f.acceptor(1, f.outcomes[1]);
    f.run();
    CHECK(f.taken == Names{"1a"});
}

TEST_CASE("Listener: its destructor rejects the requests and cancels the acceptors") {
    ListenerFixture f;
    SECTION("requests, read and not read") {
        const Coroutine a = f.client("a");
        const Coroutine b = f.client("b");
        f.run();
        f.listener.reset();
        f.run();
        CHECK(f.rejected == Names{"a", "b"});
    }
    SECTION("a request that an acceptor was about to take") {
        const Coroutine acceptor = f.acceptor(0, f.outcomes[0]);
        const Coroutine a = f.client("a");
        for (int i = 0; i < 12 && f.sim.calls("rdma_ack_cm_event") < 3; ++i) f.run(1);
        f.listener.reset();
        f.run();
        CHECK(f.outcomes[0].failed(std::errc::operation_canceled));
        CHECK(f.rejected == Names{"a"});
    }
    SECTION("acceptors") {
        const Coroutine first = f.acceptor(0, f.outcomes[0]);
        const Coroutine second = f.acceptor(1, f.outcomes[1]);
        f.run();
        f.listener.reset();
        CHECK(!f.outcomes[0].done); // not inside the destructor
        f.run();
        CHECK(f.outcomes[0].failed(std::errc::operation_canceled));
        CHECK(f.outcomes[1].failed(std::errc::operation_canceled));
    }
    SECTION("an acceptor that is destroyed afterwards") {
        Coroutine first = f.acceptor(0, f.outcomes[0]);
        f.run();
        f.listener.reset();
        first.destroy();
        f.run();
        CHECK(!f.outcomes[0].done);
    }
    SECTION("not a request that was taken") {
        f.start_server();
        const Coroutine a = f.client("a");
        while (!f.incoming) f.run(1);
        f.listener.reset();
        f.run();
        CHECK(f.server);
    }
}

TEST_CASE("Listener: a request that cannot be moved to its own channel is rejected, the next one "
          "is not") {
    ListenerFixture f;
    const char* const call = GENERATE("rdma_create_event_channel", "rdma_migrate_id");
    const Coroutine a = f.client("a");
    const Coroutine b = f.client("b");
    f.run();
    f.sim.fail(call, {.error = EMFILE});
    const Coroutine first = f.acceptor(0, f.outcomes[0]);
    f.run();
    REQUIRE(f.outcomes[0].error);
    CHECK(f.outcomes[0].error->code() == std::errc::too_many_files_open);
    CHECK_THAT(f.outcomes[0].error->what(), contains(call));
    CHECK(f.rejected == Names{"a"});
    const Coroutine second = f.acceptor(1, f.outcomes[1]);
    f.run();
    CHECK(f.taken == Names{"1b"});
}

TEST_CASE("Listener: if its events cannot be read, all acceptors fail, also later ones") {
    ListenerFixture f;
    const Coroutine first = f.acceptor(0, f.outcomes[0]);
    const Coroutine second = f.acceptor(1, f.outcomes[1]);
    f.run();
    f.sim.fail("rdma_get_cm_event", {.error = ENODEV});
    f.cm.push(f.cm.newest(), RDMA_CM_EVENT_ADDR_CHANGE);
    f.run();
    const Coroutine third = f.acceptor(2, f.outcomes[2]);
    for (const Outcome& outcome : f.outcomes) {
        REQUIRE(outcome.error);
        CHECK(outcome.error->code() == std::errc::no_such_device);
        CHECK_THAT(outcome.error->what(), contains("rdma_get_cm_event"));
    }
}

TEST_CASE("Listener: its device is removed") {
    ListenerFixture f;
    const Coroutine acceptor = f.acceptor(0, f.outcomes[0]);
    f.cm.push(f.cm.newest(), RDMA_CM_EVENT_DEVICE_REMOVAL);
    f.run();
    CHECK(f.outcomes[0].failed(std::errc::no_such_device));
}

TEST_CASE("Listener: an interrupted read of an event is repeated") {
    ListenerFixture f;
    // With edge triggering, the descriptor is not reported again.
    EdgeTriggered edges{f.loop};
    f.listener.emplace(edges, CmFixture::host, f.port);
    const Coroutine acceptor = f.acceptor(0, f.outcomes[0]);
    f.run();
    const Coroutine a = f.client("a");
    while (f.sim.calls("rdma_connect") == 0) f.run(1);
    f.sim.fail("rdma_get_cm_event", {.error = EINTR, .times = 2});
    f.run();
    CHECK(f.taken == Names{"0a"});
}

TEST_CASE("Listener: address, port and backlog") {
    ListenerFixture f;
    CHECK(f.listener->port() != 0);
    const Listener other(f.loop, "", "7471", {.backlog = 1});
    CHECK(other.port() == 7471);
    CHECK_THROWS_WITH(Listener(f.loop, "", "1", {.backlog = 0}), contains("backlog 0"));
}

TEST_CASE("Listener: a port in use is address_in_use, also if the kernel says otherwise") {
    ListenerFixture f;
    const std::string host = GENERATE(std::string(CmFixture::host), std::string());
    const Listener first(f.loop, host, "7471");
    for (const std::string& other : {std::string(CmFixture::host), std::string()}) {
        try {
            const Listener second(f.loop, other, "7471");
            FAIL("it listens");
        } catch (const std::system_error& error) {
            CHECK(error.code() == std::errc::address_in_use);
            CHECK_THAT(error.what(), contains("rdma_bind_addr to ") && contains(":7471"));
        }
    }
    f.sim.fail("rdma_bind_addr", {.error = EADDRNOTAVAIL, .times = 2});
    CHECK_THROWS_WITH(Listener(f.loop, CmFixture::host, "7472"),
                      contains("Cannot assign requested address"));
}

TEST_CASE("Listener: without a host it serves peers of both families, on iWARP too") {
    const bool iwarp = GENERATE(false, true);
    CAPTURE(iwarp);
    ListenerFixture f;
    if (iwarp) f.make_device_iwarp();
    f.listener.emplace(f.loop, "", f.port = "7471");
    for (const char* const peer : {"10.7.0.1", "fd00::1"}) {
        const Coroutine acceptor = f.acceptor(0, f.outcomes[0]);
        std::optional<QueuePairOwner> end;
        const auto make_qp = [&end](const OutgoingConnection& outgoing) -> QueuePair& {
            return end.emplace(outgoing.context()).qp;
        };
        const Running dialing(
            connect(f.loop, peer, f.port, make_qp, {.private_data = bytes(peer)}));
        f.run();
        CHECK(f.taken.back() == std::string("0") + peer);
    }
}

// --- connections that are accepted on another loop ---

TEST_CASE("IncomingConnection: accepted on another loop, to which the connection belongs") {
    CmFixture f;
    EpollExecutor other;
    f.take_request();
    const auto accept = [&]() -> Task<> {
        f.server.emplace(co_await f.incoming->accept(other, f.server_end->qp));
    };
    const Running accepting(accept());
    f.run(); // the client answers; the listener's loop does not read it
    CHECK(f.dialed.succeeded());
    CHECK(!accepting.done);
    for (int i = 0; i < 10; ++i) other.run_once();
    REQUIRE(accepting.succeeded());
    CHECK(f.server_state() == IBV_QPS_RTS);

    const Running left(f.server->disconnected());
    f.listener.reset(); // accepted connections stay
    f.client.reset();
    f.run();
    CHECK(!left.done);
    for (int i = 0; i < 10; ++i) other.run_once();
    CHECK(left.event == RDMA_CM_EVENT_DISCONNECTED);
    CHECK(f.server_state() == IBV_QPS_ERR);
}

TEST_CASE("IncomingConnection: a peer that has left before it is accepted on another loop") {
    CmFixture f;
    EpollExecutor other;
    f.take_request();
    f.cm.push(f.cm.newest(), RDMA_CM_EVENT_DISCONNECTED);
    const Running accepting(f.incoming->accept(other, f.server_end->qp));
    CHECK(accepting.failed(std::errc::connection_reset));
    CHECK(other.run_once() == false); // it waits for nothing
}

TEST_CASE("IncomingConnection: handed to a loop that was stopped, it is not lost") {
    ListenerFixture f;
    std::optional<EpollExecutor> other(std::in_place);
    std::shared_ptr<IncomingConnection> incoming;
    const auto hand_over = [&]() -> Task<> {
        incoming = std::make_shared<IncomingConnection>(co_await f.listener->accept());
        other->stop();
        other->post([request = std::move(incoming)] { request->reject(bytes("served")); });
    };
    const Running listening(hand_over());
    const Coroutine client = f.client("a");
    f.run();
    REQUIRE(listening.succeeded());
    other->run(); // ends at once: the request stays in the loop
    f.run();
    CHECK(!client.done());
    SECTION("the next run serves it") { other->run_once(); }
    SECTION("it is rejected with the loop") { other.reset(); }
    f.run();
    CHECK(f.rejected == Names{"a"});
}

TEST_CASE("IncomingConnection: one listener, a loop on each thread") {
    constexpr int connections = 8;
    CmFixture f;
    EpollExecutor other;
    struct Server {
        std::optional<IncomingConnection> incoming;
        std::optional<QueuePairOwner> end;
        std::optional<Connection> connection;
        Outcome outcome;
        Coroutine serving;
    };
    std::vector<Server> servers(connections);
    int ended = 0;
    // On the other thread: accepts, and waits for the end of the connection.
    const auto serve = [&](Server& server) -> Task<> {
        server.end.emplace(server.incoming->context());
        server.connection.emplace(co_await server.incoming->accept(other, server.end->qp));
        co_await server.connection->disconnected();
        server.connection.reset();
        if (++ended == connections) other.stop();
    };
    const auto listen = [&]() -> Task<> {
        for (Server& server : servers) {
            server.incoming.emplace(co_await f.listener->accept());
            other.post([&] { server.serving = Running::run(serve(server), server.outcome); });
        }
    };
    const Running listening(listen());
    std::thread thread([&] { other.run(); });
    int dialed = 0;
    const auto dial = [&]() -> Task<> {
        for (int i = 0; i < connections; ++i) {
            co_await f.dial();
            ++dialed;
            f.client.reset();
            f.client_end.reset();
        }
    };
    f.loop.run(dial());
    thread.join();
    CHECK(dialed == connections);
    for (const Server& server : servers) CHECK(server.outcome.succeeded());
}
