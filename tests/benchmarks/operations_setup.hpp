// SPDX-License-Identifier: MIT
// What raw_operations and operations have in common: command line, device, memory, queue pairs and
// the line that says what an operation took. They differ in their loops alone.
#pragma once

#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

#include <chrono>
#include <cstdint>

namespace operations {

enum class Mode {
    pingpong, // sends to and fro between two processes, one at a time
    send,     // sends from each queue pair to its peer in this process, many in flight
    write,    // the same with RDMA writes
};

struct Options {
    Mode mode = Mode::pingpong;
    std::uint32_t count = 20000;   // operations
    std::uint32_t queue_pairs = 1; // that send, all on one completion queue
    std::uint32_t in_flight = 32;  // at a time, over all of them
    std::uint32_t size = 64;       // bytes of each
};

/// Ends the program with a text on a command line that it cannot read.
Options parse_options(int argc, char** argv);

/// Device, protection domain, and memory for what is in flight. The device is the one that the
/// environment names as cmake/soft-roce/run leaves it there.
class Host {
public:
    explicit Host(const Options& options);

    /// One of each for every operation in flight. What is sent, and where it arrives.
    asyncverbs::Slice outgoing(std::uint32_t slot) const;
    asyncverbs::Slice incoming(std::uint32_t slot) const;
    std::uint32_t rkey() const { return region_.rkey(); }

    const asyncverbs::Context& context() const noexcept { return context_; }
    const asyncverbs::ProtectionDomain& domain() const noexcept { return domain_; }

private:
    const Options& options_;
    asyncverbs::Context context_;
    asyncverbs::ProtectionDomain domain_;
    asyncverbs::MemoryRegion region_;
};

/// A queue pair that has this many work requests of one kind is never full, nor without a receive:
/// operations go to the queue pairs in turn.
inline std::uint32_t queue_length(const Options& options) {
    return options.in_flight / options.queue_pairs + 2;
}

/// For all queue pairs and their peers, with one more entry each for what a loop needs.
int cq_depth(const Options& options);

/// RESET to INIT, on the port's GID that the environment names.
void init(asyncverbs::QueuePair& queue_pair);

/// Both ends are in this process.
void connect(asyncverbs::QueuePair& one, asyncverbs::QueuePair& other);

/// The other end of a ping-pong is a copy of this process. As long as this object exists, the other
/// process does not get past its destructor, unless it has ended before: nobody tears down what is
/// measured.
class Peer {
public:
    Peer(); // forks
    ~Peer();
    Peer(const Peer&) = delete;
    Peer& operator=(const Peer&) = delete;

    bool is_server() const noexcept { return child_ == 0; }

    /// With the queue pair of the other process, which does the same.
    void connect(asyncverbs::QueuePair& queue_pair);

private:
    void wait_for_other() noexcept;

    int socket_ = -1;
    int child_ = -1;
};

/// Measures from its construction to report(), which prints what one operation took.
class Stopwatch {
public:
    void report(const Options& options, std::uint64_t waits) const;

private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

} // namespace operations
