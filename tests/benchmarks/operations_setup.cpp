// SPDX-License-Identifier: MIT
#include "operations_setup.hpp"

#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

namespace operations {

using asyncverbs::QueuePair;
using asyncverbs::QueuePairAddress;
using asyncverbs::Slice;

namespace {

constexpr std::array<std::string_view, 3> mode_names{"pingpong", "send", "write"};

[[noreturn]] void reject(const char* program) {
    std::fprintf(stderr,
                 "Usage: %s MODE [OPTION...]\n\n"
                 "MODE is pingpong (between two processes), send or write (in one process).\n\n"
                 "  -n COUNT   operations (20000)\n"
                 "  -q COUNT   queue pairs that send, on one completion queue (1)\n"
                 "  -w COUNT   operations in flight, over all queue pairs (32)\n"
                 "  -s BYTES   size of each (64)\n",
                 program);
    std::exit(2);
}

Mode parse_mode(const char* program, std::string_view name) {
    for (std::size_t i = 0; i < mode_names.size(); ++i) {
        if (mode_names[i] == name) return static_cast<Mode>(i);
    }
    reject(program);
}

std::uint32_t parse_number(const char* program, const char* text) {
    char* end = nullptr;
    const unsigned long value = std::strtoul(text, &end, 10);
    if (*text == '\0' || *end != '\0' || value < 1 || value > 1'000'000'000) reject(program);
    return static_cast<std::uint32_t>(value);
}

std::string environment(const char* name) {
    const char* const value = std::getenv(name);
    return value != nullptr ? value : "";
}

[[noreturn]] void fail(const char* what) {
    throw std::system_error(errno, std::generic_category(), what);
}

} // namespace

Options parse_options(int argc, char** argv) {
    Options options;
    for (int option; (option = ::getopt(argc, argv, "n:q:w:s:")) != -1;) {
        switch (option) {
        case 'n':
            options.count = parse_number(argv[0], optarg);
            break;
        case 'q':
            options.queue_pairs = parse_number(argv[0], optarg);
            break;
        case 'w':
            options.in_flight = parse_number(argv[0], optarg);
            break;
        case 's':
            options.size = parse_number(argv[0], optarg);
            break;
        default:
            reject(argv[0]);
        }
    }
    if (optind + 1 != argc) reject(argv[0]);
    options.mode = parse_mode(argv[0], argv[optind]);
    if (options.mode == Mode::pingpong) options.in_flight = options.queue_pairs = 1;
    return options;
}

Host::Host(const Options& options)
    : options_(options), context_(asyncverbs::Context::open(environment("RDMA_DEVICE"))),
      domain_(context_), region_(asyncverbs::MemoryRegion::allocate(
                             domain_, std::size_t{2} * options.in_flight * options.size,
                             IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE)) {}

Slice Host::outgoing(std::uint32_t slot) const {
    return region_.slice(std::size_t{slot} * options_.size, options_.size);
}

Slice Host::incoming(std::uint32_t slot) const { return outgoing(options_.in_flight + slot); }

int cq_depth(const Options& options) {
    return static_cast<int>(2 * options.queue_pairs * (queue_length(options) + 1));
}

void init(QueuePair& queue_pair) {
    const std::string gid_index = environment("RDMA_GID_INDEX");
    asyncverbs::InitOptions options;
    if (!gid_index.empty()) options.gid_index = std::stoi(gid_index);
    queue_pair.init(options);
}

void connect(QueuePair& one, QueuePair& other) {
    one.connect(other.local_address());
    other.connect(one.local_address());
}

Peer::Peer() {
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

Peer::~Peer() {
    wait_for_other();
    ::close(socket_);
    if (!is_server()) ::waitpid(child_, nullptr, 0);
}

void Peer::wait_for_other() noexcept {
    char byte = 0;
    ::shutdown(socket_, SHUT_WR);
    while (::read(socket_, &byte, 1) > 0) {
    }
}

void Peer::connect(QueuePair& queue_pair) {
    const QueuePairAddress local = queue_pair.local_address();
    QueuePairAddress remote;
    if (::send(socket_, &local, sizeof local, MSG_NOSIGNAL) != sizeof local ||
        ::recv(socket_, &remote, sizeof remote, MSG_WAITALL) != sizeof remote) {
        throw std::runtime_error("the other process has gone");
    }
    queue_pair.connect(remote);
    // Nobody sends before the other can receive.
    char byte = 0;
    if (::send(socket_, &byte, 1, MSG_NOSIGNAL) != 1 || ::read(socket_, &byte, 1) != 1) {
        throw std::runtime_error("the other process has gone");
    }
}

void Stopwatch::report(const Options& options, std::uint64_t waits) const {
    const std::chrono::duration<double, std::micro> elapsed =
        std::chrono::steady_clock::now() - start_;
    const std::string_view mode = mode_names[static_cast<std::size_t>(options.mode)];
    std::printf(
        "%s, %u queue pairs, %u in flight: %u operations, %.3f usec each, %.2f waits each\n",
        mode.data(), options.queue_pairs, options.in_flight, options.count,
        elapsed.count() / options.count, static_cast<double>(waits) / options.count);
}

} // namespace operations
