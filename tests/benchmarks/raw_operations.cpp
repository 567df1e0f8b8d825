// SPDX-License-Identifier: MIT
// The floor that AsyncQp is measured against: sends, receives and RDMA writes on plain verbs and
// epoll, each work request found by its wr_id. Poll first, arm only when empty, level-triggered
// epoll, one read per wake, batched acks.
#include "operations_setup.hpp"

#include <asyncverbs/executor/detail/timers.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>

#include <infiniband/verbs.h>

#include <sys/epoll.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <span>
#include <stdexcept>
#include <system_error>
#include <vector>

namespace {

using namespace operations;
using asyncverbs::CompletionQueue;
using asyncverbs::QueuePair;
using asyncverbs::QueuePairOptions;

[[noreturn]] void fail(const char* what) {
    throw std::system_error(errno, std::generic_category(), what);
}

class Loop {
public:
    explicit Loop(const CompletionQueue& cq)
        : cq_(cq.native_handle()), channel_(cq.channel().native_handle()),
          epoll_(::epoll_create1(EPOLL_CLOEXEC), "epoll_create1") {
        epoll_event event{};
        event.events = EPOLLIN;
        if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, channel_->fd, &event) != 0) fail("epoll_ctl");
    }
    ~Loop() { ibv_ack_cq_events(cq_, unacked_); }
    Loop(const Loop&) = delete;
    Loop& operator=(const Loop&) = delete;

    /// At least one completion, each a success.
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
        while (::epoll_wait(epoll_.get(), &event, 1, -1) < 0) {
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
    asyncverbs::detail::FileDescriptor epoll_;
    std::array<ibv_wc, 16> wcs_;
    bool armed_ = false;
    unsigned unacked_ = 0;
    std::uint64_t waits_ = 0;
};

// wr_id: a slot of the memory for what is sent; for a receive this bit and its queue pair.
constexpr std::uint64_t receive_bit = std::uint64_t{1} << 63;

void post_receive(ibv_qp* queue_pair, std::uint64_t index, ibv_sge into) {
    ibv_recv_wr wr{};
    wr.wr_id = receive_bit | index;
    wr.sg_list = &into;
    wr.num_sge = 1;
    ibv_recv_wr* bad;
    if (ibv_post_recv(queue_pair, &wr, &bad) != 0) fail("ibv_post_recv");
}

void post_send(ibv_qp* queue_pair, std::uint64_t slot, ibv_sge from) {
    ibv_send_wr wr{};
    wr.wr_id = slot;
    wr.sg_list = &from;
    wr.num_sge = 1;
    wr.opcode = IBV_WR_SEND;
    wr.send_flags = IBV_SEND_SIGNALED;
    ibv_send_wr* bad;
    if (ibv_post_send(queue_pair, &wr, &bad) != 0) fail("ibv_post_send");
}

void post_write(ibv_qp* queue_pair, std::uint64_t slot, ibv_sge from, std::uint64_t remote_address,
                std::uint32_t rkey) {
    ibv_send_wr wr{};
    wr.wr_id = slot;
    wr.sg_list = &from;
    wr.num_sge = 1;
    wr.opcode = IBV_WR_RDMA_WRITE;
    wr.send_flags = IBV_SEND_SIGNALED;
    wr.wr.rdma.remote_addr = remote_address;
    wr.wr.rdma.rkey = rkey;
    ibv_send_wr* bad;
    if (ibv_post_send(queue_pair, &wr, &bad) != 0) fail("ibv_post_send");
}

// --- one at a time, to and fro ---

void run_pingpong(const Options& options) {
    Peer peer;
    const Host host(options);
    const CompletionQueue cq(host.context(), cq_depth(options));
    QueuePair queue_pair(host.domain(), cq, cq, {.max_send_wr = 1, .max_recv_wr = 1});
    ibv_qp* const qp = queue_pair.native_handle();
    const ibv_sge outgoing = host.outgoing(0).sge();
    const ibv_sge incoming = host.incoming(0).sge();
    init(queue_pair);
    post_receive(qp, 0, incoming);
    peer.connect(queue_pair);

    Loop loop(cq);
    const Stopwatch stopwatch;
    bool sent = true;
    bool received = !peer.is_server();
    for (std::uint32_t sends = 0;;) {
        if (sent && received) {
            if (sends == options.count) break;
            ++sends;
            sent = received = false;
            post_send(qp, 0, outgoing);
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

// --- many in flight ---

class Stream {
public:
    explicit Stream(const Options& options)
        : options_(options), host_(options), cq_(host_.context(), cq_depth(options)), loop_(cq_),
          rkey_(host_.rkey()) {
        for (std::uint32_t slot = 0; slot < options.in_flight; ++slot) {
            outgoing_.push_back(host_.outgoing(slot).sge());
            incoming_.push_back(host_.incoming(slot).sge());
        }
        const bool receives = options.mode == Mode::send;
        const std::uint32_t length = queue_length(options);
        for (std::uint32_t i = 0; i < options.queue_pairs; ++i) {
            QueuePair& sender =
                senders_.emplace_back(host_.domain(), cq_, cq_,
                                      QueuePairOptions{.max_send_wr = length, .max_recv_wr = 0});
            QueuePair& receiver = receivers_.emplace_back(
                host_.domain(), cq_, cq_,
                QueuePairOptions{.max_send_wr = 0, .max_recv_wr = receives ? length : 0});
            init(sender);
            init(receiver);
            connect(sender, receiver);
            for (std::uint32_t k = 0; receives && k < length; ++k) receive(i);
        }
    }

    void run() {
        const Stopwatch stopwatch;
        for (std::uint32_t slot = 0; slot < options_.in_flight; ++slot) post(slot);
        for (std::uint32_t completed = 0; completed < options_.count;) {
            for (const ibv_wc& wc : loop_.next()) {
                if ((wc.wr_id & receive_bit) != 0) {
                    receive(wc.wr_id & ~receive_bit);
                } else {
                    ++completed;
                    post(static_cast<std::uint32_t>(wc.wr_id));
                }
            }
        }
        stopwatch.report(options_, loop_.waits());
    }

private:
    void receive(std::uint64_t index) {
        post_receive(receivers_[index].native_handle(), index, incoming_.front());
    }

    void post(std::uint32_t slot) {
        if (posted_ == options_.count) return;
        ibv_qp* const sender = senders_[posted_++ % options_.queue_pairs].native_handle();
        if (options_.mode == Mode::send) {
            post_send(sender, slot, outgoing_[slot]);
        } else {
            post_write(sender, slot, outgoing_[slot], incoming_[slot].addr, rkey_);
        }
    }

    const Options& options_;
    Host host_;
    CompletionQueue cq_;
    Loop loop_;
    std::uint32_t rkey_;
    std::vector<ibv_sge> outgoing_;
    std::vector<ibv_sge> incoming_;
    std::vector<QueuePair> senders_;
    std::vector<QueuePair> receivers_;
    std::uint32_t posted_ = 0;
};

} // namespace

int main(int argc, char** argv) {
    const Options options = parse_options(argc, argv);
    try {
        if (options.mode == Mode::pingpong) {
            run_pingpong(options);
        } else {
            Stream(options).run();
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
