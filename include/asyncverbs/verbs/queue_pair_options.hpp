// SPDX-License-Identifier: MIT
// What one end of a connection tells the other before they can talk.
// How it gets there (a TCP socket, a file, a shared variable) is the application's business.
#pragma once

#include <infiniband/verbs.h>

#include <cstdint>
#include <cstring>
#include <optional>

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

/// What a queue pair is made with. Beyond the device's limits creation fails and says the limit.
struct QueuePairOptions {
    ibv_qp_type type = IBV_QPT_RC;     ///< or IBV_QPT_UD
    std::uint32_t max_send_wr = 16;    ///< work requests in the send queue that are outstanding
    std::uint32_t max_recv_wr = 16;    ///< receives that are outstanding
    std::uint32_t max_send_sge = 1;    ///< scatter/gather elements of one send
    std::uint32_t max_recv_sge = 1;    ///< scatter/gather elements of one receive
    std::uint32_t max_inline_data = 0; ///< bytes of a send that is posted inline
    bool sq_sig_all = false;           ///< every send completes, with IBV_SEND_SIGNALED or without
};

/// RESET to INIT: which port and GID to use, and what peers may do.
struct InitOptions {
    int port = 0; ///< from 1; 0: the device's first active port
    /// none: select_gid()
    std::optional<int> gid_index = std::nullopt;
    /// of the first packet sent; none: arbitrary
    std::optional<std::uint32_t> psn = std::nullopt;
    std::uint16_t pkey_index = 0; ///< in the partition key table of the port
    /// RC: what RDMA of the peer may do, where the memory region allows it too
    int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE;
    std::uint32_t qkey = 0x11111111; ///< UD: both ends have the same
};

/// INIT to RTR, ready to receive (RC): the path to the peer.
struct RtrOptions {
    /// none: the port's; both ends must agree
    std::optional<ibv_mtu> path_mtu = std::nullopt;
    std::uint8_t max_dest_rd_atomic = 1; ///< RDMA reads and atomics of the peer served at a time
    std::uint8_t min_rnr_timer = 12;     ///< 0 to 31: 12 is 0.64 ms
    std::uint8_t service_level = 0;      ///< 0 to 15
    std::uint8_t hop_limit = 64;         ///< routers on the way, on RoCE v2 and global routes
    std::uint8_t traffic_class = 0;      ///< of the IP packets, on RoCE v2 and global routes
    std::uint32_t flow_label = 0;        ///< likewise, 20 bits
};

/// RTR to RTS, ready to send (RC): how hard to try.
struct RtsOptions {
    std::uint8_t timeout = 14;      ///< 0 to 31: 4.096 us * 2^timeout; 14 is 67 ms, 0 is for ever
    std::uint8_t retry_cnt = 7;     ///< 0 to 7: repeats where the peer does not answer; soft-RoCE
                                    ///< takes 7 for no limit, and never reports a dead peer; with
                                    ///< less it counts the waits for a receive, too
    std::uint8_t rnr_retry = 7;     ///< 0 to 7: repeats where the peer has no receive; 7: no limit
    std::uint8_t max_rd_atomic = 1; ///< own RDMA reads and atomics at a time, at most the peer's
                                    ///< max_dest_rd_atomic
};

} // namespace asyncverbs
