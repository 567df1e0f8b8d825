// SPDX-License-Identifier: MIT
// Many CQs on one completion channel of a real device.
#include <asyncverbs/cq/shared_channel.hpp>

#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <system_error>
#include <vector>

#include "device/pair.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using asyncverbs::device::gid_index;
using asyncverbs::device::open_device;
using asyncverbs::device::run_bounded;

namespace {

// One end of a conversation: a queue pair with its own CQ.
struct Speaker {
    Speaker(const ProtectionDomain& domain, SharedChannel<EpollNotifier>& channel, Slice s)
        : cq(AsyncCq::create(domain.context(), 8, channel)),
          queue_pair(domain, cq.completion_queue(), cq.completion_queue(),
                     {.max_send_wr = 2, .max_recv_wr = 2}),
          slice(s) {
        queue_pair.init({.gid_index = gid_index()});
    }

    void post_recv() {
        ibv_sge sge = slice.sge();
        ibv_recv_wr wr{};
        wr.sg_list = &sge;
        wr.num_sge = 1;
        queue_pair.post_recv(wr);
    }
    void post_send() {
        ibv_sge sge = slice.sge();
        ibv_send_wr wr{};
        wr.sg_list = &sge;
        wr.num_sge = 1;
        wr.opcode = IBV_WR_SEND;
        wr.send_flags = IBV_SEND_SIGNALED;
        queue_pair.post_send(wr);
    }

    // Answers each message with a message, until `count` were received and `count` were sent.
    Task<> converse(int count) {
        std::array<ibv_wc, 2> wcs{};
        for (int received = 0, sent = 0; received < count || sent < count;) {
            for (const ibv_wc& wc : co_await cq.poll(wcs)) {
                if (wc.status != IBV_WC_SUCCESS) throw std::system_error(make_wc_error(wc.status));
                if (wc.opcode == IBV_WC_SEND) {
                    ++sent;
                } else if (++received < count || !first) {
                    if (received < count) post_recv();
                    post_send();
                }
            }
        }
    }

    AsyncCq cq;
    QueuePair queue_pair;
    Slice slice;
    bool first = false;
};

Task<> join(Scope& scope) { co_await scope.join(); }

} // namespace

TEST_CASE("device: conversations over CQs of one channel, while CQs are created and destroyed",
          "[I3][I4]") {
    constexpr int conversations = 8;
    constexpr int messages = 200;
    EpollExecutor executor;
    const Context context = open_device();
    const ProtectionDomain domain(context);
    std::vector<std::byte> bytes(4096);
    const MemoryRegion region(domain, bytes);
    SharedChannel channel(context, executor);

    const auto connected = [&](std::size_t number) {
        auto ends = std::make_unique<std::array<Speaker, 2>>(
            std::array<Speaker, 2>{Speaker(domain, channel, region.slice(128 * number, 64)),
                                   Speaker(domain, channel, region.slice(128 * number + 64, 64))});
        auto& [ping, pong] = *ends;
        ping.queue_pair.connect(pong.queue_pair.local_address());
        pong.queue_pair.connect(ping.queue_pair.local_address());
        ping.first = true;
        ping.post_recv();
        pong.post_recv();
        ping.post_send();
        return ends;
    };

    Scope scope;
    std::vector<std::unique_ptr<std::array<Speaker, 2>>> all;
    for (std::size_t i = 0; i < conversations; ++i) {
        all.push_back(connected(i));
        for (Speaker& end : *all.back()) scope.spawn(end.converse(messages));
    }
    struct Local {
        static Task<> come_and_go(EpollExecutor& loop, decltype(connected)& connect) {
            for (int i = 0; i < 10; ++i) {
                auto ends = connect(conversations);
                Scope short_lived;
                for (Speaker& end : *ends) short_lived.spawn(end.converse(5));
                co_await short_lived.join();
                co_await loop.schedule();
            }
        }
    };
    scope.spawn(Local::come_and_go(executor, connected));
    run_bounded(executor, join(scope));

    for (const auto& ends : all) {
        for (const Speaker& end : *ends) {
            CHECK(end.cq.statistics().completions == 2 * messages);
            CHECK(end.cq.statistics().events <= end.cq.statistics().arms);
        }
    }
}
