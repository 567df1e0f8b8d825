// SPDX-License-Identifier: MIT
// What raw_verbs does, as operations of AsyncQp.
#include "setup.hpp"

#include <cstdint>
#include <vector>

#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/router.hpp>

namespace {

using namespace asyncverbs;
using benchmark::Host;
using benchmark::Options;

Task<> ping(AsyncQp& qp, const Host& host, std::uint32_t count) {
    const Slice outgoing = host.outgoing(0);
    const Slice incoming = host.incoming(0);
    for (std::uint32_t i = 0; i < count; ++i) {
        Operation receive = qp.post_recv(incoming);
        co_await qp.send(outgoing);
        co_await receive;
    }
}

Task<> pong(AsyncQp& qp, Operation& receive, const Host& host, std::uint32_t count) {
    const Slice outgoing = host.outgoing(0);
    const Slice incoming = host.incoming(0);
    for (std::uint32_t i = 0; i < count; ++i) {
        co_await receive;
        receive = qp.post_recv(incoming);
        co_await qp.send(outgoing);
    }
}

void run_pingpong(const Options& options) {
    benchmark::Peer peer;
    const Host host(options);
    EpollExecutor executor;
    Router router = Router::create(host.context(), options.cq_depth(), executor);
    AsyncQp qp(router, host.domain(), {.max_send_wr = 1, .max_recv_wr = 1});
    benchmark::init(qp.queue_pair());
    Operation receive = peer.is_server() ? qp.post_recv(host.incoming(0)) : Operation();
    peer.connect(qp.queue_pair());

    const benchmark::Stopwatch stopwatch;
    if (peer.is_server()) {
        executor.run(pong(qp, receive, host, options.count));
    } else {
        executor.run(ping(qp, host, options.count));
        stopwatch.report(options, router.statistics().wakes);
    }
}

class InFlight {
public:
    explicit InFlight(const Options& options)
        : options_(options), host_(options), writes_(options.mode == "write"),
          router_(Router::create(host_.context(), options.cq_depth(), executor_)) {
        const std::uint32_t length = options.queue_length();
        for (std::uint32_t i = 0; i < options.queue_pairs; ++i) {
            senders_.emplace_back(router_, host_.domain(),
                                  QueuePairOptions{.max_send_wr = length, .max_recv_wr = 0});
            receivers_.emplace_back(
                router_, host_.domain(),
                QueuePairOptions{.max_send_wr = 0, .max_recv_wr = writes_ ? 0 : length});
            benchmark::connect(senders_.back().queue_pair(), receivers_.back().queue_pair());
        }
    }

    void run() {
        Scope receiving;
        for (AsyncQp& receiver : receivers_) {
            for (std::uint32_t k = 0; k < receiver.queue_pair().options().max_recv_wr; ++k) {
                receiving.spawn(receive(receiver));
            }
        }
        const benchmark::Stopwatch stopwatch;
        executor_.run(send_all());
        stopwatch.report(options_, router_.statistics().wakes);
    }

private:
    Task<> receive(AsyncQp& receiver) {
        const Slice incoming = host_.incoming(0);
        for (;;) co_await receiver.recv(incoming);
    }

    Task<> send_all() {
        Scope sending;
        for (std::uint32_t slot = 0; slot < options_.in_flight; ++slot) sending.spawn(send(slot));
        co_await sending.join();
    }

    Task<> send(std::uint32_t slot) {
        const Slice from = host_.outgoing(slot);
        const Slice to = host_.incoming(slot);
        const RemoteSlice remote{reinterpret_cast<std::uintptr_t>(to.address), to.length,
                                 host_.rkey()};
        while (posted_ < options_.count) {
            AsyncQp& sender = senders_[posted_++ % options_.queue_pairs];
            if (writes_) {
                co_await sender.write(from, remote);
            } else {
                co_await sender.send(from);
            }
        }
    }

    const Options& options_;
    Host host_;
    bool writes_;
    EpollExecutor executor_;
    Router router_;
    std::vector<AsyncQp> senders_;
    std::vector<AsyncQp> receivers_;
    std::uint32_t posted_ = 0;
};

} // namespace

int main(int argc, char** argv) {
    return benchmark::run(argc, argv, run_pingpong,
                          [](const Options& options) { InFlight(options).run(); });
}
