// SPDX-License-Identifier: MIT
// Queue pairs and shared receive queues: creation, states, posting. transport.cpp moves the data.
#include "simulation.hpp"

#include <cerrno>

namespace asyncverbs::simulated {

QueuePair* Simulation::find_qp(std::uint32_t qp_num) const {
    const auto found = qps_by_number.find(qp_num);
    return found == qps_by_number.end() ? nullptr : found->second;
}

void Simulation::queue_qp_event(QueuePair& qp, ibv_event_type type) {
    ibv_async_event event{};
    event.event_type = type;
    event.element.qp = &qp;
    queue_async_event(qp.owner(), event);
}

namespace {

struct Attributes {
    int required = 0;
    int optional = 0;
};

struct Transition {
    ibv_qp_state from;
    ibv_qp_state to;
    Attributes rc;
    Attributes ud;
};

constexpr int init_rc = IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
constexpr int init_ud = IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY;
constexpr int rtr_rc = IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                       IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
constexpr int rts_rc =
    IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC;
constexpr int alter_rc = IBV_QP_CUR_STATE | IBV_QP_ACCESS_FLAGS | IBV_QP_ALT_PATH |
                         IBV_QP_PATH_MIG_STATE | IBV_QP_MIN_RNR_TIMER;
constexpr int alter_ud = IBV_QP_CUR_STATE | IBV_QP_QKEY;

constexpr Transition transitions[] = {
    {IBV_QPS_RESET, IBV_QPS_INIT, {init_rc, 0}, {init_ud, 0}},
    {IBV_QPS_INIT, IBV_QPS_INIT, {0, init_rc}, {0, init_ud}},
    {IBV_QPS_INIT,
     IBV_QPS_RTR,
     {rtr_rc, IBV_QP_ALT_PATH | IBV_QP_ACCESS_FLAGS | IBV_QP_PKEY_INDEX},
     {0, IBV_QP_PKEY_INDEX | IBV_QP_QKEY}},
    {IBV_QPS_RTR, IBV_QPS_RTS, {rts_rc, alter_rc}, {IBV_QP_SQ_PSN, alter_ud}},
    {IBV_QPS_RTS, IBV_QPS_RTS, {0, alter_rc}, {0, alter_ud}},
    {IBV_QPS_RTS, IBV_QPS_SQD, {0, IBV_QP_EN_SQD_ASYNC_NOTIFY}, {0, IBV_QP_EN_SQD_ASYNC_NOTIFY}},
    {IBV_QPS_SQD, IBV_QPS_RTS, {0, alter_rc}, {0, alter_ud}},
    {IBV_QPS_SQD, IBV_QPS_SQD, {0, alter_rc}, {0, alter_ud}},
};

// RESET is allowed from every state, ERR from every state except RESET; both without attributes.
bool allowed(const QueuePair& qp, ibv_qp_state from, ibv_qp_state to, int mask) {
    const int asked = mask & ~IBV_QP_STATE;
    if (to == IBV_QPS_RESET || to == IBV_QPS_ERR) {
        return (asked & ~IBV_QP_CUR_STATE) == 0 && (to == IBV_QPS_RESET || from != IBV_QPS_RESET);
    }
    if (is_iwarp(*qp.context)) { // only the kernel takes it to RTS
        return mask == 0 || ((to == IBV_QPS_INIT || to == IBV_QPS_RTR) && from <= IBV_QPS_RTR &&
                             (asked & ~IBV_QP_ACCESS_FLAGS) == 0);
    }
    for (const Transition& transition : transitions) {
        if (transition.from == from && transition.to == to) {
            const Attributes& attributes = qp.sends_datagrams() ? transition.ud : transition.rc;
            return (asked & attributes.required) == attributes.required &&
                   (asked & ~(attributes.required | attributes.optional)) == 0;
        }
    }
    return false;
}

bool valid_values(QueuePair& qp, const ibv_qp_attr& attr, int mask) {
    const Context& context = qp.owner();
    const ibv_device_attr& limits = context.opened_device.options.attr;
    const bool has_port = (mask & IBV_QP_PORT) != 0;
    const PortOptions* port = find_port(context, has_port ? attr.port_num : qp.attr.port_num);
    const auto bad = [&](int attribute, bool condition) {
        return (mask & attribute) != 0 && condition;
    };
    return !(
        bad(IBV_QP_PORT, port == nullptr) ||
        bad(IBV_QP_PKEY_INDEX, port == nullptr || attr.pkey_index >= port->attr.pkey_tbl_len) ||
        bad(IBV_QP_AV, !valid_address(context, attr.ah_attr)) ||
        bad(IBV_QP_PATH_MTU, port == nullptr || attr.path_mtu < IBV_MTU_256 ||
                                 attr.path_mtu > port->attr.active_mtu) ||
        bad(IBV_QP_MAX_DEST_RD_ATOMIC, attr.max_dest_rd_atomic > limits.max_qp_rd_atom) ||
        bad(IBV_QP_MAX_QP_RD_ATOMIC, attr.max_rd_atomic > limits.max_qp_init_rd_atom) ||
        bad(IBV_QP_TIMEOUT, attr.timeout > 31) || bad(IBV_QP_RETRY_CNT, attr.retry_cnt > 7) ||
        bad(IBV_QP_RNR_RETRY, attr.rnr_retry > 7) ||
        bad(IBV_QP_MIN_RNR_TIMER, attr.min_rnr_timer > 31) ||
        bad(IBV_QP_CUR_STATE, attr.cur_qp_state != qp.attr.qp_state));
}

void store(ibv_qp_attr& to, const ibv_qp_attr& from, int mask) {
    const auto take = [&](int attribute, auto ibv_qp_attr::* member) {
        if ((mask & attribute) != 0) {
            to.*member = from.*member;
        }
    };
    take(IBV_QP_ACCESS_FLAGS, &ibv_qp_attr::qp_access_flags);
    take(IBV_QP_PKEY_INDEX, &ibv_qp_attr::pkey_index);
    take(IBV_QP_PORT, &ibv_qp_attr::port_num);
    take(IBV_QP_QKEY, &ibv_qp_attr::qkey);
    take(IBV_QP_AV, &ibv_qp_attr::ah_attr);
    take(IBV_QP_PATH_MTU, &ibv_qp_attr::path_mtu);
    take(IBV_QP_TIMEOUT, &ibv_qp_attr::timeout);
    take(IBV_QP_RETRY_CNT, &ibv_qp_attr::retry_cnt);
    take(IBV_QP_RNR_RETRY, &ibv_qp_attr::rnr_retry);
    take(IBV_QP_RQ_PSN, &ibv_qp_attr::rq_psn);
    take(IBV_QP_MAX_QP_RD_ATOMIC, &ibv_qp_attr::max_rd_atomic);
    take(IBV_QP_MIN_RNR_TIMER, &ibv_qp_attr::min_rnr_timer);
    take(IBV_QP_SQ_PSN, &ibv_qp_attr::sq_psn);
    take(IBV_QP_MAX_DEST_RD_ATOMIC, &ibv_qp_attr::max_dest_rd_atomic);
    take(IBV_QP_DEST_QPN, &ibv_qp_attr::dest_qp_num);
}

void reset(QueuePair& qp) {
    qp.sends.clear();
    qp.receives.clear();
    qp.send_slots_used = 0;
    qp.receive_slots_used = 0;
    qp.unsignaled_done = 0;
    qp.attr = {};
    qp.attr.qp_state = IBV_QPS_RESET;
}

void purge(CompletionQueue& cq, std::uint32_t qp_num) {
    cq.counters.completions_lost += std::erase_if(
        cq.entries, [&](const CompletionQueue::Entry& entry) { return entry.wc.qp_num == qp_num; });
}

std::vector<ibv_sge> copy_sges(const ibv_sge* list, int count) {
    return count > 0 ? std::vector<ibv_sge>(list, list + count) : std::vector<ibv_sge>{};
}

bool valid_opcode(const QueuePair& qp, ibv_wr_opcode opcode) {
    if (is_iwarp(*qp.context)) {
        return opcode == IBV_WR_SEND || opcode == IBV_WR_RDMA_WRITE || opcode == IBV_WR_RDMA_READ;
    }
    switch (opcode) {
    case IBV_WR_SEND:
    case IBV_WR_SEND_WITH_IMM:
        return true;
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_RDMA_WRITE_WITH_IMM:
    case IBV_WR_RDMA_READ:
    case IBV_WR_ATOMIC_CMP_AND_SWP:
    case IBV_WR_ATOMIC_FETCH_AND_ADD:
    case IBV_WR_BIND_MW:
    case IBV_WR_LOCAL_INV:
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
    if (qp.sends_datagrams() &&
        simulation.check<AddressHandle>(Verb::post_send, wr.wr.ud.ah) == nullptr) {
        return EINVAL;
    }
    SendRequest request;
    request.wr = wr;
    request.wr.next = nullptr;
    request.wr.sg_list = nullptr;
    request.sges = copy_sges(wr.sg_list, wr.num_sge);
    if (wr.opcode == IBV_WR_BIND_MW) {
        request.window_key = wr.bind_mw.mw->rkey;
    }
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

// Posts a list up to the first request that fails, which `bad_wr` returns.
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

// soft-iWARP completes nothing that is posted in the error state.
bool flushes_what_is_posted(const QueuePair& qp) {
    return qp.attr.qp_state == IBV_QPS_ERR && !is_iwarp(*qp.context);
}

} // namespace

int post_send(ibv_qp* qp, ibv_send_wr* wr, ibv_send_wr** bad_wr) {
    *bad_wr = wr; // also for an injected failure
    return run_on<QueuePair>(
        Verb::post_send, qp, [&](Simulation& simulation, auto& poster) -> Outcome {
            const int error = post_list(wr, bad_wr, [&](const ibv_send_wr& request) {
                return post_one_send(simulation, poster, request);
            });
            if (flushes_what_is_posted(poster)) {
                simulation.flush(poster);
            }
            simulation.progress(poster);
            return {.error = error};
        });
}

int post_recv(ibv_qp* qp, ibv_recv_wr* wr, ibv_recv_wr** bad_wr) {
    *bad_wr = wr;
    return run_on<QueuePair>(
        Verb::post_recv, qp, [&](Simulation& simulation, auto& poster) -> Outcome {
            const int error = post_list(wr, bad_wr, [&](const ibv_recv_wr& request) {
                return post_one_receive(poster, request);
            });
            if (flushes_what_is_posted(poster)) {
                simulation.flush(poster);
            }
            // A send of the peer may have waited for this receive.
            if (QueuePair* peer = simulation.find_qp(poster.attr.dest_qp_num)) {
                simulation.progress(*peer);
            }
            return {.error = error};
        });
}

int post_srq_recv(ibv_srq* srq, ibv_recv_wr* wr, ibv_recv_wr** bad_wr) {
    *bad_wr = wr;
    return run_on<SharedReceiveQueue>(
        Verb::post_srq_recv, srq, [&](Simulation& simulation, auto& queue) -> Outcome {
            const int error = post_list(wr, bad_wr, [&](const ibv_recv_wr& request) {
                if (request.num_sge < 0 ||
                    static_cast<std::uint32_t>(request.num_sge) > queue.attr.max_sge) {
                    return EINVAL;
                }
                if (queue.receives.size() >= queue.attr.max_wr) {
                    return ENOMEM;
                }
                queue.receives.push_back(
                    {request.wr_id, copy_sges(request.sg_list, request.num_sge)});
                return 0;
            });
            simulation.progress_all();
            return {.error = error};
        });
}

} // namespace asyncverbs::simulated

using namespace asyncverbs::simulated;

extern "C" ibv_qp* ibv_create_qp(ibv_pd* pd, ibv_qp_init_attr* init_attr) {
    constexpr Verb verb = Verb::create_qp;
    return run_create_in<ibv_qp, ProtectionDomain>(
        verb, pd, [&](Simulation& simulation, ProtectionDomain& domain, ibv_qp*& created) {
            auto* send_cq = simulation.check<CompletionQueue>(verb, init_attr->send_cq);
            auto* recv_cq = simulation.check<CompletionQueue>(verb, init_attr->recv_cq);
            SharedReceiveQueue* srq = nullptr;
            if (init_attr->srq != nullptr) {
                srq = simulation.check<SharedReceiveQueue>(verb, init_attr->srq);
            }
            if (send_cq == nullptr || recv_cq == nullptr ||
                (init_attr->srq != nullptr && srq == nullptr)) {
                return EINVAL;
            }
            const DeviceOptions& device = domain.owner().opened_device.options;
            const ibv_qp_cap& cap = init_attr->cap;
            const auto max_wr = static_cast<std::uint32_t>(device.attr.max_qp_wr);
            const auto max_sge = static_cast<std::uint32_t>(device.attr.max_sge);
            if (init_attr->qp_type != IBV_QPT_RC && init_attr->qp_type != IBV_QPT_UD &&
                init_attr->qp_type != IBV_QPT_DRIVER) {
                return EOPNOTSUPP;
            }
            if (&send_cq->owner() != &domain.owner() || &recv_cq->owner() != &domain.owner() ||
                cap.max_send_wr > max_wr || cap.max_recv_wr > max_wr ||
                cap.max_send_sge > max_sge || cap.max_recv_sge > max_sge ||
                cap.max_inline_data > device.max_inline_data) {
                return EINVAL;
            }
            QueuePair& qp = simulation.registry<QueuePair>().add(domain, *send_cq, *recv_cq, srq);
            qp.qp_context = init_attr->qp_context;
            qp.handle = qp.number;
            qp.qp_num = simulation.next_qp_num++;
            qp.qp_type = init_attr->qp_type;
            qp.state = IBV_QPS_RESET;
            qp.init_attr = *init_attr;
            simulation.qps_by_number[qp.qp_num] = &qp;
            ++domain.users;
            ++send_cq->users;
            ++recv_cq->users;
            if (srq != nullptr) {
                ++srq->users;
            }
            created = &qp;
            return 0;
        });
}

extern "C" int ibv_query_qp(ibv_qp* qp, ibv_qp_attr* attr, int, ibv_qp_init_attr* init_attr) {
    return run_on<QueuePair>(Verb::query_qp, qp, [&](auto&, auto& queried) -> Outcome {
        *attr = queried.attr;
        attr->cur_qp_state = attr->qp_state;
        attr->cap = queried.init_attr.cap;
        *init_attr = queried.init_attr;
        qp->state = attr->qp_state;
        return {};
    });
}

extern "C" int ibv_modify_qp(ibv_qp* qp, ibv_qp_attr* attr, int mask) {
    return run_on<QueuePair>(
        Verb::modify_qp, qp, [&](Simulation& simulation, auto& modified) -> Outcome {
            const ibv_qp_state from = modified.attr.qp_state;
            const ibv_qp_state to = (mask & IBV_QP_STATE) != 0 ? attr->qp_state : from;
            if (!allowed(modified, from, to, mask) || !valid_values(modified, *attr, mask)) {
                return {.error = EINVAL};
            }
            if (to == IBV_QPS_RESET) {
                reset(modified);
            } else if (to == IBV_QPS_ERR) {
                simulation.to_error(modified);
            } else {
                store(modified.attr, *attr, mask);
                modified.attr.qp_state = to;
            }
            qp->state = to;
            // Peers may have waited for this state, or must stop waiting for it.
            simulation.progress_all();
            return {};
        });
}

extern "C" int ibv_destroy_qp(ibv_qp* qp) {
    return run_destroy<QueuePair>(
        Verb::destroy_qp, qp, [&](Simulation& simulation, auto& destroyed) {
            destroyed.owner().async_events.remove_if(
                [&](const ibv_async_event& event) { return event.element.qp == &destroyed; });
            simulation.check_account(Verb::destroy_qp, destroyed, destroyed.async_events,
                                     "asynchronous events");
            if (destroyed.provider().purges_on_destroy_qp) {
                purge(destroyed.send_queue_cq, destroyed.qp_num);
                purge(destroyed.receive_queue_cq, destroyed.qp_num);
            }
            reset(destroyed);
            if (simulation.find_qp(destroyed.qp_num) == &destroyed) {
                simulation.qps_by_number.erase(destroyed.qp_num);
            }
            --destroyed.domain.users;
            --destroyed.send_queue_cq.users;
            --destroyed.receive_queue_cq.users;
            if (destroyed.shared_queue != nullptr) {
                --destroyed.shared_queue->users;
            }
            simulation.progress_all();
        });
}

// --- shared receive queues ---

extern "C" ibv_srq* ibv_create_srq(ibv_pd* pd, ibv_srq_init_attr* init_attr) {
    return run_create_in<ibv_srq, ProtectionDomain>(
        Verb::create_srq, pd,
        [&](Simulation& simulation, ProtectionDomain& domain, ibv_srq*& created) {
            const ibv_device_attr& limits = domain.owner().opened_device.options.attr;
            if (init_attr->attr.max_wr > static_cast<std::uint32_t>(limits.max_srq_wr) ||
                init_attr->attr.max_sge > static_cast<std::uint32_t>(limits.max_srq_sge)) {
                return EINVAL;
            }
            SharedReceiveQueue& srq = simulation.registry<SharedReceiveQueue>().add(domain);
            srq.srq_context = init_attr->srq_context;
            srq.handle = srq.number;
            srq.attr = init_attr->attr;
            srq.attr.srq_limit = 0;
            ++domain.users;
            created = &srq;
            return 0;
        });
}

extern "C" int ibv_modify_srq(ibv_srq* srq, ibv_srq_attr* attr, int mask) {
    return run_on<SharedReceiveQueue>(Verb::modify_srq, srq, [&](auto&, auto& modified) -> Outcome {
        if ((mask & IBV_SRQ_MAX_WR) != 0) {
            if (attr->max_wr < modified.receives.size()) {
                return {.error = EINVAL};
            }
            modified.attr.max_wr = attr->max_wr;
        }
        if ((mask & IBV_SRQ_LIMIT) != 0) {
            modified.attr.srq_limit = attr->srq_limit;
        }
        return {};
    });
}

extern "C" int ibv_query_srq(ibv_srq* srq, ibv_srq_attr* attr) {
    return run_on<SharedReceiveQueue>(Verb::query_srq, srq, [&](auto&, auto& queried) -> Outcome {
        *attr = queried.attr;
        return {};
    });
}

extern "C" int ibv_destroy_srq(ibv_srq* srq) {
    return run_destroy<SharedReceiveQueue>(
        Verb::destroy_srq, srq, [&](Simulation& simulation, auto& destroyed) {
            destroyed.owner().async_events.remove_if(
                [&](const ibv_async_event& event) { return event.element.srq == &destroyed; });
            simulation.check_account(Verb::destroy_srq, destroyed, destroyed.async_events,
                                     "asynchronous events");
            destroyed.receives.clear();
            --destroyed.domain.users;
        });
}
