// SPDX-License-Identifier: MIT
// The floor that the library is measured against: loops on plain verbs and epoll, written by hand,
// that find each work request by its wr_id. They poll first, arm only an empty queue, read one
// event per wake and ack in batches.
#include "setup.hpp"

#include <infiniband/verbs.h>
#include <sys/epoll.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <vector>

#include <asyncverbs/verbs/completion_queue.hpp>

namespace {

using namespace benchmark;
using asyncverbs::CompletionQueue;
using asyncverbs::QueuePair;
using asyncverbs::QueuePairOptions;

class Loop {
public:
    Loop(const CompletionQueue& cq, const Options& options)
        : cq_(cq.native_handle()), channel_(cq.channel().native_handle()) {
        epoll_event event{};
        event.events = options.edge_triggered ? EPOLLIN | EPOLLET : EPOLLIN;
        if (epoll_ < 0 || ::epoll_ctl(epoll_, EPOLL_CTL_ADD, channel_->fd, &event) != 0) {
            fail("epoll");
        }
    }
    ~Loop() {
        ibv_ack_cq_events(cq_, unacked_);
        ::close(epoll_);
    }
    Loop(const Loop&) = delete;
    Loop& operator=(const Loop&) = delete;

    /// At least one completion; all of them succeeded.
    std::span<const ibv_wc> next() {
        int count = poll();
        while (count == 0) {
            if (!armed_) {
                if (ibv_req_notify_cq(cq_, 0) != 0) fail("ibv_req_notify_cq");
                armed_ = true;
            } else {
                wait();
                armed_ = false;
            }
            count = poll();
        }
        const std::span<const ibv_wc> polled(wcs_.data(), static_cast<std::size_t>(count));
        for (const ibv_wc& wc : polled) {
            if (wc.status != IBV_WC_SUCCESS) throw std::runtime_error(ibv_wc_status_str(wc.status));
        }
        return polled;
    }

    /// How often it slept: one arm, one epoll_wait and one read each.
    std::uint64_t waits() const noexcept { return waits_; }

private:
    int poll() {
        const int count = ibv_poll_cq(cq_, static_cast<int>(wcs_.size()), wcs_.data());
        if (count < 0) fail("ibv_poll_cq");
        return count;
    }

    void wait() {
        ++waits_;
        epoll_event event;
        while (::epoll_wait(epoll_, &event, 1, -1) < 0) {
            if (errno != EINTR) fail("epoll_wait");
        }
        ibv_cq* source;
        void* context;
        if (ibv_get_cq_event(channel_, &source, &context) != 0) fail("ibv_get_cq_event");
        if (++unacked_ == 16) {
            ibv_ack_cq_events(cq_, unacked_);
            unacked_ = 0;
        }
    }

    ibv_cq* cq_;
    ibv_comp_channel* channel_;
    int epoll_ = ::epoll_create1(EPOLL_CLOEXEC);
    std::array<ibv_wc, 16> wcs_;
    bool armed_ = false;
    unsigned unacked_ = 0;
    std::uint64_t waits_ = 0;
};

// wr_id: of a send, its slot of the memory; of a receive, this bit and its queue pair.
constexpr std::uint64_t receive_bit = std::uint64_t{1} << 63;

void post_receive(ibv_qp* queue_pair, std::uint64_t index, ibv_sge into) {
    ibv_recv_wr wr{};
    wr.wr_id = receive_bit | index;
    wr.sg_list = &into;
    wr.num_sge = 1;
    ibv_recv_wr* bad;
    if (ibv_post_recv(queue_pair, &wr, &bad) != 0) fail("ibv_post_recv");
}

// Sends, or writes to `remote` if there is one.
void post(ibv_qp* queue_pair, std::uint64_t slot, ibv_sge from, const ibv_sge* remote = nullptr) {
    ibv_send_wr wr{};
    wr.wr_id = slot;
    wr.sg_list = &from;
    wr.num_sge = 1;
    wr.opcode = remote != nullptr ? IBV_WR_RDMA_WRITE : IBV_WR_SEND;
    wr.send_flags = IBV_SEND_SIGNALED;
    if (remote != nullptr) wr.wr.rdma = {remote->addr, remote->lkey};
    ibv_send_wr* bad;
    if (ibv_post_send(queue_pair, &wr, &bad) != 0) fail("ibv_post_send");
}

void run_pingpong(const Options& options) {
    Peer peer;
    const Host host(options);
    const CompletionQueue cq(host.context(), options.cq_depth());
    QueuePair queue_pair(host.domain(), cq, cq, {.max_send_wr = 1, .max_recv_wr = 1});
    ibv_qp* const qp = queue_pair.native_handle();
    const ibv_sge outgoing = host.outgoing(0).sge();
    const ibv_sge incoming = host.incoming(0).sge();
    init(queue_pair);
    post_receive(qp, 0, incoming);
    peer.connect(queue_pair);

    Loop loop(cq, options);
    const Stopwatch stopwatch;
    bool sent = true;
    bool received = !peer.is_server();
    for (std::uint32_t sends = 0;;) {
        if (sent && received) {
            if (sends == options.count) break;
            ++sends;
            sent = received = false;
            post(qp, 0, outgoing);
        }
        for (const ibv_wc& wc : loop.next()) {
            if ((wc.wr_id & receive_bit) != 0) {
                received = true;
                post_receive(qp, 0, incoming);
            } else {
                sent = true;
            }
        }
        // The server's last message gets no answer.
        if (peer.is_server() && sent && sends == options.count) break;
    }
    if (!peer.is_server()) stopwatch.report(options, loop.waits());
}

class InFlight {
public:
    explicit InFlight(const Options& options)
        : options_(options), host_(options), cq_(host_.context(), options.cq_depth()),
          loop_(cq_, options), writes_(options.mode == "write") {
        for (std::uint32_t slot = 0; slot < options.in_flight; ++slot) {
            outgoing_.push_back(host_.outgoing(slot).sge());
            incoming_.push_back(host_.incoming(slot).sge());
            incoming_.back().lkey = writes_ ? host_.rkey() : incoming_.back().lkey;
        }
        const std::uint32_t length = options.queue_length();
        for (std::uint32_t i = 0; i < options.queue_pairs; ++i) {
            senders_.emplace_back(host_.domain(), cq_, cq_,
                                  QueuePairOptions{.max_send_wr = length, .max_recv_wr = 0});
            receivers_.emplace_back(
                host_.domain(), cq_, cq_,
                QueuePairOptions{.max_send_wr = 0, .max_recv_wr = writes_ ? 0 : length});
            connect(senders_.back(), receivers_.back());
            for (std::uint32_t k = 0; !writes_ && k < length; ++k) receive(i);
        }
    }

    void run() {
        const Stopwatch stopwatch;
        for (std::uint32_t slot = 0; slot < options_.in_flight; ++slot) send(slot);
        for (std::uint32_t completed = 0; completed < options_.count;) {
            for (const ibv_wc& wc : loop_.next()) {
                if ((wc.wr_id & receive_bit) != 0) {
                    receive(wc.wr_id & ~receive_bit);
                } else {
                    ++completed;
                    send(wc.wr_id);
                }
            }
        }
        stopwatch.report(options_, loop_.waits());
    }

private:
    void receive(std::uint64_t index) {
        post_receive(receivers_[index].native_handle(), index, incoming_.front());
    }

    void send(std::uint64_t slot) {
        if (posted_ == options_.count) return;
        ibv_qp* const sender = senders_[posted_++ % options_.queue_pairs].native_handle();
        post(sender, slot, outgoing_[slot], writes_ ? &incoming_[slot] : nullptr);
    }

    const Options& options_;
    Host host_;
    CompletionQueue cq_;
    Loop loop_;
    bool writes_;
    std::vector<ibv_sge> outgoing_;
    std::vector<ibv_sge> incoming_;
    std::vector<QueuePair> senders_;
    std::vector<QueuePair> receivers_;
    std::uint32_t posted_ = 0;
};

} // namespace

int main(int argc, char** argv) {
    return run(argc, argv, run_pingpong, [](const Options& options) { InFlight(options).run(); });
}
