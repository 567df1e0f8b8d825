// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <arpa/inet.h>
#include <infiniband/verbs.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <system_error>

#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs {

/// A request that has not completed, see Router::in_flight(). A plain value.
struct RequestInFlight {
    std::uint32_t qp_num = 0;                ///< 0: it is in a shared receive queue
    ibv_wc_opcode opcode = IBV_WC_SEND;      ///< that its completion will have
    bool posted = false;                     ///< false: it waits for room in its queue
    std::chrono::nanoseconds reported_for{}; ///< since in_flight() reported it first; 0 if !posted
};

/// The completion of one operation. A plain value.
class Completion {
public:
    /// A success without data.
    Completion() noexcept : wc_{}, cause_status_(IBV_WC_SUCCESS), cause_vendor_error_(0) {}

    /// A completion of the device.
    explicit Completion(const ibv_wc& wc) noexcept
        : wc_(wc), cause_status_(wc.status), cause_vendor_error_(wc.vendor_err) {}

    /// A flushed completion: `cause` and `vendor_error` are those of the operation that failed
    /// before.
    Completion(const ibv_wc& wc, ibv_wc_status cause, std::uint32_t vendor_error) noexcept
        : wc_(wc), cause_status_(cause), cause_vendor_error_(vendor_error) {}

    /// The status that the device reported for this operation.
    [[nodiscard]] ibv_wc_status status() const noexcept { return wc_.status; }

    /// What broke the queue pair: if this operation was only flushed, the status of the first
    /// operation that failed there; else status().
    [[nodiscard]] ibv_wc_status cause() const noexcept { return cause_status_; }

    /// cause() as an error code of wc_status_category(); no error on success.
    [[nodiscard]] std::error_code error() const noexcept { return make_wc_error(cause_status_); }

    /// The vendor-specific error code of the cause.
    [[nodiscard]] std::uint32_t vendor_error() const noexcept { return cause_vendor_error_; }

    /// The kind of operation: IBV_WC_SEND, IBV_WC_RECV, … Also valid on errors.
    [[nodiscard]] ibv_wc_opcode opcode() const noexcept { return wc_.opcode; }

    /// The queue pair that it was posted to, or that took it from a shared receive queue.
    [[nodiscard]] std::uint32_t qp_num() const noexcept { return wc_.qp_num; }

    // The rest is valid only on success.

    /// Bytes that were received or read. On UD this includes the 40 bytes of the GRH.
    [[nodiscard]] std::uint32_t bytes() const noexcept { return wc_.byte_len; }

    /// The immediate data of a received message, in host order.
    [[nodiscard]] std::optional<std::uint32_t> imm() const noexcept {
        if ((wc_.wc_flags & IBV_WC_WITH_IMM) == 0) return std::nullopt;
        return ntohl(wc_.imm_data);
    }

    /// The key that the received message invalidated.
    [[nodiscard]] std::optional<std::uint32_t> invalidated_rkey() const noexcept {
        if ((wc_.wc_flags & IBV_WC_WITH_INV) == 0) return std::nullopt;
        return wc_.invalidated_rkey;
    }

    /// UD: the number of the sender's queue pair.
    [[nodiscard]] std::uint32_t src_qp() const noexcept { return wc_.src_qp; }

    /// The work completion. Its wr_id was chosen by the library.
    [[nodiscard]] const ibv_wc& wc() const noexcept { return wc_; }

private:
    ibv_wc wc_;
    ibv_wc_status cause_status_;
    std::uint32_t cause_vendor_error_;
};

/// An operation failed. code() is of wc_status_category() and gives the cause: if the operation was
/// only flushed, the status of the first operation that failed on its queue pair.
/// what() reads "receive on queue pair 17, flushed: transport retry counter exceeded".
class OperationError : public std::system_error {
public:
    /// For a completion whose status is an error.
    explicit OperationError(const Completion& completion)
        : system_error(completion.error(), describe(completion)), completion_(completion) {}

    /// Status, vendor error, opcode and queue pair number.
    [[nodiscard]] const Completion& completion() const noexcept { return completion_; }

private:
    static const char* name(ibv_wc_opcode opcode) noexcept {
        switch (opcode) {
        case IBV_WC_SEND:
            return "send";
        case IBV_WC_RDMA_WRITE:
            return "RDMA write";
        case IBV_WC_RDMA_READ:
            return "RDMA read";
        case IBV_WC_COMP_SWAP:
            return "compare-and-swap";
        case IBV_WC_FETCH_ADD:
            return "fetch-and-add";
        case IBV_WC_BIND_MW:
            return "bind of a memory window";
        case IBV_WC_LOCAL_INV:
            return "invalidation";
        case IBV_WC_RECV:
            return "receive";
        default:
            return "operation";
        }
    }

    static std::string describe(const Completion& completion) {
        std::string text = name(completion.opcode());
        text += " on queue pair " + std::to_string(completion.qp_num());
        if (completion.status() == IBV_WC_WR_FLUSH_ERR) text += ", flushed";
        if (completion.vendor_error() != 0) {
            char vendor[32];
            std::snprintf(vendor, sizeof vendor, ", vendor error 0x%x", completion.vendor_error());
            text += vendor;
        }
        return text;
    }

    Completion completion_;
};

} // namespace asyncverbs
