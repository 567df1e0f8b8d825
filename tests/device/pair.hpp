// SPDX-License-Identifier: MIT
// Two connected queue pairs in one process, on the device that cmake/soft-roce/run names in the
// environment.
#pragma once

#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace asyncverbs::device {

inline Context open_device() {
    const char* name = std::getenv("RDMA_DEVICE");
    return Context::open(name ? name : "");
}

inline bool is_iwarp() {
    try {
        return detail::is_iwarp(*open_device().native_handle());
    } catch (const std::system_error&) {
        return false; // the tests report that there is no device
    }
}

inline std::optional<int> gid_index() {
    const char* index = std::getenv("RDMA_GID_INDEX");
    return index ? std::optional(std::stoi(index)) : std::nullopt;
}

// Runs `task`; throws operation_canceled if it hangs.
template <class T>
T run_bounded(EpollExecutor& loop, Task<T> task) {
    const auto stop_late = [](EpollExecutor& l) -> Task<> {
        co_await l.sleep_for(std::chrono::seconds(60));
        l.stop();
    };
    Scope scope;
    scope.spawn(stop_late(loop));
    return loop.run(std::move(task));
}

// Each queue pair has its own CQ; both CQs are on one loop, or each on its own.
template <class Loop = EpollExecutor>
struct Pair {
    static constexpr std::uint32_t depth = 256;
    static constexpr int remote =
        IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;

    explicit Pair(Loop& l, const AsyncCqOptions& options = {}, const RtsOptions& send = {})
        : Pair(l, l, options, send) {}

    Pair(Loop& send_loop, Loop& recv_loop, const AsyncCqOptions& options = {},
         const RtsOptions& send = {})
        : loop(recv_loop), context(open_device()), domain(context), memory(8192),
          region(domain, memory, remote),
          send_cq(AsyncCq::create(context, 2 * depth, send_loop, options)),
          recv_cq(AsyncCq::create(context, 2 * depth, recv_loop, options)),
          sender(std::in_place, domain, send_cq->completion_queue(), send_cq->completion_queue(),
                 QueuePairOptions{.max_send_wr = depth, .max_recv_wr = depth}),
          receiver(std::in_place, domain, recv_cq->completion_queue(), recv_cq->completion_queue(),
                   QueuePairOptions{.max_send_wr = depth, .max_recv_wr = depth}) {
        sender->init({.gid_index = gid_index()});
        receiver->init({.gid_index = gid_index()});
        sender->connect(receiver->local_address(), {}, send);
        receiver->connect(sender->local_address());
    }

    // Each message contains its number.
    void post_recv(std::uint64_t wr_id) {
        receiver->post_recv(wr_id, region.slice(4096 + 8 * (wr_id % depth), 8));
    }

    void post_send(std::uint64_t wr_id, unsigned flags = IBV_SEND_SIGNALED) {
        const Slice slice = region.slice(8 * (wr_id % depth), 8);
        std::memcpy(slice.address, &wr_id, 8);
        sender->post_send(wr_id, slice, flags);
    }

    std::uint64_t received(std::uint64_t wr_id) const {
        std::uint64_t value = 0;
        std::memcpy(&value, memory.data() + 4096 + 8 * (wr_id % depth), 8);
        return value;
    }

    Loop& loop;
    Context context;
    ProtectionDomain domain;
    std::vector<std::byte> memory;
    MemoryRegion region;
    std::optional<AsyncCq> send_cq;
    std::optional<AsyncCq> recv_cq;
    std::optional<QueuePair> sender;
    std::optional<QueuePair> receiver;
};

} // namespace asyncverbs::device
