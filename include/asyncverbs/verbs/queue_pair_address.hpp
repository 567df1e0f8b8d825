// SPDX-License-Identifier: MIT
// What one end of a connection tells the other before they can talk.
// How it gets there (a TCP socket, a file, a shared variable) is the application's business.
#pragma once

#include <infiniband/verbs.h>

#include <cstdint>
#include <cstring>

namespace asyncverbs {

/// The address of a queue pair, in host byte order; made by QueuePair::local_address(), used by the
/// peer's QueuePair::connect().
struct QueuePairAddress {
    std::uint16_t lid = 0;    ///< of the port on InfiniBand; 0 on RoCE
    std::uint32_t qp_num = 0; ///< 24 bits
    std::uint32_t psn = 0;    ///< 24 bits: the first packet sequence number that this end sends
    ibv_gid gid{};            ///< all zero: reached by LID alone, possible on InfiniBand only

    /// Whether they are the same in all fields.
    friend bool operator==(const QueuePairAddress& a, const QueuePairAddress& b) noexcept {
        return a.lid == b.lid && a.qp_num == b.qp_num && a.psn == b.psn &&
               std::memcmp(a.gid.raw, b.gid.raw, sizeof a.gid.raw) == 0;
    }
};

} // namespace asyncverbs
