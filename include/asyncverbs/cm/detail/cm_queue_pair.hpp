// SPDX-License-Identifier: MIT
// A caller's queue pair on its way to a peer that the connection manager knows.
#pragma once

#include <rdma/rdma_cma.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include <asyncverbs/cm/detail/cm_session.hpp>
#include <asyncverbs/verbs/detail/queue_pair_setup.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

namespace asyncverbs::detail {

// The device that the way to the peer leads over. librdmacm keeps it open as long as it is there.
[[nodiscard]] inline Context context_of(const rdma_cm_id* id) {
    return Context(std::shared_ptr<ibv_context>(id->verbs, [](ibv_context*) {}));
}

// RDMA reads and atomics that may be under way at a time: the peer's, served here, and own ones.
struct ReadDepths {
    std::uint8_t responder_resources = 0;
    std::uint8_t initiator_depth = 0;
};

[[nodiscard]] inline ReadDepths limit(ReadDepths wanted, const Context& context) {
    const ibv_device_attr device = context.query_device();
    const auto at_most = [](std::uint8_t depth, int limit) {
        return static_cast<std::uint8_t>(depth < limit ? depth : limit);
    };
    return {at_most(wanted.responder_resources, device.max_qp_rd_atom),
            at_most(wanted.initiator_depth, device.max_qp_init_rd_atom)};
}

[[nodiscard]] inline QueuePairStep cm_step(rdma_cm_id* id, ibv_qp_state state, const char* name) {
    QueuePairStep step(state, name);
    call_cm(std::string("rdma_init_qp_attr (") + name + ")", rdma_init_qp_attr, id, &step.attr,
            &step.mask);
    return step;
}

// To INIT, from where receives can be posted. May be repeated there.
inline void prepare(rdma_cm_id* id, const QueuePair& qp) {
    ibv_qp* const native = checked(qp.shared_handle(), "QueuePair").get();
    // A queue pair of another ibv_context is as good, but not of another device.
    const std::string device = ibv_get_device_name(native->context->device);
    const std::string wanted = ibv_get_device_name(id->verbs->device);
    if (device != wanted) {
        throw_error(std::errc::invalid_argument, "the queue pair belongs to " + device +
                                                     ", but the way to the peer leads over " +
                                                     wanted);
    }
    cm_step(id, IBV_QPS_INIT, "INIT").apply(native);
}

// From RESET or INIT to RTS, as soon as both ends are known. Returns `wanted` as far as the peer
// goes along with it.
inline ReadDepths activate(rdma_cm_id* id, const QueuePair& qp, ReadDepths wanted,
                           std::uint8_t min_rnr_timer) {
    prepare(id, qp); // what the peer may do, INIT did not know before
    QueuePairStep receive = cm_step(id, IBV_QPS_RTR, "RTR");
    std::uint8_t& served = receive.attr.max_dest_rd_atomic;
    if (served > wanted.responder_resources) served = wanted.responder_resources;
    receive.attr.min_rnr_timer = min_rnr_timer; // the kernel's choice is 0, which is 655 ms
    receive.apply(qp.native_handle());
    QueuePairStep send = cm_step(id, IBV_QPS_RTS, "RTS");
    std::uint8_t& own = send.attr.max_rd_atomic;
    if (own > wanted.initiator_depth) own = wanted.initiator_depth;
    send.apply(qp.native_handle());
    return {served, own};
}

[[nodiscard]] inline rdma_conn_param connection_parameters(const QueuePair& qp,
                                                           std::span<const std::byte> private_data,
                                                           ReadDepths depths) {
    rdma_conn_param parameters{};
    parameters.private_data = private_data.data();
    parameters.private_data_len = static_cast<std::uint8_t>(private_data.size());
    parameters.responder_resources = depths.responder_resources;
    parameters.initiator_depth = depths.initiator_depth;
    parameters.qp_num = qp.qp_num();
    parameters.srq = qp.native_handle()->srq != nullptr ? 1 : 0;
    return parameters;
}

// The kernel takes the lower bits of what is too large.
inline void check_retries(std::uint8_t retry_count, std::uint8_t rnr_retry_count,
                          std::uint8_t min_rnr_timer) {
    check_range("retry_count", retry_count, 0, 7, "a queue pair");
    check_range("rnr_retry_count", rnr_retry_count, 0, 7, "a queue pair");
    check_range("min_rnr_timer", min_rnr_timer, 0, 31, "a queue pair");
}

// The kernel's limit depends on transport and step, and it answers EINVAL.
inline void check_private_data(std::span<const std::byte> data, std::size_t most) {
    check_range("bytes of private data:", static_cast<long long>(data.size()), 0,
                static_cast<long long>(most), "this step");
}

} // namespace asyncverbs::detail
