// SPDX-License-Identifier: MIT
#include "channel.hpp"
#include "copy.hpp"
#include "file.hpp"

#include <asyncverbs/cm.hpp>

#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace rdma_cp {

namespace {

// The blocks of a file arrive in order, each in the next slot.
Task<> receive_file(Channel& channel, const Options& options, const MemoryRegion& blocks,
                    const Offer& offer) {
    PartialFile file(options.directory, offer, options.overwrite);
    const Slice memory = blocks.slice(0, block_count * block_size);
    const Grant grant{file.size(), reinterpret_cast<std::uintptr_t>(memory.address), blocks.rkey()};
    co_await channel.send(grant);

    for (std::uint32_t slot = 0; file.size() < offer.size; slot = (slot + 1) % block_count) {
        const auto block = co_await channel.expect<Block>();
        if (block.slot != slot || block.length == 0 || block.length > block_size ||
            block.length > offer.size - file.size()) {
            throw std::runtime_error("the peer sent a block that does not fit");
        }
        file.append(memory.bytes().subspan(slot * block_size, block.length));
        co_await channel.send(Credit{});
    }
    const Finish finish = co_await channel.expect<Finish>();
    file.finish(finish.digest);
    co_await channel.send(Done{});
}

// Reports an error of the file to the sender, too.
Task<> receive(EpollExecutor& loop, const Options& options, IncomingConnection incoming) {
    Channel channel(loop, incoming.context());
    const MemoryRegion blocks =
        MemoryRegion::allocate(channel.domain(), block_count * block_size,
                               IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
    incoming.prepare(channel.queue_pair());
    channel.start();
    Connection connection = co_await incoming.accept(channel.queue_pair());

    const Offer offer = co_await channel.expect<Offer>();
    std::optional<Refusal> refusal;
    try {
        co_await receive_file(channel, options, blocks, offer);
        std::printf("%s: received\n", offer.name.c_str());
    } catch (const FileError& error) {
        refusal = Refusal{false, error.what()};
    } catch (const FileBusy& error) {
        refusal = Refusal{true, error.what()};
    }
    if (refusal) {
        std::fprintf(stderr, "%s\n", refusal->reason.c_str());
        co_await channel.send(*refusal);
    }
    co_await connection.disconnect();
}

// An error on one connection must not end the others.
Task<> serve(EpollExecutor& loop, const Options& options, IncomingConnection incoming) {
    const std::string peer = incoming.peer_address().text();
    try {
        co_await receive(loop, options, std::move(incoming));
    } catch (const Refusal& refusal) {
        std::fprintf(stderr, "%s: %s\n", peer.c_str(), refusal.reason.c_str());
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s: %s\n", peer.c_str(), error.what());
    }
}

} // namespace

Task<> receive_files(EpollExecutor& loop, const Options& options) {
    Listener listener(loop, options.bind, std::to_string(options.port));
    std::printf("receiving into %s on port %u\n", options.directory.c_str(), listener.port());
    Scope senders;
    for (;;) {
        IncomingConnection incoming = co_await listener.accept();
        senders.spawn(serve(loop, options, std::move(incoming)));
    }
}

} // namespace rdma_cp
