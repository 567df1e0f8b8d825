// SPDX-License-Identifier: MIT
// An identifier of the connection manager (rdma_cm_id) with an event channel of its own, which
// makes every event on the channel one of this identifier, or of a request that it got.
#pragma once

#include <rdma/rdma_cma.h>

#include <cerrno>
#include <optional>
#include <string>
#include <utility>

#include <asyncverbs/cm/detail/private_data.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/non_blocking.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

// Calls a function of librdmacm; if it fails, throws std::system_error, which says `what`.
template <class... Parameters, class... Arguments>
void call_cm(const std::string& what, int (*function)(Parameters...), Arguments... arguments) {
    errno = 0;
    if (const int result = function(arguments...)) {
        throw_verb_error(what.c_str(), verb_errno(result));
    }
}

struct DestroyCmId {
    void operator()(rdma_cm_id* id) const noexcept { rdma_destroy_id(id); }
};
using UniqueCmId = std::unique_ptr<rdma_cm_id, DestroyCmId>;

// A copy of an event, which is acknowledged already: rdma_destroy_id waits for all that were read.
template <class Use>
struct CmEvent {
    rdma_cm_event_type type;
    int status;
    PrivateData private_data;
    Used<UniqueCmId, Use> request; // RDMA_CM_EVENT_CONNECT_REQUEST: the identifier to answer with
};

template <class Use>
class CmId {
public:
    CmId() : channel_(open_channel()) {
        rdma_cm_id* id = nullptr;
        call_cm("rdma_create_id", rdma_create_id, channel_.get(), &id, nullptr, RDMA_PS_TCP);
        id_.reset(id);
    }

    /// Takes a request from the channel of the listener that got it.
    explicit CmId(Used<UniqueCmId, Use> request)
        : channel_(open_channel()), id_(std::move(request)) {
        // Waits for events of the request that were read from the old channel; there are none.
        call_cm("rdma_migrate_id", rdma_migrate_id, get(), channel_.get());
    }

    rdma_cm_id* get() const noexcept { return id_.get(); }
    int fd() const noexcept { return channel_->fd; }

    /// The next event, if there is one.
    std::optional<CmEvent<Use>> next_event() {
        rdma_cm_event* event = nullptr;
        for (;;) {
            errno = 0;
            const int result = rdma_get_cm_event(channel_.get(), &event);
            if (result == 0) break;
            const int error = verb_errno(result);
            if (error == EAGAIN) return std::nullopt;
            if (error != EINTR) throw_verb_error("rdma_get_cm_event", error);
        }
        CmEvent<Use> copy{event->event,
                          event->status,
                          {event->param.conn.private_data, event->param.conn.private_data_len},
                          {}};
        if (copy.type == RDMA_CM_EVENT_CONNECT_REQUEST) copy.request.reset(event->id);
        rdma_ack_cm_event(event);
        return copy;
    }

private:
    struct DestroyChannel {
        void operator()(rdma_event_channel* channel) const noexcept {
            rdma_destroy_event_channel(channel);
        }
    };
    using UniqueChannel = Used<std::unique_ptr<rdma_event_channel, DestroyChannel>, Use>;

    static UniqueChannel open_channel() {
        errno = 0;
        UniqueChannel channel(rdma_create_event_channel());
        if (!channel) throw_verb_error("rdma_create_event_channel", verb_errno());
        set_non_blocking(channel->fd);
        return channel;
    }

    UniqueChannel channel_;
    Used<UniqueCmId, Use> id_; // destroyed first
};

} // namespace asyncverbs::detail
