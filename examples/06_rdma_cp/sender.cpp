// SPDX-License-Identifier: MIT
#include "channel.hpp"
#include "copy.hpp"
#include "file.hpp"

#include <asyncverbs/cm.hpp>

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <stdexcept>

namespace rdma_cp {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// The progress of a file on a terminal, and its result on standard output.
class Progress {
public:
    explicit Progress(const Offer& offer) : offer_(offer) {}
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;
    ~Progress() { clear(); }

    /// `done` bytes are sent, of which the receiver had `before` at the start.
    void show(std::uint64_t done, std::uint64_t before) {
        if (!on_terminal_ || (seconds_since(last_) < 0.2 && done < offer_.size)) return;
        last_ = Clock::now();
        const double seconds = seconds_since(start_);
        const double rate = static_cast<double>(done - before) / (seconds > 0 ? seconds : 1);
        const double fraction = static_cast<double>(done) / static_cast<double>(offer_.size);
        const double left = rate > 0 ? static_cast<double>(offer_.size - done) / rate : 0;
        constexpr int width = 30;
        const int filled = static_cast<int>(fraction * width);
        std::fprintf(stderr, "\r%s %3.0f %% [%.*s%*s] %.1f MB/s, %.0f s left\033[K",
                     offer_.name.c_str(), fraction * 100, filled, "##############################",
                     width - filled, "", rate / 1e6, left);
        shown_ = true;
    }

    void finish() {
        clear();
        std::printf("%s: %llu bytes in %.1f s\n", offer_.name.c_str(),
                    static_cast<unsigned long long>(offer_.size), seconds_since(start_));
    }

    void clear() {
        if (shown_) std::fputs("\r\033[K", stderr);
        shown_ = false;
    }

private:
    const Offer& offer_;
    bool on_terminal_ = ::isatty(STDERR_FILENO) == 1;
    bool shown_ = false;
    Clock::time_point start_ = Clock::now();
    Clock::time_point last_{};
};

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
                progress_.finish();
                co_return;
            } catch (const Refusal& refusal) {
                if (!refusal.for_now) throw std::runtime_error("the receiver: " + refusal.reason);
                trouble = refusal.reason;
            } catch (const Broken& broken) {
                trouble = broken.what();
            } catch (const std::system_error& error) {
                if (!connected_) throw; // at first: a wrong address, or no receiver
                trouble = error.what();
            }
            progress_.clear();
            if (seconds_since(last_progress_) > options_.patience) {
                throw std::runtime_error(trouble +
                                         "; the receiver keeps what it has: run this again");
            }
            std::fprintf(stderr, "%s; trying again\n", trouble.c_str());
            co_await loop_.sleep_for(std::chrono::seconds(1));
        }
    }

private:
    Task<> attempt() {
        const std::string port = std::to_string(options_.port);
        OutgoingConnection outgoing = co_await resolve(loop_, options_.host, port);
        Channel channel(loop_, outgoing.context());
        const MemoryRegion blocks =
            MemoryRegion::allocate(channel.domain(), block_count * block_size);
        outgoing.prepare(channel.queue_pair());
        channel.start();
        ConnectOptions connect_options;
        connect_options.retry_count = 6; // 7 means no limit to soft-RoCE
        Connection connection = co_await outgoing.connect(channel.queue_pair(), connect_options);
        connected_ = true;

        const Offer& offer = file_.offer();
        co_await channel.send(offer);
        const Grant grant = co_await channel.expect<Grant>();
        if (grant.offset > offer.size) throw std::runtime_error("the receiver has too much");
        if (grant.offset > 0) {
            std::fprintf(stderr, "%s: continuing at byte %llu of %llu\n", offer.name.c_str(),
                         static_cast<unsigned long long>(grant.offset),
                         static_cast<unsigned long long>(offer.size));
        }
        Checksum checksum;
        file_.hash(checksum, grant.offset);
        co_await send_blocks(channel, blocks, grant, checksum);
        file_.check_unchanged();
        co_await channel.send(Finish{checksum.digest()});
        static_cast<void>(co_await channel.expect<Done>());
        co_await connection.disconnect();
    }

    Task<> send_blocks(Channel& channel, const MemoryRegion& blocks, const Grant& grant,
                       Checksum& checksum) {
        const RemoteSlice remote{grant.address, block_count * block_size, grant.rkey};
        const std::uint64_t size = file_.offer().size;
        std::array<Operation, block_count> writes;
        std::uint64_t sent = 0;
        std::uint64_t credited = 0;
        for (std::uint64_t offset = grant.offset; offset < size;) {
            if (sent - credited == block_count) {
                static_cast<void>(co_await channel.expect<Credit>());
                ++credited;
            }
            const auto slot = static_cast<std::uint32_t>(sent % block_count);
            if (sent >= block_count) co_await writes[slot];
            const std::size_t length = std::min<std::uint64_t>(block_size, size - offset);
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
    const Options& options_;
    SourceFile file_;
    Progress progress_{file_.offer()};
    bool connected_ = false;
    Clock::time_point last_progress_ = Clock::now();
};

} // namespace

Task<> send_files(EpollExecutor& loop, const Options& options) {
    for (const std::string& path : options.files) {
        Sender sender(loop, options, path);
        co_await sender.run();
    }
}

} // namespace rdma_cp
