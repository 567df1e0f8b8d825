// SPDX-License-Identifier: MIT
// Everything that raw_verbs and operations have in common, so that they differ only in their loops:
// command line, device, memory, the process at the other end, and the line that states the result.
#pragma once

#include <infiniband/verbs.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <string_view>
#include <system_error>

#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

namespace benchmark {

[[noreturn]] inline void fail(const char* what) {
    throw std::system_error(errno, std::generic_category(), what);
}

struct Options {
    // pingpong: sends between two processes, one at a time. send: sends from each queue pair to its
    // peer in this process, many in flight. write: the same with RDMA writes.
    std::string_view mode;
    std::uint32_t count = 20000;   // operations
    std::uint32_t queue_pairs = 1; // that send, all on one completion queue
    std::uint32_t in_flight = 32;  // over all queue pairs
    std::uint32_t size = 64;       // bytes of each operation
    bool edge_triggered = false;   // how raw_verbs waits

    // Operations use the queue pairs in turn, so a queue of this length is never full, and a
    // receive queue of this length never empty.
    std::uint32_t queue_length() const { return in_flight / queue_pairs + 2; }
    int cq_depth() const { return static_cast<int>(2 * queue_pairs * (queue_length() + 1)); }
};

inline Options parse_options(int argc, char** argv) {
    Options options;
    bool valid = true;
    const auto number = [&valid] {
        const unsigned long value = std::strtoul(optarg, nullptr, 10);
        valid = valid && value >= 1 && value <= 1'000'000'000;
        return static_cast<std::uint32_t>(value);
    };
    for (int option; (option = ::getopt(argc, argv, "n:q:w:s:e")) != -1;) {
        switch (option) {
        case 'n':
            options.count = number();
            break;
        case 'q':
            options.queue_pairs = number();
            break;
        case 'w':
            options.in_flight = number();
            break;
        case 's':
            options.size = number();
            break;
        case 'e':
            options.edge_triggered = true;
            break;
        default:
            valid = false;
        }
    }
    options.mode = optind + 1 == argc ? argv[optind] : "";
    if (!valid ||
        (options.mode != "pingpong" && options.mode != "send" && options.mode != "write")) {
        std::fprintf(stderr,
                     "Usage: %s [OPTION...] pingpong|send|write\n\n"
                     "  -n COUNT   operations (20000)\n"
                     "  -q COUNT   queue pairs that send, on one completion queue (1)\n"
                     "  -w COUNT   operations in flight, over all queue pairs (32)\n"
                     "  -s BYTES   size of each operation (64)\n"
                     "  -e         raw_verbs waits with edge-triggered epoll\n",
                     argv[0]);
        std::exit(2);
    }
    if (options.mode == "pingpong") options.in_flight = options.queue_pairs = 1;
    return options;
}

inline std::string environment(const char* name) {
    const char* const value = std::getenv(name);
    return value != nullptr ? value : "";
}

/// The device that the environment names, as cmake/soft-roce/run sets it, and memory for the
/// operations in flight: one slot each to send from, and one to receive into.
class Host {
public:
    explicit Host(const Options& options)
        : options_(options), context_(asyncverbs::Context::open(environment("RDMA_DEVICE"))),
          domain_(context_), region_(asyncverbs::MemoryRegion::allocate(
                                 domain_, std::size_t{2} * options.in_flight * options.size,
                                 IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE)) {}

    asyncverbs::Slice outgoing(std::uint32_t slot) const {
        return region_.slice(std::size_t{slot} * options_.size, options_.size);
    }
    asyncverbs::Slice incoming(std::uint32_t slot) const {
        return outgoing(options_.in_flight + slot);
    }
    std::uint32_t rkey() const { return region_.rkey(); }

    const asyncverbs::Context& context() const noexcept { return context_; }
    const asyncverbs::ProtectionDomain& domain() const noexcept { return domain_; }

private:
    const Options& options_;
    asyncverbs::Context context_;
    asyncverbs::ProtectionDomain domain_;
    asyncverbs::MemoryRegion region_;
};

/// RESET to INIT, on the GID that the environment names.
inline void init(asyncverbs::QueuePair& queue_pair) {
    const std::string gid_index = environment("RDMA_GID_INDEX");
    asyncverbs::InitOptions options;
    if (!gid_index.empty()) options.gid_index = std::stoi(gid_index);
    queue_pair.init(options);
}

/// Connects two queue pairs of this process.
inline void connect(asyncverbs::QueuePair& one, asyncverbs::QueuePair& other) {
    init(one);
    init(other);
    one.connect(other.local_address());
    other.connect(one.local_address());
}

/// The other end of a ping-pong: a copy of this process. The destructor waits until the other
/// process has reached its own, so that no teardown is measured.
class Peer {
public:
    Peer() {
        std::array<int, 2> sockets{};
        if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets.data()) != 0) {
            fail("socketpair");
        }
        child_ = ::fork();
        if (child_ < 0) fail("fork");
        if (is_server()) ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        socket_ = sockets[is_server() ? 1 : 0];
        ::close(sockets[is_server() ? 0 : 1]);
    }
    ~Peer() {
        char byte = 0;
        ::shutdown(socket_, SHUT_WR);
        while (::read(socket_, &byte, 1) > 0) {
        }
        ::close(socket_);
        if (!is_server()) ::waitpid(child_, nullptr, 0);
    }
    Peer(const Peer&) = delete;
    Peer& operator=(const Peer&) = delete;

    bool is_server() const noexcept { return child_ == 0; }

    /// To the queue pair of the other process, which calls this, too.
    void connect(asyncverbs::QueuePair& queue_pair) {
        queue_pair.connect(exchange(queue_pair.local_address()));
        exchange('\0'); // neither sends before the other can receive
    }

private:
    template <class T>
    T exchange(const T& mine) {
        T theirs;
        if (::send(socket_, &mine, sizeof mine, MSG_NOSIGNAL) != sizeof mine ||
            ::recv(socket_, &theirs, sizeof theirs, MSG_WAITALL) != sizeof theirs) {
            fail("the other process ended");
        }
        return theirs;
    }

    int socket_ = -1;
    int child_ = -1;
};

/// Measures from its construction to report().
class Stopwatch {
public:
    void report(const Options& options, std::uint64_t waits) const {
        const std::chrono::duration<double, std::micro> elapsed =
            std::chrono::steady_clock::now() - start_;
        std::printf("%s of %u bytes, %u queue pairs, %u in flight: %u operations, "
                    "%.2f waits each, %.3f usec each\n",
                    options.mode.data(), options.size, options.queue_pairs, options.in_flight,
                    options.count, static_cast<double>(waits) / options.count,
                    elapsed.count() / options.count);
    }

private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// main() of both programs.
template <class Pingpong, class InFlight>
int run(int argc, char** argv, Pingpong pingpong, InFlight in_flight) {
    const Options options = parse_options(argc, argv);
    try {
        options.mode == "pingpong" ? pingpong(options) : in_flight(options);
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}

} // namespace benchmark
