// SPDX-License-Identifier: MIT
// A part of a peer's memory region, with all that RDMA needs to name it.
// It travels from the peer, who knows the address and the key, in a message of the application's.
#pragma once

#include <arpa/inet.h>
#include <infiniband/verbs.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include <asyncverbs/verbs/address_handle.hpp>
#include <asyncverbs/verbs/error.hpp>
#include <asyncverbs/verbs/memory.hpp>

namespace asyncverbs {

/// `length` bytes at `address` of the peer, in the memory region of `rkey`. A plain value.
struct RemoteSlice {
    std::uint64_t address = 0; ///< at the peer
    std::size_t length = 0;    ///< in bytes
    std::uint32_t rkey = 0;    ///< of its memory region

    /// The slice's bytes from `offset` on. Throws as slice(offset, count) does.
    [[nodiscard]] RemoteSlice slice(std::size_t offset) const {
        return slice(offset, offset <= length ? length - offset : 0);
    }

    /// The `count` bytes at `offset`. Throws std::system_error (invalid_argument) that says offset,
    /// length and size where they are not all inside this slice.
    [[nodiscard]] RemoteSlice slice(std::size_t offset, std::size_t count) const {
        if (offset > length || count > length - offset) {
            detail::throw_error(std::errc::invalid_argument,
                                "a slice of length " + std::to_string(count) + " at offset " +
                                    std::to_string(offset) + " is outside the peer's of size " +
                                    std::to_string(length));
        }
        return {address + offset, count, rkey};
    }
};

/// A view of the slices that a work request gathers from or scatters to, in order. For parameters:
/// it refers to what it was made of, which has to exist until the call returns.
class Slices : public std::span<const Slice> {
public:
    Slices() noexcept = default; ///< None: a message without bytes.

    /// One.
    Slices(const Slice& one) noexcept : span(&one, 1) {}

    /// A std::vector, std::array, std::span of them, or another contiguous range.
    template <class Range>
        requires(!std::same_as<Range, Slices> &&
                 std::constructible_from<std::span<const Slice>, const Range&>)
    Slices(const Range& slices) noexcept : span(slices) {}
};

/// How to send. See ibv_post_send(3).
struct SendOptions {
    bool solicited = false;   ///< the receiver is woken even if it armed for solicited events alone
    bool fence = false;       ///< after all reads and atomics that were posted before
    bool inline_data = false; ///< copied when posted: slices are free at once, lkeys do not count
    bool signaled = true; ///< false: completes, if all goes well, with the next that is signaled
};

namespace detail {

// A work request of a send queue but for its slices. The makers are those of SendRequest. Trivial,
// so that what is posted at once is never put together in memory.
struct SendWork {
    static SendWork send(SendOptions options) noexcept {
        return {IBV_WR_SEND, IBV_WC_SEND, options};
    }
    static SendWork send_with_imm(std::uint32_t imm, SendOptions options) noexcept {
        SendWork work(IBV_WR_SEND_WITH_IMM, IBV_WC_SEND, options);
        work.imm = htonl(imm);
        return work;
    }
    static SendWork send_with_invalidate(std::uint32_t rkey, SendOptions options) noexcept {
        SendWork work(IBV_WR_SEND_WITH_INV, IBV_WC_SEND, options);
        work.imm = rkey;
        return work;
    }
    static SendWork send_to(const AddressHandle& peer, std::uint32_t qp_num, std::uint32_t qkey,
                            SendOptions options) {
        SendWork work(IBV_WR_SEND, IBV_WC_SEND, options);
        work.peer = &checked(peer.shared_handle(), "AddressHandle");
        work.peer_qp_num = qp_num;
        work.peer_qkey = qkey;
        return work;
    }
    static SendWork write(Slices slices, const RemoteSlice& remote, SendOptions options) {
        return rdma(IBV_WR_RDMA_WRITE, IBV_WC_RDMA_WRITE, slices, remote, options);
    }
    static SendWork write_with_imm(Slices slices, const RemoteSlice& remote, std::uint32_t imm,
                                   SendOptions options) {
        SendWork work =
            rdma(IBV_WR_RDMA_WRITE_WITH_IMM, IBV_WC_RDMA_WRITE, slices, remote, options);
        work.imm = htonl(imm);
        return work;
    }
    static SendWork read(Slices slices, const RemoteSlice& remote, SendOptions options) {
        return rdma(IBV_WR_RDMA_READ, IBV_WC_RDMA_READ, slices, remote, options);
    }
    static SendWork compare_and_swap(Slices before, const RemoteSlice& remote,
                                     std::uint64_t compare, std::uint64_t swap,
                                     SendOptions options) {
        return atomic(IBV_WR_ATOMIC_CMP_AND_SWP, IBV_WC_COMP_SWAP, before, remote, compare, swap,
                      options);
    }
    static SendWork fetch_and_add(Slices before, const RemoteSlice& remote, std::uint64_t add,
                                  SendOptions options) {
        return atomic(IBV_WR_ATOMIC_FETCH_AND_ADD, IBV_WC_FETCH_ADD, before, remote, add, 0,
                      options);
    }

    ibv_wr_opcode opcode;
    ibv_wc_opcode completes_as;
    SendOptions options;
    std::uint32_t imm = 0; // in network order; or the key to invalidate
    RemoteSlice remote{};
    std::uint64_t compare_add = 0;
    std::uint64_t swap = 0;
    const std::shared_ptr<ibv_ah>* peer = nullptr;
    std::uint32_t peer_qp_num = 0;
    std::uint32_t peer_qkey = 0;

private:
    SendWork(ibv_wr_opcode what, ibv_wc_opcode becomes, SendOptions how) noexcept
        : opcode(what), completes_as(becomes), options(how) {}

    static std::size_t total(Slices slices) noexcept {
        std::size_t bytes = 0;
        for (const Slice& slice : slices) bytes += slice.length;
        return bytes;
    }

    static SendWork rdma(ibv_wr_opcode opcode, ibv_wc_opcode completes_as, Slices slices,
                         const RemoteSlice& remote, SendOptions options) {
        if (const std::size_t bytes = total(slices); bytes > remote.length) [[unlikely]] {
            throw_error(std::errc::invalid_argument, std::to_string(bytes) +
                                                         " bytes do not fit the peer's slice of " +
                                                         std::to_string(remote.length));
        }
        SendWork work(opcode, completes_as, options);
        work.remote = remote;
        return work;
    }

    static SendWork atomic(ibv_wr_opcode opcode, ibv_wc_opcode completes_as, Slices before,
                           const RemoteSlice& remote, std::uint64_t compare_add, std::uint64_t swap,
                           SendOptions options) {
        if (total(before) != 8 || remote.length != 8 || remote.address % 8 != 0) {
            throw_error(std::errc::invalid_argument,
                        "an atomic works on 8 bytes, aligned at the peer");
        }
        SendWork work = rdma(opcode, completes_as, before, remote, options);
        work.compare_add = compare_add;
        work.swap = swap;
        return work;
    }
};

class WorkQueue;

} // namespace detail

/// A work request of a send queue. It holds one slice, but refers to several, which have to exist
/// until it was posted. The regions of the slices are kept from then to its completion. Each
/// is told in full at the function of the same name of AsyncQp.
class SendRequest {
public:
    /// A message for a receive of the peer.
    static SendRequest send(Slices slices, SendOptions options = {}) {
        return {Work::send(options), slices};
    }

    /// The same; the peer's completion carries `imm`, which is in host order.
    static SendRequest send_with_imm(Slices slices, std::uint32_t imm, SendOptions options = {}) {
        return {Work::send_with_imm(imm, options), slices};
    }

    /// Besides, invalidates `rkey` of the peer; where the device offers it.
    static SendRequest send_with_invalidate(Slices slices, std::uint32_t rkey,
                                            SendOptions options = {}) {
        return {Work::send_with_invalidate(rkey, options), slices};
    }

    /// UD: to queue pair `qp_num` with `qkey`, by the way of `peer`, which is kept as the slices.
    static SendRequest send_to(Slices slices, const AddressHandle& peer, std::uint32_t qp_num,
                               std::uint32_t qkey, SendOptions options = {}) {
        return {Work::send_to(peer, qp_num, qkey, options), slices};
    }

    /// RDMA write, to the start of `remote`. Throws std::system_error (invalid_argument) where the
    /// slices, taken together, are longer than `remote`.
    static SendRequest write(Slices slices, const RemoteSlice& remote, SendOptions options = {}) {
        return {Work::write(slices, remote, options), slices};
    }

    /// Besides, takes a receive of the peer, and delivers `imm` (host order) with its completion.
    static SendRequest write_with_imm(Slices slices, const RemoteSlice& remote, std::uint32_t imm,
                                      SendOptions options = {}) {
        return {Work::write_with_imm(slices, remote, imm, options), slices};
    }

    /// RDMA read, from the start of `remote`. Throws as write().
    static SendRequest read(Slices slices, const RemoteSlice& remote, SendOptions options = {}) {
        return {Work::read(slices, remote, options), slices};
    }

    /// Atomic, on 8 aligned bytes in the peer's byte order: puts `swap` where there is `compare`,
    /// and what was there into `before`. Throws std::system_error (invalid_argument) for anything
    /// but 8 aligned bytes.
    static SendRequest compare_and_swap(Slices before, const RemoteSlice& remote,
                                        std::uint64_t compare, std::uint64_t swap,
                                        SendOptions options = {}) {
        return {Work::compare_and_swap(before, remote, compare, swap, options), before};
    }

    /// Atomic: adds `add`. Otherwise as compare_and_swap().
    static SendRequest fetch_and_add(Slices before, const RemoteSlice& remote, std::uint64_t add,
                                     SendOptions options = {}) {
        return {Work::fetch_and_add(before, remote, add, options), before};
    }

private:
    friend class AsyncQp;
    friend class detail::WorkQueue;
    using Work = detail::SendWork;

    SendRequest(const Work& work, Slices slices) : work_(work), has_one_(slices.size() == 1) {
        if (work.peer != nullptr) peer_ = *work.peer;
        if (has_one_) {
            one_ = slices.front();
        } else {
            several_ = slices;
        }
    }

    Work work() const noexcept {
        Work work = work_;
        if (work.peer != nullptr) work.peer = &peer_; // wherever this was moved to
        return work;
    }
    Slices slices() const noexcept { return has_one_ ? Slices(one_) : several_; }

    Work work_;
    std::shared_ptr<ibv_ah> peer_;
    bool has_one_;
    Slice one_;
    Slices several_;
};

} // namespace asyncverbs
