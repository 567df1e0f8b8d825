// SPDX-License-Identifier: MIT
// Connections on a real device: both ends in one process, on the address that cmake/soft-roce/run
// puts into the environment.
#include <asyncverbs/cm/connect.hpp>
#include <asyncverbs/cm/listener.hpp>

#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/coro/when_all.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/executor/with_timeout.hpp>
#include <asyncverbs/verbs/memory.hpp>

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <future>
#include <optional>
#include <set>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "device/pair.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using asyncverbs::device::run_bounded;
using asyncverbs::support::contains;

namespace {

std::string ipv4() {
    const char* const address = std::getenv("RDMA_ADDRESS");
    return address != nullptr ? address : "";
}

// The link-local IPv6 address of the interface that has the IPv4 address.
std::string ipv6() {
    ifaddrs* all = nullptr;
    REQUIRE(getifaddrs(&all) == 0);
    std::string interface;
    std::string address;
    for (const ifaddrs* each = all; each != nullptr; each = each->ifa_next) {
        if (each->ifa_addr == nullptr) continue;
        const std::string text = SocketAddress(*each->ifa_addr).text();
        if (text == ipv4() + ":0") interface = each->ifa_name;
        if (text.starts_with("[fe80") && interface == each->ifa_name) {
            address = text.substr(1, text.find(']') - 1);
        }
    }
    freeifaddrs(all);
    return address;
}

std::span<const std::byte> bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

// Private data as text, without the padding.
std::string text(std::span<const std::byte> data) {
    const std::string all(reinterpret_cast<const char*>(data.data()), data.size());
    return all.substr(0, all.find('\0'));
}

// soft-iWARP does not report the state of a queue pair.
bool is_in_error(const QueuePair& qp) { return device::is_iwarp() || qp.state() == IBV_QPS_ERR; }

// A queue pair with its parents, memory and its own completion queue.
struct CmEnd {
    explicit CmEnd(const Context& device)
        : context(device.shared_handle()), cq(context, 8),
          qp(domain, cq, cq, {.max_send_wr = 4, .max_recv_wr = 4}) {}

    void post_recv() { qp.post_recv(receive_id, region.slice(0, 8)); }

    void send(std::string_view message) {
        std::memcpy(memory.data() + 8, message.data(), message.size());
        qp.post_send(0, region.slice(8, message.size()));
    }

    // The completion of the receive.
    Task<ibv_wc> received(EpollExecutor& loop) {
        const int fd = cq.channel().fd();
        AsyncCq async(std::move(cq), loop.notifier(fd));
        co_return co_await async.poll_wr_id(receive_id);
    }

    static constexpr std::uint64_t receive_id = 1;
    Context context;
    ProtectionDomain domain{context};
    std::array<char, 16> memory{};
    MemoryRegion region{domain, std::as_writable_bytes(std::span(memory))};
    CompletionQueue cq;
    QueuePair qp;
};

// Both ends on one loop.
struct Fixture {
    explicit Fixture(const std::string& host = ipv4(), const ListenerOptions& options = {})
        : listener(std::in_place, loop, host, "", options) {}

    std::string port() const { return std::to_string(listener->port()); }

    Task<> serve(std::string_view reply) {
        IncomingConnection incoming = co_await listener->accept();
        request = text(incoming.private_data());
        server_end.emplace(incoming.context());
        incoming.prepare(server_end->qp);
        server_end->post_recv();
        server.emplace(co_await incoming.accept(server_end->qp, {.private_data = bytes(reply)}));
    }

    Task<> dial(std::string host, std::string_view message) {
        const auto make_qp = [this](const OutgoingConnection& outgoing) -> QueuePair& {
            client_end.emplace(outgoing.context());
            outgoing.prepare(client_end->qp);
            client_end->post_recv();
            return client_end->qp;
        };
        client.emplace(
            co_await connect(loop, host, port(), make_qp, {.private_data = bytes(message)}));
    }

    Task<> make_connection() { co_await when_all(serve("welcome"), dial(ipv4(), "hello")); }

    EpollExecutor loop;
    std::optional<Listener> listener;
    std::optional<CmEnd> server_end;
    std::optional<CmEnd> client_end;
    std::optional<Connection> server;
    std::optional<Connection> client;
    std::string request;
};

template <awaitable Operation>
Task<await_result_t<Operation>> as_task(Operation operation) {
    co_return co_await std::move(operation);
}

// The error of a step; std::nullopt if it succeeds.
template <awaitable Operation>
std::optional<std::system_error> failure_of(EpollExecutor& loop, Operation operation) {
    try {
        static_cast<void>(run_bounded(loop, as_task(std::move(operation))));
    } catch (const std::system_error& error) {
        return error;
    }
    return std::nullopt;
}

Task<Connection> dial(EpollExecutor& loop, std::string host, std::string port,
                      std::optional<CmEnd>& end, ConnectOptions options,
                      std::stop_token stop = {}) {
    const auto make_qp = [&end](const OutgoingConnection& outgoing) -> QueuePair& {
        return end.emplace(outgoing.context()).qp;
    };
    co_return co_await connect(loop, host, port, make_qp, options, stop);
}

Task<> stop_after(EpollExecutor& loop, std::stop_source& stop, std::chrono::milliseconds time) {
    co_await loop.sleep_for(time);
    stop.request_stop();
}

} // namespace

TEST_CASE("device: a connection carries private data and messages both ways", "[cm][iwarp]") {
    Fixture f;
    const auto body = [](Fixture& s) -> Task<> {
        co_await s.make_connection();
        s.client_end->send("ping");
        s.server_end->send("pong");
        const ibv_wc ping = co_await s.server_end->received(s.loop);
        const ibv_wc pong = co_await s.client_end->received(s.loop);
        CHECK(ping.status == IBV_WC_SUCCESS);
        CHECK(pong.status == IBV_WC_SUCCESS);
    };
    run_bounded(f.loop, body(f));
    CHECK(f.request == "hello");
    CHECK(text(f.client->private_data()) == "welcome");
    CHECK(std::string_view(f.server_end->memory.data(), 4) == "ping");
    CHECK(std::string_view(f.client_end->memory.data(), 4) == "pong");
    CHECK(f.client->peer_address().text() == ipv4() + ":" + f.port());
    CHECK(f.client->local_address().port() == f.server->peer_address().port());
    CHECK(f.server->local_address().text() == ipv4() + ":" + f.port());
}

TEST_CASE("device: a connection is accepted on the loop of another thread",
          "[cm][iwarp][threads]") {
    Fixture f;
    EpollExecutor other;
    std::optional<IncomingConnection> incoming;
    rdma_cm_event_type end{};
    std::string message;
    const auto serve = [&]() -> Task<> {
        f.server_end.emplace(incoming->context());
        incoming->prepare(f.server_end->qp);
        f.server_end->post_recv();
        f.server.emplace(co_await incoming->accept(other, f.server_end->qp));
        const ibv_wc wc = co_await f.server_end->received(other);
        message.assign(f.server_end->memory.data(), wc.byte_len);
        f.server_end->send("pong");
        end = co_await f.server->disconnected();
        f.server.reset();
    };
    const auto take = [&]() -> Task<> { incoming.emplace(co_await f.listener->accept()); };
    const auto use = [&]() -> Task<> {
        co_await f.dial(ipv4(), "hello");
        f.client_end->send("ping");
        static_cast<void>(co_await f.client_end->received(f.loop));
        co_await f.client->disconnect();
    };
    std::future<void> server;
    const auto start_server = [&]() -> Task<> {
        co_await take();
        server = std::async(std::launch::async, [&] { run_bounded(other, serve()); });
    };
    run_bounded(f.loop, when_all(start_server(), use()));
    server.get();
    CHECK(message == "ping");
    CHECK(end == RDMA_CM_EVENT_DISCONNECTED);
}

TEST_CASE("device: either end disconnects, and both queue pairs are flushed", "[cm][iwarp]") {
    const bool by_client = GENERATE(true, false);
    Fixture f;
    const auto body = [](Fixture& s, bool client_leaves) -> Task<> {
        co_await s.make_connection();
        Connection& leaving = client_leaves ? *s.client : *s.server;
        Connection& left = client_leaves ? *s.server : *s.client;
        const auto [nothing, event] = co_await when_all(leaving.disconnect(), left.disconnected());
        CHECK(event == RDMA_CM_EVENT_DISCONNECTED);
        const rdma_cm_event_type again = co_await leaving.disconnected();
        CHECK(again == RDMA_CM_EVENT_DISCONNECTED);
        co_await left.disconnect(); // returns: already disconnected
    };
    run_bounded(f.loop, body(f, by_client));
    for (CmEnd* end : {&*f.client_end, &*f.server_end}) {
        CHECK(is_in_error(end->qp));
        const ibv_wc receive = run_bounded(f.loop, end->received(f.loop));
        CHECK(receive.status == IBV_WC_WR_FLUSH_ERR);
    }
}

TEST_CASE("device: both ends disconnect at once", "[cm][iwarp]") {
    Fixture f;
    run_bounded(f.loop, f.make_connection());
    const auto body = [](Fixture& s) -> Task<> {
        co_await when_all(s.client->disconnect(), s.server->disconnect());
    };
    run_bounded(f.loop, body(f));
}

TEST_CASE("device: an end is notified when the other end is destroyed", "[cm][iwarp]") {
    const bool client_goes = GENERATE(true, false);
    Fixture f;
    run_bounded(f.loop, f.make_connection());
    std::optional<Connection>& gone = client_goes ? f.client : f.server;
    Connection& left = client_goes ? *f.server : *f.client;
    gone.reset();
    CHECK(run_bounded(f.loop, as_task(left.disconnected())) == RDMA_CM_EVENT_DISCONNECTED);
    CHECK(is_in_error((client_goes ? f.client_end : f.server_end)->qp));
}

TEST_CASE("device: a rejected request reports the reason and the private data of the peer",
          "[cm][iwarp]") {
    Fixture f;
    const bool dropped = GENERATE(false, true);
    const auto reject = [](Fixture& s, bool drop) -> Task<> {
        IncomingConnection incoming = co_await s.listener->accept();
        if (!drop) incoming.reject(bytes("no room"));
    };
    Scope scope;
    scope.spawn(reject(f, dropped));
    try {
        run_bounded(f.loop, f.dial(ipv4(), "hello"));
        FAIL("it was accepted");
    } catch (const ConnectionRejected& error) {
        CHECK(error.code() == std::errc::connection_refused);
        CHECK(error.reason() ==
              (device::is_iwarp() ? -ECONNRESET : ConnectionRejected::by_program));
        CHECK(text(error.private_data()) == (dropped ? "" : "no room"));
        CHECK_THAT(error.what(), contains("rdma_connect to " + ipv4() + ":" + f.port()));
    }
    CHECK(is_in_error(f.client_end->qp));
}

TEST_CASE("device: connecting to a port without a listener is refused", "[cm][iwarp]") {
    Fixture f;
    const std::string port = f.port();
    f.listener.reset();
    std::optional<CmEnd> end;
    try {
        static_cast<void>(run_bounded(f.loop, dial(f.loop, ipv4(), port, end, {})));
        FAIL("it was accepted");
    } catch (const ConnectionRejected& error) {
        CHECK(error.code() == std::errc::connection_refused);
        CHECK(error.reason() == ConnectionRejected::no_listener);
    } catch (const std::system_error& error) { // soft-iWARP: rdma_connect itself fails
        CHECK(device::is_iwarp());
        CHECK(error.code() == std::errc::connection_refused);
    }
}

TEST_CASE("device: many simultaneous connections are matched to their requests", "[cm]") {
    constexpr int count = 60;
    constexpr int acceptors = 4;
    Fixture f;
    std::vector<std::optional<CmEnd>> ends(2 * count);
    std::vector<Connection> connections;
    std::set<std::string> served;
    const auto serve = [&](int first) -> Task<> {
        for (int i = first; i < count; i += acceptors) {
            IncomingConnection incoming = co_await f.listener->accept();
            const std::string name = text(incoming.private_data());
            served.insert(name);
            std::optional<CmEnd>& end = ends[static_cast<std::size_t>(count + std::stoi(name))];
            end.emplace(incoming.context());
            const std::string reply = "for " + name;
            Connection connection =
                co_await incoming.accept(end->qp, {.private_data = bytes(reply)});
            connections.push_back(std::move(connection));
        }
    };
    const auto client = [&](int i) -> Task<> {
        const std::string name = std::to_string(i);
        std::optional<CmEnd>& end = ends[static_cast<std::size_t>(i)];
        Connection connection = co_await dial(f.loop, ipv4(), f.port(), end,
                                              {.private_data = bytes(name), .timeout = 40s});
        CHECK(text(connection.private_data()) == "for " + name);
        connections.push_back(std::move(connection));
    };
    const auto body = [&]() -> Task<> {
        Scope scope;
        for (int i = 0; i < acceptors; ++i) scope.spawn(serve(i));
        for (int i = 0; i < count; ++i) scope.spawn(client(i));
        co_await scope.join();
    };
    run_bounded(f.loop, body());
    CHECK(served.size() == count);
    CHECK(connections.size() == 2 * count);
}

TEST_CASE("device: requests wait for accept(), and the peer keeps those beyond the backlog",
          "[cm]") {
    constexpr std::size_t count = 3;
    Fixture f(ipv4(), {.backlog = 1});
    std::vector<std::optional<CmEnd>> ends(2 * count);
    const auto client = [&](std::size_t i) -> Task<> {
        const Connection connection =
            co_await dial(f.loop, ipv4(), f.port(), ends[i], {.timeout = 30s});
    };
    const auto body = [&]() -> Task<> {
        Scope scope;
        for (std::size_t i = 0; i < count; ++i) scope.spawn(client(i));
        co_await f.loop.sleep_for(100ms);
        for (std::size_t i = count; i < 2 * count; ++i) {
            IncomingConnection incoming = co_await f.listener->accept();
            ends[i].emplace(incoming.context());
            const Connection connection = co_await incoming.accept(ends[i]->qp);
        }
        co_await scope.join();
    };
    CHECK_NOTHROW(run_bounded(f.loop, body()));
}

TEST_CASE("device: a listener on any address accepts IPv4 and IPv6", "[cm][iwarp]") {
    const std::string link_local = ipv6();
    if (link_local.empty()) WARN("IPv6 is left out: the interface has no such address");
    Fixture f("");
    for (const std::string& host : {ipv4(), link_local}) {
        if (host.empty()) continue;
        const auto body = [](Fixture& s, std::string to) -> Task<> {
            co_await when_all(s.serve("welcome"), s.dial(to, "hello"));
        };
        run_bounded(f.loop, body(f, host));
        CHECK_THAT(f.client->peer_address().text(), contains(host));
        f.client.reset();
        f.server.reset();
    }
}

TEST_CASE("device: bad addresses are reported", "[cm][iwarp]") {
    Fixture f;
    const auto failure = [&](const std::string& host, const std::string& service) {
        return failure_of(f.loop, resolve(f.loop, host, service));
    };
    CHECK_THAT(failure("nowhere.invalid", "1")->what(), contains("getaddrinfo nowhere.invalid:1"));
    CHECK_THAT(failure(ipv4(), "no-such-service")->what(), contains("getaddrinfo"));
    // The guest has no route to this address.
    const auto unreachable = failure("192.0.2.1", "1");
    REQUIRE(unreachable);
    CHECK_THAT(unreachable->what(), contains("rdma_resolve_addr to 192.0.2.1:1"));
    CHECK(unreachable->code() == std::errc::network_unreachable);

    CHECK_THROWS_WITH(Listener(f.loop, ipv4(), f.port()), contains("rdma_bind_addr to " + ipv4()));
    CHECK_THROWS_WITH(Listener(f.loop, "192.0.2.1", ""), contains("192.0.2.1"));
    CHECK_THROWS_WITH(Listener(f.loop, "", "", {.backlog = 0}), contains("backlog"));
}

TEST_CASE("device: every step has a timeout", "[cm]") {
    Fixture f;
    std::optional<CmEnd> end;
    SECTION("connect") { // the request is queued and never answered
        const auto error =
            failure_of(f.loop, dial(f.loop, ipv4(), f.port(), end, {.timeout = 50ms}));
        REQUIRE(error);
        CHECK(error->code() == std::errc::timed_out);
        CHECK_THAT(error->what(), contains("rdma_connect to"));
    }
    SECTION("connect, to a host that is not there") {
        std::string host = ipv4();
        host.replace(host.rfind('.'), std::string::npos, ".99");
        const auto error = failure_of(f.loop, dial(f.loop, host, "1", end, {.timeout = 50ms}));
        REQUIRE(error);
        CHECK(error->code() == std::errc::timed_out);
    }
    SECTION("accept") { // the client's loop does not run, so the client never confirms
        EpollExecutor other;
        auto client = dial(other, ipv4(), f.port(), end, {});
        Scope scope;
        scope.spawn(std::move(client));
        std::optional<IncomingConnection> incoming;
        const auto take = [&]() -> Task<> { incoming.emplace(co_await f.listener->accept()); };
        scope.spawn(take());
        while (!incoming) {
            other.run_once();
            f.loop.run_once();
        }
        std::optional<CmEnd> server_end(incoming->context());
        const auto error = failure_of(f.loop, incoming->accept(server_end->qp, {.timeout = 50ms}));
        REQUIRE(error);
        CHECK(error->code() == std::errc::timed_out);
        CHECK_THAT(error->what(), contains("rdma_accept"));
    }
    SECTION("disconnect") { // the peer's loop does not run
        EpollExecutor other;
        std::optional<Connection> client;
        const auto dial_there = [&]() -> Task<> {
            client.emplace(co_await dial(other, ipv4(), f.port(), end, {}));
        };
        Scope scope;
        scope.spawn(f.serve(""));
        scope.spawn(dial_there());
        while (!client || !f.server) {
            other.run_once();
            f.loop.run_once();
        }
        const auto error = failure_of(f.loop, f.server->disconnect(50ms));
        REQUIRE(error);
        CHECK(error->code() == std::errc::timed_out);
        CHECK_THAT(error->what(), contains("rdma_disconnect"));
    }
}

TEST_CASE("device: with_timeout ends any step, and the listener stays usable", "[cm][iwarp]") {
    Fixture f;
    std::optional<CmEnd> end;
    const auto accept = [&](std::stop_token stop) { return f.listener->accept(std::move(stop)); };
    const auto connect_to_it = [&](std::stop_token stop) { // which is not answered
        return dial(f.loop, ipv4(), f.port(), end, {}, std::move(stop));
    };
    const auto wait_for_end = [&](std::stop_token stop) {
        return f.server->disconnected(std::move(stop));
    };

    auto error = failure_of(f.loop, with_timeout(f.loop, 20ms, accept));
    REQUIRE(error);
    CHECK(error->code() == std::errc::timed_out);

    run_bounded(f.loop, f.make_connection());
    error = failure_of(f.loop, with_timeout(f.loop, 20ms, wait_for_end));
    REQUIRE(error);
    CHECK(error->code() == std::errc::timed_out);

    if (device::is_iwarp()) return; // it would block for 10 s, see connect()
    error = failure_of(f.loop, with_timeout(f.loop, 20ms, connect_to_it));
    REQUIRE(error);
    CHECK(error->code() == std::errc::timed_out);
}

TEST_CASE("device: every step can be cancelled", "[cm]") {
    Fixture f;
    std::optional<CmEnd> end;
    std::stop_source stop;
    const bool before = GENERATE(true, false);
    Scope scope;
    if (before) {
        stop.request_stop();
    } else {
        scope.spawn(stop_after(f.loop, stop, 20ms));
    }
    const auto canceled = [](const std::optional<std::system_error>& error) {
        return error && error->code() == std::errc::operation_canceled;
    };
    SECTION("connect") {
        const auto token = stop.get_token();
        CHECK(canceled(failure_of(f.loop, dial(f.loop, ipv4(), f.port(), end, {}, token))));
    }
    SECTION("accept a request") {
        const auto token = stop.get_token();
        CHECK(canceled(failure_of(f.loop, f.listener->accept(token))));
    }
    SECTION("wait for the end") {
        run_bounded(f.loop, f.make_connection());
        const auto token = stop.get_token();
        CHECK(canceled(failure_of(f.loop, f.client->disconnected(token))));
    }
}

TEST_CASE("device: a listener is destroyed while requests are queued or coroutines wait",
          "[cm][iwarp]") {
    Fixture f;
    SECTION("requests") {
        std::vector<std::optional<CmEnd>> ends(3);
        int rejected = 0;
        const auto client = [&](std::size_t i) -> Task<> {
            try {
                static_cast<void>(co_await dial(f.loop, ipv4(), f.port(), ends[i], {}));
            } catch (const ConnectionRejected&) {
                ++rejected;
            }
        };
        const auto body = [&]() -> Task<> {
            Scope scope;
            for (std::size_t i = 0; i < ends.size(); ++i) scope.spawn(client(i));
            co_await f.loop.sleep_for(200ms);
            f.listener.reset();
            co_await scope.join();
        };
        run_bounded(f.loop, body());
        CHECK(rejected == 3);
    }
    SECTION("coroutines") {
        const auto body = [&]() -> Task<> {
            Scope scope;
            scope.spawn(f.listener->accept());
            scope.spawn(f.listener->accept());
            co_await f.loop.sleep_for(10ms);
            f.listener.reset();
            co_await scope.join();
        };
        const auto error = failure_of(f.loop, body());
        REQUIRE(error);
        CHECK(error->code() == std::errc::operation_canceled);
    }
}

TEST_CASE("device: an end may be destroyed at any time, and the other end is notified", "[cm]") {
    const bool server_goes = GENERATE(true, false);
    int connected = 0;
    for (int turns = 0; turns < 24; ++turns) {
        Fixture f;
        std::optional<Scope> server_scope(std::in_place);
        std::optional<Scope> client_scope(std::in_place);
        server_scope->spawn(f.serve("welcome"));
        client_scope->spawn(f.dial(ipv4(), "hello"));
        for (int turn = 0; turn < turns; ++turn) {
            f.loop.run_once();
            const timespec pause{0, 500'000};
            ::nanosleep(&pause, nullptr);
        }
        (server_goes ? server_scope : client_scope).reset();
        (server_goes ? f.server : f.client).reset();
        f.listener.reset();
        const auto rest = [](Scope& scope) -> Task<> { co_await scope.join(); };
        Scope& left = server_goes ? *client_scope : *server_scope;
        const auto error = failure_of(f.loop, rest(left));
        std::optional<Connection>& connection = server_goes ? f.client : f.server;
        INFO(turns << " turns: " << (error ? error->what() : "connected"));
        CHECK(error.has_value() != connection.has_value());
        if (!connection) continue;
        ++connected;
        CHECK(run_bounded(f.loop, as_task(connection->disconnected())) ==
              RDMA_CM_EVENT_DISCONNECTED);
    }
    CHECK(connected > 0);
    CHECK(connected < 24);
}
