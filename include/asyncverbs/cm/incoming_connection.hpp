// SPDX-License-Identifier: MIT
// A request for a connection, to be accepted or rejected.
#pragma once

#include <rdma/rdma_cma.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <stop_token>
#include <utility>

#include <asyncverbs/cm/connection.hpp>
#include <asyncverbs/cm/connection_options.hpp>
#include <asyncverbs/cm/detail/cm_queue_pair.hpp>
#include <asyncverbs/cm/detail/cm_session.hpp>
#include <asyncverbs/cm/socket_address.hpp>
#include <asyncverbs/core/task.hpp>
#include <asyncverbs/verbs/context.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

namespace asyncverbs {

/// Made by Listener::accept(), which it may outlive. Destroying it rejects the request.
///
/// Thread: that of the loop. Move-only; of one that was moved from, or has been answered, nothing
/// is left but private_data(): the rest throws invalid_argument.
template <class Use>
class BasicIncomingConnection {
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
    [[nodiscard]] Task<BasicConnection<Use>> accept(const QueuePair& qp, AcceptOptions options = {},
                                                    std::stop_token stop = {}) {
        return accept(std::move(session_), qp, options, std::move(stop));
    }

    /// Turns the request down; the peer gets a ConnectionRejected with `private_data`, of which
    /// InfiniBand and RoCE carry up to 148 bytes. Throws std::system_error: invalid_argument for
    /// more than that, else naming rdma_reject.
    void reject(std::span<const std::byte> private_data = {}) {
        detail::check_private_data(private_data, 148);
        const detail::CmSessionOwner<Use> session = std::move(session_);
        detail::call_cm("rdma_reject", rdma_reject, session->id(), private_data.data(),
                        static_cast<std::uint8_t>(private_data.size()));
    }

private:
    template <class>
    friend class BasicListener;

    BasicIncomingConnection(detail::CmLoop loop, detail::CmEvent<Use> request)
        : session_(loop, detail::CmId<Use>(std::move(request.request))),
          private_data_(request.private_data) {}

    rdma_cm_id* id() const { return session_->id(); }

    static Task<BasicConnection<Use>> accept(detail::CmSessionOwner<Use> session,
                                             const QueuePair& qp, AcceptOptions options,
                                             std::stop_token stop) {
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
        co_await detail::CmSession<Use>::answer(session.shared(), RDMA_CM_EVENT_ESTABLISHED,
                                                "rdma_accept", options.timeout, std::move(stop));
        co_return BasicConnection<Use>(std::move(session), {});
    }

    detail::CmSessionOwner<Use> session_;
    detail::PrivateData private_data_;
};

/// The IncomingConnection of programs: compiled only where it is used, but otherwise as a class.
using IncomingConnection = BasicIncomingConnection<OnUse>;

} // namespace asyncverbs
