// SPDX-License-Identifier: MIT
// A queue pair's options as the verbs want them: the attributes and masks of each step, checked.
// The masks are the required attributes of the tables in ibv_modify_qp(3); one too many or too few
// is EINVAL.
#pragma once

#include <cerrno>
#include <cstdint>
#include <string>
#include <utility>

#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/detail/chrono.hpp>
#include <asyncverbs/verbs/detail/cq_capacity.hpp>
#include <asyncverbs/verbs/detail/handle.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>
#include <asyncverbs/verbs/detail/path.hpp>
#include <asyncverbs/verbs/protection_domain.hpp>
#include <asyncverbs/verbs/queue_pair_address.hpp>
#include <asyncverbs/verbs/queue_pair_options.hpp>
#include <asyncverbs/verbs/shared_receive_queue.hpp>

namespace asyncverbs::detail {

inline constexpr std::uint32_t max_24_bits = 0xffffff; // queue pair numbers and PSNs

// Options that no queue pair of the device can have; the verb would not say which of them it is.
template <class Use>
void check_options(const BasicContext<Use>& context, const QueuePairOptions& options) {
    if (options.type != IBV_QPT_RC && options.type != IBV_QPT_UD) {
        throw_error(std::errc::invalid_argument,
                    "queue pair type " + std::to_string(options.type) +
                        " is not covered: IBV_QPT_RC (2) and IBV_QPT_UD (4) are");
    }
    const std::string device = context.name();
    const ibv_device_attr limits = context.query_device();
    check_range("max_send_wr", options.max_send_wr, 0, limits.max_qp_wr, device);
    check_range("max_recv_wr", options.max_recv_wr, 0, limits.max_qp_wr, device);
    check_range("max_send_sge", options.max_send_sge, 0, limits.max_sge, device);
    check_range("max_recv_sge", options.max_recv_sge, 0, limits.max_sge, device);
}

template <class Use>
void check_same_context(const BasicContext<Use>& context, const BasicCompletionQueue<Use>& queue) {
    if (alive(queue.shared_handle(), "CompletionQueue")->context != context.native_handle()) {
        throw_error(std::errc::invalid_argument,
                    "the completion queue belongs to another Context than the protection domain");
    }
}

template <class Use>
void check_same_domain(const BasicProtectionDomain<Use>& domain,
                       const BasicSharedReceiveQueue<Use>& receives) {
    if (alive(receives.shared_handle(), "SharedReceiveQueue")->pd != domain.native_handle()) {
        throw_error(std::errc::invalid_argument,
                    "the shared receive queue belongs to another ProtectionDomain");
    }
}

// The options of a queue pair whose receives are in a shared queue.
[[nodiscard]] inline QueuePairOptions without_receives(QueuePairOptions options) noexcept {
    options.max_recv_wr = 0;
    options.max_recv_sge = 0;
    return options;
}

// A PSN that differs from that of the last queue pair with the same number, whose late packets
// would otherwise be taken for this one's.
template <class Use = OnUse>
[[nodiscard]] std::uint32_t arbitrary_psn(std::uint32_t qp_num) noexcept {
    const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
    auto bits = static_cast<std::uint64_t>(now) + (std::uint64_t{qp_num} << 40);
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u; // the mixing of splitmix64
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
    return static_cast<std::uint32_t>(bits >> 40) & max_24_bits;
}

// The deleter of a queue pair, as ReleaseNative is that of the others.
template <class Use>
struct ReleaseQueuePair {
    void operator()(ibv_qp* qp) noexcept {
        if (ibv_destroy_qp(qp) != 0) {
            slots->keep();
            if (shared_slots != nullptr) {
                shared_slots->keep();
            }
        }
        slots.reset();
        shared_slots.reset();
        srq.reset();
        domain.reset();
        send_cq.reset();
        recv_cq.reset();
    }

    std::shared_ptr<CqReservation<Use>> slots;
    std::shared_ptr<CqReservation<Use>> shared_slots;
    Handle<void, Use> srq;
    Handle<void, Use> domain;
    Handle<void, Use> send_cq;
    Handle<void, Use> recv_cq;
};

// Makes a queue pair whose completions fit their queues (I10), with receives of its own where
// `receives` is null; `granted` is what the device gave.
template <class Use>
[[nodiscard]] Handle<ibv_qp, Use> create_queue_pair(const BasicProtectionDomain<Use>& domain,
                                                    const BasicCompletionQueue<Use>& send_cq,
                                                    const BasicCompletionQueue<Use>& recv_cq,
                                                    const BasicSharedReceiveQueue<Use>* receives,
                                                    const QueuePairOptions& options,
                                                    ibv_qp_cap& granted) {
    check_same_context(domain.context(), send_cq);
    check_same_context(domain.context(), recv_cq);
    check_options(domain.context(), options);
    Handle<ibv_srq, Use> srq;
    std::shared_ptr<CqReservation<Use>> shared_slots;
    if (receives != nullptr) {
        check_same_domain(domain, *receives);
        srq = receives->shared_handle();
        shared_slots = receives->reserve(recv_cq);
    }
    auto slots = make_reservation(send_cq.capacity(), options.max_send_wr, recv_cq.capacity(),
                                  options.max_recv_wr);
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
        // No device says how much inline data it takes, so that is the one limit not checked above.
        const std::string hint =
            error == EINVAL && options.max_inline_data != 0
                ? " (max_inline_data " + std::to_string(options.max_inline_data) + ")"
                : "";
        throw_verb_error(("ibv_create_qp" + hint).c_str(), error);
    }
    granted = attr.cap;
    return {native, ReleaseQueuePair<Use>{std::move(slots), std::move(shared_slots), std::move(srq),
                                          domain.shared_handle(), send_cq.shared_handle(),
                                          recv_cq.shared_handle()}};
}

// One call of ibv_modify_qp.
struct QueuePairStep {
    ibv_qp_attr attr{};
    int mask = IBV_QP_STATE;
    const char* name = "";

    QueuePairStep(ibv_qp_state state, const char* step) noexcept : name(step) {
        attr.qp_state = state;
    }

    // The errno of the verb, or 0.
    [[nodiscard]] int try_apply(ibv_qp* qp) {
        errno = 0;
        const int result = ibv_modify_qp(qp, &attr, mask);
        return result == 0 ? 0 : verb_errno(result);
    }

    template <class Use = OnUse>
    void apply(ibv_qp* qp) {
        if (const int error = try_apply(qp)) {
            throw_verb_error((std::string("ibv_modify_qp (to ") + name + ")").c_str(), error);
        }
    }
};

template <class Use>
[[nodiscard]] QueuePairStep init_step(const Endpoint& local, ibv_qp_type type,
                                      const BasicInitOptions<Use>& options) {
    QueuePairStep step(IBV_QPS_INIT, "INIT");
    step.attr.port_num = static_cast<std::uint8_t>(local.port);
    step.attr.pkey_index = options.pkey_index;
    step.attr.qp_access_flags = static_cast<unsigned>(options.access);
    step.attr.qkey = options.qkey;
    step.mask |= IBV_QP_PORT | IBV_QP_PKEY_INDEX;
    step.mask |= type == IBV_QPT_UD ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS;
    return step;
}

template <class Use>
[[nodiscard]] QueuePairStep rtr_step(const BasicContext<Use>& context, const Endpoint& local,
                                     const QueuePairAddress& remote,
                                     const BasicRtrOptions<Use>& options) {
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

template <class Use = OnUse>
[[nodiscard]] QueuePairStep rts_step(ibv_qp_type type, std::uint32_t psn,
                                     const RtsOptions& options) {
    check_range("timeout", options.timeout, 0, 31, "a queue pair");
    check_range("retry_cnt", options.retry_cnt, 0, 7, "a queue pair");
    check_range("rnr_retry", options.rnr_retry, 0, 7, "a queue pair");
    QueuePairStep step(IBV_QPS_RTS, "RTS");
    step.attr.sq_psn = psn;
    step.mask |= IBV_QP_SQ_PSN;
    if (type != IBV_QPT_UD) {
        step.attr.timeout = options.timeout;
        step.attr.retry_cnt = options.retry_cnt;
        step.attr.rnr_retry = options.rnr_retry;
        step.attr.max_rd_atomic = options.max_rd_atomic;
        step.mask |= IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;
    }
    return step;
}

} // namespace asyncverbs::detail
