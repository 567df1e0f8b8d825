// SPDX-License-Identifier: MIT
// A request for a connection, to be accepted or rejected.
#pragma once

#include <rdma/rdma_cma.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
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

/// Made by Listener::accept(), which it may outlive. Destroying it rejects the request.
///
/// Thread: that of the loop. Move-only; of one that was moved from, or has been answered, nothing
/// is left but private_data(): the rest throws invalid_argument.
class IncomingConnection {
public:
    /// What the peer said with its request; on InfiniBand and RoCE padded with zeros.
    [[nodiscard]] std::span<const std::byte> private_data() const noexcept {
        return private_data_.bytes();
    }

    /// The device that the request came over; librdmacm's own, which keeps it open.
    [[nodiscard]] Context context() const { return detail::context_of(id()); }

    /// The address of this end.
    [[nodiscard]] SocketAddress local_address() const {
        return SocketAddress(*rdma_get_local_addr(id()));
    }

    /// The address of the other end.
    [[nodiscard]] SocketAddress peer_address() const {
        return SocketAddress(*rdma_get_peer_addr(id()));
    }

    /// RESET to INIT, whereupon receives can be posted; errors as OutgoingConnection::prepare().
    void prepare(const QueuePair& qp) const { detail::prepare(id(), qp); }

    /// Connects `qp`, prepared or not, takes it to RTS, and awaits the peer's confirmation. `qp`
    /// and `options.private_data` stay until it has ended, this object need not. Throws
    /// std::system_error: connection_reset if the peer has left, timed_out, operation_canceled if
    /// `stop` is requested, from any thread; invalid_argument for options out of range; or what
    /// names the call that failed.
    [[nodiscard]] Task<Connection> accept(const QueuePair& qp, AcceptOptions options = {},
                                          std::stop_token stop = {}) {
        return accept(std::move(session_), qp, options, std::move(stop));
    }

    /// Turns the request down; the peer gets a ConnectionRejected with `private_data`, of which
    /// InfiniBand and RoCE carry up to 148 bytes. Throws std::system_error: invalid_argument for
    /// more than that, else naming rdma_reject.
    void reject(std::span<const std::byte> private_data = {}) {
        detail::check_private_data(private_data, 148);
        const detail::CmSessionOwner session = std::move(session_);
        detail::call_cm("rdma_reject", rdma_reject, session->id(), private_data.data(),
                        static_cast<std::uint8_t>(private_data.size()));
    }

private:
    friend class Listener;

    IncomingConnection(detail::CmLoop loop, detail::CmEvent request)
        : session_(loop, detail::CmId(std::move(request.request))),
          private_data_(request.private_data) {}

    rdma_cm_id* id() const { return session_->id(); }

    static Task<Connection> accept(detail::CmSessionOwner session, const QueuePair& qp,
                                   AcceptOptions options, std::stop_token stop) {
        rdma_cm_id* const id = session->id();
        detail::check_private_data(options.private_data, 196);
        detail::check_retries(0, options.rnr_retry_count, options.min_rnr_timer);
        session->connect(qp.shared_handle());
        const detail::ReadDepths depths =
            detail::activate(id, qp,
                             detail::limit({options.responder_resources, options.initiator_depth},
                                           detail::context_of(id)),
                             options.min_rnr_timer);
        rdma_conn_param parameters =
            detail::connection_parameters(qp, options.private_data, depths);
        parameters.rnr_retry_count = options.rnr_retry_count;
        detail::call_cm("rdma_accept", rdma_accept, id, &parameters);
        co_await detail::CmSession::answer(session.shared(), RDMA_CM_EVENT_ESTABLISHED,
                                           "rdma_accept", options.timeout, std::move(stop));
        co_return Connection(std::move(session), {});
    }

    detail::CmSessionOwner session_;
    detail::PrivateData private_data_;
};

/// Listens from its construction on.
///
///     Listener listener(executor, "", "7471");
///     for (;;) {
///         IncomingConnection incoming = co_await listener.accept();
///         scope.spawn(serve(std::move(incoming)));
///     }
///
/// Thread: that of the loop. Lifetime: may be destroyed at any time, which does not block: requests
/// that nobody has taken are rejected, coroutines that still wait get operation_canceled, and
/// connections that were accepted stay. Move-only; using a moved-from Listener throws
/// invalid_argument.
class Listener {
public:
    /// On `host`, a name or an IPv4 or IPv6 address of an RDMA device; empty: on all of them, IPv4
    /// and IPv6. On `service`, a port or the name of one; empty: on a port that the system
    /// chooses. Loop and errors as resolve(), address_in_use besides.
    template <class Loop>
    Listener(Loop& loop, const std::string& host, const std::string& service,
             const ListenerOptions& options = {})
        : Listener(detail::CmLoop(loop), host, service, options) {}

    /// The port, also where the system has chosen it.
    [[nodiscard]] std::uint16_t port() const { return local_address().port(); }

    /// The address that it is bound to: the wildcard address where it listens on all devices.
    [[nodiscard]] SocketAddress local_address() const {
        return SocketAddress(*rdma_get_local_addr(session_->id()));
    }

    /// The next request. Any number of coroutines may wait: first come, first served. Throws
    /// std::system_error: operation_canceled if `stop` is requested, from any thread, or the
    /// listener destroyed; else naming the call that failed. A request that could not be taken over
    /// is rejected, and the next one may succeed.
    [[nodiscard]] Task<IncomingConnection> accept(std::stop_token stop = {}) {
        return accept(session_.shared(), std::move(stop));
    }

private:
    Listener(detail::CmLoop loop, const std::string& host, const std::string& service,
             const ListenerOptions& options)
        : session_(loop, listen(host, service, options.backlog)) {}

    // On the first address where that is possible; the error is that of the first.
    static detail::CmId listen(const std::string& host, const std::string& service, int backlog) {
        detail::check_range("backlog", backlog, 1, 65'535, "a listener");
        std::exception_ptr first;
        for (SocketAddress& address : detail::find_addresses(host, service)) {
            try {
                detail::CmId id;
                detail::call_cm("rdma_bind_addr to " + address.text(), rdma_bind_addr, id.get(),
                                address.native_handle());
                detail::call_cm("rdma_listen", rdma_listen, id.get(), backlog);
                return id;
            } catch (const std::system_error&) {
                if (!first) first = std::current_exception();
            }
        }
        std::rethrow_exception(first);
    }

    static Task<IncomingConnection> accept(std::shared_ptr<detail::CmSession> session,
                                           std::stop_token stop) {
        detail::CmEvent request = co_await detail::CmSession::request(session, std::move(stop));
        co_return IncomingConnection(session->loop(), std::move(request));
    }

    detail::CmSessionOwner session_;
};

} // namespace asyncverbs
