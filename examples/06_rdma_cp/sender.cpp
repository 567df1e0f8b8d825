// SPDX-License-Identifier: MIT
#include "sender.hpp"

#include "channel.hpp"
#include "file.hpp"
#include "progress.hpp"

#include <asyncverbs/cm.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <utility>

using namespace asyncverbs;

namespace rdma_cp {

namespace {

using Clock = std::chrono::steady_clock;

class Sending {
public:
    Sending(EpollExecutor& loop, const SenderOptions& options, const std::string& path)
        : loop_(loop), options_(options), file_(path), offer_(file_.offer()), progress_(offer_) {}

    // Connects, sends what the receiver does not have, and connects again if that breaks.
    Task<> run() {
        for (;;) {
            std::string trouble;
            try {
                co_await attempt();
                progress_.finish();
                co_return;
            } catch (const Refusal& refusal) {
                if (!refusal.for_now) throw std::runtime_error("the receiver: " + refusal.reason);
                trouble = refusal.reason;
            } catch (const Broken& broken) {
                trouble = broken.what();
            } catch (const std::system_error& error) {
                if (!connected_) throw; // the first time: a wrong address, or nobody there
                trouble = error.what();
            }
            progress_.clear();
            if (Clock::now() - last_progress_ > options_.patience) {
                throw std::runtime_error(trouble + "; what is there is kept: run this again");
            }
            std::fprintf(stderr, "%s; trying again\n", trouble.c_str());
            co_await loop_.sleep_for(std::chrono::seconds(1));
        }
    }

private:
    Task<> attempt() {
        OutgoingConnection outgoing = co_await resolve(loop_, options_.host, options_.port);
        Channel channel(loop_, outgoing.context());
        const MemoryRegion blocks =
            MemoryRegion::allocate(channel.domain(), block_count * block_size);
        outgoing.prepare(channel.queue_pair());
        channel.start();
        ConnectOptions connect_options;
        connect_options.retry_count = 6; // soft-RoCE takes 7 for no limit
        Connection connection = co_await outgoing.connect(channel.queue_pair(), connect_options);
        connected_ = true;

        co_await channel.send(offer_);
        const Grant grant = co_await channel.expect<Grant>();
        if (grant.offset > file_.size()) throw std::runtime_error("the receiver has too much");
        if (grant.offset > 0) {
            std::fprintf(stderr, "%s: continuing at byte %llu of %llu\n", offer_.name.c_str(),
                         static_cast<unsigned long long>(grant.offset),
                         static_cast<unsigned long long>(file_.size()));
        }
        Checksum checksum;
        hash(checksum, blocks.slice(0, block_size), grant.offset);
        co_await send_blocks(channel, blocks, grant, checksum);
        file_.check_unchanged();
        co_await channel.send(Finish{checksum.digest()});
        static_cast<void>(co_await channel.expect<Done>());
        co_await connection.disconnect();
    }

    // What the receiver has already.
    void hash(Checksum& checksum, const Slice& buffer, std::uint64_t size) const {
        for (std::uint64_t offset = 0; offset < size;) {
            const auto part =
                buffer.bytes().first(std::min<std::uint64_t>(block_size, size - offset));
            file_.read(offset, part);
            checksum.add(part);
            offset += part.size();
        }
    }

    Task<> send_blocks(Channel& channel, const MemoryRegion& blocks, const Grant& grant,
                       Checksum& checksum) {
        const RemoteSlice remote{grant.address, block_count * block_size, grant.rkey};
        std::array<Operation, block_count> writes;
        std::uint64_t sent = 0;
        std::uint64_t credited = 0;
        for (std::uint64_t offset = grant.offset; offset < file_.size();) {
            if (sent - credited == block_count) {
                static_cast<void>(co_await channel.expect<Credit>());
                ++credited;
            }
            const auto slot = static_cast<std::uint32_t>(sent % block_count);
            if (sent >= block_count) co_await writes[slot];
            const std::size_t length = std::min<std::uint64_t>(block_size, file_.size() - offset);
            const Slice block = blocks.slice(slot * block_size, length);
            file_.read(offset, block.bytes());
            checksum.add(block.bytes());
            writes[slot] = channel.send_block(block, remote.slice(slot * block_size, length), slot);
            ++sent;
            offset += length;
            last_progress_ = Clock::now();
            progress_.show(offset, grant.offset);
        }
        for (; credited < sent; ++credited) static_cast<void>(co_await channel.expect<Credit>());
    }

    EpollExecutor& loop_;
    const SenderOptions& options_;
    SourceFile file_;
    Offer offer_;
    Progress progress_;
    bool connected_ = false;
    Clock::time_point last_progress_ = Clock::now();
};

} // namespace

Task<> send_files(EpollExecutor& loop, SenderOptions options) {
    for (const std::string& path : options.files) {
        Sending sending(loop, options, path);
        co_await sending.run();
    }
}

} // namespace rdma_cp
