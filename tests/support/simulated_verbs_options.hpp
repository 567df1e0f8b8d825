// SPDX-License-Identifier: MIT
//
// What a simulated device is like: the habits of its provider, its limits, its ports and GIDs.
// The defaults are those of a soft-RoCE device with one active port.
#pragma once

#include <infiniband/verbs.h>

#include <cstdint>
#include <string>
#include <vector>

namespace asyncverbs::simulated {

// flag:  an arm fires for the next completion only; those already queued fire nothing.
// index: an arm fires at once if completions are queued that were not polled, and it is ignored
//        until the event of the previous one was read by ibv_get_cq_event.
enum class ArmModel { flag, index };

struct ProviderModel {
    ArmModel arm_model = ArmModel::flag;
    // A solicited-only arm replaces an any-completion arm that is outstanding.
    bool solicited_arm_downgrades = false;
    // ibv_destroy_qp removes the queue pair's completions from its completion queues.
    bool purges_on_destroy_qp = false;
    // A slot of a work queue is free only when a completion at or behind it was polled.
    bool slots_freed_by_poll = false;
    // A completion queue gets the next power of two less one instead of what was asked for.
    bool rounds_up_cqe = false;
};

inline constexpr ProviderModel rxe{};
inline constexpr ProviderModel siw{.solicited_arm_downgrades = true};
inline constexpr ProviderModel mlx5{
    .arm_model = ArmModel::index, .purges_on_destroy_qp = true, .slots_freed_by_poll = true};

struct GidEntry {
    ibv_gid gid{}; // all zero: the entry is empty
    ibv_gid_type type = IBV_GID_TYPE_ROCE_V2;
};

ibv_gid ipv4_gid(std::uint8_t a, std::uint8_t b, std::uint8_t c, std::uint8_t d);
ibv_gid link_local_gid(std::uint8_t last);

// Active, Ethernet, active MTU 4096.
ibv_port_attr default_port_attr();
// Link-local at index 0, 10.7.0.1 at index 1, both RoCE v2.
std::vector<GidEntry> default_gids();
ibv_device_attr default_device_attr();

struct PortOptions {
    ibv_port_attr attr = default_port_attr();
    std::vector<GidEntry> gids = default_gids();
};

struct DeviceOptions {
    std::string name = "sim0";
    ProviderModel provider{};
    ibv_device_attr attr = default_device_attr();
    std::uint32_t max_inline_data = 256;
    // What soft-RoCE does not offer: timestamps of completions, and ibv_modify_cq.
    bool completion_timestamps = false;
    bool cq_moderation = false;
    std::vector<PortOptions> ports = {PortOptions{}};
};

} // namespace asyncverbs::simulated
