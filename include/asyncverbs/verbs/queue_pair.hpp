// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <optional>
#include <system_error>
#include <utility>

#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/detail/native.hpp>
#include <asyncverbs/verbs/detail/queue_pair_setup.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair_options.hpp>
#include <asyncverbs/verbs/shared_receive_queue.hpp>

namespace asyncverbs {

/// Owns a queue pair (ibv_qp): a send queue and a receive queue, connected to one peer (RC) or open
/// to many (UD). Keeps its protection domain, completion queues and shared receive queue alive.
///
/// RC: both ends call `init()`, post receives, exchange local_address(), and call
/// `connect(remote)`. UD: `init()`, post receives, `activate()`; each send names its peer, see
/// AddressHandle.
///
///     bob.post_recv(1, memory.slice(16, 16));
///     alice.post_send(2, memory.slice(0, 16));
///
/// Capacity (invariant I10): max_send_wr entries of `send_cq` and max_recv_wr entries of `recv_cq`
/// are reserved until the queue pair is destroyed. Unsignaled sends count too, because they
/// complete when they fail. The shared receive queue counts shared receives. The requested numbers
/// count, not those to which the device rounds them up and which not every device reports: so a
/// depth equal to the sum of the work requests suffices on every device. The application must have
/// no more work requests outstanding than it requested (a device may accept more, so posting until
/// ENOMEM does not find the limit), and must drain the queue pair before it destroys it, because
/// completions that are still queued occupy entries that are no longer reserved.
///
/// Move-only. A moved-from QueuePair owns nothing: native_handle() is nullptr, functions that need
/// the native object fail with invalid_argument. See ibv_create_qp(3).
class QueuePair {
public:
    /// A queue pair in RESET. `send_cq` and `recv_cq` may be the same queue. Throws
    /// std::system_error: invalid_argument for options beyond the limits of the device (naming
    /// them) and for queues of another Context than that of the domain; no_buffer_space, with the
    /// numbers, if a completion queue has too few free entries; operation_not_supported for UD on
    /// iWARP; else naming ibv_create_qp.
    QueuePair(const ProtectionDomain& domain, const CompletionQueue& send_cq,
              const CompletionQueue& recv_cq, const QueuePairOptions& options = {})
        : QueuePair(domain, send_cq, recv_cq, nullptr, options) {}

    /// A queue pair that takes its receives from `receives`, which must be of the same domain. It
    /// has no receives of its own: max_recv_wr and max_recv_sge are ignored, and 0 in options();
    /// devices reject post_recv(). Throws as the first form, and invalid_argument for another
    /// domain.
    QueuePair(const ProtectionDomain& domain, const CompletionQueue& send_cq,
              const CompletionQueue& recv_cq, const SharedReceiveQueue& receives,
              const QueuePairOptions& options = {})
        : QueuePair(domain, send_cq, recv_cq, &receives, detail::without_receives(options)) {}

    /// A queue pair that the program has already, see borrow(), of any type and in any state.
    /// `send_cq` and `recv_cq` are its completion queues; CompletionQueue has a constructor for
    /// them, too. The program promises that the capacities of `options` are at most those with
    /// which it made the queue pair; they are reserved in the queues, and the device is not asked,
    /// because not every device reports them. The type is that of the queue pair. With a shared
    /// receive queue, and of type IBV_QPT_XRC_SEND, there are no receives: they reserve nothing.
    /// local_address() and port() know only what this object does, not what the program has done
    /// before. Throws std::system_error: invalid_argument for nullptr and for other completion
    /// queues; no_buffer_space as above.
    QueuePair(std::shared_ptr<ibv_qp> handle, const CompletionQueue& send_cq,
              const CompletionQueue& recv_cq, const QueuePairOptions& options)
        : context_(borrow(detail::adopted(handle, "ibv_qp")->context)),
          options_(handle->srq != nullptr || !detail::has_receives(*handle)
                       ? detail::without_receives(options)
                       : options) {
        options_.type = handle->qp_type;
        granted_ = {options_.max_send_wr, options_.max_recv_wr, options_.max_send_sge,
                    options_.max_recv_sge, options_.max_inline_data};
        psn_ = detail::arbitrary_psn(handle->qp_num);
        qp_ = detail::adopt_queue_pair(std::move(handle), send_cq, recv_cq, options_);
    }

    QueuePair(QueuePair&&) noexcept = default;
    QueuePair& operator=(QueuePair&&) noexcept = default;

    /// RESET to INIT: selects port, GID and PSN. Receives can be posted from now on. May be
    /// repeated in INIT. Throws std::system_error: network_down for a port that is not active,
    /// invalid_argument for a port, GID index or PSN out of range or an empty GID,
    /// operation_not_supported on iWARP, else naming ibv_modify_qp.
    void init(const InitOptions& options = {}) {
        ibv_qp* qp = get();
        const std::uint32_t psn = options.psn.value_or(psn_);
        detail::check_range("psn", psn, 0, detail::max_24_bits, "a queue pair");
        const detail::Endpoint endpoint = detail::find_endpoint(context_, options);
        detail::init_step(endpoint, options_.type, options).apply(qp);
        endpoint_ = endpoint;
        psn_ = psn;
    }

    /// The address that the peer needs. Before init() it is the one that init() with its defaults
    /// would select; throws as init() would.
    [[nodiscard]] QueuePairAddress local_address() const {
        const std::uint32_t number = qp_num();
        const detail::Endpoint endpoint =
            endpoint_ ? *endpoint_ : detail::find_endpoint(context_, {});
        return {endpoint.lid, number, psn_, endpoint.gid};
    }

    /// The port that init() selected. Throws invalid_argument before.
    [[nodiscard]] std::uint8_t port() const { return static_cast<std::uint8_t>(endpoint().port); }

    /// RC: INIT to RTR, ready to receive from `remote`. Throws std::system_error: invalid_argument
    /// before init(), for a UD queue pair, for a `remote` that cannot be reached (no GID on RoCE,
    /// number or PSN of more than 24 bits), and for options out of range; else naming
    /// ibv_modify_qp and, on RoCE, both GIDs.
    void to_rtr(const QueuePairAddress& remote, const RtrOptions& options = {}) {
        require_type(IBV_QPT_RC, "a UD queue pair has no peer; see activate()");
        detail::QueuePairStep step = detail::rtr_step(context_, endpoint(), remote, options);
        if (const int error = step.try_apply(get())) {
            detail::throw_rtr_error(context_, endpoint(), remote.gid, error);
        }
    }

    /// The same, in words.
    void ready_to_receive(const QueuePairAddress& remote, const RtrOptions& options = {}) {
        to_rtr(remote, options);
    }

    /// The address vector of the path to `remote`, for address handles. Throws invalid_argument
    /// before init() and if `remote` cannot be reached.
    [[nodiscard]] ibv_ah_attr path_to(const QueuePairAddress& remote,
                                      const RtrOptions& options = {}) const {
        return detail::make_path(endpoint(), remote, options);
    }

    /// RTR to RTS, ready to send. A UD queue pair does not use the options. Throws
    /// std::system_error: invalid_argument for options out of range, else naming ibv_modify_qp.
    void to_rts(const RtsOptions& options = {}) {
        detail::rts_step(options_.type, psn_, options).apply(get());
    }

    /// The same, in words.
    void ready_to_send(const RtsOptions& options = {}) { to_rts(options); }

    /// RC: all steps to ready-to-send, init() with its defaults if it was not called yet. Throws as
    /// the steps do.
    void connect(const QueuePairAddress& remote, const RtrOptions& receive = {},
                 const RtsOptions& send = {}) {
        require_type(IBV_QPT_RC, "a UD queue pair has no peer; see activate()");
        if (!endpoint_) {
            init();
        }
        to_rtr(remote, receive);
        to_rts(send);
    }

    /// UD, and an adopted queue pair of type IBV_QPT_DRIVER: all steps to ready-to-send, init()
    /// with its defaults if it was not called yet. Throws as the steps do; invalid_argument for an
    /// RC queue pair.
    void activate() {
        if (!detail::sends_datagrams(options_.type)) {
            detail::throw_error(std::errc::invalid_argument,
                                "an RC queue pair needs a peer; see connect()");
        }
        if (!endpoint_) {
            init();
        }
        detail::QueuePairStep(IBV_QPS_RTR, "RTR").apply(get());
        to_rts();
    }

    /// To ERR: all outstanding work requests complete with IBV_WC_WR_FLUSH_ERR. Throws
    /// std::system_error naming ibv_modify_qp. In RESET, where nothing can be outstanding, kernels
    /// fail it with EINVAL.
    void to_error() { detail::QueuePairStep(IBV_QPS_ERR, "ERR").apply(get()); }

    /// The form that does not throw, for destructors: `error` is clear on success.
    void to_error(std::error_code& error) noexcept {
        try_step(detail::QueuePairStep(IBV_QPS_ERR, "ERR"), error);
    }

    /// To RESET: the device drops all outstanding work requests, without completions. `error` is
    /// clear on success.
    void to_reset(std::error_code& error) noexcept {
        try_step(detail::QueuePairStep(IBV_QPS_RESET, "RESET"), error);
        endpoint_.reset();
    }

    /// Destroys the queue pair, and reports as Context::close() does: device_or_resource_busy while
    /// it is attached to a multicast group.
    [[nodiscard]] std::error_code close() noexcept {
        if (const std::error_code error = detail::close<detail::ReleaseQueuePair>(qp_)) {
            return error;
        }
        const QueuePair released(std::move(*this));
        return {};
    }

    /// The state that the device reports. Throws std::system_error naming ibv_query_qp.
    [[nodiscard]] ibv_qp_state state() const {
        ibv_qp_attr attr{};
        ibv_qp_init_attr init_attr{};
        detail::call("ibv_query_qp",
                     [&] { return ibv_query_qp(get(), &attr, IBV_QP_STATE, &init_attr); });
        return attr.qp_state;
    }

    /// Posts `requests`, a chain linked by `next`. Throws std::system_error naming ibv_post_send:
    /// ENOMEM if the send queue is full; also the cause, if the device is an iWARP device, which
    /// has neither immediate data nor atomics. Requests before the failing one are posted. Their
    /// memory and keys must stay valid until they complete. See ibv_post_send(3).
    void post_send(ibv_send_wr& requests) {
        detail::post(ibv_post_send, "ibv_post_send", get(), requests);
    }

    /// The same for a temporary: post_send({.wr_id = 1, …}).
    void post_send(ibv_send_wr&& request) { post_send(request); }

    /// Posts one IBV_WR_SEND of `slice`, whose region must stay registered until it completes.
    /// `flags` are of ibv_send_flags. Without IBV_SEND_SIGNALED (and sq_sig_all) only a failure
    /// completes, and the entry of the send queue is not freed before a later signaled send
    /// completes. Throws as above, and as Slice::sge() does.
    void post_send(std::uint64_t wr_id, const Slice& slice, unsigned flags = IBV_SEND_SIGNALED) {
        ibv_sge sge = slice.sge();
        ibv_send_wr request{};
        request.wr_id = wr_id;
        request.sg_list = &sge;
        request.num_sge = 1;
        request.opcode = IBV_WR_SEND;
        request.send_flags = flags;
        post_send(request);
    }

    /// The form that does not throw: returns the first request that was not posted, nullptr on
    /// success.
    ibv_send_wr* post_send(ibv_send_wr& requests, std::error_code& error) noexcept {
        return detail::post(ibv_post_send, qp_.get(), requests, error);
    }

    /// Posts receives, a chain linked by `next`, in INIT or later. As post_send(), but naming
    /// ibv_post_recv. On UD the first 40 bytes of each receive hold the GRH of the sender. See
    /// ibv_post_recv(3).
    void post_recv(ibv_recv_wr& requests) {
        detail::post(ibv_post_recv, "ibv_post_recv", get(), requests);
    }

    /// The same for a temporary: post_recv({.wr_id = 1, …}).
    void post_recv(ibv_recv_wr&& request) { post_recv(request); }

    /// Posts one receive into `slice`, whose region must stay registered until it completes.
    /// Throws as above, and as Slice::sge() does.
    void post_recv(std::uint64_t wr_id, const Slice& slice) {
        ibv_sge sge = slice.sge();
        post_recv({.wr_id = wr_id, .next = nullptr, .sg_list = &sge, .num_sge = 1});
    }

    /// The form that does not throw; see post_send().
    ibv_recv_wr* post_recv(ibv_recv_wr& requests, std::error_code& error) noexcept {
        return detail::post(ibv_post_recv, qp_.get(), requests, error);
    }

    /// The number that names the queue pair for peers and in completions. Throws invalid_argument
    /// when moved from.
    [[nodiscard]] std::uint32_t qp_num() const { return get()->qp_num; }

    /// The options of the constructor; its capacities are those that completion queues reserve.
    [[nodiscard]] const QueuePairOptions& options() const noexcept { return options_; }

    /// The capacities that the device reports, at least what was requested.
    [[nodiscard]] const ibv_qp_cap& granted() const noexcept { return granted_; }

    /// Whether it was made from a handle: then the program, or another owner, may have it, too.
    [[nodiscard]] bool is_adopted() const noexcept {
        const auto* const release = std::get_deleter<detail::ReleaseQueuePair>(qp_);
        return release != nullptr && release->adopted;
    }

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

    void try_step(detail::QueuePairStep step, std::error_code& error) const noexcept {
        error.assign(qp_ ? step.try_apply(qp_.get()) : EINVAL, std::system_category());
    }

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
