// SPDX-License-Identifier: MIT
// Peers in separate processes, one of which is killed in the middle of a transfer. All connections
// of the surviving process share one AsyncCq.
#include <asyncverbs/cq/async_cq.hpp>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <span>
#include <stdexcept>
#include <system_error>

#include "device/end.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using asyncverbs::device::End;
using asyncverbs::device::open_device;
using asyncverbs::device::run_bounded;

namespace {

void transmit(int socket, const QueuePairAddress& address) {
    if (::send(socket, &address, sizeof address, MSG_NOSIGNAL) != sizeof address) {
        throw std::system_error(errno, std::generic_category(), "send");
    }
}

QueuePairAddress accept(int socket) {
    QueuePairAddress address;
    if (::recv(socket, &address, sizeof address, MSG_WAITALL) != sizeof address) {
        throw std::system_error(errno, std::generic_category(), "recv");
    }
    return address;
}

// Sends each received message back as soon as the send queue has room.
Task<> echo(AsyncCq& cq, End& end) {
    std::array<ibv_wc, End::window> wcs{};
    std::deque<ibv_wc> received;
    for (;;) {
        const std::span<ibv_wc> got = co_await cq.poll(wcs);
        for (const ibv_wc& wc : got) {
            if (!end.enter(wc)) throw std::system_error(make_wc_error(wc.status));
            if (End::is_receive(wc)) received.push_back(wc);
        }
        for (; !received.empty() && end.sends_outstanding() < End::window; received.pop_front()) {
            std::ranges::copy(end.received(received.front()), end.next_send().begin());
            end.post_send(received.front().byte_len);
            end.post_recv();
        }
    }
}

[[noreturn]] void run_peer(int socket) {
    try {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        EpollExecutor loop;
        const Context context = open_device();
        const ProtectionDomain domain(context);
        AsyncCq cq = AsyncCq::create(context, End::depth, loop);
        End end(domain, cq, sizeof(std::uint64_t));
        end.connect(accept(socket));
        transmit(socket, end.address());
        loop.run(echo(cq, end));
    } catch (const std::exception& error) {
        std::fprintf(stderr, "peer: %s\n", error.what());
    }
    ::_exit(1);
}

// A process that echoes messages until it is killed.
class Peer {
public:
    Peer() {
        std::array<int, 2> sockets{};
        if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets.data()) != 0) {
            throw std::system_error(errno, std::generic_category(), "socketpair");
        }
        pid_ = ::fork();
        if (pid_ == 0) run_peer(sockets[1]);
        ::close(sockets[1]);
        socket_ = sockets[0];
    }
    Peer(const Peer&) = delete;
    Peer& operator=(const Peer&) = delete;
    ~Peer() {
        kill();
        ::close(socket_);
    }

    void connect(End& end) {
        transmit(socket_, end.address());
        end.connect(accept(socket_));
    }

    // When this returns, the process has ended and its queue pair is destroyed.
    void kill() {
        if (pid_ <= 0) return;
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
        pid_ = -1;
    }

private:
    pid_t pid_ = -1;
    int socket_ = -1;
};

// The surviving process's end of a connection. Each message contains its number and is echoed.
class PeerConnection {
public:
    PeerConnection(const ProtectionDomain& domain, const AsyncCq& cq, Peer& peer)
        : end_(domain, cq, sizeof(std::uint64_t)), peer_(peer) {
        peer.connect(end_);
        while (end_.sends_posted() < End::window) send();
    }

    const End& end() const noexcept { return end_; }
    std::uint64_t echoed() const noexcept { return echoed_; }

    // Sends once more, so that at least one message is in flight to the killed peer.
    void kill_peer() {
        peer_.kill();
        send();
    }

    void on_completion(const ibv_wc& wc) {
        if (!end_.enter(wc)) return;
        if (End::is_receive(wc)) {
            std::uint64_t number = 0;
            std::memcpy(&number, end_.received(wc).data(), sizeof number);
            if (number != echoed_++) throw std::runtime_error("an echo is missing");
            end_.post_recv();
        }
        // Send no more messages than the peer has receives for. The echo of a message may come
        // before the completion of its send, which keeps its place in the queue.
        while (end_.sends_posted() - echoed_ < End::window &&
               end_.sends_outstanding() < End::window) {
            send();
        }
    }

private:
    void send() {
        const std::uint64_t number = end_.sends_posted();
        std::memcpy(end_.next_send().data(), &number, sizeof number);
        end_.post_send(sizeof number);
    }

    End end_;
    Peer& peer_;
    std::uint64_t echoed_ = 0;
};

using Connections = std::deque<PeerConnection>;

Task<> exchange(AsyncCq& cq, Connections& connections, std::function<bool()> done) {
    std::array<ibv_wc, 8> wcs{};
    while (!done()) {
        const std::span<ibv_wc> got = co_await cq.poll(wcs);
        for (const ibv_wc& wc : got) {
            for (PeerConnection& each : connections) {
                if (each.end().qp_num() == wc.qp_num) each.on_completion(wc);
            }
        }
    }
}

} // namespace

TEST_CASE("device: a killed peer fails its own connection, and no other") {
    constexpr std::size_t count = 3;
    std::array<Peer, count> peers; // fork before opening the device, or they would inherit it

    EpollExecutor loop;
    const Context context = open_device();
    const ProtectionDomain domain(context);
    AsyncCq cq = AsyncCq::create(context, count * End::depth, loop);
    Connections connections;
    for (Peer& peer : peers) connections.emplace_back(domain, cq, peer);
    PeerConnection& lost = connections[1];

    const auto exchange_until = [&](const std::function<bool()>& done) {
        run_bounded(loop, exchange(cq, connections, done));
    };
    const auto all_have_echoed = [&](std::uint64_t messages) {
        return std::ranges::all_of(connections, [&](const PeerConnection& each) {
            return &each == &lost || each.echoed() >= messages;
        });
    };
    exchange_until([&] { return all_have_echoed(200) && lost.echoed() >= 200; });
    lost.kill_peer();
    exchange_until([&] { return lost.end().outstanding() == 0; });

    // Each work request has completed once. The first failed one is a send and has the cause. All
    // posted receives failed: the window is always full, since each completed receive is posted
    // again.
    const std::vector<ibv_wc_status>& errors = lost.end().errors();
    REQUIRE(errors.size() > End::window);
    CHECK(lost.end().failed_receives() == End::window);
    CHECK(errors.front() == IBV_WC_RETRY_EXC_ERR);
    CHECK(std::count(errors.begin(), errors.end(), IBV_WC_WR_FLUSH_ERR) ==
          static_cast<std::ptrdiff_t>(errors.size()) - 1);

    const std::uint64_t before =
        std::max(connections.front().echoed(), connections.back().echoed());
    exchange_until([&] { return all_have_echoed(before + 1000); });
    for (const PeerConnection& each : connections) {
        if (&each != &lost) CHECK(each.end().errors().empty());
    }
    CHECK(lost.end().outstanding() == 0);
}
