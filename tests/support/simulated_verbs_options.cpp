// SPDX-License-Identifier: MIT
//
// What a simulated device is like unless a test says otherwise.
#include "support/simulated_verbs_options.hpp"

#include <cstring>

namespace asyncverbs::simulated {

ibv_gid ipv4_gid(std::uint8_t a, std::uint8_t b, std::uint8_t c, std::uint8_t d) {
    return {.raw = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d}};
}

ibv_gid link_local_gid(std::uint8_t last) {
    return {.raw = {0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, last}};
}

std::vector<GidEntry> default_gids() {
    return {{link_local_gid(1), IBV_GID_TYPE_ROCE_V2},
            {ipv4_gid(10, 7, 0, 1), IBV_GID_TYPE_ROCE_V2}};
}

ibv_port_attr default_port_attr() {
    ibv_port_attr attr{};
    attr.state = IBV_PORT_ACTIVE;
    attr.max_mtu = IBV_MTU_4096;
    attr.active_mtu = IBV_MTU_4096;
    attr.gid_tbl_len = 1024;
    attr.port_cap_flags = IBV_PORT_CM_SUP | IBV_PORT_IP_BASED_GIDS;
    attr.max_msg_sz = 1u << 23;
    attr.pkey_tbl_len = 1;
    attr.max_vl_num = 1;
    attr.active_width = 1;
    attr.active_speed = 1;
    attr.phys_state = 5;
    attr.link_layer = IBV_LINK_LAYER_ETHERNET;
    return attr;
}

ibv_device_attr default_device_attr() {
    ibv_device_attr attr{};
    std::strcpy(attr.fw_ver, "0.0");
    attr.max_mr_size = ~std::uint64_t{0};
    attr.max_qp = 1 << 16;
    attr.max_qp_wr = 1 << 14;
    attr.max_sge = 32;
    attr.max_sge_rd = 32;
    attr.max_cq = 1 << 16;
    attr.max_cqe = 32767;
    attr.max_mr = 1 << 16;
    attr.max_pd = 1 << 16;
    attr.max_qp_rd_atom = 128;
    attr.max_qp_init_rd_atom = 128;
    attr.atomic_cap = IBV_ATOMIC_HCA;
    attr.max_ah = 1 << 16;
    attr.max_srq = 1 << 15;
    attr.max_srq_wr = 1 << 14;
    attr.max_srq_sge = 27;
    attr.max_pkeys = 64;
    return attr;
}

} // namespace asyncverbs::simulated
