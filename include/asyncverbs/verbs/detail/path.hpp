// SPDX-License-Identifier: MIT
// The two ends of a path: the port and GID that a queue pair sends from, and the address vector
// that leads to a peer.
// Both are checked here, in words; the kernel would answer EINVAL, or time out a minute later.
#pragma once

#include <cstdint>
#include <string>

#include <asyncverbs/verbs/context.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>
#include <asyncverbs/verbs/gid.hpp>
#include <asyncverbs/verbs/queue_pair_address.hpp>
#include <asyncverbs/verbs/queue_pair_options.hpp>

namespace asyncverbs::detail {

// The local end.
struct Endpoint {
    int port = 0;
    int gid_index = 0;
    bool roce = false;
    ibv_mtu active_mtu = IBV_MTU_256;
    std::uint16_t lid = 0;
    ibv_gid gid{}; // empty on InfiniBand, where the LID suffices, unless the caller chose one
};

// The endpoint that `options` describe. Throws network_down for a port that is not active, and as
// Context::query_gid() and select_gid() do.
template <class Use>
[[nodiscard]] Endpoint find_endpoint(const BasicContext<Use>& context,
                                     const BasicInitOptions<Use>& options) {
    if (context.native_handle()->device->transport_type == IBV_TRANSPORT_IWARP) {
        throw_error(std::errc::operation_not_supported,
                    context.name() + " is an iWARP device: its queue pairs are connected by "
                                     "librdmacm only");
    }
    Endpoint endpoint;
    endpoint.port = options.port == 0 ? context.active_port() : options.port;
    const ibv_port_attr port = context.query_port(endpoint.port);
    if (!BasicContext<Use>::is_active(port)) {
        throw_error(std::errc::network_down, "port " + std::to_string(endpoint.port) + " of " +
                                                 context.name() + " is not active but in state " +
                                                 ibv_port_state_str(port.state));
    }
    endpoint.roce = port.link_layer == IBV_LINK_LAYER_ETHERNET;
    endpoint.active_mtu = port.active_mtu;
    endpoint.lid = port.lid;
    if (options.gid_index || endpoint.roce) {
        endpoint.gid_index =
            options.gid_index ? *options.gid_index : select_gid(context, endpoint.port);
        endpoint.gid = context.query_gid(endpoint.port, endpoint.gid_index);
        check_range("GID index", endpoint.gid_index, 0, max_gid_index, "an address vector");
    }
    return endpoint;
}

// The way from `local` to `remote`: a global route where the peer has a GID, else its LID.
template <class Use>
[[nodiscard]] ibv_ah_attr make_path(const Endpoint& local, const QueuePairAddress& remote,
                                    const BasicRtrOptions<Use>& options) {
    const bool global = !is_empty_gid(remote.gid);
    if (!global && local.roce) {
        throw_error(std::errc::invalid_argument,
                    "the peer's GID is empty, but RoCE reaches peers by GID only");
    }
    if (!global && remote.lid == 0) {
        throw_error(std::errc::invalid_argument, "the peer has neither a LID nor a GID");
    }
    check_range("service_level", options.service_level, 0, 15, "a path");
    check_range("flow_label", options.flow_label, 0, 0xfffff, "a path");
    ibv_ah_attr path{};
    path.port_num = static_cast<std::uint8_t>(local.port);
    path.dlid = remote.lid;
    path.sl = options.service_level;
    if (global) {
        path.is_global = 1;
        path.grh.dgid = remote.gid;
        path.grh.sgid_index = static_cast<std::uint8_t>(local.gid_index);
        path.grh.hop_limit = options.hop_limit;
        path.grh.traffic_class = options.traffic_class;
        path.grh.flow_label = options.flow_label;
    }
    return path;
}

} // namespace asyncverbs::detail
