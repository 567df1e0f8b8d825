// SPDX-License-Identifier: MIT
// One end of a connection whose other end is in another process or on another machine: its memory,
// its queue pair, and an account of every work request.
#pragma once

#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <vector>

#include "device/pair.hpp"

namespace asyncverbs::device {

/// Sends and receives are counted from 0 and complete each in the order in which they were posted,
/// by an error or without.
class End {
public:
    /// Receives that are posted at any time, and sends that should be on their way at most.
    static constexpr std::uint32_t window = 16;

    /// CQ entries that an end needs: there may be one send more than the window.
    static constexpr int depth = 2 * window + 1;

    /// `size`: the longest message. All receives are posted when this returns.
    End(const ProtectionDomain& domain, const AsyncCq& cq, std::size_t size)
        : size_(size), memory_(depth * size), region_(domain, memory_),
          queue_pair_(domain, cq.completion_queue(), cq.completion_queue(),
                      {.max_send_wr = window + 1, .max_recv_wr = window}) {
        queue_pair_.init({.gid_index = gid_index()});
        while (receives_posted_ < window) post_recv();
    }

    QueuePairAddress address() const { return queue_pair_.local_address(); }
    std::uint32_t qp_num() const { return queue_pair_.qp_num(); }

    /// Gives up on a peer that does not answer for two seconds, which an end may take on a busy
    /// machine.
    void connect(const QueuePairAddress& remote) {
        queue_pair_.connect(remote, {}, {.timeout = 16, .retry_cnt = 6});
    }

    /// What post_send() sends, so much of it as is said there.
    std::span<std::byte> next_send() const { return send_slot(sends_posted_).bytes(); }

    void post_send(std::size_t length) {
        ibv_sge sge = send_slot(sends_posted_).sge();
        sge.length = static_cast<std::uint32_t>(length);
        ibv_send_wr wr{};
        wr.wr_id = sends_posted_++;
        wr.sg_list = &sge;
        wr.num_sge = 1;
        wr.opcode = IBV_WR_SEND;
        wr.send_flags = IBV_SEND_SIGNALED;
        queue_pair_.post_send(wr);
    }

    /// The message of a receive that has completed, until post_recv().
    std::span<const std::byte> received(const ibv_wc& wc) const {
        return receive_slot(wc.wr_id & ~receive_bit).bytes().first(wc.byte_len);
    }

    void post_recv() {
        ibv_sge sge = receive_slot(receives_posted_).sge();
        ibv_recv_wr wr{};
        wr.wr_id = receives_posted_++ | receive_bit;
        wr.sg_list = &sge;
        wr.num_sge = 1;
        queue_pair_.post_recv(wr);
    }

    static bool is_receive(const ibv_wc& wc) noexcept { return (wc.wr_id & receive_bit) != 0; }

    /// Enters a completion into the account; throws std::runtime_error if it should not have come
    /// now. False: it is an error.
    bool enter(const ibv_wc& wc) {
        const std::uint64_t expected =
            is_receive(wc) ? receives_completed_++ | receive_bit : sends_completed_++;
        if (wc.wr_id != expected) throw std::runtime_error("a completion is out of order");
        if (wc.status != IBV_WC_SUCCESS) {
            enter_error(wc);
        } else if (!errors_.empty()) {
            throw std::runtime_error("a completion succeeded after an error");
        }
        return wc.status == IBV_WC_SUCCESS;
    }

    std::uint64_t sends_posted() const noexcept { return sends_posted_; }
    std::uint64_t sends_completed() const noexcept { return sends_completed_; }
    std::uint64_t sends_outstanding() const noexcept { return sends_posted_ - sends_completed_; }
    std::uint64_t receives_completed() const noexcept { return receives_completed_; }
    std::uint64_t outstanding() const noexcept {
        return sends_outstanding() + receives_posted_ - receives_completed_;
    }

    /// Those that were not successful, in their order.
    const std::vector<ibv_wc_status>& errors() const noexcept { return errors_; }
    std::uint64_t failed_receives() const noexcept { return failed_receives_; }

private:
    static constexpr std::uint64_t receive_bit = std::uint64_t{1} << 63;

    Slice receive_slot(std::uint64_t count) const {
        return region_.slice(count % window * size_, size_);
    }
    Slice send_slot(std::uint64_t count) const {
        return region_.slice((window + count % (window + 1)) * size_, size_);
    }

    // Of a receive that was posted while the queue pair failed, soft-RoCE's kernel part knows
    // nothing: it flushes what it finds when it is told to.
    void enter_error(const ibv_wc& wc) {
        if (errors_.empty()) queue_pair_.to_error();
        errors_.push_back(wc.status);
        if (is_receive(wc)) ++failed_receives_;
    }

    std::size_t size_;
    std::vector<std::byte> memory_;
    MemoryRegion region_;
    std::uint64_t sends_posted_ = 0;
    std::uint64_t sends_completed_ = 0;
    std::uint64_t receives_posted_ = 0;
    std::uint64_t receives_completed_ = 0;
    std::uint64_t failed_receives_ = 0;
    std::vector<ibv_wc_status> errors_;
    QueuePair queue_pair_; // last: destroyed before the memory that it may write
};

} // namespace asyncverbs::device
