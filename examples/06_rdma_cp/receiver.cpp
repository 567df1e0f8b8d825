// SPDX-License-Identifier: MIT
#include "../serve.hpp"
#include "background.hpp"
#include "channel.hpp"
#include "copy.hpp"
#include "file.hpp"

#include <asyncverbs/cm.hpp>

#include <cstdio>
#include <exception>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

namespace rdma_cp {

namespace {

class Receiver {
public:
    Receiver(EpollExecutor& loop, const Options& options)
        : loop_(loop), options_(options),
          directory_(::open(options.directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC),
                     options.directory) {}

    // Reports an error of the file to the sender, too.
    Task<> receive(IncomingConnection incoming) {
        Channel channel(loop_, incoming.context());
        const MemoryRegion blocks =
            MemoryRegion::allocate(channel.domain(), block_count * block_size,
                                   IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
        incoming.prepare(channel.queue_pair());
        channel.start();
        Connection connection = co_await incoming.accept(channel.queue_pair());
        channel.watch();

        const Message offer = co_await channel.expect(Type::offer);
        std::optional<Message> refusal;
        try {
            co_await receive_file(channel, blocks, offer);
            std::printf("%s: received\n", offer.text.c_str());
            co_await send_done(channel);
        } catch (const FileError& error) {
            refusal.emplace(Type::refusal, error.busy ? 1 : 0, error.what());
        }
        if (refusal) {
            std::fprintf(stderr, "%s\n", refusal->text.c_str());
            co_await channel.send(*refusal);
        }
        co_await end(connection);
    }

private:
    // The sender may leave as soon as it knows. If it does not get to know, it asks again.
    static Task<> send_done(Channel& channel) {
        try {
            co_await channel.send(Message(Type::done));
        } catch (const std::system_error&) {
        }
    }

    struct Claim {
        ~Claim() { names.erase(name); }
        std::set<std::string>& names;
        const std::string& name;
    };

    Task<> receive_file(Channel& channel, const MemoryRegion& blocks, const Message& offer) {
        if (!names_.insert(offer.text).second) {
            throw FileError(offer.text + " is being received from another sender", true);
        }
        const Claim claim{names_, offer.text};
        std::optional<TargetFile> file;
        std::exception_ptr failure;
        try {
            co_await receive_blocks(channel, blocks, offer, file);
        } catch (...) {
            failure = std::current_exception();
        }
        const auto close = [&] { file.reset(); };
        if (file) co_await in_background(loop_, close); // it may write what is left
        if (failure) std::rethrow_exception(failure);
    }

    // The blocks of a file arrive in order, each in the next slot.
    Task<> receive_blocks(Channel& channel, const MemoryRegion& blocks, const Message& offer,
                          std::optional<TargetFile>& file) {
        const auto open = [&] {
            file.emplace(directory_, offer.text, offer.number, options_.overwrite);
        };
        co_await in_background(loop_, open);
        const Slice memory = blocks.slice(0, block_count * block_size);
        Message grant(Type::grant, file->size());
        grant.digest = file->digest();
        grant.address = reinterpret_cast<std::uintptr_t>(memory.address);
        grant.rkey = blocks.rkey();
        co_await channel.send(grant);
        const Message start = co_await channel.expect(Type::start);
        const bool same = start.number == file->size();
        const auto begin_anew = [&] { file->begin_anew(); };
        if (!same) co_await in_background(loop_, begin_anew);

        for (std::uint32_t slot = 0; file->size() < offer.number; slot = (slot + 1) % block_count) {
            const Message block = co_await channel.expect(Type::block);
            if (block.number == 0 || block.number > block_size ||
                block.number > offer.number - file->size()) {
                throw std::runtime_error("the peer sent a block that does not fit");
            }
            const Bytes bytes = memory.bytes().subspan(slot * block_size, block.number);
            const auto append = [&] { file->append(bytes); };
            co_await in_background(loop_, append);
            co_await channel.send(Message(Type::credit));
        }
        const Message last = co_await channel.expect(Type::finish);
        const auto finish = [&] { file->finish(last.digest); };
        co_await in_background(loop_, finish);
    }

    EpollExecutor& loop_;
    const Options& options_;
    File directory_;
    std::set<std::string> names_; // that are being received: not every file can be locked
};

} // namespace

Task<> receive_files(EpollExecutor& loop, const Options& options) {
    Receiver receiver(loop, options);
    Listener listener(loop, options.bind, std::to_string(options.port));
    std::printf("receiving into %s on port %u\n", options.directory.c_str(), listener.port());
    const auto receive = [&receiver](IncomingConnection incoming) {
        return receiver.receive(std::move(incoming));
    };
    co_await program::serve_clients(loop, listener, 0, receive);
}

} // namespace rdma_cp
