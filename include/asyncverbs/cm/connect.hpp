// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <rdma/rdma_cma.h>

#include <algorithm>
#include <chrono>
#include <concepts>
#include <exception>
#include <limits>
#include <optional>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/cm/connection.hpp>
#include <asyncverbs/cm/connection_options.hpp>
#include <asyncverbs/cm/detail/cm_queue_pair.hpp>
#include <asyncverbs/cm/detail/cm_session.hpp>
#include <asyncverbs/cm/socket_address.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

namespace asyncverbs {

class OutgoingConnection;

/// Finds the route to `host`, a name or an IPv4 or IPv6 address, and `service`, a port or the name
/// of one. Of several addresses it takes the first that has a route; if none has, it throws the
/// error of the first. Loop is an EpollExecutor, or any type that has `notifier(int fd)` that
/// returns a CqNotifier; it must outlive the operations awaited here and on the result.
///
/// Looking up a name blocks: pass an address if the loop must not stop. Throws std::system_error:
/// of the category "getaddrinfo" for an unknown name, timed_out, host_unreachable,
/// network_unreachable, no_such_device if no RDMA device leads there, invalid_argument for a
/// link-local IPv6 address without its interface ("fe80::1%eth0"), operation_canceled if `stop` is
/// requested, from any thread; other errors name the call that failed.
template <class Loop>
[[nodiscard]] Task<OutgoingConnection> resolve(Loop& loop, std::string host, std::string service,
                                               ResolveOptions options = {},
                                               std::stop_token stop = {});

/// Finds the route to `host` and `service`, and connects.
///
///     const auto make_qp = [&](const OutgoingConnection& outgoing) -> QueuePair& {
///         QueuePair& qp = …                // on outgoing.context()
///         outgoing.prepare(qp);            // and post receives, if the peer may send at once
///         return qp;
///     };
///     Connection connection = co_await connect(executor, "server", "7471", make_qp);
///
/// Tries the addresses of `host` in order until a peer accepts. Each gets an equal share of what is
/// left of `options.timeout`. If none accepts, throws the error of the first.
///
/// `make_queue_pair` is called for each address that is tried, when its device is known. It returns
/// another queue pair each time, which must live until it is called again or the connection is
/// made. Loop, lifetime and errors as for resolve() and OutgoingConnection::connect().
///
/// On iWARP the end that connects must send the first message. soft-iWARP (siw) blocks the loop: in
/// rdma_connect until the peer's TCP answers, and for up to 10 s if a request is given up that the
/// peer has not answered. It raises SIGPIPE in a program that sends after its peer has gone: ignore
/// that signal. On several CPUs it may not notice a first message that arrives while one of them
/// still accepts the connection, before the next message arrives.
template <class Loop, std::invocable<const OutgoingConnection&> MakeQueuePair>
[[nodiscard]] Task<Connection> connect(Loop& loop, std::string host, std::string service,
                                       MakeQueuePair make_queue_pair, ConnectOptions options = {},
                                       std::stop_token stop = {});

/// A connection whose route, and so its device, is known: the result of resolve().
///
///     OutgoingConnection outgoing = co_await resolve(executor, "server", "7471");
///     // … create a queue pair on outgoing.context()
///     outgoing.prepare(qp);
///     // … post receives for messages that the peer may send at once
///     Connection connection = co_await outgoing.connect(qp);
///
/// Thread, lifetime: as Connection.
class OutgoingConnection : public PendingConnection {
    struct ConnectOperation;

public:
    /// Connects `qp`, prepared or not, takes it to RTS, and gives the Connection. Once; another
    /// attempt begins with resolve(), and with `qp` in the error state. `qp` and
    /// `options.private_data` must live until the operation has ended, this object need not. Throws
    /// ConnectionRejected; else std::system_error: timed_out, host_unreachable, operation_canceled
    /// if `stop` is requested, from any thread; invalid_argument for options out of range; other
    /// errors name the call that failed.
    [[nodiscard]] ConnectOperation connect(const QueuePair& qp, ConnectOptions options = {},
                                           std::stop_token stop = {}) {
        return {std::move(session_), qp, options, std::move(stop)};
    }

private:
    template <class Loop>
    friend Task<OutgoingConnection> resolve(Loop&, std::string, std::string, ResolveOptions,
                                            std::stop_token);
    template <class Loop, std::invocable<const OutgoingConnection&> MakeQueuePair>
    friend Task<Connection> connect(Loop&, std::string, std::string, MakeQueuePair, ConnectOptions,
                                    std::stop_token);

    template <class Loop>
    static Task<OutgoingConnection> resolve_address(Loop& loop, SocketAddress address,
                                                    ResolveOptions options, std::stop_token stop);

    using PendingConnection::PendingConnection;

    struct ConnectOperation : detail::HandshakeOperation<ConnectOptions> {
        ConnectOperation(detail::CmSessionOwner session_owner, const QueuePair& queue_pair,
                         const ConnectOptions& chosen, std::stop_token token)
            : HandshakeOperation(std::move(session_owner), queue_pair, chosen, std::move(token),
                                 RDMA_CM_EVENT_CONNECT_RESPONSE, "rdma_connect to ") {}

        void start() {
            session = owner.shared();
            call += SocketAddress(*rdma_get_peer_addr(session->id())).text();
            begin(56);
            // On iWARP the kernel establishes the connection.
            if (detail::is_iwarp(*session->id()->verbs)) expected = RDMA_CM_EVENT_ESTABLISHED;
            detail::check_range("retry_count", options.retry_count, 0, 7, "a queue pair");
            detail::prepare(session->id(), qp);
            rdma_conn_param parameters = connection_parameters();
            parameters.retry_count = options.retry_count;
            session->connect(qp.shared_handle());
            detail::call_cm(call, rdma_connect, session->id(), &parameters);
        }
        Connection finish() {
            const detail::PrivateData reply = session->answer();
            if (!detail::is_iwarp(*session->id()->verbs)) {
                detail::activate(session->id(), qp, depths, options.min_rnr_timer);
                detail::call_cm("rdma_establish", rdma_establish, session->id());
            }
            return Connection(std::move(owner), reply);
        }
    };
};

template <class Loop>
Task<OutgoingConnection> OutgoingConnection::resolve_address(Loop& loop, SocketAddress address,
                                                             ResolveOptions options,
                                                             std::stop_token stop) {
    detail::check_range("timeout in milliseconds", options.timeout.count(), 0,
                        std::numeric_limits<int>::max(), "resolve");
    // Limits how long the kernel sends requests.
    const int timeout = static_cast<int>(options.timeout.count());
    detail::check_scope(address);
    detail::CmSessionOwner session{detail::LoopHandle(loop), detail::CmId()};
    session->run_on(session->loop());
    const std::string to_address = "rdma_resolve_addr to " + address.text();
    detail::call_cm(to_address, rdma_resolve_addr, session->id(), nullptr, address.native_handle(),
                    timeout);
    co_await detail::AnswerOperation(session.shared(), RDMA_CM_EVENT_ADDR_RESOLVED, to_address,
                                     options.timeout, stop);
    const std::string to_route = "rdma_resolve_route to " + address.text();
    detail::call_cm(to_route, rdma_resolve_route, session->id(), timeout);
    co_await detail::AnswerOperation(session.shared(), RDMA_CM_EVENT_ROUTE_RESOLVED, to_route,
                                     options.timeout, stop);
    co_return OutgoingConnection(std::move(session));
}

template <class Loop>
Task<OutgoingConnection> resolve(Loop& loop, std::string host, std::string service,
                                 ResolveOptions options, std::stop_token stop) {
    std::exception_ptr first;
    for (const SocketAddress& address : detail::find_addresses(host, service)) {
        try {
            co_return co_await OutgoingConnection::resolve_address(loop, address, options, stop);
        } catch (const std::system_error&) {
            if (stop.stop_requested()) throw;
            if (!first) first = std::current_exception();
        }
    }
    std::rethrow_exception(first);
}

template <class Loop, std::invocable<const OutgoingConnection&> MakeQueuePair>
Task<Connection> connect(Loop& loop, std::string host, std::string service,
                         MakeQueuePair make_queue_pair, ConnectOptions options,
                         std::stop_token stop) {
    using Clock = std::chrono::steady_clock;
    const std::vector<SocketAddress> addresses = detail::find_addresses(host, service);
    auto untried = static_cast<std::chrono::milliseconds::rep>(addresses.size());
    std::exception_ptr first;
    for (const SocketAddress& address : addresses) {
        std::optional<Clock::time_point> start;
        try {
            OutgoingConnection outgoing =
                co_await OutgoingConnection::resolve_address(loop, address, options.resolve, stop);
            const QueuePair& qp = make_queue_pair(outgoing);
            ConnectOptions share = options;
            share.timeout /= untried;
            start = Clock::now();
            co_return co_await outgoing.connect(qp, share, stop);
        } catch (const std::system_error&) {
            if (stop.stop_requested()) throw;
            if (!first) first = std::current_exception();
        }
        --untried;
        if (start) {
            options.timeout -=
                std::min(options.timeout,
                         std::chrono::ceil<std::chrono::milliseconds>(Clock::now() - *start));
        }
    }
    std::rethrow_exception(first);
}

} // namespace asyncverbs
