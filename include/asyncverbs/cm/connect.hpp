// SPDX-License-Identifier: MIT
// From a host's name to a connection in one go.
#pragma once

#include <concepts>
#include <stop_token>
#include <string>
#include <utility>

#include <asyncverbs/cm/connection.hpp>
#include <asyncverbs/cm/connection_options.hpp>
#include <asyncverbs/cm/outgoing_connection.hpp>
#include <asyncverbs/core/task.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

namespace asyncverbs {

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
