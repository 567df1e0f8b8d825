// SPDX-License-Identifier: MIT
// One end of a connection: a queue pair whose receives are posted at any time, and messages on it.
#pragma once

#include "protocol.hpp"

#include <asyncverbs/rdma.hpp>

#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <stop_token>
#include <utility>
#include <variant>
#include <vector>

namespace rdma_cp {

/// The peer left, or is silent for too long. Trying again may help.
struct Broken : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Channel {
public:
    /// How long a peer may be silent.
    static constexpr std::chrono::seconds patience{20};

    Channel(asyncverbs::EpollExecutor& loop, const asyncverbs::Context& context);

    const asyncverbs::ProtectionDomain& domain() const { return domain_; }
    const asyncverbs::QueuePair& queue_pair() const { return qp_.queue_pair(); }

    /// Posts all receives, once the queue pair takes them. Watches the peer from now on.
    void start();

    /// Posts a message; it is to be awaited before the next one.
    asyncverbs::Operation send(const Message& message);

    /// The next message. Throws Broken; std::runtime_error for what is none.
    asyncverbs::Task<Message> receive();

    /// The next message, which is to be a T. Throws Refusal if that came, or as receive().
    template <class T>
    asyncverbs::Task<T> expect() {
        Message message = co_await receive();
        if (auto* const refusal = std::get_if<Refusal>(&message)) throw Refusal(*refusal);
        auto* const expected = std::get_if<T>(&message);
        if (expected == nullptr) throw std::runtime_error("the peer sent something unexpected");
        co_return std::move(*expected);
    }

    /// Of the next block: its slot and length.
    struct Block {
        std::uint32_t slot;
        std::uint32_t length;
    };
    asyncverbs::Task<Block> receive_block();

    /// Posts a block; at most block_count are under way.
    asyncverbs::Operation send_block(const asyncverbs::Slice& block, asyncverbs::RemoteSlice to,
                                     std::uint32_t slot) {
        return qp_.write_with_imm(block, to, slot);
    }

private:
    // All blocks, and a few messages.
    static constexpr std::uint32_t sends = block_count + 2;
    static constexpr std::uint32_t receives = block_count + 4;

    asyncverbs::Slice incoming(std::uint32_t i) const {
        return messages_.slice((1 + i) * max_message, max_message);
    }
    asyncverbs::Task<asyncverbs::Completion> next();
    void post_again();
    asyncverbs::Task<> watch();

    asyncverbs::EpollExecutor& loop_;
    asyncverbs::ProtectionDomain domain_;
    asyncverbs::Router router_;
    asyncverbs::AsyncQp qp_;
    asyncverbs::MemoryRegion messages_;
    std::vector<asyncverbs::Operation> receives_;
    std::uint64_t received_ = 0;
    std::stop_source silent_;
    asyncverbs::Scope watching_; // destroyed first
};

} // namespace rdma_cp
