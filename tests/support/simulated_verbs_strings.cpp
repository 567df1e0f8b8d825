// SPDX-License-Identifier: MIT
//
// The simulated verbs that have no state: names of enumerators, and rates. The texts are not those
// of libibverbs, so that no test depends on them.
#include <infiniband/verbs.h>

#include <algorithm>
#include <span>

namespace {

// The name at an enumerator that counts from zero.
const char* name_at(std::span<const char* const> names, int value) {
    return value >= 0 && static_cast<std::size_t>(value) < names.size()
               ? names[static_cast<std::size_t>(value)]
               : "unknown";
}

constexpr const char* wc_status_names[] = {
    "success",
    "simulated local length error",
    "simulated local QP operation error",
    "simulated local EE context operation error",
    "simulated local protection error",
    "simulated work request flushed error",
    "simulated memory window bind error",
    "simulated bad response error",
    "simulated local access error",
    "simulated remote invalid request error",
    "simulated remote access error",
    "simulated remote operation error",
    "simulated transport retry counter exceeded",
    "simulated RNR retry counter exceeded",
    "simulated local RDD violation error",
    "simulated remote invalid RD request",
    "simulated remote abort error",
    "simulated invalid EE context number",
    "simulated invalid EE context state",
    "simulated fatal error",
    "simulated response timeout error",
    "simulated general error",
    "simulated tag matching error",
    "simulated tag matching rendezvous incomplete",
};

constexpr const char* event_names[] = {
    "simulated CQ error",
    "simulated QP fatal error",
    "simulated QP request error",
    "simulated QP access error",
    "simulated communication established",
    "simulated SQ drained",
    "simulated path migrated",
    "simulated path migration error",
    "simulated device fatal error",
    "simulated port active",
    "simulated port error",
    "simulated LID change",
    "simulated P_Key change",
    "simulated SM change",
    "simulated SRQ error",
    "simulated SRQ limit reached",
    "simulated last WQE reached",
    "simulated client reregister",
    "simulated GID change",
    "simulated WQ fatal error",
};

constexpr const char* port_state_names[] = {"no state change", "down",   "init",
                                            "armed",           "active", "active defer"};

constexpr const char* node_type_names[] = {
    "unknown", "channel adapter", "switch", "router", "RNIC", "usNIC", "usNIC UDP", "unspecified"};

struct Rate {
    ibv_rate rate;
    int mbps;
};

constexpr Rate rates[] = {
    {IBV_RATE_2_5_GBPS, 2500},   {IBV_RATE_5_GBPS, 5000},     {IBV_RATE_10_GBPS, 10000},
    {IBV_RATE_14_GBPS, 14062},   {IBV_RATE_20_GBPS, 20000},   {IBV_RATE_25_GBPS, 25781},
    {IBV_RATE_40_GBPS, 40000},   {IBV_RATE_50_GBPS, 53125},   {IBV_RATE_100_GBPS, 103125},
    {IBV_RATE_200_GBPS, 206250}, {IBV_RATE_400_GBPS, 425000},
};

} // namespace

extern "C" const char* ibv_wc_status_str(ibv_wc_status status) {
    return name_at(wc_status_names, static_cast<int>(status));
}

extern "C" const char* ibv_event_type_str(ibv_event_type event) {
    return name_at(event_names, static_cast<int>(event));
}

extern "C" const char* ibv_port_state_str(ibv_port_state state) {
    return name_at(port_state_names, static_cast<int>(state));
}

extern "C" const char* ibv_node_type_str(ibv_node_type type) {
    return name_at(node_type_names, static_cast<int>(type));
}

extern "C" int ibv_rate_to_mbps(ibv_rate rate) {
    const auto* found = std::ranges::find(rates, rate, &Rate::rate);
    return found == std::end(rates) ? -1 : found->mbps;
}

extern "C" ibv_rate mbps_to_ibv_rate(int mbps) {
    const auto* found = std::ranges::find(rates, mbps, &Rate::mbps);
    return found == std::end(rates) ? IBV_RATE_MAX : found->rate;
}

extern "C" int ibv_rate_to_mult(ibv_rate rate) {
    const int mbps = ibv_rate_to_mbps(rate);
    return mbps < 0 ? -1 : mbps / 2500;
}

extern "C" ibv_rate mult_to_ibv_rate(int mult) {
    const auto* found =
        std::ranges::find_if(rates, [&](const Rate& rate) { return rate.mbps / 2500 == mult; });
    return found == std::end(rates) ? IBV_RATE_MAX : found->rate;
}
