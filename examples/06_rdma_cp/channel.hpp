// SPDX-License-Identifier: MIT
// One end of a connection: a queue pair whose receives are always posted, and messages on it.
#pragma once

#include "protocol.hpp"

#include <asyncverbs/rdma.hpp>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <stop_token>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

namespace rdma_cp {

using namespace asyncverbs;

/// The peer has disconnected, or has been silent for too long. Trying again may help.
struct Broken : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Channel {
public:
    /// How long a peer may be silent.
    static constexpr std::chrono::seconds patience{20};

    Channel(EpollExecutor& loop, const Context& context)
        : loop_(loop), domain_(context),
          router_(Router::create(context, sends + 1 + receives, loop)),
          qp_(router_, domain_,
              {.max_send_wr = sends, .max_recv_wr = receives, .max_inline_data = 16}),
          messages_(MemoryRegion::allocate(domain_, (1 + receives) * max_message)) {}

    const ProtectionDomain& domain() const { return domain_; }
    const QueuePair& queue_pair() const { return qp_.queue_pair(); }

    /// Posts all receives, which the queue pair must accept already. Watches the peer from now on.
    void start() {
        for (std::uint32_t i = 0; i < receives; ++i) {
            receives_.push_back(qp_.post_recv(incoming(i)));
        }
        watching_.spawn(watch());
    }

    /// Posts a message. Await it before the next one.
    Operation send(const Message& message) {
        const std::vector<std::byte> bytes = encode(message);
        const Slice outgoing = messages_.slice(0, bytes.size());
        std::memcpy(outgoing.address, bytes.data(), bytes.size());
        return qp_.send(outgoing);
    }

    /// The next message. Throws Broken; std::runtime_error if the peer sent something else.
    Task<Message> receive() {
        const Completion completion = co_await next();
        const auto slot = static_cast<std::uint32_t>(received_ % receives);
        Message message = decode(Bytes(incoming(slot).address, completion.bytes()));
        post_again();
        co_return message;
    }

    /// The next message, which must be a T. Throws Refusal if that came, or as receive().
    template <class T>
    Task<T> expect() {
        Message message = co_await receive();
        if (auto* const refusal = std::get_if<Refusal>(&message)) throw Refusal(*refusal);
        auto* const expected = std::get_if<T>(&message);
        if (expected == nullptr) throw std::runtime_error("the peer sent an unexpected message");
        co_return std::move(*expected);
    }

    /// Posts a block; at most block_count may be in flight. The result is that of the message about
    /// it, which the device sends when it has written the block.
    Operation send_block(const Slice& block, RemoteSlice to, std::uint32_t slot) {
        static_cast<void>(qp_.write(block, to, {.signaled = false}));
        std::vector<std::byte> bytes =
            encode(Block{slot, static_cast<std::uint32_t>(block.length)});
        return qp_.send(Slice(bytes.data(), bytes.size(), 0), {.inline_data = true});
    }

private:
    // All blocks, and a few messages.
    static constexpr std::uint32_t sends = 2 * block_count + 2;
    static constexpr std::uint32_t receives = block_count + 4;

    Slice incoming(std::uint32_t i) const {
        return messages_.slice((1 + i) * max_message, max_message);
    }

    Task<Completion> next() {
        std::error_code error;
        Operation& receive = receives_[received_ % receives];
        const Completion completion = co_await receive.wait(error, silent_.get_token());
        if (error == make_wc_error(IBV_WC_WR_FLUSH_ERR)) throw Broken("the peer has left");
        if (error == std::errc::operation_canceled) throw Broken("the peer is silent");
        if (error) throw std::system_error(error, "receiving from the peer");
        co_return completion;
    }

    void post_again() {
        const auto slot = static_cast<std::uint32_t>(received_++ % receives);
        receives_[slot] = qp_.post_recv(incoming(slot));
    }

    // Cancels the wait for the next message if none has come since the previous look.
    Task<> watch() {
        for (std::uint64_t seen = UINT64_MAX; seen != received_;) {
            seen = received_;
            co_await loop_.sleep_for(patience);
        }
        silent_.request_stop();
    }

    EpollExecutor& loop_;
    ProtectionDomain domain_;
    Router router_;
    AsyncQp qp_;
    MemoryRegion messages_; // one to send, and those to receive
    std::vector<Operation> receives_;
    std::uint64_t received_ = 0;
    std::stop_source silent_;
    Scope watching_; // last: it ends watch(), which uses the others
};

} // namespace rdma_cp
