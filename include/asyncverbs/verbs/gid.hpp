// SPDX-License-Identifier: MIT
// Which entry of a port's GID table to send from when nobody said so.
// On RoCE the choice decides the network protocol: only RoCE v2 is routed, and IPv4-mapped entries
// are those that peers, which have their own tables, most likely reach.
#pragma once

#include <cerrno>
#include <string>

#include <asyncverbs/verbs/context.hpp>

namespace asyncverbs {

namespace detail {
// The field of an address vector that takes the index has 8 bits; tables may be longer.
inline constexpr int max_gid_index = 255;
} // namespace detail

/// The index of the GID to use on `port`: a RoCE v2 entry with an IPv4-mapped address, else a RoCE
/// v2 entry, else one of RoCE v1 or InfiniBand; the lowest index where several are equally good.
/// Throws std::system_error (address_not_available) where the table has no GID at all, and as
/// Context::query_port() does.
template <class Use>
[[nodiscard]] int select_gid(const BasicContext<Use>& context, int port) {
    const int length = context.query_port(port).gid_tbl_len;
    int best_index = -1;
    int best_rank = 0;
    int failure = 0;
    for (int index = 0; index < length && index <= detail::max_gid_index && best_rank < 3;
         ++index) {
        ibv_gid_entry entry{};
        if (const int error = context.try_query_gid(port, index, entry)) {
            failure = error == ENODATA ? failure : error;
            continue;
        }
        const bool v2 = entry.gid_type == IBV_GID_TYPE_ROCE_V2;
        const int rank = !v2 ? 1 : is_ipv4_mapped_gid(entry.gid) ? 3 : 2;
        if (rank > best_rank) {
            best_rank = rank;
            best_index = index;
        }
    }
    if (best_index < 0 && failure != 0) {
        throw_verb_error("ibv_query_gid_ex", failure);
    }
    if (best_index < 0) {
        detail::throw_error(std::errc::address_not_available,
                            "port " + std::to_string(port) + " of " + context.name() +
                                " has no GID among its " + std::to_string(length) +
                                " entries; its network interface may have no address yet");
    }
    return best_index;
}

} // namespace asyncverbs
