// SPDX-License-Identifier: MIT
// One end of a connection: a queue pair whose receives are always posted, and messages on it.
#pragma once

#include "protocol.hpp"

#include <asyncverbs/cm.hpp>
#include <asyncverbs/rdma.hpp>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <vector>

namespace rdma_cp {

using namespace asyncverbs;

class Channel {
public:
    Channel(EpollExecutor& loop, const Context& context)
        : loop_(loop), domain_(context),
          router_(Router::create(context, max_sends + receives, loop)),
          qp_(router_, domain_, {.max_send_wr = max_sends, .max_recv_wr = receives}),
          messages_(MemoryRegion::allocate(domain_, (sends + receives) * max_message)) {}

    const ProtectionDomain& domain() const { return domain_; }
    const QueuePair& queue_pair() const { return qp_.queue_pair(); }

    /// Posts all receives, which the queue pair must accept already.
    void start() {
        for (std::uint32_t i = 0; i < receives; ++i) {
            receives_.push_back(qp_.post_recv(incoming(i)));
        }
    }

    /// Notices from now on if the connected peer cannot be reached any more.
    void watch() { watching_.spawn(probe()); }

    /// Posts a message. Await it before the next one. Throws as complete().
    Task<> send(const Message& message) { return complete(post(message, block_count)); }

    /// Posts a block and its message; await its complete() before the next one to the same slot. At
    /// most block_count may be in flight.
    Operation send_block(const Slice& block, RemoteSlice to, std::uint32_t slot) {
        // Without a completion: if it fails, so does the message after it.
        static_cast<void>(qp_.write(block, to, {.signaled = false}));
        return post(Message(Type::block, block.length), slot);
    }

    /// Awaits what was posted. A peer that refuses may end the connection before it has
    /// acknowledged a message: if that fails, throws as next().
    Task<> complete(Operation posted) {
        std::error_code error;
        co_await posted.wait(error);
        while (error) co_await next();
    }

    /// The next message, which must be of this type. Throws as next(); std::runtime_error if the
    /// peer sent something else.
    Task<Message> expect(Type type) {
        Message message = co_await next();
        if (message.type != type) throw std::runtime_error("the peer sent an unexpected message");
        co_return message;
    }

private:
    /// The next message. Throws FileError if it is a refusal; std::system_error if the connection
    /// is lost.
    Task<Message> next() {
        std::error_code error;
        const auto slot = static_cast<std::uint32_t>(received_ % receives);
        const Completion completion = co_await receives_[slot].wait(error);
        if (error == make_wc_error(IBV_WC_WR_FLUSH_ERR)) {
            error = std::make_error_code(std::errc::connection_reset);
        }
        if (error) throw std::system_error(error, "the connection is lost");
        Message message = decode(Bytes(incoming(slot).address, completion.bytes()));
        receives_[slot] = qp_.post_recv(incoming(slot));
        ++received_;
        if (message.type == Type::refusal) {
            throw FileError("the receiver: " + message.text, message.number != 0);
        }
        co_return message;
    }

    // A buffer for the message of each block, and one for the others.
    static constexpr std::uint32_t sends = block_count + 1;
    static constexpr std::uint32_t max_sends = 2 * block_count + 2; // with the blocks and a probe
    static constexpr std::uint32_t receives = block_count + 4;

    Slice incoming(std::uint32_t i) const {
        return messages_.slice((sends + i) * max_message, max_message);
    }

    Operation post(const Message& message, std::uint32_t buffer) {
        const std::vector<std::byte> bytes = encode(message);
        const Slice outgoing = messages_.slice(buffer * max_message, bytes.size());
        std::memcpy(outgoing.address, bytes.data(), bytes.size());
        return qp_.send(outgoing);
    }

    // Writes nothing to the peer, now and then. The device of a peer that is busy or stopped
    // answers. If none answers, the queue pair fails, and with it the posted receives.
    Task<> probe() {
        std::error_code error;
        while (!error) {
            co_await loop_.sleep_for(std::chrono::seconds(2));
            Operation nothing = qp_.write(messages_.slice(0, 0), RemoteSlice{});
            co_await nothing.wait(error);
        }
    }

    EpollExecutor& loop_;
    ProtectionDomain domain_;
    Router router_;
    AsyncQp qp_;
    MemoryRegion messages_; // those to send, and those to receive
    std::vector<Operation> receives_;
    std::uint64_t received_ = 0;
    Scope watching_; // last: it ends probe(), which uses the others
};

/// Ends the connection after the last message. The file has arrived by then, so a peer that is too
/// busy to answer is no error.
inline Task<> end(Connection& connection) {
    try {
        co_await connection.disconnect();
    } catch (const std::system_error&) {
    }
}

} // namespace rdma_cp
