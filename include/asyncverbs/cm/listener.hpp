// SPDX-License-Identifier: MIT
// Waits for peers that want a connection.
#pragma once

#include <rdma/rdma_cma.h>

#include <cstdint>
#include <exception>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>

#include <asyncverbs/cm/connection_options.hpp>
#include <asyncverbs/cm/detail/addresses.hpp>
#include <asyncverbs/cm/detail/cm_session.hpp>
#include <asyncverbs/cm/incoming_connection.hpp>
#include <asyncverbs/cm/socket_address.hpp>
#include <asyncverbs/core/task.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs {

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
template <class Use>
class BasicListener {
public:
    /// On `host`, a name or an IPv4 or IPv6 address of an RDMA device; empty: on all of them, IPv4
    /// and IPv6. On `service`, a port or the name of one; empty: on a port that the system
    /// chooses. Loop and errors as resolve(), address_in_use besides.
    template <class Loop>
    BasicListener(Loop& loop, const std::string& host, const std::string& service,
                  const ListenerOptions& options = {})
        : BasicListener(detail::CmLoop(loop), host, service, options) {}

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
    [[nodiscard]] Task<BasicIncomingConnection<Use>> accept(std::stop_token stop = {}) {
        return accept(session_.shared(), std::move(stop));
    }

private:
    BasicListener(detail::CmLoop loop, const std::string& host, const std::string& service,
                  const ListenerOptions& options)
        : session_(loop, listen(host, service, options.backlog)) {}

    // On the first address where that is possible; the error is that of the first.
    static detail::CmId<Use> listen(const std::string& host, const std::string& service,
                                    int backlog) {
        detail::check_range("backlog", backlog, 1, 65'535, "a listener");
        std::exception_ptr first;
        for (SocketAddress& address : detail::find_addresses(host, service)) {
            try {
                detail::CmId<Use> id;
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

    static Task<BasicIncomingConnection<Use>>
    accept(std::shared_ptr<detail::CmSession<Use>> session, std::stop_token stop) {
        detail::CmEvent<Use> request =
            co_await detail::CmSession<Use>::request(session, std::move(stop));
        co_return BasicIncomingConnection<Use>(session->loop(), std::move(request));
    }

    detail::CmSessionOwner<Use> session_;
};

/// The Listener of programs: compiled only where it is used, but otherwise as a class.
using Listener = BasicListener<OnUse>;

} // namespace asyncverbs
