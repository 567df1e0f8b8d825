// SPDX-License-Identifier: MIT
// Takes a caller's queue pair through its states with the attributes of the connection manager.
#pragma once

#include <rdma/rdma_cma.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>

#include <asyncverbs/cm/detail/cm_session.hpp>
#include <asyncverbs/verbs/detail/queue_pair_setup.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

namespace asyncverbs {

class Connection;

namespace detail {

// The device of the route. librdmacm keeps it open until it is removed.
[[nodiscard]] inline Context context_of(const rdma_cm_id* id) { return Context(borrow(id->verbs)); }

// RDMA reads and atomics that may be outstanding: those of the peer, served here, and those of this
// end.
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

// From RESET or INIT to INIT, in which receives can be posted.
inline void prepare(rdma_cm_id* id, const QueuePair& qp) {
    ibv_qp* const native = checked(qp.shared_handle(), "QueuePair").get();
    // Any ibv_context of the right device will do.
    const std::string device = ibv_get_device_name(native->context->device);
    const std::string wanted = ibv_get_device_name(id->verbs->device);
    if (device != wanted) {
        throw_error(std::errc::invalid_argument, "the queue pair belongs to " + device +
                                                     ", but the route to the peer uses " + wanted);
    }
    cm_step(id, IBV_QPS_INIT, "INIT").apply(native);
}

// From RESET or INIT to RTS; both ends must be known. Limits `depths` to what the peer supports. On
// iWARP the masks of the attributes contain little more than the state: the kernel agrees with the
// peer on the depths, and takes the queue pair to RTS when the connection is established.
inline void activate(rdma_cm_id* id, const QueuePair& qp, ReadDepths& depths,
                     std::uint8_t min_rnr_timer) {
    const auto agree = [](std::uint8_t& wanted, std::uint8_t& supported, bool is_set) {
        if (is_set) wanted = supported = std::min(wanted, supported);
    };
    prepare(id, qp); // again: only now the access rights of the peer are known
    QueuePairStep receive = cm_step(id, IBV_QPS_RTR, "RTR");
    agree(depths.responder_resources, receive.attr.max_dest_rd_atomic,
          (receive.mask & IBV_QP_MAX_DEST_RD_ATOMIC) != 0);
    receive.attr.min_rnr_timer = min_rnr_timer; // the kernel sets 0, which is 655 ms
    receive.apply(qp.native_handle());
    QueuePairStep send = cm_step(id, IBV_QPS_RTS, "RTS");
    agree(depths.initiator_depth, send.attr.max_rd_atomic,
          (send.mask & IBV_QP_MAX_QP_RD_ATOMIC) != 0);
    send.apply(qp.native_handle());
}

// The kernel's limit depends on the step, and its only answer is EINVAL. On iWARP it is larger, but
// a program should not depend on the transport.
inline void check_private_data(std::span<const std::byte> data, std::size_t limit) {
    check_range("bytes of private data:", static_cast<long long>(data.size()), 0,
                static_cast<long long>(limit), "this step");
}

// Base of the two operations that connect a queue pair. Options is ConnectOptions or AcceptOptions.
template <class Options>
struct HandshakeOperation : AnswerOperation {
    using Result = Connection;

    HandshakeOperation(CmSessionOwner session_owner, const QueuePair& queue_pair,
                       const Options& chosen, std::stop_token token, rdma_cm_event_type answer,
                       std::string to)
        : AnswerOperation({}, answer, std::move(to), chosen.timeout, std::move(token)),
          owner(std::move(session_owner)), qp(queue_pair), options(chosen) {}

    // Checks what the kernel reports as EINVAL only, or would truncate.
    void begin(std::size_t max_private_data) {
        session->throw_if_failed(call);
        check_private_data(options.private_data, max_private_data);
        check_range("rnr_retry_count", options.rnr_retry_count, 0, 7, "a queue pair");
        check_range("min_rnr_timer", options.min_rnr_timer, 0, 31, "a queue pair");
        depths = limit({options.responder_resources, options.initiator_depth},
                       context_of(session->id()));
    }

    rdma_conn_param connection_parameters() const {
        rdma_conn_param result{};
        result.private_data = options.private_data.data();
        result.private_data_len = static_cast<std::uint8_t>(options.private_data.size());
        result.responder_resources = depths.responder_resources;
        result.initiator_depth = depths.initiator_depth;
        result.rnr_retry_count = options.rnr_retry_count;
        result.qp_num = qp.qp_num();
        result.srq = qp.native_handle()->srq != nullptr ? 1 : 0;
        return result;
    }

    CmSessionOwner owner;
    const QueuePair& qp;
    Options options;
    ReadDepths depths;
};

} // namespace detail
} // namespace asyncverbs
