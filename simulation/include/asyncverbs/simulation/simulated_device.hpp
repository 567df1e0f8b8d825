// SPDX-License-Identifier: MIT
// The devices of the simulation: what their providers do, their ports and their limits.
#pragma once

#include <infiniband/verbs.h>

#include <cstdint>
#include <string>
#include <vector>

namespace asyncverbs::simulated {

/// When an arm fires.
enum class ArmModel {
    flag,  ///< for the next completion; those that are already queued fire no event
    index, ///< at once if completions are queued that were not polled; ignored until
           ///< ibv_get_cq_event has read the event of the previous arm
};

/// The habits of a provider.
struct ProviderModel {
    ArmModel arm_model = ArmModel::flag; ///< when an arm fires
    /// A solicited-only arm replaces an outstanding arm for any completion.
    bool solicited_arm_downgrades = false;
    /// ibv_destroy_qp removes the queue pair's completions from its completion queues.
    bool purges_on_destroy_qp = false;
    /// A slot of a work queue becomes free when its completion, or a later one, is polled.
    bool slots_freed_by_poll = false;
    /// An arm is lost if no completion was polled since the previous one. Each event, also one
    /// without a completion, uses up the arm.
    bool loses_arm_without_poll = false;
    /// The depth of a completion queue is rounded up to a power of two less one.
    bool rounds_up_cqe = false;
};

inline constexpr ProviderModel rxe{};                                 ///< soft-RoCE
inline constexpr ProviderModel siw{.solicited_arm_downgrades = true}; ///< soft-iWARP
inline constexpr ProviderModel mlx5{.arm_model = ArmModel::index,
                                    .purges_on_destroy_qp = true,
                                    .slots_freed_by_poll = true};    ///< NVIDIA ConnectX
inline constexpr ProviderModel mana{.loses_arm_without_poll = true}; ///< Azure, rdma-core #1796

/// An entry of a port's GID table.
struct GidEntry {
    ibv_gid gid{};                            ///< all zero: the entry is empty
    ibv_gid_type type = IBV_GID_TYPE_ROCE_V2; ///< as ibv_query_gid_ex(3) reports it
};

/// The IPv4-mapped GID of the address a.b.c.d.
ibv_gid ipv4_gid(std::uint8_t a, std::uint8_t b, std::uint8_t c, std::uint8_t d);
/// The GID fe80::, with this last byte.
ibv_gid link_local_gid(std::uint8_t last);

/// An active Ethernet port with an MTU of 4096.
ibv_port_attr default_port_attr();
/// Link-local at index 0, 10.7.0.1 at index 1, both RoCE v2.
std::vector<GidEntry> default_gids();
/// The limits of a soft-RoCE device.
ibv_device_attr default_device_attr();

/// A port of a device.
struct PortOptions {
    ibv_port_attr attr = default_port_attr();    ///< what ibv_query_port(3) returns
    std::vector<GidEntry> gids = default_gids(); ///< from index 0
};

/// A device. The defaults are those of a soft-RoCE device with one active port.
struct DeviceOptions {
    std::string name = "sim0";                    ///< unique
    ProviderModel provider{};                     ///< the habits of its provider
    ibv_device_attr attr = default_device_attr(); ///< its limits
    std::uint32_t max_inline_data = 256;          ///< bytes of an inline send, at most
    bool completion_timestamps = false;           ///< of extended queues; not on soft-RoCE
    bool cq_moderation = false;                   ///< ibv_modify_cq(3); not on soft-RoCE
    /// Regions of a dma-buf, whose addresses must be those of the process; not on soft-RoCE.
    bool dmabuf = false;
    std::vector<PortOptions> ports = {PortOptions{}}; ///< port 1 first
};

} // namespace asyncverbs::simulated
