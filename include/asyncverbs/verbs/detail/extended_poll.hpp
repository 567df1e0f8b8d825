// SPDX-License-Identifier: MIT
// ibv_poll_cq for a CQ that was created by ibv_create_cq_ex: what it would give, and timestamps.
// See ibv_create_cq_ex(3).
#pragma once

#include <infiniband/verbs.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>

#include <asyncverbs/verbs/detail/on_use.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

inline constexpr std::uint64_t timestamp_flags =
    IBV_WC_EX_WITH_COMPLETION_TIMESTAMP | IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK;

/// The completion that the iteration is at. What an error completion does not say is zero (I11).
inline ibv_wc read_wc(ibv_cq_ex* cq) {
    ibv_wc wc{};
    wc.wr_id = cq->wr_id;
    wc.status = cq->status;
    wc.qp_num = ibv_wc_read_qp_num(cq);
    if (wc.status != IBV_WC_SUCCESS) {
        wc.vendor_err = ibv_wc_read_vendor_err(cq);
        return wc;
    }
    wc.opcode = ibv_wc_read_opcode(cq);
    wc.wc_flags = ibv_wc_read_wc_flags(cq);
    wc.byte_len = ibv_wc_read_byte_len(cq);
    if (wc.wc_flags & (IBV_WC_WITH_IMM | IBV_WC_WITH_INV)) wc.imm_data = ibv_wc_read_imm_data(cq);
    wc.src_qp = ibv_wc_read_src_qp(cq);
    wc.slid = static_cast<std::uint16_t>(ibv_wc_read_slid(cq));
    wc.sl = ibv_wc_read_sl(cq);
    wc.dlid_path_bits = ibv_wc_read_dlid_path_bits(cq);
    return wc;
}

inline std::uint64_t read_timestamp(ibv_cq_ex* cq, std::uint64_t wc_flags) {
    if (cq->status != IBV_WC_SUCCESS) return 0;
    if (wc_flags & IBV_WC_EX_WITH_COMPLETION_TIMESTAMP) return ibv_wc_read_completion_ts(cq);
    return ibv_wc_read_completion_wallclock_ns(cq);
}

/// Returns how many were polled. Throws std::system_error naming ibv_start_poll.
template <class Use = OnUse>
std::size_t poll_extended(ibv_cq_ex* cq, std::uint64_t wc_flags, Used<std::span<ibv_wc>, Use> wcs,
                          std::uint64_t* timestamps) {
    ibv_poll_cq_attr attributes{};
    errno = 0;
    if (const int result = ibv_start_poll(cq, &attributes)) {
        const int error = verb_errno(result);
        if (error == ENOENT) return 0;
        throw_verb_error("ibv_start_poll", error);
    }
    std::size_t count = 0;
    do {
        if (timestamps && (wc_flags & timestamp_flags)) {
            timestamps[count] = read_timestamp(cq, wc_flags);
        }
        wcs[count++] = read_wc(cq);
        // An error of ibv_next_poll comes back from the next ibv_start_poll, when what left the CQ
        // has been delivered (I7).
    } while (count < wcs.size() && ibv_next_poll(cq) == 0);
    ibv_end_poll(cq);
    return count;
}

} // namespace asyncverbs::detail
