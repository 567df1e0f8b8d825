// SPDX-License-Identifier: MIT
// Creates a queue pair and takes it through its states. Checks every option first and names the one
// that is wrong; the kernel would return EINVAL, or time out a minute later.
#pragma once

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>
#include <utility>

#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/detail/cq_capacity.hpp>
#include <asyncverbs/verbs/detail/native.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair_options.hpp>
#include <asyncverbs/verbs/shared_receive_queue.hpp>

namespace asyncverbs::detail {

// The port and GID from which a queue pair sends.
struct Endpoint {
    int port = 0;
    int gid_index = 0;
    bool roce = false;
    ibv_mtu active_mtu = IBV_MTU_256;
    std::uint16_t lid = 0;
    ibv_gid gid{}; // empty on InfiniBand, where the LID suffices, unless the options select one
};

// The endpoint that `options` select. Throws operation_not_supported on iWARP, network_down for a
// port that is not active, and as Context::query_gid() and select_gid() do.
[[nodiscard]] inline Endpoint find_endpoint(const Context& context, const InitOptions& options) {
    if (is_iwarp(*context.native_handle())) {
        throw_error(std::errc::operation_not_supported,
                    context.name() +
                        " is an iWARP device: connect its queue pairs by address, with "
                        "asyncverbs/cm.hpp or librdmacm");
    }
    Endpoint endpoint;
    endpoint.port = options.port == 0 ? context.active_port() : options.port;
    const ibv_port_attr port = context.query_port(endpoint.port);
    if (!Context::is_active(port)) {
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

// The path from `local` to `remote`: by its GID if it has one, else by its LID.
[[nodiscard]] inline ibv_ah_attr make_path(const Endpoint& local, const QueuePairAddress& remote,
                                           const RtrOptions& options) {
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

inline constexpr std::uint32_t max_24_bits = 0xffffff; // queue pair numbers and PSNs

// Throws invalid_argument for options that the device does not support, operation_not_supported for
// UD on iWARP.
inline void check_options(const Context& context, const QueuePairOptions& options) {
    if (options.type != IBV_QPT_RC && options.type != IBV_QPT_UD) {
        throw_error(std::errc::invalid_argument,
                    "queue pair type " + std::to_string(options.type) +
                        " is not covered: IBV_QPT_RC (2) and IBV_QPT_UD (4) are");
    }
    const std::string device = context.name();
    if (options.type == IBV_QPT_UD && is_iwarp(*context.native_handle())) {
        throw_error(std::errc::operation_not_supported,
                    device + " is an iWARP device, which has no UD: use IBV_QPT_RC");
    }
    const ibv_device_attr limits = context.query_device();
    check_range("max_send_wr", options.max_send_wr, 0, limits.max_qp_wr, device);
    check_range("max_recv_wr", options.max_recv_wr, 0, limits.max_qp_wr, device);
    check_range("max_send_sge", options.max_send_sge, 0, limits.max_sge, device);
    check_range("max_recv_sge", options.max_recv_sge, 0, limits.max_sge, device);
}

inline void check_same_context(const Context& context, const CompletionQueue& queue) {
    if (checked(queue.shared_handle(), "CompletionQueue")->context != context.native_handle()) {
        throw_error(std::errc::invalid_argument,
                    "the completion queue belongs to another Context than the protection domain");
    }
}

inline void check_same_domain(const ProtectionDomain& domain, const SharedReceiveQueue& receives) {
    if (checked(receives.shared_handle(), "SharedReceiveQueue")->pd != domain.native_handle()) {
        throw_error(std::errc::invalid_argument,
                    "the shared receive queue belongs to another ProtectionDomain");
    }
}

// The options of a queue pair with a shared receive queue.
[[nodiscard]] inline QueuePairOptions without_receives(QueuePairOptions options) noexcept {
    options.max_recv_wr = 0;
    options.max_recv_sge = 0;
    return options;
}

// A PSN that differs from that of an earlier queue pair with the same number. Otherwise this queue
// pair might accept late packets of the earlier one.
[[nodiscard]] inline std::uint32_t arbitrary_psn(std::uint32_t qp_num) noexcept {
    const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
    auto bits = static_cast<std::uint64_t>(now) + (std::uint64_t{qp_num} << 40);
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u; // the mixing of splitmix64
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
    return static_cast<std::uint32_t>(bits >> 40) & max_24_bits;
}

// The deleter of a queue pair, which has more parents than ReleaseNative releases. Keeps the
// reservations if the queue pair cannot be destroyed.
struct ReleaseQueuePair {
    // Destroys the queue pair, unless that succeeded before. Returns the result of the verb. One
    // that the program has made is only released.
    int try_destroy(ibv_qp* qp) noexcept {
        if (destroyed || adopted) return 0;
        const int result = ibv_destroy_qp(qp);
        destroyed = result == 0;
        return result;
    }

    void operator()(ibv_qp* qp) noexcept {
        if (try_destroy(qp) != 0) {
            reservation->keep();
            if (shared_reservation != nullptr) {
                shared_reservation->keep();
            }
        }
        adopted.reset();
        reservation.reset();
        shared_reservation.reset();
        srq.reset();
        domain.reset();
        send_cq.reset();
        recv_cq.reset();
    }

    std::shared_ptr<CqReservation> reservation;
    std::shared_ptr<CqReservation> shared_reservation;
    Handle<void> srq;
    Handle<void> domain;
    Handle<void> send_cq;
    Handle<void> recv_cq;
    bool destroyed = false;
    Handle<ibv_qp> adopted = nullptr; // the program has made it
    // On iWARP: the connection has ended. soft-iWARP completes nothing that is posted afterwards.
    std::stop_source connection_ended{std::nostopstate};
};

// Of the shared_handle() of a QueuePair.
[[nodiscard]] inline std::stop_source& connection_ended(const Handle<ibv_qp>& qp) noexcept {
    return std::get_deleter<ReleaseQueuePair>(qp)->connection_ended;
}

// Reserves entries for the completions (I10).
[[nodiscard]] inline ReleaseQueuePair reserve_queues(const CompletionQueue& send_cq,
                                                     const CompletionQueue& recv_cq,
                                                     const QueuePairOptions& options) {
    ReleaseQueuePair release;
    release.reservation = std::make_shared<CqReservation>(send_cq.capacity(), options.max_send_wr,
                                                          recv_cq.capacity(), options.max_recv_wr);
    release.send_cq = send_cq.shared_handle();
    release.recv_cq = recv_cq.shared_handle();
    if (is_iwarp(*send_cq.native_handle()->context)) release.connection_ended = std::stop_source();
    return release;
}

// Creates a queue pair after it reserved entries for its completions, with its own receive
// queue if `receives` is null. `granted` returns the capacities that the device reports.
[[nodiscard]] inline Handle<ibv_qp>
create_queue_pair(const ProtectionDomain& domain, const CompletionQueue& send_cq,
                  const CompletionQueue& recv_cq, const SharedReceiveQueue* receives,
                  const QueuePairOptions& options, ibv_qp_cap& granted) {
    check_same_context(domain.context(), send_cq);
    check_same_context(domain.context(), recv_cq);
    check_options(domain.context(), options);
    Handle<ibv_srq> srq;
    std::shared_ptr<CqReservation> shared_reservation;
    if (receives != nullptr) {
        check_same_domain(domain, *receives);
        srq = receives->shared_handle();
        shared_reservation = receives->reserve(recv_cq);
    }
    ReleaseQueuePair release = reserve_queues(send_cq, recv_cq, options);
    ibv_qp_init_attr attr{};
    attr.send_cq = send_cq.native_handle();
    attr.recv_cq = recv_cq.native_handle();
    attr.srq = srq.get();
    attr.cap = {options.max_send_wr, options.max_recv_wr, options.max_send_sge,
                options.max_recv_sge, options.max_inline_data};
    attr.qp_type = options.type;
    attr.sq_sig_all = options.sq_sig_all ? 1 : 0;
    errno = 0;
    ibv_qp* native = ibv_create_qp(domain.native_handle(), &attr);
    if (native == nullptr) {
        const int error = verb_errno();
        // The limit of inline data is the only one that no device reports.
        const std::string hint =
            error == EINVAL && options.max_inline_data != 0
                ? " (max_inline_data " + std::to_string(options.max_inline_data) + ")"
                : "";
        throw_verb_error(("ibv_create_qp" + hint).c_str(), error);
    }
    granted = attr.cap;
    release.shared_reservation = std::move(shared_reservation);
    release.srq = std::move(srq);
    release.domain = domain.shared_handle();
    return {native, std::move(release)};
}

// False for the sending half of an XRC connection, which has no receive queue and no recv_cq.
inline bool has_receives(const ibv_qp& qp) noexcept { return qp.qp_type != IBV_QPT_XRC_SEND; }

inline void check_completes_into(const ibv_cq* used, const CompletionQueue& queue,
                                 const char* direction) {
    if (used != checked(queue.shared_handle(), "CompletionQueue").get()) {
        throw_error(std::errc::invalid_argument, std::string("the ") + direction +
                                                     " of the ibv_qp complete into another "
                                                     "completion queue");
    }
}

// A handle that also reserves entries for the completions.
[[nodiscard]] inline Handle<ibv_qp> adopt_queue_pair(Handle<ibv_qp> adopted,
                                                     const CompletionQueue& send_cq,
                                                     const CompletionQueue& recv_cq,
                                                     const QueuePairOptions& options) {
    check_completes_into(adopted->send_cq, send_cq, "sends");
    if (has_receives(*adopted)) check_completes_into(adopted->recv_cq, recv_cq, "receives");
    ReleaseQueuePair release = reserve_queues(send_cq, recv_cq, options);
    ibv_qp* const native = adopted.get();
    release.adopted = std::move(adopted);
    return {native, std::move(release)};
}

// One call of ibv_modify_qp. Each mask has exactly the required attributes of the tables in
// ibv_modify_qp(3); one too many or too few is EINVAL.
struct QueuePairStep {
    ibv_qp_attr attr{};
    int mask = IBV_QP_STATE;
    const char* name = "";

    QueuePairStep(ibv_qp_state state, const char* step) noexcept : name(step) {
        attr.qp_state = state;
    }

    // Returns 0 or the errno, positive.
    [[nodiscard]] int try_apply(ibv_qp* qp) {
        errno = 0;
        const int result = ibv_modify_qp(qp, &attr, mask);
        return result == 0 ? 0 : verb_errno(result);
    }

    void apply(ibv_qp* qp) {
        if (const int error = try_apply(qp)) {
            throw_verb_error((std::string("ibv_modify_qp (to ") + name + ")").c_str(), error);
        }
    }
};

// UD, and the provider's own type: that of EFA, SRD, takes the same steps.
[[nodiscard]] inline bool sends_datagrams(ibv_qp_type type) noexcept {
    return type == IBV_QPT_UD || type == IBV_QPT_DRIVER;
}

[[nodiscard]] inline QueuePairStep init_step(const Endpoint& local, ibv_qp_type type,
                                             const InitOptions& options) {
    QueuePairStep step(IBV_QPS_INIT, "INIT");
    step.attr.port_num = static_cast<std::uint8_t>(local.port);
    step.attr.pkey_index = options.pkey_index;
    step.attr.qp_access_flags = static_cast<unsigned>(options.access);
    step.attr.qkey = options.qkey;
    step.mask |= IBV_QP_PORT | IBV_QP_PKEY_INDEX;
    step.mask |= sends_datagrams(type) ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS;
    return step;
}

[[nodiscard]] inline QueuePairStep rtr_step(const Context& context, const Endpoint& local,
                                            const QueuePairAddress& remote,
                                            const RtrOptions& options) {
    check_range("the peer's qp_num", remote.qp_num, 0, max_24_bits, "a queue pair");
    check_range("the peer's psn", remote.psn, 0, max_24_bits, "a queue pair");
    check_range("min_rnr_timer", options.min_rnr_timer, 0, 31, "a queue pair");
    const ibv_mtu mtu = options.path_mtu.value_or(local.active_mtu);
    check_range("path MTU (of enum ibv_mtu)", mtu, IBV_MTU_256, local.active_mtu,
                "port " + std::to_string(local.port) + " of " + context.name());
    QueuePairStep step(IBV_QPS_RTR, "RTR");
    step.attr.ah_attr = make_path(local, remote, options);
    step.attr.path_mtu = mtu;
    step.attr.dest_qp_num = remote.qp_num;
    step.attr.rq_psn = remote.psn;
    step.attr.max_dest_rd_atomic = options.max_dest_rd_atomic;
    step.attr.min_rnr_timer = options.min_rnr_timer;
    step.mask |= IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                 IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
    return step;
}

// Throws the error of a queue pair that could not be taken to RTR. On RoCE it has both GIDs, and
// says what is wrong with them: the kernel's error alone would be "Invalid argument".
[[noreturn]] inline void throw_rtr_error(const Context& context, const Endpoint& local,
                                         const ibv_gid& remote, int error) {
    std::string text = "ibv_modify_qp (to RTR)";
    if (local.roce) {
        text += " from GID " + gid_text(local.gid) + " to GID " + gid_text(remote);
        ibv_gid_entry now{};
        if (context.try_query_gid(local.port, local.gid_index, now) != 0 ||
            gid_text(now.gid) != gid_text(local.gid)) {
            text += ", of which the first is gone: its interface has lost the address";
        } else if (is_ipv4_mapped_gid(local.gid) != is_ipv4_mapped_gid(remote)) {
            text += ", which do not reach each other: one is IPv4, one is IPv6";
        }
    }
    throw_verb_error(text.c_str(), error);
}

[[nodiscard]] inline QueuePairStep rts_step(ibv_qp_type type, std::uint32_t psn,
                                            const RtsOptions& options) {
    check_range("timeout", options.timeout, 0, 31, "a queue pair");
    check_range("retry_cnt", options.retry_cnt, 0, 7, "a queue pair");
    check_range("rnr_retry", options.rnr_retry, 0, 7, "a queue pair");
    QueuePairStep step(IBV_QPS_RTS, "RTS");
    step.attr.sq_psn = psn;
    step.mask |= IBV_QP_SQ_PSN;
    if (!sends_datagrams(type)) {
        step.attr.timeout = options.timeout;
        step.attr.retry_cnt = options.retry_cnt;
        step.attr.rnr_retry = options.rnr_retry;
        step.attr.max_rd_atomic = options.max_rd_atomic;
        step.mask |= IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;
    }
    return step;
}

} // namespace asyncverbs::detail
