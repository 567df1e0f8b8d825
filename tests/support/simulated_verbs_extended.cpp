// SPDX-License-Identifier: MIT
//
// The simulated verbs of extended completion queues: created with flags, polled by iteration, each
// field read by a function of its own. And the moderation of events, which is only remembered.
#include "support/simulated_verbs_state.hpp"

#include <cerrno>

namespace asyncverbs::simulated {

using Lock = Simulation::Lock;

namespace {

CompletionQueue& simulated(ibv_cq_ex* cq) {
    return *static_cast<CompletionQueue*>(ibv_cq_ex_to_cq(cq));
}

int take_next(Simulation& simulation, CompletionQueue& cq) {
    if (cq.entries.empty()) return ENOENT;
    cq.current = take_entry(simulation, cq);
    cq.extended()->wr_id = cq.current->wc.wr_id;
    cq.extended()->status = cq.current->wc.status;
    return 0;
}

int start_poll(ibv_cq_ex* cq, ibv_poll_cq_attr* attributes) {
    return run_int(Verb::start_poll, cq, [&](Simulation& simulation, Lock&) -> Outcome {
        auto* polled = simulation.check<CompletionQueue>(Verb::start_poll, ibv_cq_ex_to_cq(cq));
        if (polled == nullptr || attributes->comp_mask != 0) return {.error = EINVAL};
        if (polled->current) simulation.record(Verb::start_poll, "without ibv_end_poll before");
        ++polled->counters.polls;
        polled->counters.empty_polls += polled->entries.empty() ? 1u : 0u;
        return {.error = take_next(simulation, *polled)};
    });
}

int next_poll(ibv_cq_ex* cq) {
    return run_int(Verb::next_poll, cq, [&](Simulation& simulation, Lock&) -> Outcome {
        CompletionQueue& polled = simulated(cq);
        if (!polled.current) simulation.record(Verb::next_poll, "without ibv_start_poll");
        return {.error = take_next(simulation, polled)};
    });
}

void end_poll(ibv_cq_ex* cq) { simulated(cq).current.reset(); }

const ibv_wc& current(ibv_cq_ex* cq) { return simulated(cq).current.value().wc; }
std::uint64_t timestamp(ibv_cq_ex* cq) { return simulated(cq).current.value().timestamp; }

void set_readers(ibv_cq_ex& cq, std::uint64_t wc_flags) {
    cq.start_poll = start_poll;
    cq.next_poll = next_poll;
    cq.end_poll = end_poll;
    cq.read_opcode = [](ibv_cq_ex* c) { return current(c).opcode; };
    cq.read_vendor_err = [](ibv_cq_ex* c) { return current(c).vendor_err; };
    cq.read_wc_flags = [](ibv_cq_ex* c) { return current(c).wc_flags; };
    // What was not asked for cannot be read.
    if (wc_flags & IBV_WC_EX_WITH_BYTE_LEN) {
        cq.read_byte_len = [](ibv_cq_ex* c) { return current(c).byte_len; };
    }
    if (wc_flags & IBV_WC_EX_WITH_IMM) {
        cq.read_imm_data = [](ibv_cq_ex* c) { return current(c).imm_data; };
    }
    if (wc_flags & IBV_WC_EX_WITH_QP_NUM) {
        cq.read_qp_num = [](ibv_cq_ex* c) { return current(c).qp_num; };
    }
    if (wc_flags & IBV_WC_EX_WITH_SRC_QP) {
        cq.read_src_qp = [](ibv_cq_ex* c) { return current(c).src_qp; };
    }
    if (wc_flags & IBV_WC_EX_WITH_SLID) {
        cq.read_slid = [](ibv_cq_ex* c) { return std::uint32_t{current(c).slid}; };
    }
    if (wc_flags & IBV_WC_EX_WITH_SL) {
        cq.read_sl = [](ibv_cq_ex* c) { return current(c).sl; };
    }
    if (wc_flags & IBV_WC_EX_WITH_DLID_PATH_BITS) {
        cq.read_dlid_path_bits = [](ibv_cq_ex* c) { return current(c).dlid_path_bits; };
    }
    if (wc_flags & IBV_WC_EX_WITH_COMPLETION_TIMESTAMP) cq.read_completion_ts = timestamp;
    if (wc_flags & IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK) {
        cq.read_completion_wallclock_ns = [](ibv_cq_ex* c) { return timestamp(c) * 1'000'000; };
    }
}

} // namespace

ibv_cq_ex* create_cq_ex(ibv_context* context, ibv_cq_init_attr_ex* attributes) {
    return run_create<ibv_cq_ex>(
        Verb::create_cq_ex, context, [&](Simulation& simulation, ibv_cq_ex*& created) {
            const DeviceOptions& options = static_cast<Context*>(context)->opened_device.options;
            const std::uint64_t offered =
                IBV_WC_STANDARD_FLAGS |
                (options.completion_timestamps ? IBV_WC_EX_WITH_COMPLETION_TIMESTAMP |
                                                     IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK
                                               : 0);
            if ((attributes->wc_flags & ~offered) != 0 || attributes->comp_mask != 0) {
                return EOPNOTSUPP;
            }
            CompletionQueue* cq = nullptr;
            if (const int error =
                    create_cq(simulation, Verb::create_cq_ex, context, *attributes, cq)) {
                return error;
            }
            created = cq->extended();
            set_readers(*created, attributes->wc_flags);
            return 0;
        });
}

int modify_cq(ibv_cq* cq, ibv_modify_cq_attr* attributes) {
    return run_int(Verb::modify_cq, cq, [&](Simulation& simulation, Lock&) -> Outcome {
        CompletionQueue* modified = nullptr;
        if (const int error = simulation.use<CompletionQueue>(Verb::modify_cq, cq, modified)) {
            return {.error = error};
        }
        if (attributes->attr_mask != IBV_CQ_ATTR_MODERATE) return {.error = EINVAL};
        modified->moderation = attributes->moderate;
        return {};
    });
}

} // namespace asyncverbs::simulated
