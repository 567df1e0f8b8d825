// SPDX-License-Identifier: MIT
// Connections between two guests, over a link on which addresses must be resolved first.
// `cmake/soft-roce/run --guests 2` runs these tests in both guests.
#include <asyncverbs/cm/connect.hpp>
#include <asyncverbs/cm/listener.hpp>

#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/keep_alive.hpp>
#include <asyncverbs/rdma/router.hpp>

#include <chrono>
#include <cstdlib>
#include <optional>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>

#include "device/environment.hpp"
#include "device/link.hpp"
#include "device/pair.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using asyncverbs::device::environment;
using asyncverbs::device::run_bounded;
using asyncverbs::support::contains;

namespace {

constexpr const char* service = "7471";

// A queue pair with its parents.
struct CmEnd {
    explicit CmEnd(const Context& device)
        : context(device.shared_handle()), domain(context), cq(context, 4),
          qp(domain, cq, cq, {.max_send_wr = 1, .max_recv_wr = 1}) {}

    Context context;
    ProtectionDomain domain;
    CompletionQueue cq;
    QueuePair qp;
};

std::string text(std::span<const std::byte> data) {
    const std::string all(reinterpret_cast<const char*>(data.data()), data.size());
    return all.substr(0, all.find('\0'));
}

Task<> serve(EpollExecutor& loop) {
    Listener listener(loop, "", service);
    IncomingConnection incoming = co_await listener.accept();
    CHECK(text(incoming.private_data()) == "to guest 0");
    CHECK_THAT(incoming.peer_address().text(), contains(environment("RDMA_PEER_ADDRESS") + ":"));
    const CmEnd end(incoming.context());
    const std::string reply = "to guest 1";
    Connection connection = co_await incoming.accept(
        end.qp, {.private_data = std::as_bytes(std::span(reply)), .timeout = 30s});
    const rdma_cm_event_type event = co_await connection.disconnected();
    CHECK(event == RDMA_CM_EVENT_DISCONNECTED);
}

// Returns std::nullopt if the other guest does not listen yet.
Task<std::optional<Connection>> try_connect(EpollExecutor& loop, std::optional<CmEnd>& end) {
    const auto make_qp = [&end](const OutgoingConnection& outgoing) -> QueuePair& {
        return end.emplace(outgoing.context()).qp;
    };
    const std::string request = "to guest 0";
    try {
        co_return co_await connect(
            loop, environment("RDMA_PEER_ADDRESS"), service, make_qp,
            {.private_data = std::as_bytes(std::span(request)), .timeout = 30s});
    } catch (const std::system_error& error) {
        const bool early =
            error.code() == std::errc::connection_refused || error.code() == std::errc::timed_out;
        if (!early) throw;
    }
    co_return std::nullopt;
}

Task<> dial(EpollExecutor& loop) {
    std::optional<CmEnd> end;
    std::optional<Connection> connection;
    while (!connection) {
        co_await loop.sleep_for(50ms);
        connection = co_await try_connect(loop, end);
    }
    CHECK(text(connection->private_data()) == "to guest 1");
    CHECK(connection->peer_address().text() == environment("RDMA_PEER_ADDRESS") + ":" + service);
    co_await connection->disconnect(30s);
}

// An address of the link that no guest has.
std::string nobody() {
    const std::string own = environment("RDMA_ADDRESS");
    return own.substr(0, own.rfind('.')) + ".77";
}

Task<std::error_code> resolve_nobody(EpollExecutor& loop, ResolveOptions options,
                                     std::stop_token stop = {}) {
    try {
        static_cast<void>(co_await resolve(loop, nobody(), service, options, stop));
    } catch (const std::system_error& error) {
        CHECK_THAT(error.what(), contains("rdma_resolve_addr to " + nobody()));
        co_return error.code();
    }
    co_return std::error_code();
}

// A queue pair with a Router, and its parents.
struct RoutedEnd {
    RoutedEnd(EpollExecutor& loop, const Context& device)
        : context(device.shared_handle()), domain(context),
          memory(MemoryRegion::allocate(domain, 8)), router(Router::create(context, 32, loop)),
          qp(router, domain) {}

    Context context;
    ProtectionDomain domain;
    MemoryRegion memory;
    Router router;
    AsyncQp qp;
};

Task<Connection> accept_routed(EpollExecutor& loop, std::optional<RoutedEnd>& end,
                               device::OtherGuest& other) {
    Listener listener(loop, "", service);
    other.meet();
    IncomingConnection incoming = co_await listener.accept();
    end.emplace(loop, incoming.context());
    co_return co_await incoming.accept(end->qp.queue_pair(), {.timeout = 30s});
}

Task<Connection> connect_routed(EpollExecutor& loop, std::optional<RoutedEnd>& end,
                                device::OtherGuest& other) {
    other.meet();
    const auto make_qp = [&](const OutgoingConnection& outgoing) -> QueuePair& {
        return end.emplace(loop, outgoing.context()).qp.queue_pair();
    };
    co_return co_await connect(loop, environment("RDMA_PEER_ADDRESS"), service, make_qp,
                               {.timeout = 30s});
}

// Guest 1 cuts the link while nothing is sent.
Task<> notice_cut(EpollExecutor& loop) {
    device::OtherGuest other;
    std::optional<RoutedEnd> end;
    Task<Connection> connecting =
        device::guest == 0 ? accept_routed(loop, end, other) : connect_routed(loop, end, other);
    const Connection connection = co_await std::move(connecting);
    Operation receive = end->qp.recv(end->memory.slice());
    other.meet();
    std::optional<device::PacketLoss> loss;
    if (device::guest == 1) loss.emplace(100);

    const std::error_code noticed = co_await keep_alive(loop, end->qp, 1s);
    const std::error_code no_answer = make_wc_error(IBV_WC_RESP_TIMEOUT_ERR);
    std::error_code error;
    co_await receive.wait(error);
    if (noticed == std::errc::timed_out) {
        CHECK(error == no_answer);
    } else { // the retries of the device ended before; on iWARP, guest 0 ended the connection
        CHECK(noticed ==
              make_wc_error(device::is_iwarp() ? IBV_WC_WR_FLUSH_ERR : IBV_WC_RETRY_EXC_ERR));
        CHECK(error == noticed);
    }
    loss.reset();
    other.meet();
}

} // namespace

TEST_CASE("link: keep_alive notices a cut while nothing is sent") {
    EpollExecutor loop;
    run_bounded(loop, notice_cut(loop));
}

TEST_CASE("link: one guest connects to the other, and disconnects") {
    EpollExecutor loop;
    run_bounded(loop, environment("SOFT_ROCE_GUEST") == "0" ? serve(loop) : dial(loop));
}

TEST_CASE("link: resolving an unused address fails after the timeout") {
    EpollExecutor loop;
    CHECK(run_bounded(loop, resolve_nobody(loop, {.timeout = 100ms})) == std::errc::timed_out);
}

TEST_CASE("link: resolving an address can be cancelled") {
    EpollExecutor loop;
    std::stop_source stop;
    const auto stop_soon = [&]() -> Task<> {
        co_await loop.sleep_for(20ms);
        stop.request_stop();
    };
    Scope scope;
    scope.spawn(stop_soon());
    const auto token = stop.get_token();
    CHECK(run_bounded(loop, resolve_nobody(loop, {.timeout = 60s}, token)) ==
          std::errc::operation_canceled);
}
