// SPDX-License-Identifier: MIT
// A queue pair whose operations are awaited: `co_await qp.send(slice)`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/rdma/async_srq.hpp>
#include <asyncverbs/rdma/detail/queue_pair_state.hpp>
#include <asyncverbs/rdma/operation.hpp>
#include <asyncverbs/rdma/router.hpp>
#include <asyncverbs/rdma/send_request.hpp>
#include <asyncverbs/verbs/address_handle.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>
#include <asyncverbs/verbs/queue_pair_options.hpp>

namespace asyncverbs {

namespace detail {
class StreamState;
}

/// A queue pair, RC or UD, on the completion queue of a Router.
///
///     AsyncQp qp(router, domain);
///     qp.queue_pair().connect(remote);
///     Operation receive = qp.post_recv(answer);
///     co_await qp.send(request);
///     std::uint32_t bytes = (co_await receive).bytes();
///
/// Every operation is posted by the call, and may be awaited later, or not at all; see Operation.
/// Where the queue is full it waits for room, in order. The slices are read by the call alone;
/// their regions are kept until the completion. A `stop` ends the waiting, see Operation.
///
/// All of them throw std::system_error (invalid_argument) for more slices than max_send_sge or
/// max_recv_sge, or one beyond 4 GiB - 1; what the device refuses is the operation's result.
///
/// Thread: that of the router. Lifetime: may be destroyed at any time; operations under way then
/// end with operation_canceled, and whoever waits for them is resumed by the router. To see how
/// they end, drain() first. Keeps the router's completion queue alive, not the Router.
/// Move-only; only to be destroyed or assigned to when moved from.
class AsyncQp {
public:
    /// In RESET, see queue_pair(). Throws as QueuePair does; `options.sq_sig_all` has no effect.
    /// Reserves max_send_wr + 1 and max_recv_wr entries of the completion queue (I10).
    AsyncQp(Router& router, const ProtectionDomain& domain, const QueuePairOptions& options = {})
        : state_(
              std::make_unique<detail::QueuePairState>(router.state_, nullptr, domain, options)) {}

    /// The same, but it takes its receives from `receives`, of the same Router, which reserves
    /// entries for them: max_recv_wr has no effect, and recv() is refused.
    AsyncQp(Router& router, const ProtectionDomain& domain, const AsyncSrq& receives,
            const QueuePairOptions& options = {})
        : state_(std::make_unique<detail::QueuePairState>(router.state_, receives.state_, domain,
                                                          options)) {}

    AsyncQp(AsyncQp&&) noexcept = default;
    AsyncQp& operator=(AsyncQp&&) noexcept = default;

    /// To bring it up. Posting and destroying are this object's, and so is the lifetime: nobody
    /// else may keep the queue pair's shared_handle().
    [[nodiscard]] QueuePair& queue_pair() noexcept { return state_->queue_pair; }
    /// To look at it.
    [[nodiscard]] const QueuePair& queue_pair() const noexcept { return state_->queue_pair; }

    // --- two-sided ---

    /// Sends the slices as one message, which takes a receive of the peer.
    [[gnu::always_inline]] Operation send(Slices slices, SendOptions options = {},
                                          std::stop_token stop = {}) {
        return post(Work::send(options), slices, std::move(stop));
    }

    /// The same; the peer's completion carries `imm`, which is in host order.
    [[gnu::always_inline]] Operation send_with_imm(Slices slices, std::uint32_t imm,
                                                   SendOptions options = {},
                                                   std::stop_token stop = {}) {
        return post(Work::send_with_imm(imm, options), slices, std::move(stop));
    }

    /// The same; also invalidates `rkey` of the peer, where the device offers it.
    [[gnu::always_inline]] Operation send_with_invalidate(Slices slices, std::uint32_t rkey,
                                                          SendOptions options = {},
                                                          std::stop_token stop = {}) {
        return post(Work::send_with_invalidate(rkey, options), slices, std::move(stop));
    }

    /// UD: sends to the queue pair `qp_num` with `qkey`, by the way of `peer`, which is kept until
    /// the completion.
    [[gnu::always_inline]] Operation send_to(Slices slices, const AddressHandle& peer,
                                             std::uint32_t qp_num, std::uint32_t qkey,
                                             SendOptions options = {}, std::stop_token stop = {}) {
        return post(Work::send_to(peer, qp_num, qkey, options), slices, std::move(stop));
    }

    /// Receives one message into the slices, in their order. One that is longer than they are
    /// breaks an RC connection; on UD the first 40 bytes take the sender's GRH.
    [[gnu::always_inline]] Operation recv(Slices slices, std::stop_token stop = {}) {
        return Operation(state_->receives, std::move(stop), slices);
    }

    /// The same; for code that awaits it later, to read better.
    [[gnu::always_inline]] Operation post_recv(Slices slices, std::stop_token stop = {}) {
        return recv(slices, std::move(stop));
    }

    // --- one-sided: from, into or at the memory of the peer ---

    /// RDMA write: moves the slices, which together are at most `remote.length` long, to the start
    /// of `remote`; else throws std::system_error (invalid_argument). The peer's program takes no
    /// part.
    [[gnu::always_inline]] Operation write(Slices slices, const RemoteSlice& remote,
                                           SendOptions options = {}, std::stop_token stop = {}) {
        return post(Work::write(slices, remote, options), slices, std::move(stop));
    }

    /// The same; also takes a receive of the peer, whose completion carries `imm` (host order).
    [[gnu::always_inline]] Operation write_with_imm(Slices slices, const RemoteSlice& remote,
                                                    std::uint32_t imm, SendOptions options = {},
                                                    std::stop_token stop = {}) {
        return post(Work::write_with_imm(slices, remote, imm, options), slices, std::move(stop));
    }

    /// RDMA read: fills the slices, which together are at most `remote.length` long, from the start
    /// of `remote`; else throws as write().
    [[gnu::always_inline]] Operation read(Slices slices, const RemoteSlice& remote,
                                          SendOptions options = {}, std::stop_token stop = {}) {
        return post(Work::read(slices, remote, options), slices, std::move(stop));
    }

    /// Atomic: puts `swap` where there is `compare`. `before` receives what was there, whether it
    /// was swapped or not. Both are 8 bytes, aligned at the peer, in its byte order; else throws
    /// std::system_error (invalid_argument).
    Operation compare_and_swap(Slices before, const RemoteSlice& remote, std::uint64_t compare,
                               std::uint64_t swap, SendOptions options = {},
                               std::stop_token stop = {}) {
        return post(Work::compare_and_swap(before, remote, compare, swap, options), before,
                    std::move(stop));
    }

    /// Atomic: adds `add`. Otherwise as compare_and_swap().
    Operation fetch_and_add(Slices before, const RemoteSlice& remote, std::uint64_t add,
                            SendOptions options = {}, std::stop_token stop = {}) {
        return post(Work::fetch_and_add(before, remote, add, options), before, std::move(stop));
    }

    // --- any of them ---

    /// What `request` says, as the calls above do it.
    Operation post(const SendRequest& request, std::stop_token stop = {}) {
        return post(request.work(), request.slices(), std::move(stop));
    }

    /// Posts `requests` in order, with one doorbell for those that there is room for. Each of
    /// `operations`, as many, becomes that of its request. Where the device refuses one, its
    /// operation and those behind it end with that error, and those before it are posted.
    /// Allocates only for a chain that is longer than any before.
    void post(std::span<const SendRequest> requests, std::span<Operation> operations) {
        if (requests.size() != operations.size()) {
            detail::throw_error(std::errc::invalid_argument,
                                "a chain of " + std::to_string(requests.size()) + " requests and " +
                                    std::to_string(operations.size()) + " operations");
        }
        for (Operation& operation : operations) operation = Operation();
        state_->sends.submit_chain(requests, [&](std::size_t i) -> detail::OperationState& {
            return operations[i].state_;
        });
    }

    /// Moves the queue pair to ERR and waits until all that was posted has completed: afterwards
    /// the device touches no buffer of it any more. Operations end as they may, most by
    /// IBV_WC_WR_FLUSH_ERR; those that are posted later are flushed, too. What it has taken from a
    /// shared receive queue may complete later. Throws std::system_error naming the verb, or the
    /// failure of the completion queue.
    [[nodiscard]] Task<> drain() { return detail::QueuePairState::drain(*state_); }

private:
    friend class detail::StreamState;

    using Work = detail::SendWork;

    [[gnu::always_inline]] Operation post(const Work& work, Slices slices, std::stop_token&& stop) {
        return Operation(state_->sends, std::move(stop), work, slices);
    }

    std::unique_ptr<detail::QueuePairState> state_;
};

} // namespace asyncverbs
