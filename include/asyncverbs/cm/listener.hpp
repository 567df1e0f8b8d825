// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <rdma/rdma_cma.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
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
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

namespace asyncverbs {

/// A request for a connection, made by Listener::accept(), whose listener it may outlive.
/// Destroying it rejects the request.
///
/// Thread: any, one at a time. It belongs to no loop before it is accepted, so one listener can
/// feed the loops of many threads:
///
///     // on the listener's thread
///     auto incoming = std::make_shared<IncomingConnection>(co_await listener.accept());
///     pool[core].post([&, incoming] { scopes[core].spawn(serve(pool[core], incoming)); });
///     // in serve(), on the thread of that core
///     Connection connection = co_await incoming->accept(executor, qp.queue_pair());
///
/// A loop that is stopped keeps the request for its next run, and rejects it when it is destroyed.
/// Move-only; after a move or an answer only private_data() is valid: the other functions throw
/// invalid_argument.
class IncomingConnection : public PendingConnection {
    struct AcceptOperation;

public:
    /// The peer's private data; on InfiniBand and RoCE padded with zeros.
    [[nodiscard]] std::span<const std::byte> private_data() const noexcept {
        return private_data_.bytes();
    }

    /// Connects `qp`, prepared or not, takes it to RTS, awaits the peer's confirmation, and gives
    /// the Connection. `qp` and `options.private_data` must live until the operation has ended,
    /// this object need not. Throws std::system_error: connection_reset if the peer has left,
    /// timed_out, operation_canceled if `stop` is requested, from any thread; invalid_argument for
    /// options out of range; other errors name the call that failed. On iWARP the peer must send
    /// the first message.
    [[nodiscard]] AcceptOperation accept(const QueuePair& qp, AcceptOptions options = {},
                                         std::stop_token stop = {}) {
        return {std::move(session_), {}, qp, options, std::move(stop)};
    }

    /// The same on `loop` instead of the loop of the listener: to be called and awaited on its
    /// thread, to which the Connection then belongs.
    template <class Loop>
    [[nodiscard]] AcceptOperation accept(Loop& loop, const QueuePair& qp,
                                         AcceptOptions options = {}, std::stop_token stop = {}) {
        return {std::move(session_), detail::LoopHandle(loop), qp, options, std::move(stop)};
    }

    /// Rejects the request; the peer gets a ConnectionRejected with `private_data`, which on
    /// InfiniBand and RoCE is at most 148 bytes. Throws std::system_error: invalid_argument for
    /// more than that, else naming rdma_reject.
    void reject(std::span<const std::byte> private_data = {}) {
        detail::check_private_data(private_data, 148);
        const detail::CmSessionOwner session = std::move(session_);
        detail::call_cm("rdma_reject", rdma_reject, session->id(), private_data.data(),
                        static_cast<std::uint8_t>(private_data.size()));
    }

private:
    friend class Listener;

    IncomingConnection(detail::LoopHandle loop, detail::CmEvent request)
        : PendingConnection({loop, detail::CmId(std::move(request.request))}),
          private_data_(request.private_data) {}

    struct AcceptOperation : detail::HandshakeOperation<AcceptOptions> {
        // Without a loop: that of the listener.
        AcceptOperation(detail::CmSessionOwner session_owner, std::optional<detail::LoopHandle> on,
                        const QueuePair& queue_pair, const AcceptOptions& chosen,
                        std::stop_token token)
            : HandshakeOperation(std::move(session_owner), queue_pair, chosen, std::move(token),
                                 RDMA_CM_EVENT_ESTABLISHED, "rdma_accept"),
              loop(on) {}

        void start() {
            session = owner.shared();
            session->run_on(loop.value_or(session->loop()));
            begin(196);
            session->connect(qp.shared_handle());
            detail::activate(session->id(), qp, depths, options.min_rnr_timer);
            rdma_conn_param parameters = connection_parameters();
            detail::call_cm(call, rdma_accept, session->id(), &parameters);
        }
        Connection finish() { return Connection(std::move(owner), {}); }

        std::optional<detail::LoopHandle> loop;
    };

    detail::PrivateData private_data_;
};

/// Receives requests for connections from its construction on.
///
///     Listener listener(executor, "", "7471");
///     for (;;) {
///         IncomingConnection incoming = co_await listener.accept();
///         scope.spawn(serve(std::move(incoming)));
///     }
///
/// Thread: that of the loop. Lifetime: may be destroyed at any time, which does not block: requests
/// that were not taken are rejected, coroutines that still wait get operation_canceled, and
/// accepted connections stay. Move-only; using a moved-from Listener throws invalid_argument.
class Listener {
    struct AcceptOperation;

public:
    /// Listens on `host`, a name or an IPv4 or IPv6 address of an RDMA device; empty: on all of
    /// them, IPv4 and IPv6. `service` is a port or the name of one; empty: a port that the system
    /// chooses. Loop and errors as for resolve(), and address_in_use.
    template <class Loop>
    Listener(Loop& loop, const std::string& host, const std::string& service,
             const ListenerOptions& options = {})
        : Listener(detail::LoopHandle(loop), host, service, options) {}

    /// The port, also if the system has chosen it.
    [[nodiscard]] std::uint16_t port() const { return local_address().port(); }

    /// The address that it is bound to: the wildcard address if it listens on all devices.
    [[nodiscard]] SocketAddress local_address() const {
        return SocketAddress(*rdma_get_local_addr(session_->id()));
    }

    /// Awaits the next request and gives it as an IncomingConnection. Any number of coroutines may
    /// wait: first come, first served. Throws std::system_error: operation_canceled if `stop` is
    /// requested, from any thread, or the listener is destroyed; else naming the call that failed.
    /// A stopped call takes no request: it waits for the next call, and as many others as the
    /// backlog of ListenerOptions. A request for which that call was made is rejected, and the next
    /// one may succeed.
    [[nodiscard]] AcceptOperation accept(std::stop_token stop = {}) {
        return {session_.shared(), std::move(stop)};
    }

private:
    Listener(detail::LoopHandle loop, const std::string& host, const std::string& service,
             const ListenerOptions& options)
        : session_(loop, listen(host, service, options.backlog)) {
        session_->run_on(loop);
    }

    // Listens on the first address that allows it; if none does, throws the error of the first. An
    // empty host is listened to on IPv6 and on IPv4, by one identifier each: an iWARP device does
    // not give the requests of IPv4 peers to a listener on IPv6.
    static detail::CmId listen(const std::string& host, const std::string& service, int backlog) {
        detail::check_range("backlog", backlog, 1, 65'535, "a listener");
        std::optional<detail::CmId> listener;
        std::exception_ptr first;
        for (SocketAddress& address : detail::find_addresses(host, service)) {
            if (listener) {
                address.set_port(SocketAddress(*rdma_get_local_addr(listener->get())).port());
                start(listener->add(), address, backlog);
                break;
            }
            try {
                detail::CmId id;
                start(id.get(), address, backlog);
                listener = std::move(id);
            } catch (const std::system_error&) {
                if (!first) first = std::current_exception();
            }
            if (listener && !host.empty()) break;
        }
        if (!listener) std::rethrow_exception(first);
        return std::move(*listener);
    }

    static void start(rdma_cm_id* id, SocketAddress& address, int backlog) {
        int one = 1; // an IPv6 address leaves IPv4 to another identifier
        detail::call_cm("rdma_set_option", rdma_set_option, id, RDMA_OPTION_ID,
                        RDMA_OPTION_ID_AFONLY, &one, sizeof one);
        bind(id, address);
        detail::call_cm("rdma_listen", rdma_listen, id, backlog);
    }

    // The kernel reports address_not_available for a port that is in use, too, if one of the two
    // listeners is bound to all addresses.
    static void bind(rdma_cm_id* id, SocketAddress& address) {
        detail::check_scope(address);
        const std::string call = "rdma_bind_addr to " + address.text();
        try {
            detail::call_cm(call, rdma_bind_addr, id, address.native_handle());
        } catch (const std::system_error& error) {
            if (error.code() != std::errc::address_not_available) throw;
            address.set_port(0);
            if (rdma_bind_addr(id, address.native_handle()) != 0) throw;
            detail::throw_error(std::errc::address_in_use, call);
        }
    }

    struct AcceptOperation : detail::CmOperation {
        using Result = IncomingConnection;

        AcceptOperation(std::shared_ptr<detail::CmSession> of, std::stop_token token)
            : CmOperation{std::move(of), "Listener::accept", {}, std::move(token)} {}

        bool ready(const detail::TimedWakeFd& waiter) const {
            // A cancelled waiter leaves the request to the next one.
            if (stop.stop_requested()) detail::throw_error(std::errc::operation_canceled, call);
            return session->has_request(waiter, call);
        }
        IncomingConnection finish() const { return {session->loop(), session->take_request()}; }
    };

    detail::CmSessionOwner session_;
};

} // namespace asyncverbs
