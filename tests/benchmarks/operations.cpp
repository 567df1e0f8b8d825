// SPDX-License-Identifier: MIT
// What AsyncQp is measured by: the operations of raw_operations, awaited.
#include "operations_setup.hpp"

#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/router.hpp>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <vector>

namespace {

using namespace operations;
using namespace asyncverbs;

// --- one at a time, to and fro ---

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
    Peer peer;
    const Host host(options);
    EpollExecutor executor;
    Router router = Router::create(host.context(), cq_depth(options), executor);
    AsyncQp qp(router, host.domain(), {.max_send_wr = 1, .max_recv_wr = 1});
    init(qp.queue_pair());
    Operation receive = peer.is_server() ? qp.post_recv(host.incoming(0)) : Operation();
    peer.connect(qp.queue_pair());

    const Stopwatch stopwatch;
    if (peer.is_server()) {
        executor.run(pong(qp, receive, host, options.count));
    } else {
        executor.run(ping(qp, host, options.count));
        stopwatch.report(options, router.statistics().wakes);
    }
}

// --- many in flight ---

class Stream {
public:
    explicit Stream(const Options& options)
        : options_(options), host_(options),
          router_(Router::create(host_.context(), cq_depth(options), executor_)) {
        const bool receives = options.mode == Mode::send;
        const std::uint32_t length = queue_length(options);
        for (std::uint32_t i = 0; i < options.queue_pairs; ++i) {
            AsyncQp& sender = senders_.emplace_back(
                router_, host_.domain(), QueuePairOptions{.max_send_wr = length, .max_recv_wr = 0});
            AsyncQp& receiver = receivers_.emplace_back(
                router_, host_.domain(),
                QueuePairOptions{.max_send_wr = 0, .max_recv_wr = receives ? length : 0});
            init(sender.queue_pair());
            init(receiver.queue_pair());
            connect(sender.queue_pair(), receiver.queue_pair());
        }
    }

    void run() {
        Scope receiving;
        for (AsyncQp& receiver : receivers_) {
            for (std::uint32_t k = 0; k < receiver.queue_pair().options().max_recv_wr; ++k) {
                receiving.spawn(receive(receiver));
            }
        }
        const Stopwatch stopwatch;
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
        const bool writes = options_.mode == Mode::write;
        while (posted_ < options_.count) {
            AsyncQp& sender = senders_[posted_++ % options_.queue_pairs];
            if (writes) {
                co_await sender.write(from, remote);
            } else {
                co_await sender.send(from);
            }
        }
    }

    const Options& options_;
    Host host_;
    EpollExecutor executor_;
    Router router_;
    std::vector<AsyncQp> senders_;
    std::vector<AsyncQp> receivers_;
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
