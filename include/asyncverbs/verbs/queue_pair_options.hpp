// SPDX-License-Identifier: MIT
// The address of a queue pair, and the options of its creation and of each step to ready-to-send.
#pragma once

#include <asyncverbs/requirements.hpp>

#include <infiniband/verbs.h>

#include <cstdint>
#include <cstring>
#include <optional>

namespace asyncverbs {

/// The address of a queue pair, in host byte order: QueuePair::local_address() returns it, the
/// peer's QueuePair::connect() takes it. The application transports it between them, for example
/// over a TCP socket.
struct QueuePairAddress {
    std::uint16_t lid = 0;    ///< of the port on InfiniBand; 0 on RoCE
    std::uint32_t qp_num = 0; ///< 24 bits
    std::uint32_t psn = 0;    ///< 24 bits: the first packet sequence number that this end sends
    ibv_gid gid{};            ///< all zero: reached by LID, which is possible on InfiniBand only

    /// Whether all fields are equal.
    friend bool operator==(const QueuePairAddress& a, const QueuePairAddress& b) noexcept {
        return a.lid == b.lid && a.qp_num == b.qp_num && a.psn == b.psn &&
               std::memcmp(a.gid.raw, b.gid.raw, sizeof a.gid.raw) == 0;
    }
};

/// The type and the capacities of a queue pair. Creation fails, and names the limit, if they are
/// beyond the limits of the device.
struct QueuePairOptions {
    ibv_qp_type type = IBV_QPT_RC;     ///< or IBV_QPT_UD
    std::uint32_t max_send_wr = 16;    ///< outstanding work requests in the send queue
    std::uint32_t max_recv_wr = 16;    ///< outstanding receives
    std::uint32_t max_send_sge = 1;    ///< scatter/gather elements of one send
    std::uint32_t max_recv_sge = 1;    ///< scatter/gather elements of one receive
    std::uint32_t max_inline_data = 0; ///< bytes of a send that is posted inline
    bool sq_sig_all = false;           ///< all sends are signaled, even without IBV_SEND_SIGNALED
};

/// RESET to INIT: the port and GID to use, and the rights of peers.
struct InitOptions {
    int port = 0; ///< from 1; 0: the first active port of the device
    /// in the GID table of the port; std::nullopt: that of select_gid()
    std::optional<int> gid_index = std::nullopt;
    /// of the first packet sent, 24 bits; std::nullopt: an arbitrary one
    std::optional<std::uint32_t> psn = std::nullopt;
    std::uint16_t pkey_index = 0; ///< in the partition key table of the port
    /// RC: the RDMA operations allowed to the peer, if the memory region allows them as well
    int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE;
    std::uint32_t qkey = 0x11111111; ///< UD: the same at both ends
};

/// INIT to RTR, ready to receive (RC): the path to the peer.
struct RtrOptions {
    /// the same at both ends; std::nullopt: the active MTU of the port
    std::optional<ibv_mtu> path_mtu = std::nullopt;
    std::uint8_t max_dest_rd_atomic = 1; ///< concurrent RDMA reads and atomics of the peer
    std::uint8_t min_rnr_timer = 12;     ///< 0 to 31: 12 is 0.64 ms
    std::uint8_t service_level = 0;      ///< 0 to 15
    std::uint8_t hop_limit = 64;         ///< most routers on the path, RoCE v2 and global routes
    std::uint8_t traffic_class = 0;      ///< of the IP packets, RoCE v2 and global routes
    std::uint32_t flow_label = 0;        ///< likewise, 20 bits
};

/// RTR to RTS, ready to send (RC): timeouts and retries.
struct RtsOptions {
    std::uint8_t timeout = 14;      ///< 0 to 31: 4.096 us * 2^timeout; 14 is 67 ms, 0 is infinite
    std::uint8_t retry_cnt = 7;     ///< 0 to 7: retries if the peer does not answer. For soft-RoCE
                                    ///< 7 is no limit, so it never reports a dead peer; with less
                                    ///< it also counts the waits for a receive
    std::uint8_t rnr_retry = 7;     ///< 0 to 7: retries if the peer has no receive; 7: no limit
    std::uint8_t max_rd_atomic = 1; ///< concurrent RDMA reads and atomics of this end, at most
                                    ///< max_dest_rd_atomic of the peer
};

} // namespace asyncverbs
