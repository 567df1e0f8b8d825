// SPDX-License-Identifier: MIT
// A connection that the connection manager has made, and the end of it. The data path is the
// caller's queue pair.
#pragma once

#include <rdma/rdma_cma.h>

#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <stop_token>
#include <utility>

#include <asyncverbs/cm/detail/cm_session.hpp>
#include <asyncverbs/cm/socket_address.hpp>
#include <asyncverbs/coro/task.hpp>

namespace asyncverbs {

/// Made by connect() and IncomingConnection::accept().
///
/// However it ends (by disconnect(), by the peer, with the device, or with this object) its queue
/// pair goes to the error state, so that all that is outstanding completes, and a peer that left is
/// answered, whether anybody waits or not. A peer that vanishes without a word is not noticed here,
/// but by the queue pair, when it sends.
///
/// Thread: that of the loop. Lifetime: does not keep the queue pair alive, which may go before. May
/// be destroyed at any time, which does not block: the peer is told, but only once, so that it may
/// never learn; coroutines that still wait get operation_canceled. Move-only; using a moved-from
/// Connection throws invalid_argument.
class Connection {
public:
    /// What the peer said with its part of the handshake; on InfiniBand and RoCE padded with zeros.
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

    /// Awaits the end of the connection: RDMA_CM_EVENT_DISCONNECTED, or
    /// RDMA_CM_EVENT_DEVICE_REMOVAL. Any number of coroutines may. Throws std::system_error:
    /// operation_canceled if `stop` is requested, from any thread, or this object destroyed; else
    /// what the notifier or rdma_get_cm_event fails with.
    [[nodiscard]] Task<rdma_cm_event_type> disconnected(std::stop_token stop = {}) {
        return detail::CmSession::ended(session_.shared(), "Connection::disconnected",
                                        detail::Deadline::never, std::move(stop));
    }

    /// Ends the connection and awaits the peer's answer, at most for `bound`; at once if it has
    /// ended before. What was posted and has not completed is flushed: await it first. Throws as
    /// disconnected(), timed_out if the peer does not answer, else naming rdma_disconnect; it is
    /// ended all the same.
    [[nodiscard]] Task<> disconnect(std::chrono::milliseconds bound = std::chrono::seconds(5),
                                    std::stop_token stop = {}) {
        return leave(session_.shared(), bound, std::move(stop));
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

    static Task<> leave(std::shared_ptr<detail::CmSession> session, std::chrono::milliseconds bound,
                        std::stop_token stop) {
        if (session->end()) co_return;
        session->disconnect();
        co_await detail::CmSession::ended(session, "rdma_disconnect",
                                          detail::Deadline::after(bound), std::move(stop));
    }

    detail::CmSessionOwner session_;
    detail::PrivateData private_data_;
};

} // namespace asyncverbs
