// SPDX-License-Identifier: MIT
// Texts of enumerators. They differ from those of libibverbs, so that no test depends on either.
#include <infiniband/verbs.h>

#include <cstddef>
#include <span>

namespace {

// The name of an enumerator; they count from zero.
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
