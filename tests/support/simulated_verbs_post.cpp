// SPDX-License-Identifier: MIT
//
// The simulated verbs that post work requests, and those of shared receive queues. What was posted
// moves in the transport file.
#include "support/simulated_verbs_state.hpp"

#include <cerrno>

namespace asyncverbs::simulated {

using Lock = Simulation::Lock;

namespace {

std::vector<ibv_sge> copy_sges(const ibv_sge* list, int count) {
    return count > 0 ? std::vector<ibv_sge>(list, list + count) : std::vector<ibv_sge>{};
}

bool valid_opcode(const QueuePair& qp, ibv_wr_opcode opcode) {
    switch (opcode) {
    case IBV_WR_SEND:
    case IBV_WR_SEND_WITH_IMM:
        return true;
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_RDMA_WRITE_WITH_IMM:
    case IBV_WR_RDMA_READ:
    case IBV_WR_ATOMIC_CMP_AND_SWP:
    case IBV_WR_ATOMIC_FETCH_AND_ADD:
        return qp.qp_type == IBV_QPT_RC;
    default:
        return false;
    }
}

int post_one_send(Simulation& simulation, QueuePair& qp, const ibv_send_wr& wr) {
    const ibv_qp_state state = qp.attr.qp_state;
    if (state == IBV_QPS_RESET || state == IBV_QPS_INIT || state == IBV_QPS_RTR) {
        return EINVAL;
    }
    if (wr.num_sge < 0 || static_cast<std::uint32_t>(wr.num_sge) > qp.init_attr.cap.max_send_sge ||
        !valid_opcode(qp, wr.opcode)) {
        return EINVAL;
    }
    if (qp.qp_type == IBV_QPT_UD &&
        simulation.check<AddressHandle>(Verb::post_send, wr.wr.ud.ah) == nullptr) {
        return EINVAL;
    }
    SendRequest request;
    request.wr = wr;
    request.wr.next = nullptr;
    request.wr.sg_list = nullptr;
    request.sges = copy_sges(wr.sg_list, wr.num_sge);
    request.signaled = qp.init_attr.sq_sig_all != 0 || (wr.send_flags & IBV_SEND_SIGNALED) != 0;
    if ((wr.send_flags & IBV_SEND_INLINE) != 0) {
        for (const ibv_sge& sge : request.sges) {
            const auto* data = reinterpret_cast<const std::byte*>(sge.addr);
            request.inline_data.insert(request.inline_data.end(), data, data + sge.length);
        }
        if (wr.opcode == IBV_WR_RDMA_READ ||
            request.inline_data.size() > qp.init_attr.cap.max_inline_data) {
            return EINVAL;
        }
    }
    if (qp.send_slots_used >= qp.init_attr.cap.max_send_wr) {
        return ENOMEM;
    }
    ++qp.send_slots_used;
    qp.sends.push_back(std::move(request));
    return 0;
}

int post_one_receive(QueuePair& qp, const ibv_recv_wr& wr) {
    if (qp.attr.qp_state == IBV_QPS_RESET || qp.shared_queue != nullptr || wr.num_sge < 0 ||
        static_cast<std::uint32_t>(wr.num_sge) > qp.init_attr.cap.max_recv_sge) {
        return EINVAL;
    }
    if (qp.receive_slots_used >= qp.init_attr.cap.max_recv_wr) {
        return ENOMEM;
    }
    ++qp.receive_slots_used;
    qp.receives.push_back({wr.wr_id, copy_sges(wr.sg_list, wr.num_sge)});
    return 0;
}

// Posts a list up to the first request that fails, which bad_wr then names.
template <class WorkRequest, class Post>
int post_list(WorkRequest* wr, WorkRequest** bad_wr, Post post) {
    for (; wr != nullptr; wr = wr->next) {
        if (const int error = post(*wr)) {
            *bad_wr = wr;
            return error;
        }
    }
    return 0;
}

} // namespace

int post_send(ibv_qp* qp, ibv_send_wr* wr, ibv_send_wr** bad_wr) {
    *bad_wr = wr; // also for a failure that is injected
    return run_int(Verb::post_send, qp, [&](Simulation& simulation, Lock&) -> Outcome {
        QueuePair* poster = nullptr;
        if (const int error = simulation.use<QueuePair>(Verb::post_send, qp, poster)) {
            return {.error = error};
        }
        const int error = post_list(wr, bad_wr, [&](const ibv_send_wr& request) {
            return post_one_send(simulation, *poster, request);
        });
        if (poster->attr.qp_state == IBV_QPS_ERR) {
            simulation.flush(*poster);
        }
        simulation.progress(*poster);
        return {.error = error};
    });
}

int post_recv(ibv_qp* qp, ibv_recv_wr* wr, ibv_recv_wr** bad_wr) {
    *bad_wr = wr;
    return run_int(Verb::post_recv, qp, [&](Simulation& simulation, Lock&) -> Outcome {
        QueuePair* poster = nullptr;
        if (const int error = simulation.use<QueuePair>(Verb::post_recv, qp, poster)) {
            return {.error = error};
        }
        const int error = post_list(wr, bad_wr, [&](const ibv_recv_wr& request) {
            return post_one_receive(*poster, request);
        });
        if (poster->attr.qp_state == IBV_QPS_ERR) {
            simulation.flush(*poster);
        }
        // A peer's send may have waited for this receive.
        if (QueuePair* peer = simulation.find_qp(poster->attr.dest_qp_num)) {
            simulation.progress(*peer);
        }
        return {.error = error};
    });
}

int post_srq_recv(ibv_srq* srq, ibv_recv_wr* wr, ibv_recv_wr** bad_wr) {
    *bad_wr = wr;
    return run_int(Verb::post_srq_recv, srq, [&](Simulation& simulation, Lock&) -> Outcome {
        SharedReceiveQueue* queue = nullptr;
        if (const int error = simulation.use<SharedReceiveQueue>(Verb::post_srq_recv, srq, queue)) {
            return {.error = error};
        }
        const int error = post_list(wr, bad_wr, [&](const ibv_recv_wr& request) {
            if (request.num_sge < 0 ||
                static_cast<std::uint32_t>(request.num_sge) > queue->attr.max_sge) {
                return EINVAL;
            }
            if (queue->receives.size() >= queue->attr.max_wr) {
                return ENOMEM;
            }
            queue->receives.push_back({request.wr_id, copy_sges(request.sg_list, request.num_sge)});
            return 0;
        });
        simulation.progress_all();
        return {.error = error};
    });
}

} // namespace asyncverbs::simulated

using namespace asyncverbs::simulated;

// --- shared receive queues ---

extern "C" ibv_srq* ibv_create_srq(ibv_pd* pd, ibv_srq_init_attr* init_attr) {
    return run_create<ibv_srq>(
        Verb::create_srq, pd, [&](Simulation& simulation, ibv_srq*& created) {
            ProtectionDomain* domain = nullptr;
            if (const int error = simulation.use<ProtectionDomain>(Verb::create_srq, pd, domain)) {
                return error;
            }
            const ibv_device_attr& limits = domain->owner().opened_device.options.attr;
            if (init_attr->attr.max_wr > static_cast<std::uint32_t>(limits.max_srq_wr) ||
                init_attr->attr.max_sge > static_cast<std::uint32_t>(limits.max_srq_sge)) {
                return EINVAL;
            }
            SharedReceiveQueue& srq = simulation.registry<SharedReceiveQueue>().add(*domain);
            srq.srq_context = init_attr->srq_context;
            srq.handle = srq.number;
            srq.attr = init_attr->attr;
            srq.attr.srq_limit = 0;
            ++domain->users;
            created = &srq;
            return 0;
        });
}

extern "C" int ibv_modify_srq(ibv_srq* srq, ibv_srq_attr* attr, int mask) {
    return run_int(Verb::modify_srq, srq, [&](Simulation& simulation, Lock&) -> Outcome {
        SharedReceiveQueue* modified = nullptr;
        if (const int error = simulation.use<SharedReceiveQueue>(Verb::modify_srq, srq, modified)) {
            return {.error = error};
        }
        if ((mask & IBV_SRQ_MAX_WR) != 0) {
            if (attr->max_wr < modified->receives.size()) {
                return {.error = EINVAL};
            }
            modified->attr.max_wr = attr->max_wr;
        }
        if ((mask & IBV_SRQ_LIMIT) != 0) {
            modified->attr.srq_limit = attr->srq_limit;
        }
        return {};
    });
}

extern "C" int ibv_query_srq(ibv_srq* srq, ibv_srq_attr* attr) {
    return run_int(Verb::query_srq, srq, [&](Simulation& simulation, Lock&) -> Outcome {
        SharedReceiveQueue* queried = nullptr;
        if (const int error = simulation.use<SharedReceiveQueue>(Verb::query_srq, srq, queried)) {
            return {.error = error};
        }
        *attr = queried->attr;
        return {};
    });
}

extern "C" int ibv_destroy_srq(ibv_srq* srq) {
    return run_int(Verb::destroy_srq, srq, [&](Simulation& simulation, Lock&) -> Outcome {
        auto* destroyed = simulation.check<SharedReceiveQueue>(Verb::destroy_srq, srq);
        if (destroyed == nullptr) {
            return {.error = EINVAL};
        }
        if (const int error = simulation.release(Verb::destroy_srq, *destroyed)) {
            return {.error = error};
        }
        destroyed->owner().async_events.remove_if(
            [&](const ibv_async_event& event) { return event.element.srq == destroyed; });
        simulation.check_account(Verb::destroy_srq, *destroyed, destroyed->async_events,
                                 "asynchronous events");
        destroyed->receives.clear();
        --destroyed->domain.users;
        return {};
    });
}
