// SPDX-License-Identifier: MIT
// Reads completion events from a channel: the one place that does. Each that was read is to be
// acked, to the CQ that it names.
#pragma once

#include <infiniband/verbs.h>

#include <cerrno>

#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

/// The CQ of the next event; null if there is none. Throws std::system_error naming
/// ibv_get_cq_event.
inline ibv_cq* get_cq_event(ibv_comp_channel* channel) {
    for (;;) {
        ibv_cq* source = nullptr;
        void* context = nullptr;
        errno = 0;
        const int result = ibv_get_cq_event(channel, &source, &context);
        if (result == 0) return source;
        const int error = verb_errno(result);
        if (error == EINTR) continue;
        if (error == EAGAIN) return nullptr;
        throw_verb_error("ibv_get_cq_event", error);
    }
}

} // namespace asyncverbs::detail
