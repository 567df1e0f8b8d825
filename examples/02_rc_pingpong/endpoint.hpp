// SPDX-License-Identifier: MIT
// One end of the connection, without the waiting: device, memory, queue pair, and the two work
// requests that are posted again and again.
#pragma once

#include "options.hpp"

#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace pingpong {

/// Which work request a completion is of.
enum WorkRequest : std::uint64_t { receive_id = 1, send_id = 2 };

/// Opens the device and checks the options against its limits. Throws std::system_error.
asyncverbs::Context open_device(const Options& options);

/// One send and all receives may complete before anybody polls.
inline int cq_depth(const Options& options) { return static_cast<int>(options.rx_depth) + 1; }

class Endpoint {
public:
    /// `cq` has cq_depth() entries. All receives are posted when this returns.
    Endpoint(const asyncverbs::Context& context, const asyncverbs::CompletionQueue& cq,
             const Options& options);

    asyncverbs::QueuePairAddress local_address() const { return queue_pair_.local_address(); }
    void connect(const asyncverbs::QueuePairAddress& remote);

    void post_send() { queue_pair_.post_send(send_); }

    /// Posts receives until there are as many as the options say.
    void fill_receives();

    /// Counts a receive that has completed, and posts new ones when there are hardly any left.
    void use_receive() {
        if (--receives_ <= 1) fill_receives();
    }

    /// Throws std::runtime_error unless the message received last is what a client with the option
    /// --chk sends.
    void check_received() const;

    asyncverbs::QueuePair& queue_pair() noexcept { return queue_pair_; }
    ibv_send_wr& send_request() noexcept { return send_; }
    ibv_recv_wr& receive_request() noexcept { return receive_; }

private:
    struct Free {
        void operator()(std::byte* memory) const noexcept { std::free(memory); }
    };

    void fill_memory();

    const Options& options_;
    std::size_t page_size_;
    std::size_t stride_; // the size of a message in whole pages
    std::unique_ptr<std::byte[], Free> memory_;
    asyncverbs::ProtectionDomain domain_;
    asyncverbs::MemoryRegion region_;
    asyncverbs::Slice outgoing_;
    asyncverbs::Slice incoming_;
    ibv_sge send_sge_;
    ibv_sge receive_sge_;
    ibv_send_wr send_{};
    ibv_recv_wr receive_{};
    std::uint32_t receives_ = 0;       // posted and not completed
    asyncverbs::QueuePair queue_pair_; // last: destroyed before the memory that it may write
};

} // namespace pingpong
