// SPDX-License-Identifier: MIT
// Where work requests are posted: a send queue and a receive queue, connected to one peer (RC) or
// open to many (UD).
// Brings itself up with sane defaults, and is not made at all where its completions could overrun
// their queue.
#pragma once

#include <cerrno>
#include <cstdint>
#include <memory>
#include <optional>
#include <system_error>

#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/detail/cq_capacity.hpp>
#include <asyncverbs/verbs/detail/handle.hpp>
#include <asyncverbs/verbs/detail/queue_pair_setup.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair_options.hpp>
#include <asyncverbs/verbs/shared_receive_queue.hpp>

namespace asyncverbs {

/// Owns a queue pair (ibv_qp); keeps its protection domain and its other queues alive.
///
/// RC: `init()`, post receives, exchange local_address() with the peer, `connect(remote)`; both
/// ends do so. UD: `init()`, post receives, `activate()`; each send names its peer, see
/// AddressHandle.
///
/// Capacity (invariant I10): max_send_wr entries of `send_cq` and max_recv_wr entries of `recv_cq`
/// are reserved until the queue pair is destroyed; unsignaled sends count, for they complete when
/// they fail. Shared receives are counted by their queue. What was asked for is counted, not what
/// the device rounds it up to, which not every device tells: so a depth equal to the sum of the
/// work requests suffices everywhere. The application's part is to have no more outstanding than it
/// asked for (a device may take more, so posting until ENOMEM is no way to find out), and to drain
/// the queue pair before it destroys it: completions still queued keep entries that are no longer
/// counted.
///
/// Move-only. A moved-from QueuePair owns nothing: native_handle() is nullptr, whatever needs the
/// native object fails with invalid_argument. See ibv_create_qp(3).
class QueuePair {
public:
    /// A queue pair in RESET. `send_cq` and `recv_cq` may be one queue. Throws std::system_error:
    /// invalid_argument for options beyond the device's limits (saying them) and for queues of
    /// another Context than the domain's; no_buffer_space, with the numbers, where a completion
    /// queue has too few free entries; else naming ibv_create_qp.
    QueuePair(const ProtectionDomain& domain, const CompletionQueue& send_cq,
              const CompletionQueue& recv_cq, const QueuePairOptions& options = {})
        : QueuePair(domain, send_cq, recv_cq, nullptr, options) {}

    /// A queue pair that takes its receives from `receives`, which is of the same domain and stays
    /// alive with it. It has none of its own: max_recv_wr and max_recv_sge do not count, options()
    /// says 0, and devices refuse post_recv(). Throws as the first form.
    QueuePair(const ProtectionDomain& domain, const CompletionQueue& send_cq,
              const CompletionQueue& recv_cq, const SharedReceiveQueue& receives,
              const QueuePairOptions& options = {})
        : QueuePair(domain, send_cq, recv_cq, &receives, detail::without_receives(options)) {}

    QueuePair(QueuePair&&) noexcept = default;
    QueuePair& operator=(QueuePair&&) noexcept = default;

    /// RESET to INIT: chooses port, GID and PSN; from here on receives can be posted. May be
    /// repeated in INIT. Throws std::system_error: network_down for a port that is not active,
    /// invalid_argument for a port, GID index or PSN out of range or an empty GID, else naming
    /// ibv_modify_qp.
    void init(const InitOptions& options = {}) {
        ibv_qp* qp = get();
        const std::uint32_t psn = options.psn.value_or(psn_);
        detail::check_range("psn", psn, 0, detail::max_24_bits, "a queue pair");
        const detail::Endpoint endpoint = detail::find_endpoint(context_, options);
        detail::init_step(endpoint, options_.type, options).apply(qp);
        endpoint_ = endpoint;
        psn_ = psn;
    }

    /// The address that the peer needs. Before init() it is what init() with its defaults would
    /// make it, and fails as that would.
    [[nodiscard]] QueuePairAddress local_address() const {
        const std::uint32_t number = qp_num();
        const detail::Endpoint endpoint =
            endpoint_ ? *endpoint_ : detail::find_endpoint(context_, {});
        return {endpoint.lid, number, psn_, endpoint.gid};
    }

    /// RC: INIT to RTR, ready to receive from `remote`. Throws std::system_error: invalid_argument
    /// before init(), for a UD queue pair, for a `remote` that cannot be reached (no GID on RoCE,
    /// number or PSN of more than 24 bits), for options out of range; else naming ibv_modify_qp.
    void ready_to_receive(const QueuePairAddress& remote, const RtrOptions& options = {}) {
        require_type(IBV_QPT_RC, "a UD queue pair has no peer; see activate()");
        detail::rtr_step(context_, endpoint(), remote, options).apply(get());
    }

    /// The address vector that leads to `remote`, for address handles; throws invalid_argument
    /// before init() and where `remote` cannot be reached.
    [[nodiscard]] ibv_ah_attr path_to(const QueuePairAddress& remote,
                                      const RtrOptions& options = {}) const {
        return detail::make_path(endpoint(), remote, options);
    }

    /// RTR to RTS, ready to send; a UD queue pair has no use for the options. Throws
    /// std::system_error: invalid_argument for options out of range, else naming ibv_modify_qp.
    void ready_to_send(const RtsOptions& options = {}) {
        detail::rts_step(options_.type, psn_, options).apply(get());
    }

    /// RC: all the way to ready-to-send; calls init() with its defaults where that was not done.
    /// Throws as the three steps do.
    void connect(const QueuePairAddress& remote, const RtrOptions& receive = {},
                 const RtsOptions& send = {}) {
        require_type(IBV_QPT_RC, "a UD queue pair has no peer; see activate()");
        if (!endpoint_) {
            init();
        }
        ready_to_receive(remote, receive);
        ready_to_send(send);
    }

    /// UD: all the way to ready-to-send; calls init() with its defaults where that was not done.
    /// Throws as the steps do; invalid_argument for an RC queue pair.
    void activate() {
        require_type(IBV_QPT_UD, "an RC queue pair needs a peer; see connect()");
        if (!endpoint_) {
            init();
        }
        detail::QueuePairStep(IBV_QPS_RTR, "RTR").apply(get());
        ready_to_send();
    }

    /// To ERR: all outstanding work requests complete with IBV_WC_WR_FLUSH_ERR. Throws
    /// std::system_error naming ibv_modify_qp; in RESET, where nothing can be outstanding, kernels
    /// refuse with EINVAL.
    void to_error() { detail::QueuePairStep(IBV_QPS_ERR, "ERR").apply(get()); }

    /// The same for destructors: reports in `error`, clear on success.
    void to_error(std::error_code& error) noexcept {
        const int result =
            qp_ ? detail::QueuePairStep(IBV_QPS_ERR, "ERR").try_apply(qp_.get()) : EINVAL;
        error.assign(result, std::system_category());
    }

    /// The state that the device reports. Throws naming ibv_query_qp.
    [[nodiscard]] ibv_qp_state state() const {
        ibv_qp_attr attr{};
        ibv_qp_init_attr init_attr{};
        errno = 0;
        if (const int result = ibv_query_qp(get(), &attr, IBV_QP_STATE, &init_attr)) {
            throw_verb_error("ibv_query_qp", detail::verb_errno(result));
        }
        return attr.qp_state;
    }

    /// Posts `requests`, a chain by `next`. Throws std::system_error naming ibv_post_send: ENOMEM
    /// where the send queue is full. Those before the failing one are posted all the same. Memory
    /// and keys in it stay valid until the completion. See ibv_post_send(3).
    void post_send(ibv_send_wr& requests) {
        detail::post(ibv_post_send, "ibv_post_send", get(), requests);
    }

    /// The same for a request that is written where it is posted: post_send({.wr_id = 1, …}).
    void post_send(ibv_send_wr&& request) { post_send(request); }

    /// The form that does not throw: the first request that was not posted, nullptr on success.
    ibv_send_wr* post_send(ibv_send_wr& requests, std::error_code& error) noexcept {
        return detail::post(ibv_post_send, qp_.get(), requests, error);
    }

    /// Posts receives, a chain by `next`; in INIT or later. As post_send(), naming ibv_post_recv.
    /// On UD the first 40 bytes of each receive take the sender's GRH. See ibv_post_recv(3).
    void post_recv(ibv_recv_wr& requests) {
        detail::post(ibv_post_recv, "ibv_post_recv", get(), requests);
    }

    /// The same for a request that is written where it is posted: post_recv({.wr_id = 1, …}).
    void post_recv(ibv_recv_wr&& request) { post_recv(request); }

    /// The form that does not throw: the first request that was not posted, nullptr on success.
    ibv_recv_wr* post_recv(ibv_recv_wr& requests, std::error_code& error) noexcept {
        return detail::post(ibv_post_recv, qp_.get(), requests, error);
    }

    /// The number by which peers and completions name it. Throws invalid_argument when moved from.
    [[nodiscard]] std::uint32_t qp_num() const { return get()->qp_num; }

    /// What the queue pair was made with; the capacities are those that completion queues reserve.
    [[nodiscard]] const QueuePairOptions& options() const noexcept { return options_; }

    /// The capacities that the device says it gave: at least what was asked for.
    [[nodiscard]] const ibv_qp_cap& granted() const noexcept { return granted_; }

    /// The native object, for verbs that this library does not cover; nullptr when moved from.
    [[nodiscard]] ibv_qp* native_handle() const noexcept { return qp_.get(); }

    /// Shares ownership: the queue pair and its parents live as long as the pointer, or a copy.
    [[nodiscard]] const std::shared_ptr<ibv_qp>& shared_handle() const noexcept { return qp_; }

private:
    QueuePair(const ProtectionDomain& domain, const CompletionQueue& send_cq,
              const CompletionQueue& recv_cq, const SharedReceiveQueue* receives,
              const QueuePairOptions& options)
        : context_(detail::checked(domain.context().shared_handle(), "ProtectionDomain")),
          options_(options) {
        qp_ = detail::create_queue_pair(domain, send_cq, recv_cq, receives, options, granted_);
        psn_ = detail::arbitrary_psn(qp_->qp_num);
    }

    [[nodiscard]] ibv_qp* get() const { return detail::checked(qp_, "QueuePair").get(); }

    [[nodiscard]] const detail::Endpoint& endpoint() const {
        if (get() != nullptr && !endpoint_) {
            detail::throw_error(std::errc::invalid_argument,
                                "the queue pair has no port yet: init() comes first");
        }
        return *endpoint_;
    }

    void require_type(ibv_qp_type type, const char* text) const {
        if (options_.type != type) {
            detail::throw_error(std::errc::invalid_argument, text);
        }
    }

    Context context_;
    QueuePairOptions options_;
    ibv_qp_cap granted_{};
    std::uint32_t psn_ = 0;
    std::optional<detail::Endpoint> endpoint_; // since init()
    detail::Handle<ibv_qp> qp_;
};

} // namespace asyncverbs
