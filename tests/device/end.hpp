// SPDX-License-Identifier: MIT
// One end of a connection to another process or machine: a queue pair, its memory, and counts of
// its work requests.
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

/// Sends and receives are numbered from 0. Each kind must complete in the order in which it was
/// posted, with or without an error.
class End {
public:
    /// The number of receives that are always posted, and of sends that may be in flight.
    static constexpr std::uint32_t window = 16;

    /// The CQ entries that an end needs. There may be one send more than the window.
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

    /// Retries for two seconds, since a peer on a busy machine may take that long to answer.
    void connect(const QueuePairAddress& remote) {
        queue_pair_.connect(remote, {}, {.timeout = 16, .retry_cnt = 6});
    }

    /// The memory of the next message: post_send() sends its first bytes.
    std::span<std::byte> next_send() const { return send_slot(sends_posted_).bytes(); }

    void post_send(std::size_t length) {
        queue_pair_.post_send(sends_posted_, send_slot(sends_posted_).slice(0, length));
        ++sends_posted_;
    }

    /// The message of a completed receive; valid until post_recv().
    std::span<const std::byte> received(const ibv_wc& wc) const {
        return receive_slot(wc.wr_id & ~receive_bit).bytes().first(wc.byte_len);
    }

    void post_recv() {
        queue_pair_.post_recv(receives_posted_ | receive_bit, receive_slot(receives_posted_));
        ++receives_posted_;
    }

    static bool is_receive(const ibv_wc& wc) noexcept { return (wc.wr_id & receive_bit) != 0; }

    /// Counts a completion. Throws std::runtime_error if it is out of order.
    /// Returns false if it is an error.
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

    /// The status of each error completion, in their order.
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

    // Move the queue pair to ERR again: soft-RoCE's kernel part flushes only the receives that it
    // finds at a transition to ERR, and does not see a receive that is posted while the queue pair
    // fails.
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
