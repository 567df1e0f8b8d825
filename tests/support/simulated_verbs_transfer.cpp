// SPDX-License-Identifier: MIT
//
// Reaching the memory of work requests, and completing them.
#include "support/simulated_verbs_transfer.hpp"

#include <algorithm>
#include <cstring>

namespace asyncverbs::simulated {

using Entry = CompletionQueue::Entry;

namespace {

// The bytes at an address of a region; empty if any of it is outside.
std::byte* translate(const MemoryRegion& region, std::uint64_t address, std::uint64_t length) {
    if (address < region.iova || length > region.length ||
        address - region.iova > region.length - length) {
        return nullptr;
    }
    return static_cast<std::byte*>(region.addr) + (address - region.iova);
}

std::byte* local_bytes(const Simulation& simulation, const QueuePair& qp, const ibv_sge& sge,
                       unsigned int access) {
    const MemoryRegion* region = simulation.find_region(sge.lkey);
    if (region == nullptr || region->lkey != sge.lkey || &region->domain != &qp.domain ||
        (region->access & access) != access) {
        return nullptr;
    }
    return translate(*region, sge.addr, sge.length);
}

ibv_wc_opcode completed_opcode(ibv_wr_opcode opcode) {
    switch (opcode) {
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_RDMA_WRITE_WITH_IMM:
        return IBV_WC_RDMA_WRITE;
    case IBV_WR_RDMA_READ:
        return IBV_WC_RDMA_READ;
    case IBV_WR_ATOMIC_CMP_AND_SWP:
        return IBV_WC_COMP_SWAP;
    case IBV_WR_ATOMIC_FETCH_AND_ADD:
        return IBV_WC_FETCH_ADD;
    default:
        return IBV_WC_SEND;
    }
}

} // namespace

std::byte* remote_bytes(const Simulation& simulation, const QueuePair& responder,
                        std::uint64_t address, std::uint32_t rkey, std::uint64_t length,
                        unsigned int access) {
    const MemoryRegion* region = simulation.find_region(rkey);
    if (region == nullptr || region->rkey != rkey || &region->domain != &responder.domain ||
        (region->access & access) != access ||
        (responder.attr.qp_access_flags & access) != access) {
        return nullptr;
    }
    return translate(*region, address, length);
}

std::size_t total_length(const std::vector<ibv_sge>& sges) {
    std::size_t sum = 0;
    for (const ibv_sge& sge : sges) {
        sum += sge.length;
    }
    return sum;
}

bool gather(const Simulation& simulation, const QueuePair& qp, const SendRequest& request,
            Bytes& data) {
    if ((request.wr.send_flags & IBV_SEND_INLINE) != 0) {
        data = request.inline_data;
        return true;
    }
    for (const ibv_sge& sge : request.sges) {
        if (sge.length == 0) {
            continue;
        }
        const std::byte* from = local_bytes(simulation, qp, sge, 0);
        if (from == nullptr) {
            return false;
        }
        data.insert(data.end(), from, from + sge.length);
    }
    return true;
}

bool scatter(const Simulation& simulation, const QueuePair& qp, const std::vector<ibv_sge>& sges,
             std::span<const std::byte> data) {
    for (const ibv_sge& sge : sges) {
        if (data.empty()) {
            break;
        }
        std::byte* to = local_bytes(simulation, qp, sge, IBV_ACCESS_LOCAL_WRITE);
        if (to == nullptr) {
            return false;
        }
        const std::size_t count = std::min<std::size_t>(data.size(), sge.length);
        std::memcpy(to, data.data(), count);
        data = data.subspan(count);
    }
    return true;
}

void complete_send(Simulation& simulation, QueuePair& qp, ibv_wc_status status,
                   std::size_t byte_len) {
    const SendRequest request = std::move(qp.sends.front());
    qp.sends.pop_front();
    const bool by_poll = qp.provider().slots_freed_by_poll;
    if (!by_poll) {
        --qp.send_slots_used;
    }
    if (status == IBV_WC_SUCCESS && !request.signaled) {
        ++qp.unsignaled_done;
        return;
    }
    Entry entry;
    entry.slots = by_poll ? qp.unsignaled_done + 1 : 0;
    qp.unsignaled_done = 0;
    if (status == IBV_WC_SUCCESS) {
        entry.wc.wr_id = request.wr.wr_id;
        entry.wc.qp_num = qp.qp_num;
        entry.wc.opcode = completed_opcode(request.wr.opcode);
        entry.wc.byte_len = static_cast<std::uint32_t>(byte_len);
    } else {
        entry.wc = error_completion(request.wr.wr_id, status, qp.qp_num);
    }
    simulation.post_completion(qp.send_queue_cq, entry);
}

void complete_receive(Simulation& simulation, QueuePair& qp, Entry entry) {
    entry.is_receive = true;
    entry.wc.qp_num = qp.qp_num;
    if (qp.shared_queue == nullptr) {
        if (qp.provider().slots_freed_by_poll) {
            entry.slots = 1;
        } else {
            --qp.receive_slots_used;
        }
    }
    simulation.post_completion(qp.receive_queue_cq, entry);
}

ReceiveRequest take_receive(Simulation& simulation, QueuePair& qp) {
    std::deque<ReceiveRequest>& queue = qp.receive_queue();
    ReceiveRequest request = std::move(queue.front());
    queue.pop_front();
    if (SharedReceiveQueue* srq = qp.shared_queue;
        srq != nullptr && srq->receives.size() < srq->attr.srq_limit) {
        srq->attr.srq_limit = 0;
        ibv_async_event event{};
        event.event_type = IBV_EVENT_SRQ_LIMIT_REACHED;
        event.element.srq = srq;
        simulation.queue_async_event(srq->owner(), event);
    }
    return request;
}

} // namespace asyncverbs::simulated
