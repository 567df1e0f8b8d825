// SPDX-License-Identifier: MIT
#include "channel.hpp"

#include <cstring>
#include <span>
#include <system_error>
#include <utility>

using namespace asyncverbs;

namespace rdma_cp {

Channel::Channel(EpollExecutor& loop, const Context& context)
    : loop_(loop), domain_(context), router_(Router::create(context, sends + 1 + receives, loop)),
      qp_(router_, domain_, {.max_send_wr = sends, .max_recv_wr = receives}),
      messages_(MemoryRegion::allocate(domain_, (1 + receives) * max_message)) {}

void Channel::start() {
    for (std::uint32_t i = 0; i < receives; ++i) receives_.push_back(qp_.post_recv(incoming(i)));
    watching_.spawn(watch());
}

// Stops whoever waits when nothing has come since it looked last.
Task<> Channel::watch() {
    for (std::uint64_t seen = UINT64_MAX; seen != received_;) {
        seen = received_;
        co_await loop_.sleep_for(patience);
    }
    silent_.request_stop();
}

Operation Channel::send(const Message& message) {
    const std::vector<std::byte> bytes = encode(message);
    const Slice outgoing = messages_.slice(0, bytes.size());
    std::memcpy(outgoing.address, bytes.data(), bytes.size());
    return qp_.send(outgoing);
}

Task<Completion> Channel::next() {
    std::error_code error;
    Operation& receive = receives_[received_ % receives];
    const Completion completion = co_await receive.wait(error, silent_.get_token());
    if (error == make_wc_error(IBV_WC_WR_FLUSH_ERR)) throw Broken("the peer has left");
    if (error == std::errc::operation_canceled) throw Broken("the peer is silent");
    if (error) throw std::system_error(error, "receiving from the peer");
    co_return completion;
}

void Channel::post_again() {
    const auto slot = static_cast<std::uint32_t>(received_++ % receives);
    receives_[slot] = qp_.post_recv(incoming(slot));
}

Task<Message> Channel::receive() {
    const Completion completion = co_await next();
    if (completion.imm()) throw std::runtime_error("the peer sent a block that nobody waits for");
    const auto slot = static_cast<std::uint32_t>(received_ % receives);
    Message message = decode(std::as_bytes(
        std::span(reinterpret_cast<const char*>(incoming(slot).address), completion.bytes())));
    post_again();
    co_return message;
}

Task<Channel::Block> Channel::receive_block() {
    const Completion completion = co_await next();
    if (!completion.imm()) throw std::runtime_error("the peer sent something that is no block");
    post_again();
    co_return Block{*completion.imm(), completion.bytes()};
}

} // namespace rdma_cp
