// SPDX-License-Identifier: MIT
// The exception of an operation that completed with an error.
#pragma once

#include <infiniband/verbs.h>

#include <cstdio>
#include <string>
#include <system_error>

#include <asyncverbs/rdma/completion.hpp>

namespace asyncverbs {

/// An operation failed. code() is of wc_status_category() and gives the cause: where the operation
/// was merely flushed, that is the status of the first one that failed on its queue pair.
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
