// SPDX-License-Identifier: MIT
// A connection to a peer in the making: the way is known, and with it the device that a queue pair
// has to be made on.
#pragma once

#include <rdma/rdma_cma.h>

#include <concepts>
#include <exception>
#include <limits>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>

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

namespace detail {
inline Task<OutgoingConnection> resolve(CmLoop loop, std::string host, std::string service,
                                        ResolveOptions options, std::stop_token stop);
} // namespace detail

/// Made by resolve().
///
///     OutgoingConnection outgoing = co_await resolve(executor, "server", "7471");
///     // … a queue pair on outgoing.context()
///     outgoing.prepare(qp);
///     // … receives for what the peer may send at once
///     Connection connection = co_await outgoing.connect(qp);
///
/// Thread, lifetime: as Connection.
class OutgoingConnection {
public:
    /// The device that the way leads over; librdmacm's own, which keeps it open.
    [[nodiscard]] Context context() const { return detail::context_of(id()); }

    /// The address of this end.
    [[nodiscard]] SocketAddress local_address() const {
        return SocketAddress(*rdma_get_local_addr(id()));
    }

    /// The address of the other end.
    [[nodiscard]] SocketAddress peer_address() const {
        return SocketAddress(*rdma_get_peer_addr(id()));
    }

    /// RESET to INIT, whereupon receives can be posted. Throws std::system_error: invalid_argument
    /// for a queue pair on another device than context(), else naming rdma_init_qp_attr or
    /// ibv_modify_qp.
    void prepare(const QueuePair& qp) const { detail::prepare(id(), qp); }

    /// Connects `qp`, prepared or not, and takes it to RTS. Once; another attempt begins with
    /// resolve(), and with `qp` in the error state. `qp` and `options.private_data` stay until it
    /// has ended, this object need not. Throws ConnectionRejected; else
    /// std::system_error: timed_out, host_unreachable, operation_canceled if `stop` is requested,
    /// from any thread; invalid_argument for options out of range; or what names the call that
    /// failed.
    [[nodiscard]] Task<Connection> connect(const QueuePair& qp, ConnectOptions options = {},
                                           std::stop_token stop = {}) {
        return connect(std::move(session_), qp, options, std::move(stop));
    }

private:
    friend Task<OutgoingConnection> detail::resolve(detail::CmLoop, std::string, std::string,
                                                    ResolveOptions, std::stop_token);

    explicit OutgoingConnection(detail::CmSessionOwner session) noexcept
        : session_(std::move(session)) {}

    rdma_cm_id* id() const { return session_->id(); }

    static Task<Connection> connect(detail::CmSessionOwner session, const QueuePair& qp,
                                    ConnectOptions options, std::stop_token stop) {
        rdma_cm_id* const id = session->id();
        detail::check_private_data(options.private_data, 56);
        detail::check_retries(options.retry_count, options.rnr_retry_count, options.min_rnr_timer);
        detail::prepare(id, qp);
        const detail::ReadDepths depths = detail::limit(
            {options.responder_resources, options.initiator_depth}, detail::context_of(id));
        rdma_conn_param parameters =
            detail::connection_parameters(qp, options.private_data, depths);
        parameters.retry_count = options.retry_count;
        parameters.rnr_retry_count = options.rnr_retry_count;

        const std::string step = "rdma_connect to " + SocketAddress(*rdma_get_peer_addr(id)).text();
        session->connect(qp.shared_handle());
        detail::call_cm(step, rdma_connect, id, &parameters);
        const detail::PrivateData reply =
            co_await detail::CmSession::answer(session.shared(), RDMA_CM_EVENT_CONNECT_RESPONSE,
                                               step, options.timeout, std::move(stop));
        detail::activate(id, qp, depths, options.min_rnr_timer);
        detail::call_cm("rdma_establish", rdma_establish, id);
        co_return Connection(std::move(session), reply);
    }

    detail::CmSessionOwner session_;
};

namespace detail {

inline Task<CmSessionOwner> find_way(CmLoop loop, SocketAddress address, ResolveOptions options,
                                     std::stop_token stop) {
    CmSessionOwner session(loop, CmId());
    // The kernel's own bound, beyond which it sends no more questions.
    const int timeout = static_cast<int>(options.timeout.count());
    std::string step = "rdma_resolve_addr to " + address.text();
    call_cm(step, rdma_resolve_addr, session->id(), nullptr, address.native_handle(), timeout);
    co_await CmSession::answer(session.shared(), RDMA_CM_EVENT_ADDR_RESOLVED, step, options.timeout,
                               stop);
    step = "rdma_resolve_route to " + address.text();
    call_cm(step, rdma_resolve_route, session->id(), timeout);
    co_await CmSession::answer(session.shared(), RDMA_CM_EVENT_ROUTE_RESOLVED, step,
                               options.timeout, stop);
    co_return session;
}

inline Task<OutgoingConnection> resolve(CmLoop loop, std::string host, std::string service,
                                        ResolveOptions options, std::stop_token stop) {
    check_range("timeout in milliseconds", options.timeout.count(), 0,
                std::numeric_limits<int>::max(), "resolve");
    std::exception_ptr first;
    for (const SocketAddress& address : find_addresses(host, service)) {
        try {
            co_return OutgoingConnection(co_await find_way(loop, address, options, stop));
        } catch (const std::system_error&) {
            if (stop.stop_requested()) throw;
            if (!first) first = std::current_exception();
        }
    }
    std::rethrow_exception(first);
}

} // namespace detail

/// Finds the way to `host`, a name or an IPv4 or IPv6 address, and to `service`, a port or the name
/// of one. Of several addresses the first one to which there is a way; the error is that of the
/// first. Loop is an EpollExecutor or whatever else has `notifier(int fd)` that returns a
/// CqNotifier; it must outlive what is awaited here and on what this gives.
///
/// Looking up a name blocks: give an address where the loop must not stop. Throws
/// std::system_error: of the category "getaddrinfo" for a name that is not known, timed_out,
/// host_unreachable, network_unreachable, no_such_device where no RDMA device leads there,
/// operation_canceled if `stop` is requested, from any thread; all that names the call that failed.
template <class Loop>
[[nodiscard]] Task<OutgoingConnection> resolve(Loop& loop, std::string host, std::string service,
                                               ResolveOptions options = {},
                                               std::stop_token stop = {}) {
    return detail::resolve(detail::CmLoop(loop), std::move(host), std::move(service), options,
                           std::move(stop));
}

/// Finds the way to `host` and `service`, and asks for a connection there.
///
///     const auto make_qp = [&](const OutgoingConnection& outgoing) -> QueuePair& {
///         QueuePair& qp = …                // on outgoing.context()
///         outgoing.prepare(qp);            // and post receives, if the peer may send at once
///         return qp;
///     };
///     Connection connection = co_await connect(executor, "server", "7471", make_qp);
///
/// `make_queue_pair` is called when the device is known; its result stays until the connection is
/// made. Loop, lifetime and errors are those of resolve() and OutgoingConnection::connect().
template <class Loop, std::invocable<const OutgoingConnection&> MakeQueuePair>
[[nodiscard]] Task<Connection> connect(Loop& loop, std::string host, std::string service,
                                       MakeQueuePair make_queue_pair, ConnectOptions options = {},
                                       std::stop_token stop = {}) {
    OutgoingConnection outgoing =
        co_await resolve(loop, std::move(host), std::move(service), options.resolve, stop);
    const QueuePair& qp = make_queue_pair(outgoing);
    co_return co_await outgoing.connect(qp, options, std::move(stop));
}

} // namespace asyncverbs
