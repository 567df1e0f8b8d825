// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <arpa/inet.h>
#include <infiniband/verbs.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include <asyncverbs/verbs/address_handle.hpp>
#include <asyncverbs/verbs/detail/memory_use.hpp>
#include <asyncverbs/verbs/error.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/memory_window.hpp>

namespace asyncverbs {

namespace detail {
class DeferredRequest;
class WorkQueue;
} // namespace detail

/// A view of the slices that a work request gathers from or scatters to, in order. A parameter
/// type: the slices must exist until the call returns.
class Slices : public std::span<const Slice> {
public:
    Slices() noexcept = default; ///< No slice: a message without bytes.

    /// One slice.
    Slices(const Slice& one) noexcept : span(&one, 1) {}

    /// A std::vector, std::array, std::span of them, or another contiguous range.
    template <class Range>
        requires(!std::same_as<Range, Slices> &&
                 std::constructible_from<std::span<const Slice>, const Range&>)
    Slices(const Range& slices) noexcept : span(slices) {}
};

/// How to send. See ibv_post_send(3).
struct SendOptions {
    bool solicited = false;   ///< wakes the receiver even if it armed for solicited events only
    bool fence = false;       ///< starts after all reads and atomics that were posted before
    bool inline_data = false; ///< copied when posted: slices are free at once, lkeys are not used
    bool signaled = true;     ///< false: completes on success with the next signaled request
    /// posted by the call also while the router delivers a batch, see AsyncQp: this send does not
    /// wait for the other coroutines of the batch, but the later ones take another doorbell
    bool at_once = false;
};

namespace detail {

// A work request of a send queue without its slices.
struct SendWork {
    SendWork(ibv_wr_opcode what, ibv_wc_opcode becomes, SendOptions how) noexcept
        : opcode(what), completes_as(becomes), options(how) {}

    ibv_wr_opcode opcode;
    ibv_wc_opcode completes_as;
    SendOptions options;
    std::uint32_t imm = 0; // in network order; or the key to invalidate
    RemoteSlice remote{};
    std::uint64_t compare_add = 0;
    std::uint64_t swap = 0;
    const std::shared_ptr<ibv_ah>* peer = nullptr;
    std::uint32_t peer_queue = 0; // UD: a queue pair; XRC: a shared receive queue
    std::uint32_t peer_qkey = 0;
    ibv_mw* window = nullptr; // to bind to `remote` of `region` with these rights
    ibv_mr* region = nullptr;
    unsigned access = 0;
};

// The kinds of send requests. Request is constructible from a SendWork and Slices.
template <class Request>
class SendRequestKinds {
    friend Request;
    SendRequestKinds() = default;

public:
    /// Sends the slices as one message, which takes a receive of the peer.
    static Request send(Slices slices, SendOptions options = {}) {
        return Request({IBV_WR_SEND, IBV_WC_SEND, options}, slices);
    }

    /// As send(); the peer's completion carries `imm`, which is in host order.
    static Request send_with_imm(Slices slices, std::uint32_t imm, SendOptions options = {}) {
        SendWork work(IBV_WR_SEND_WITH_IMM, IBV_WC_SEND, options);
        work.imm = htonl(imm);
        return Request(work, slices);
    }

    /// As send(); also invalidates `rkey` of the peer, if the device supports it.
    static Request send_with_invalidate(Slices slices, std::uint32_t rkey,
                                        SendOptions options = {}) {
        SendWork work(IBV_WR_SEND_WITH_INV, IBV_WC_SEND, options);
        work.imm = rkey;
        return Request(work, slices);
    }

    /// UD: sends to the queue pair `qp_num` with `qkey` through `peer`, which is kept until the
    /// completion.
    static Request send_to(Slices slices, const AddressHandle& peer, std::uint32_t qp_num,
                           std::uint32_t qkey, SendOptions options = {}) {
        SendWork work(IBV_WR_SEND, IBV_WC_SEND, options);
        work.peer = &checked(peer.shared_handle(), "AddressHandle");
        work.peer_queue = qp_num;
        work.peer_qkey = qkey;
        return Request(work, slices);
    }

    /// RDMA write: copies the slices to the start of `remote`; the peer's program takes no part.
    /// Throws std::system_error (invalid_argument) if they are longer than `remote` in total.
    static Request write(Slices slices, const RemoteSlice& remote, SendOptions options = {}) {
        return rdma(IBV_WR_RDMA_WRITE, IBV_WC_RDMA_WRITE, slices, remote, options);
    }

    /// As write(); also takes a receive of the peer, whose completion carries `imm` (host order).
    static Request write_with_imm(Slices slices, const RemoteSlice& remote, std::uint32_t imm,
                                  SendOptions options = {}) {
        return rdma(IBV_WR_RDMA_WRITE_WITH_IMM, IBV_WC_RDMA_WRITE, slices, remote, options, imm);
    }

    /// RDMA read: fills the slices from the start of `remote`. Throws as write().
    static Request read(Slices slices, const RemoteSlice& remote, SendOptions options = {}) {
        return rdma(IBV_WR_RDMA_READ, IBV_WC_RDMA_READ, slices, remote, options);
    }

    /// Atomic: replaces the value at `remote` by `swap` if it equals `compare`. `before` receives
    /// the value before, swapped or not. Both are 8 bytes, aligned at the peer, in its byte order;
    /// otherwise throws std::system_error (invalid_argument).
    static Request compare_and_swap(Slices before, const RemoteSlice& remote, std::uint64_t compare,
                                    std::uint64_t swap, SendOptions options = {}) {
        return atomic(IBV_WR_ATOMIC_CMP_AND_SWP, IBV_WC_COMP_SWAP, before, remote, compare, swap,
                      options);
    }

    /// Atomic: adds `add`. Otherwise as compare_and_swap().
    static Request fetch_and_add(Slices before, const RemoteSlice& remote, std::uint64_t add,
                                 SendOptions options = {}) {
        return atomic(IBV_WR_ATOMIC_FETCH_AND_ADD, IBV_WC_FETCH_ADD, before, remote, add, 0,
                      options);
    }

    /// Binds `window` to `slice`, of its region: once the request has completed, the peer may
    /// access window.remote_slice() as `access` allows, a combination of ibv_access_flags. The
    /// region must be registered with IBV_ACCESS_MW_BIND, and for writes and atomics with
    /// IBV_ACCESS_LOCAL_WRITE; otherwise the request ends with IBV_WC_MW_BIND_ERR, and the queue
    /// pair fails. A window that is bound already must be invalidated first, and is bound at most
    /// once in a chain. Throws std::system_error (invalid_argument) for a slice of another region.
    static Request bind(MemoryWindow& window, const Slice& slice, unsigned access,
                        SendOptions options = {}) {
        SendWork work(IBV_WR_BIND_MW, IBV_WC_BIND_MW, options);
        work.remote = window.next_binding(slice);
        work.window = window.native_handle();
        work.region = window.region_.get();
        work.access = access;
        return Request(work, {});
    }

    /// Takes back the key of the bind that was posted last: once the request has completed, an
    /// access of the peer with that key fails with IBV_WC_REM_ACCESS_ERR there.
    static Request invalidate(const MemoryWindow& window, SendOptions options = {}) {
        SendWork work(IBV_WR_LOCAL_INV, IBV_WC_LOCAL_INV, options);
        work.imm = window.remote_slice().rkey;
        return Request(work, {});
    }

private:
    static Request rdma(ibv_wr_opcode opcode, ibv_wc_opcode completes_as, Slices slices,
                        const RemoteSlice& remote, SendOptions options, std::uint32_t imm = 0) {
        if (const std::size_t bytes = total(slices); bytes > remote.length) [[unlikely]]
            throw_too_long(bytes, remote);
        SendWork work(opcode, completes_as, options);
        work.remote = remote;
        work.imm = htonl(imm);
        return Request(work, slices);
    }

    static Request atomic(ibv_wr_opcode opcode, ibv_wc_opcode completes_as, Slices before,
                          const RemoteSlice& remote, std::uint64_t compare_add, std::uint64_t swap,
                          SendOptions options) {
        if (total(before) != 8 || remote.length != 8 || remote.address % 8 != 0) {
            throw_error(std::errc::invalid_argument,
                        "an atomic works on 8 bytes, aligned at the peer");
        }
        SendWork work(opcode, completes_as, options);
        work.remote = remote;
        work.compare_add = compare_add;
        work.swap = swap;
        return Request(work, before);
    }

    [[noreturn]] static void throw_too_long(std::size_t bytes, const RemoteSlice& remote) {
        throw_error(std::errc::invalid_argument, std::to_string(bytes) +
                                                     " bytes do not fit the peer's slice of " +
                                                     std::to_string(remote.length));
    }

    static std::size_t total(Slices slices) noexcept {
        std::size_t bytes = 0;
        for (const Slice& slice : slices) bytes += slice.length;
        return bytes;
    }
};

// A request that refers to its slices and its peer. Trivial: AsyncQp posts it from registers. To
// post a SendRequest instead costs a quarter more instructions per operation.
struct SendView : SendRequestKinds<SendView> {
    SendView(const SendWork& w, Slices s) noexcept : work(w), slices(s) {}

    SendWork work;
    Slices slices;
};

} // namespace detail

/// A work request of a send queue, to be posted by AsyncQp::post(). It holds one slice, but refers
/// to several, which must exist until it is posted. The regions of the slices must exist until
/// then, too; they are kept from the post to the completion.
///
///     const SendRequest requests[] = {SendRequest::write(data, remote), SendRequest::send(done)};
///     std::array<Operation, 2> operations;
///     qp.post(requests, operations); // one doorbell
class SendRequest : public detail::SendRequestKinds<SendRequest> {
public:
    /// XRC: the same request for the shared receive queue `srq_num` of the peer, see
    /// ibv_get_srq_num(3).
    [[nodiscard]] SendRequest to_srq(std::uint32_t srq_num) const {
        SendRequest request = *this;
        request.work_.peer_queue = srq_num;
        return request;
    }

private:
    friend class AsyncQp;
    friend class detail::DeferredRequest;
    friend class detail::SendRequestKinds<SendRequest>;
    friend class detail::WorkQueue;

    SendRequest(const detail::SendWork& work, Slices slices) : work_(work) {
        if (work.peer != nullptr) peer_ = *work.peer;
        if (slices.size() == 1) {
            one_ = slices.front();
        } else {
            several_ = slices;
        }
        has_one_ = slices.size() == 1;
    }

    detail::SendView view() const noexcept {
        detail::SendView view(work_, has_one_ ? Slices(one_) : several_);
        if (work_.peer != nullptr) view.work.peer = &peer_; // wherever this was moved to
        return view;
    }

    detail::SendWork work_;
    std::shared_ptr<ibv_ah> peer_;
    bool has_one_;
    Slice one_;
    Slices several_;
};

namespace detail {

// A request, or a receive, that waits for room in its queue, with copies of its slices. It keeps
// their memory, as a posted one does.
class DeferredRequest {
public:
    /// `use_of` returns the MemoryUse of a slice, or null.
    template <class UseOf>
    DeferredRequest(const SendView& view, UseOf use_of) : request_(view.work, view.slices) {
        if (request_.has_one_) one_hold_ = hold(request_.one_, use_of);
        const std::size_t count = request_.several_.size();
        if (count == 0) return;
        copies_ = std::make_unique<Slice[]>(count);
        holds_ = std::make_unique<MemoryHold[]>(count);
        for (std::size_t i = 0; i < count; ++i) {
            copies_[i] = request_.several_[i];
            holds_[i] = hold(copies_[i], use_of);
        }
        request_.several_ = std::span<const Slice>(copies_.get(), count);
    }

    bool is_receive() const noexcept { return request_.work_.completes_as == IBV_WC_RECV; }
    SendView view() const noexcept { return request_.view(); }

private:
    // From now on the slice refers to the use: its region may be destroyed before there is room.
    template <class UseOf>
    static MemoryHold hold(Slice& slice, UseOf& use_of) {
        MemoryUse* const use = use_of(slice);
        slice.keeper = use;
        return MemoryHold(use);
    }

    SendRequest request_;
    std::unique_ptr<Slice[]> copies_; // several_ refers to them
    MemoryHold one_hold_;
    std::unique_ptr<MemoryHold[]> holds_;
};

} // namespace detail
} // namespace asyncverbs
