// SPDX-License-Identifier: MIT
// Moves posted work requests between the queue pairs of the simulation, in order and without loss,
// with the completions and errors of a reliable connection or of datagrams.
#include "simulation.hpp"

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

namespace asyncverbs::simulated {

using Bytes = std::vector<std::byte>;
using Entry = CompletionQueue::Entry;

namespace {

// The bytes at an address of a region; null if any of them is outside.
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
    case IBV_WR_BIND_MW:
        return IBV_WC_BIND_MW;
    case IBV_WR_LOCAL_INV:
        return IBV_WC_LOCAL_INV;
    default:
        return IBV_WC_SEND;
    }
}

// The bytes of a region or a window of the responder, if key, protection domain, range and access
// allow it.
std::byte* remote_bytes(Simulation& simulation, const QueuePair& responder, std::uint64_t address,
                        std::uint32_t rkey, std::uint64_t length, unsigned int access) {
    if (const MemoryWindow* const window = simulation.find_window(rkey)) {
        const bool inside = address >= window->address && length <= window->length &&
                            address - window->address <= window->length - length;
        if (window->qp != &responder || (window->access & access) != access || !inside ||
            (responder.attr.qp_access_flags & access) != access) {
            return nullptr;
        }
        return translate(*window->region, address, length);
    }
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

// Copies the memory of a request to `data`. False: a local protection error.
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

// Copies `data` to the memory of a request. False: a local protection error.
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

// Completes the first send of a queue pair.
void complete_send(Simulation& simulation, QueuePair& qp, ibv_wc_status status,
                   std::size_t byte_len = 0) {
    const SendRequest request = std::move(qp.sends.front());
    qp.sends.pop_front();
    const bool by_poll = qp.provider().slots_freed_by_poll;
    if (!by_poll) {
        --qp.send_slots_used;
    }
    if (!request.signaled && (status == IBV_WC_SUCCESS || is_iwarp(*qp.context))) {
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

// Removes the next request of the receive queue, which is not empty.
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

constexpr std::size_t grh_size = sizeof(ibv_grh);

void fail_send(Simulation& simulation, QueuePair& qp, ibv_wc_status status) {
    complete_send(simulation, qp, status);
    simulation.to_error(qp);
}

void fail_receive(Simulation& simulation, QueuePair& qp, std::uint64_t wr_id,
                  ibv_wc_status status) {
    complete_receive(simulation, qp, {.wc = error_completion(wr_id, status, qp.qp_num)});
    simulation.to_error(qp);
}

// The completion of a message at its receiver.
Entry received(const SendRequest& request, const ReceiveRequest& receive, std::size_t length) {
    Entry entry;
    entry.wc.wr_id = receive.wr_id;
    entry.wc.opcode = IBV_WC_RECV;
    entry.wc.byte_len = static_cast<std::uint32_t>(length);
    entry.solicited = (request.wr.send_flags & IBV_SEND_SOLICITED) != 0;
    if (request.wr.opcode == IBV_WR_SEND_WITH_IMM ||
        request.wr.opcode == IBV_WR_RDMA_WRITE_WITH_IMM) {
        entry.wc.imm_data = request.wr.imm_data;
        entry.wc.wc_flags |= IBV_WC_WITH_IMM;
    }
    return entry;
}

// --- the reliable transport ---

bool needs_receive(ibv_wr_opcode opcode) {
    return opcode == IBV_WR_SEND || opcode == IBV_WR_SEND_WITH_IMM ||
           opcode == IBV_WR_RDMA_WRITE_WITH_IMM;
}

// Not ready to receive yet, or of a removed device: the sender keeps retrying.
bool may_answer_later(QueuePair& peer) {
    return peer.attr.qp_state == IBV_QPS_RESET || peer.attr.qp_state == IBV_QPS_INIT ||
           peer.owner().disassociated;
}

bool never_answers(const QueuePair& peer, const QueuePair& qp) {
    return peer.attr.qp_state == IBV_QPS_ERR || peer.qp_type != qp.qp_type ||
           peer.attr.dest_qp_num != qp.qp_num;
}

// The sender fails first: a queue pair may be its own peer, and flushes its other requests.
void send(Simulation& simulation, QueuePair& qp, QueuePair& peer, const Bytes& data) {
    const ReceiveRequest receive = take_receive(simulation, peer);
    if (data.size() > total_length(receive.sges)) {
        fail_send(simulation, qp, IBV_WC_REM_INV_REQ_ERR);
        fail_receive(simulation, peer, receive.wr_id, IBV_WC_LOC_LEN_ERR);
        return;
    }
    if (!scatter(simulation, peer, receive.sges, data)) {
        fail_send(simulation, qp, IBV_WC_REM_OP_ERR);
        fail_receive(simulation, peer, receive.wr_id, IBV_WC_LOC_PROT_ERR);
        return;
    }
    complete_receive(simulation, peer, received(qp.sends.front(), receive, data.size()));
    complete_send(simulation, qp, IBV_WC_SUCCESS, data.size());
}

void reject_access(Simulation& simulation, QueuePair& qp, QueuePair& peer) {
    fail_send(simulation, qp, IBV_WC_REM_ACCESS_ERR);
    simulation.to_error(peer);
    simulation.queue_qp_event(peer, IBV_EVENT_QP_ACCESS_ERR);
}

void rdma_write(Simulation& simulation, QueuePair& qp, QueuePair& peer, const Bytes& data) {
    const SendRequest& request = qp.sends.front();
    if (!data.empty()) {
        std::byte* to = remote_bytes(simulation, peer, request.wr.wr.rdma.remote_addr,
                                     request.wr.wr.rdma.rkey, data.size(), IBV_ACCESS_REMOTE_WRITE);
        if (to == nullptr) {
            reject_access(simulation, qp, peer);
            return;
        }
        std::memcpy(to, data.data(), data.size());
    }
    if (request.wr.opcode == IBV_WR_RDMA_WRITE_WITH_IMM) {
        const ReceiveRequest receive = take_receive(simulation, peer);
        Entry entry = received(request, receive, data.size());
        entry.wc.opcode = IBV_WC_RECV_RDMA_WITH_IMM;
        complete_receive(simulation, peer, entry);
    }
    complete_send(simulation, qp, IBV_WC_SUCCESS, data.size());
}

void rdma_read(Simulation& simulation, QueuePair& qp, QueuePair& peer) {
    const SendRequest& request = qp.sends.front();
    const std::size_t length = total_length(request.sges);
    const std::byte* from = nullptr;
    if (length != 0) {
        from = remote_bytes(simulation, peer, request.wr.wr.rdma.remote_addr,
                            request.wr.wr.rdma.rkey, length, IBV_ACCESS_REMOTE_READ);
        if (from == nullptr) {
            reject_access(simulation, qp, peer);
            return;
        }
    }
    // Source and target may overlap: copy the data first.
    const Bytes data(from, from + length);
    if (!scatter(simulation, qp, request.sges, data)) {
        fail_send(simulation, qp, IBV_WC_LOC_PROT_ERR);
        return;
    }
    complete_send(simulation, qp, IBV_WC_SUCCESS, length);
}

void atomic(Simulation& simulation, QueuePair& qp, QueuePair& peer) {
    const SendRequest& request = qp.sends.front();
    const auto& operation = request.wr.wr.atomic;
    if (operation.remote_addr % sizeof(std::uint64_t) != 0) {
        fail_send(simulation, qp, IBV_WC_REM_INV_REQ_ERR);
        return;
    }
    std::byte* target = remote_bytes(simulation, peer, operation.remote_addr, operation.rkey,
                                     sizeof(std::uint64_t), IBV_ACCESS_REMOTE_ATOMIC);
    if (target == nullptr) {
        reject_access(simulation, qp, peer);
        return;
    }
    std::uint64_t before = 0;
    std::memcpy(&before, target, sizeof before);
    std::uint64_t after = before;
    if (request.wr.opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
        after += operation.compare_add;
    } else if (before == operation.compare_add) {
        after = operation.swap;
    }
    std::memcpy(target, &after, sizeof after);
    if (!scatter(simulation, qp, request.sges, std::as_bytes(std::span(&before, 1)))) {
        fail_send(simulation, qp, IBV_WC_LOC_PROT_ERR);
        return;
    }
    complete_send(simulation, qp, IBV_WC_SUCCESS, sizeof before);
}

// A request of the queue pair alone.
void move_local(Simulation& simulation, QueuePair& qp) {
    const SendRequest& request = qp.sends.front();
    const ibv_wc_status status = request.wr.opcode == IBV_WR_BIND_MW
                                     ? simulation.bind(qp, request)
                                     : simulation.invalidate(qp, request.wr.invalidate_rkey);
    complete_send(simulation, qp, status);
    if (status != IBV_WC_SUCCESS) simulation.to_error(qp);
}

// Executes the first send of a connected queue pair; false if it has to wait.
bool move_reliable(Simulation& simulation, QueuePair& qp) {
    if (const ibv_wr_opcode opcode = qp.sends.front().wr.opcode;
        opcode == IBV_WR_BIND_MW || opcode == IBV_WR_LOCAL_INV) {
        move_local(simulation, qp);
        return true;
    }
    QueuePair* peer = simulation.find_qp(qp.attr.dest_qp_num);
    if (peer != nullptr && may_answer_later(*peer)) {
        return false;
    }
    if (peer == nullptr || never_answers(*peer, qp)) {
        fail_send(simulation, qp, IBV_WC_RETRY_EXC_ERR);
        return true;
    }
    const SendRequest& request = qp.sends.front();
    const ibv_wr_opcode opcode = request.wr.opcode;
    if (opcode == IBV_WR_RDMA_READ) {
        rdma_read(simulation, qp, *peer);
        return true;
    }
    if (opcode == IBV_WR_ATOMIC_CMP_AND_SWP || opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
        atomic(simulation, qp, *peer);
        return true;
    }
    Bytes data;
    if (!gather(simulation, qp, request, data)) {
        fail_send(simulation, qp, IBV_WC_LOC_PROT_ERR);
        return true;
    }
    if (needs_receive(opcode) && peer->receive_queue().empty()) {
        if (qp.attr.rnr_retry == 7) {
            return false; // unlimited retries
        }
        fail_send(simulation, qp, IBV_WC_RNR_RETRY_EXC_ERR);
        return true;
    }
    if (opcode == IBV_WR_SEND || opcode == IBV_WR_SEND_WITH_IMM) {
        send(simulation, qp, *peer, data);
    } else {
        rdma_write(simulation, qp, *peer, data);
    }
    return true;
}

bool waits_for_receive(const Simulation& simulation, QueuePair& qp) {
    QueuePair* peer = simulation.find_qp(qp.attr.dest_qp_num);
    return !simulation.held && !qp.owner().disassociated && peer != nullptr &&
           !may_answer_later(*peer) && peer->receive_queue().empty() &&
           needs_receive(qp.sends.front().wr.opcode);
}

// --- datagrams ---

// The header that the receiver gets, from the address handle of the sender.
Bytes route_header(Simulation& simulation, QueuePair& qp, const SendRequest& request) {
    ibv_grh grh{};
    const AddressHandle* handle = simulation.registry<AddressHandle>().find(request.wr.wr.ud.ah);
    GidEntry source;
    find_gid(qp.owner(), handle->attr.port_num, handle->attr.grh.sgid_index, source);
    grh.sgid = source.gid;
    grh.dgid = handle->attr.grh.dgid;
    const auto bytes = std::as_bytes(std::span(&grh, 1));
    return {bytes.begin(), bytes.end()};
}

// A datagram is dropped if it has no receive, the wrong Q_Key or not enough space.
void deliver_datagram(Simulation& simulation, QueuePair& qp, const SendRequest& request,
                      const Bytes& data) {
    QueuePair* target = simulation.find_qp(request.wr.wr.ud.remote_qpn);
    if (target == nullptr || target->qp_type != qp.qp_type || target->owner().disassociated ||
        (target->attr.qp_state != IBV_QPS_RTR && target->attr.qp_state != IBV_QPS_RTS) ||
        target->attr.qkey != request.wr.wr.ud.remote_qkey || target->receive_queue().empty() ||
        total_length(target->receive_queue().front().sges) < grh_size + data.size()) {
        return;
    }
    const ReceiveRequest receive = take_receive(simulation, *target);
    Bytes with_header = route_header(simulation, qp, request);
    with_header.insert(with_header.end(), data.begin(), data.end());
    if (!scatter(simulation, *target, receive.sges, with_header)) {
        fail_receive(simulation, *target, receive.wr_id, IBV_WC_LOC_PROT_ERR);
        return;
    }
    Entry entry = received(request, receive, with_header.size());
    entry.wc.wc_flags |= IBV_WC_GRH;
    entry.wc.src_qp = qp.qp_num;
    complete_receive(simulation, *target, entry);
}

void move_datagram(Simulation& simulation, QueuePair& qp) {
    Bytes data;
    const SendRequest& request = qp.sends.front();
    if (!gather(simulation, qp, request, data)) {
        fail_send(simulation, qp, IBV_WC_LOC_PROT_ERR);
        return;
    }
    const PortOptions* port = find_port(qp.owner(), qp.attr.port_num);
    const std::size_t mtu = std::size_t{128} << port->attr.active_mtu;
    if (data.size() > mtu) {
        fail_send(simulation, qp, IBV_WC_LOC_LEN_ERR);
        return;
    }
    deliver_datagram(simulation, qp, request, data);
    complete_send(simulation, qp, IBV_WC_SUCCESS, data.size());
}

} // namespace

void Simulation::flush(QueuePair& qp) {
    while (!qp.sends.empty()) {
        complete_send(*this, qp, IBV_WC_WR_FLUSH_ERR);
    }
    while (!qp.receives.empty()) {
        const std::uint64_t wr_id = qp.receives.front().wr_id;
        qp.receives.pop_front();
        complete_receive(*this, qp,
                         {.wc = error_completion(wr_id, IBV_WC_WR_FLUSH_ERR, qp.qp_num)});
    }
}

void Simulation::to_error(QueuePair& qp) {
    if (qp.attr.qp_state == IBV_QPS_ERR) {
        return;
    }
    qp.attr.qp_state = IBV_QPS_ERR;
    flush(qp);
    if (qp.shared_queue != nullptr) {
        queue_qp_event(qp, IBV_EVENT_QP_LAST_WQE_REACHED);
    }
    peers_affected = true;
}

bool Simulation::step(QueuePair& qp) {
    if (held || qp.sends.empty() || qp.attr.qp_state != IBV_QPS_RTS || qp.owner().disassociated) {
        return false;
    }
    if (qp.sends_datagrams()) {
        move_datagram(*this, qp);
        return true;
    }
    return move_reliable(*this, qp);
}

void Simulation::progress(QueuePair& qp) {
    while (step(qp)) {
    }
    if (peers_affected) {
        progress_all();
    }
}

int Simulation::progress_all(int limit) {
    int moved = 0;
    for (bool again = true; again;) {
        again = false;
        peers_affected = false;
        for (const auto& numbered : qps_by_number) {
            if (moved < limit && step(*numbered.second)) {
                ++moved;
                again = true;
            }
        }
    }
    return moved;
}

void Simulation::expire_retries() {
    for (QueuePair& qp : registry<QueuePair>().all()) {
        if (qp.alive && qp.qp_type == IBV_QPT_RC && !qp.sends.empty() &&
            qp.attr.qp_state == IBV_QPS_RTS && !waits_for_receive(*this, qp)) {
            fail_send(*this, qp, IBV_WC_RETRY_EXC_ERR);
        }
    }
    progress_all();
}

} // namespace asyncverbs::simulated
