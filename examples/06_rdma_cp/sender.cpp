// SPDX-License-Identifier: MIT
#include "../terminal.hpp"
#include "background.hpp"
#include "channel.hpp"
#include "copy.hpp"
#include "file.hpp"

#include <asyncverbs/cm.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace rdma_cp {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

class Sender {
public:
    Sender(EpollExecutor& loop, const Options& options, const std::string& path)
        : loop_(loop), options_(options), file_(path) {}

    // Connects, sends what the receiver does not have, and connects again if the connection breaks.
    Task<> run() {
        for (;;) {
            std::string trouble;
            try {
                co_await attempt();
                progress_.clear();
                std::printf("%s: %llu bytes in %.1f s\n", file_.short_name().c_str(),
                            static_cast<unsigned long long>(file_.size()), seconds_since(start_));
                co_return;
            } catch (const FileError& error) {
                if (!error.busy) throw;
                trouble = error.what();
                answered_ = true;
            } catch (const std::system_error& error) {
                if (!connected_) throw; // at first: a wrong address, or no receiver
                trouble = error.what();
            }
            progress_.clear();
            if (std::exchange(answered_, false)) last_answer_ = Clock::now();
            if (seconds_since(last_answer_) > options_.patience) {
                throw std::runtime_error(trouble +
                                         "; the receiver keeps what it has: run this again");
            }
            if (trouble != last_trouble_) {
                std::fprintf(stderr, "%s; trying again\n", trouble.c_str());
                last_trouble_ = trouble;
            }
            co_await loop_.sleep_for(std::chrono::seconds(1));
        }
    }

private:
    Task<> attempt() {
        ConnectOptions connect_options;
        connect_options.retry_count = 6; // 7 means no limit to soft-RoCE
        std::optional<Channel> opened;
        const auto open = [&](const OutgoingConnection& outgoing) -> const QueuePair& {
            opened.emplace(loop_, outgoing.context());
            outgoing.prepare(opened->queue_pair());
            opened->start();
            return opened->queue_pair();
        };
        Connection connection = co_await connect(
            loop_, options_.host, std::to_string(options_.port), open, connect_options);
        Channel& channel = *opened;
        const MemoryRegion blocks =
            MemoryRegion::allocate(channel.domain(), block_count * block_size);
        connected_ = true;
        channel.watch();

        co_await channel.send(Message(Type::offer, file_.size(), file_.short_name()));
        const Message grant = co_await channel.expect(Type::grant);
        answered_ = true;
        if (grant.number > file_.size()) throw std::runtime_error("the receiver has too much");
        Checksum checksum;
        const auto hash = [&] { file_.hash(checksum, grant.number); };
        co_await in_background(loop_, hash);
        const bool same = checksum.digest() == grant.digest;
        if (!same) checksum = Checksum();
        const std::uint64_t start = same ? grant.number : 0;
        if (start > 0) {
            std::fprintf(stderr, "%s: continuing at byte %llu of %llu\n",
                         file_.short_name().c_str(), static_cast<unsigned long long>(start),
                         static_cast<unsigned long long>(file_.size()));
        }
        co_await channel.send(Message(Type::start, start));
        co_await send_blocks(channel, blocks, grant, start, checksum);
        file_.check_unchanged();
        Message finish(Type::finish);
        finish.digest = checksum.digest();
        co_await channel.send(finish);
        co_await channel.expect(Type::done);
        co_await end(connection);
    }

    Task<> send_blocks(Channel& channel, const MemoryRegion& blocks, const Message& grant,
                       std::uint64_t start, Checksum& checksum) {
        const RemoteSlice remote{grant.address, block_count * block_size, grant.rkey};
        const std::uint64_t size = file_.size();
        std::array<Operation, block_count> writes;
        std::uint64_t sent = 0;
        std::uint64_t credited = 0;
        for (std::uint64_t offset = start; offset < size;) {
            if (sent - credited == block_count) {
                co_await channel.expect(Type::credit);
                ++credited;
            }
            const auto slot = static_cast<std::uint32_t>(sent % block_count);
            if (sent >= block_count) co_await channel.complete(std::move(writes[slot]));
            const std::size_t length = std::min<std::uint64_t>(block_size, size - offset);
            const Slice block = blocks.slice(slot * block_size, length);
            const auto read = [&] {
                file_.read(offset, block.bytes());
                checksum.add(block.bytes());
            };
            co_await in_background(loop_, read);
            writes[slot] = channel.send_block(block, remote.slice(slot * block_size, length), slot);
            ++sent;
            offset += length;
            show_progress(offset, start);
        }
        for (; credited < sent; ++credited) co_await channel.expect(Type::credit);
    }

    // `done` bytes are sent, of which the receiver had `before` at the start.
    void show_progress(std::uint64_t done, std::uint64_t before) {
        if (!progress_.on_terminal() || seconds_since(last_progress_) < 0.2) return;
        last_progress_ = Clock::now();
        const double rate = static_cast<double>(done - before) / seconds_since(start_);
        const double fraction = static_cast<double>(done) / static_cast<double>(file_.size());
        const std::string bar(static_cast<std::size_t>(fraction * 30), '#');
        char text[100];
        std::snprintf(text, sizeof text,
                      "%3.0f %% [%-30s] %.1f MB/s, %.0f s left: ", fraction * 100, bar.c_str(),
                      rate / 1e6, static_cast<double>(file_.size() - done) / rate);
        progress_.show(text + file_.short_name());
    }

    EpollExecutor& loop_;
    const Options& options_;
    SourceFile file_;
    terminal::StatusLine progress_;
    Clock::time_point start_ = Clock::now();
    Clock::time_point last_progress_ = start_;
    bool connected_ = false;
    bool answered_ = false; // a receiver, in the current attempt: then it is there, even if busy
    Clock::time_point last_answer_ = Clock::now();
    std::string last_trouble_;
};

} // namespace

Task<> send_files(EpollExecutor& loop, const Options& options) {
    std::size_t failed = 0;
    for (const std::string& path : options.files) {
        try {
            Sender sender(loop, options, path);
            co_await sender.run();
        } catch (const FileError& error) {
            if (options.files.size() == 1) throw;
            std::fprintf(stderr, "error: %s\n", error.what());
            ++failed;
        }
    }
    if (failed == 0) co_return;
    throw std::runtime_error(std::to_string(failed) + " of " +
                             std::to_string(options.files.size()) + " files were not copied");
}

} // namespace rdma_cp
