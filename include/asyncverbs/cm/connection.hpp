// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <rdma/rdma_cma.h>

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <utility>

#include <asyncverbs/cm/detail/cm_queue_pair.hpp>
#include <asyncverbs/cm/detail/cm_session.hpp>
#include <asyncverbs/cm/socket_address.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

namespace asyncverbs {

/// A connection, made by connect() or IncomingConnection::accept(). Data is transferred by the
/// caller's queue pair.
///
/// When the connection ends (by disconnect(), by the peer, with the device, or with this object),
/// its queue pair goes to the error state, so that all outstanding work requests complete, and a
/// peer that disconnected is answered, even if no coroutine waits for that. A peer that vanishes
/// without a message is not noticed here, but by the queue pair when it sends; see keep_alive().
///
/// Thread: that of the loop. Lifetime: does not keep the queue pair alive, which may be destroyed
/// first. May be destroyed at any time, which does not block: the peer is told, but only once, so
/// the message may be lost; coroutines that still wait get operation_canceled. Move-only; using a
/// moved-from Connection throws invalid_argument.
class Connection {
    struct EndOperation;
    struct DisconnectOperation;

public:
    /// The peer's private data from the handshake; on InfiniBand and RoCE padded with zeros.
    [[nodiscard]] std::span<const std::byte> private_data() const noexcept {
        return private_data_.bytes();
    }

    /// The address of this end.
    [[nodiscard]] SocketAddress local_address() const {
        return SocketAddress(*rdma_get_local_addr(session_->id()));
    }

    /// The address of the other end.
    [[nodiscard]] SocketAddress peer_address() const {
        return SocketAddress(*rdma_get_peer_addr(session_->id()));
    }

    /// Awaits the end of the connection; gives its rdma_cm_event_type: RDMA_CM_EVENT_DISCONNECTED
    /// or RDMA_CM_EVENT_DEVICE_REMOVAL. Any number of coroutines may wait. Throws
    /// std::system_error: operation_canceled if `stop` is requested, from any thread, or this
    /// object is destroyed; else the error of the notifier or of rdma_get_cm_event.
    [[nodiscard]] EndOperation disconnected(std::stop_token stop = {}) {
        return {session_.shared(), "Connection::disconnected", {}, std::move(stop)};
    }

    /// Ends the connection and awaits the peer's answer, for at most `timeout`; completes at once
    /// if the connection has ended before. Outstanding work requests are flushed: await them first.
    /// Throws as disconnected(), timed_out if the peer does not answer, else naming
    /// rdma_disconnect; the connection has ended in any case.
    [[nodiscard]] DisconnectOperation
    disconnect(std::chrono::milliseconds timeout = std::chrono::seconds(5),
               std::stop_token stop = {}) {
        return {session_.shared(), "rdma_disconnect", timeout, std::move(stop)};
    }

    /// For calls that this library does not cover; nullptr when moved from. Its events are taken.
    [[nodiscard]] rdma_cm_id* native_handle() const noexcept {
        return session_ ? session_->id() : nullptr;
    }

private:
    friend class IncomingConnection;
    friend class OutgoingConnection;

    Connection(detail::CmSessionOwner session, const detail::PrivateData& private_data) noexcept
        : session_(std::move(session)), private_data_(private_data) {
        session_->establish();
    }

    struct EndOperation : detail::CmOperation {
        using Result = rdma_cm_event_type;

        EndOperation(std::shared_ptr<detail::CmSession> of, const char* by,
                     std::optional<std::chrono::milliseconds> limit, std::stop_token token)
            : CmOperation{std::move(of), by, limit, std::move(token)} {}

        bool ready(const detail::TimedWakeFd&) const { return session->end().has_value(); }
        rdma_cm_event_type finish() const { return *session->end(); }
    };

    struct DisconnectOperation : EndOperation {
        using Result = void;
        using EndOperation::EndOperation;

        void start() const {
            if (!session->end()) session->disconnect();
        }
        void finish() const {}
    };

    detail::CmSessionOwner session_;
    detail::PrivateData private_data_;
};

/// A connection in the making: the base of OutgoingConnection and IncomingConnection.
class PendingConnection {
public:
    /// The device of the route; opened by librdmacm, which keeps it open.
    [[nodiscard]] Context context() const { return detail::context_of(session_->id()); }

    /// The address of this end.
    [[nodiscard]] SocketAddress local_address() const {
        return SocketAddress(*rdma_get_local_addr(session_->id()));
    }

    /// The address of the other end.
    [[nodiscard]] SocketAddress peer_address() const {
        return SocketAddress(*rdma_get_peer_addr(session_->id()));
    }

    /// RESET to INIT, after which receives can be posted. Throws std::system_error:
    /// invalid_argument for a queue pair on another device than context(), else naming
    /// rdma_init_qp_attr or ibv_modify_qp.
    void prepare(const QueuePair& qp) const { detail::prepare(session_->id(), qp); }

protected:
    /// Used by the connection manager.
    explicit PendingConnection(detail::CmSessionOwner session) noexcept
        : session_(std::move(session)) {}

    detail::CmSessionOwner session_; ///< Used by the connection manager.
};

} // namespace asyncverbs
