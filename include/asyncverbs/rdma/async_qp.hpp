// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>

#include <asyncverbs/rdma/async_srq.hpp>
#include <asyncverbs/rdma/detail/queue_pair_state.hpp>
#include <asyncverbs/rdma/operation.hpp>
#include <asyncverbs/rdma/router.hpp>
#include <asyncverbs/rdma/send_request.hpp>
#include <asyncverbs/verbs/address_handle.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/memory_window.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>
#include <asyncverbs/verbs/queue_pair_options.hpp>

namespace asyncverbs {

namespace detail {
struct KeepAlive;
class StreamState;
} // namespace detail

/// A queue pair, RC or UD, on the completion queue of a Router; or on those of two.
///
///     AsyncQp qp(router, domain);
///     qp.queue_pair().connect(remote);
///     Operation receive = qp.post_recv(answer);
///     co_await qp.send(request);
///     std::uint32_t bytes = (co_await receive).bytes();
///
/// Every operation is posted by the call, and may be awaited later or not at all; see Operation.
/// While the queue is full, operations wait for room, in order. The slices are read only during the
/// call; their regions are kept until the completion. A `stop` ends the wait, see Operation.
///
/// One doorbell for what coroutines post together: while the router delivers a batch of
/// completions, and resumes coroutines for it, it gathers what they post. At the end of the batch
/// each queue gets its requests in one call of the device, all receives before any sends. So a
/// coroutine that blocks or computes for long after it has posted delays its requests, and those of
/// others; and it must not expect a send to arrive while it runs. Not delayed are requests with
/// inline data or SendOptions::at_once, and what the same queue has gathered before them; drain()
/// and queue_pair() post what was gathered, too. Outside of a batch everything is posted at once.
///
/// All operations throw std::system_error (invalid_argument) for more slices than max_send_sge or
/// max_recv_sge, or a slice longer than 4 GiB - 1; a request that the device rejects is reported by
/// the operation. The operations of the same queue that were gathered with it, or wait for room,
/// behind it end with that error, too, and are not posted.
///
/// Thread: that of the router; two routers have the same thread. Lifetime: may be destroyed at any
/// time; pending operations then end with operation_canceled, and the router resumes their waiters.
/// To see how they end, drain() first. Keeps the router's completion queue alive, but not the
/// Router.
/// Move-only; a moved-from AsyncQp can only be destroyed or assigned to.
class AsyncQp {
public:
    /// In RESET, see queue_pair(). Throws as QueuePair does; `options.sq_sig_all` has no effect.
    /// Reserves max_send_wr + max_recv_wr entries of the completion queue (I10).
    AsyncQp(Router& router, const ProtectionDomain& domain, const QueuePairOptions& options = {})
        : AsyncQp(router, router, domain, options) {}

    /// As above, with two routers, which may be on the same loop: sends complete into the queue of
    /// `sends`, receives into that of `receives`. So the program may handle receives first, or be
    /// woken only for messages that are sent with SendOptions::solicited, see
    /// AsyncCqOptions::solicited_only. Reserves max_send_wr entries of the one queue, and
    /// max_recv_wr of the other. The queues report independently: a receive may end before the send
    /// that the peer has answered, and a flush of one queue may name no cause if the failure is in
    /// the other.
    AsyncQp(Router& sends, Router& receives, const ProtectionDomain& domain,
            const QueuePairOptions& options = {})
        : AsyncQp(sends, receives, nullptr,
                  detail::QueuePairState::make(*sends.state_, *receives.state_, nullptr, domain,
                                               options)) {}

    /// As above, but takes its receives from `receives`, an AsyncSrq of the same Router that has
    /// reserved entries for them: max_recv_wr has no effect, and recv() throws.
    AsyncQp(Router& router, const ProtectionDomain& domain, const AsyncSrq& receives,
            const QueuePairOptions& options = {})
        : AsyncQp(router, router, receives.state_,
                  detail::QueuePairState::make(*router.state_, *router.state_,
                                               receives.state_.get(), domain, options)) {}

    /// Takes over `queue_pair`, which completes into the queue of `router`. It may be made from one
    /// that the program has already, of any type that ibv_post_send serves, in any state; nothing
    /// may be posted on it. XRC: it is the sending half, see SendRequest::to_srq(). If it is
    /// borrowed and this is destroyed while requests are posted, it is left in RESET, because the
    /// device must not use their memory any more. Receives are its own, not those of a shared
    /// receive queue. The sends of a provider's own type, IBV_QPT_DRIVER, may complete in any
    /// order, as those of EFA's SRD do; all of them are signaled. Throws std::system_error
    /// (invalid_argument) for a queue pair on other completion queues.
    AsyncQp(Router& router, QueuePair queue_pair)
        : AsyncQp(router, router, std::move(queue_pair)) {}

    /// The same for a queue pair with two completion queues.
    AsyncQp(Router& sends, Router& receives, QueuePair queue_pair)
        : AsyncQp(sends, receives, nullptr,
                  detail::QueuePairState::checked(*sends.state_, *receives.state_,
                                                  std::move(queue_pair))) {}

    AsyncQp(AsyncQp&&) noexcept = default;
    AsyncQp& operator=(AsyncQp&&) noexcept = default;

    /// To connect it. Posts what was gathered before. Do not post to it or destroy it, and do not
    /// keep its shared_handle(): this object does the posting and owns it.
    [[nodiscard]] QueuePair& queue_pair() noexcept {
        state_->sends.flush();
        return state_->queue_pair;
    }
    /// To inspect it.
    [[nodiscard]] const QueuePair& queue_pair() const noexcept { return state_->queue_pair; }

    /// Receives one message into the slices, in their order. A longer message breaks an RC
    /// connection; on UD the first 40 bytes take the sender's GRH.
    [[gnu::always_inline]] Operation recv(Slices slices, std::stop_token stop = {}) {
        Operation operation(std::move(stop));
        state_->receives.submit(operation, slices);
        return operation;
    }

    /// The same, a better name in code that awaits it later.
    [[gnu::always_inline]] Operation post_recv(Slices slices, std::stop_token stop = {}) {
        return recv(slices, std::move(stop));
    }

    /// Posts `request`, made by one of the functions of SendRequest.
    Operation post(const SendRequest& request, std::stop_token stop = {}) {
        return post(request.view(), std::move(stop));
    }

    /// Posts `requests` in order, with one doorbell for those that there is room for. Each of
    /// `operations`, as many, becomes the operation of its request. If the device rejects a
    /// request, its operation and those behind it end with that error, and those before it are
    /// posted. Allocates only for a chain that is longer than 32 and any before.
    void post(std::span<const SendRequest> requests, std::span<Operation> operations) {
        if (requests.size() != operations.size()) {
            detail::throw_error(std::errc::invalid_argument,
                                "a chain of " + std::to_string(requests.size()) + " requests and " +
                                    std::to_string(operations.size()) + " operations");
        }
        for (Operation& operation : operations) operation = Operation();
        state_->sends.submit_chain(requests, operations);
    }

    // --- short forms of post(): each posts the SendRequest of its name, which describes it ---

    /// Sends one message.
    [[gnu::always_inline]] Operation send(Slices slices, SendOptions options = {},
                                          std::stop_token stop = {}) {
        return post(detail::SendView::send(slices, options), std::move(stop));
    }
    /// Sends one message with immediate data.
    [[gnu::always_inline]] Operation send_with_imm(Slices slices, std::uint32_t imm,
                                                   SendOptions options = {},
                                                   std::stop_token stop = {}) {
        return post(detail::SendView::send_with_imm(slices, imm, options), std::move(stop));
    }
    /// Sends one message and invalidates a key of the peer.
    [[gnu::always_inline]] Operation send_with_invalidate(Slices slices, std::uint32_t rkey,
                                                          SendOptions options = {},
                                                          std::stop_token stop = {}) {
        return post(detail::SendView::send_with_invalidate(slices, rkey, options), std::move(stop));
    }
    /// Sends a UD datagram. The reply to one that was received:
    ///
    ///     const AddressHandle peer(domain, qp.queue_pair(), received.wc(), slice);
    ///     co_await qp.send_to(reply, peer, received.src_qp());
    [[gnu::always_inline]] Operation send_to(Slices slices, const AddressHandle& peer,
                                             std::uint32_t qp_num,
                                             std::uint32_t qkey = InitOptions{}.qkey,
                                             SendOptions options = {}, std::stop_token stop = {}) {
        return post(detail::SendView::send_to(slices, peer, qp_num, qkey, options),
                    std::move(stop));
    }
    /// Writes to the peer's memory.
    [[gnu::always_inline]] Operation write(Slices slices, const RemoteSlice& remote,
                                           SendOptions options = {}, std::stop_token stop = {}) {
        return post(detail::SendView::write(slices, remote, options), std::move(stop));
    }
    /// Writes to the peer's memory, and takes a receive of the peer.
    [[gnu::always_inline]] Operation write_with_imm(Slices slices, const RemoteSlice& remote,
                                                    std::uint32_t imm, SendOptions options = {},
                                                    std::stop_token stop = {}) {
        return post(detail::SendView::write_with_imm(slices, remote, imm, options),
                    std::move(stop));
    }
    /// Reads the peer's memory.
    [[gnu::always_inline]] Operation read(Slices slices, const RemoteSlice& remote,
                                          SendOptions options = {}, std::stop_token stop = {}) {
        return post(detail::SendView::read(slices, remote, options), std::move(stop));
    }
    /// Atomic compare and swap of 8 bytes of the peer's memory.
    Operation compare_and_swap(Slices before, const RemoteSlice& remote, std::uint64_t compare,
                               std::uint64_t swap, SendOptions options = {},
                               std::stop_token stop = {}) {
        return post(detail::SendView::compare_and_swap(before, remote, compare, swap, options),
                    std::move(stop));
    }
    /// Atomic addition to 8 bytes of the peer's memory.
    Operation fetch_and_add(Slices before, const RemoteSlice& remote, std::uint64_t add,
                            SendOptions options = {}, std::stop_token stop = {}) {
        return post(detail::SendView::fetch_and_add(before, remote, add, options), std::move(stop));
    }
    /// Binds a memory window, to be used by the peer.
    Operation bind(MemoryWindow& window, const Slice& slice, unsigned access,
                   SendOptions options = {}, std::stop_token stop = {}) {
        return post(detail::SendView::bind(window, slice, access, options), std::move(stop));
    }
    /// Takes the key of a memory window back from the peer.
    Operation invalidate(const MemoryWindow& window, SendOptions options = {},
                         std::stop_token stop = {}) {
        return post(detail::SendView::invalidate(window, options), std::move(stop));
    }

    /// Awaits that all posted requests have completed, after moving the queue pair to ERR: from
    /// then on the device does not touch any of its buffers. Most operations end with
    /// IBV_WC_WR_FLUSH_ERR; operations that are posted later are flushed, too, except that
    /// soft-RoCE does not flush a receive that is posted later. Receives that it took from a shared
    /// receive queue may complete later. Throws std::system_error naming the verb, or the failure
    /// of the completion queue; operation_canceled if this is destroyed meanwhile.
    [[nodiscard]] detail::DrainAwaiter drain() noexcept { return detail::DrainAwaiter(*state_); }

private:
    friend struct detail::KeepAlive;
    friend class detail::StreamState;

    AsyncQp(const Router& sends, const Router& receives,
            std::shared_ptr<detail::SharedReceiveState> shared, QueuePair queue_pair)
        : state_(std::make_unique<detail::QueuePairState>(
              sends.state_, receives.state_, std::move(shared), std::move(queue_pair))) {}

    [[gnu::always_inline]] Operation post(const detail::SendView& request, std::stop_token&& stop) {
        Operation operation(std::move(stop));
        state_->sends.submit(operation, request);
        return operation;
    }

    std::unique_ptr<detail::QueuePairState> state_;
};

} // namespace asyncverbs
