// SPDX-License-Identifier: MIT
// rc_pingpong: libibverbs' ibv_rc_pingpong with awaited completions. Read on in this order:
// pingpong.hpp (the two coroutines), endpoint.hpp (the queue pair), handshake.hpp (TCP, by Asio).
#include "endpoint.hpp"
#include "handshake.hpp"
#include "options.hpp"
#include "pingpong.hpp"

#include <asyncverbs/asyncverbs.hpp>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <utility>

namespace {

using namespace pingpong;

void print_address(const char* whose, const QueuePairAddress& address) {
    std::printf("  %s LID 0x%04x, QPN 0x%06x, PSN 0x%06x, GID %s\n", whose, address.lid,
                address.qp_num, address.psn, asyncverbs::gid_text(address.gid).c_str());
}

void shake_hands(tcp::iostream& peer, const Options& options, Endpoint& endpoint) {
    const std::chrono::seconds timeout(options.timeout);
    const QueuePairAddress local = endpoint.local_address();
    if (options.is_client()) {
        print_address("local address: ", local);
        set_deadline(peer, timeout);
        connect(peer, *options.host, options.port);
    } else {
        asio::io_context io;
        tcp::acceptor acceptor = listen(io, options.port);
        print_address("local address: ", local); // after listen(): clients may come
        acceptor.accept(peer.socket());
    }
    set_deadline(peer, timeout);
    const auto on_remote = [&](const QueuePairAddress& remote) { endpoint.connect(remote); };
    const QueuePairAddress remote =
        pingpong::shake_hands(peer, options.is_client(), local, on_remote);
    print_address("remote address:", remote);
}

void print_results(const Options& options, const PingPong& game,
                   const asyncverbs::CqStatistics& statistics) {
    const std::chrono::duration<double> elapsed = game.elapsed();
    const unsigned long long bytes = 2ull * options.size * options.iterations;
    std::printf("%llu bytes in %.2f seconds = %.2f Mbit/sec\n", bytes, elapsed.count(),
                static_cast<double>(bytes) * 8 / elapsed.count() / 1e6);
    std::printf("%u iters in %.2f seconds = %.2f usec/iter\n", options.iterations, elapsed.count(),
                elapsed.count() * 1e6 / options.iterations);
    if (options.histogram) {
        std::printf("Round-trip times:\n%s", game.round_trips().draw().c_str());
    }
    const std::pair<const char*, std::uint64_t> counts[] = {{"polls", statistics.polls},
                                                            {"arms", statistics.arms},
                                                            {"wakes", statistics.wakes},
                                                            {"events", statistics.events},
                                                            {"acks", statistics.acks}};
    std::printf("AsyncCq statistics:   total   per iter\n");
    for (const auto& [name, count] : counts) {
        std::printf("  %-7s %12llu %10.2f\n", name, static_cast<unsigned long long>(count),
                    static_cast<double>(count) / options.iterations);
    }
}

void run(const Options& options) {
    asyncverbs::EpollExecutor loop;
    const asyncverbs::Context context = open_device(options);
    auto cq = asyncverbs::AsyncCq::create(context, cq_depth(options), loop);
    Endpoint endpoint(context, cq.completion_queue(), options);
    tcp::iostream peer;
    shake_hands(peer, options, endpoint);

    PingPong game(loop, cq, endpoint, options);
    loop.run(game.run());
    if (!options.is_client()) {
        // Until the client closes its end, it may need this queue pair, for example to repeat an
        // acknowledgment that was lost.
        set_deadline(peer, std::chrono::seconds(options.timeout));
        peer.peek();
    }

    print_results(options, game, cq.statistics());
    if (options.check) endpoint.check_received();
}

} // namespace

int main(int argc, char** argv) { return program::main(argc, argv, add_options, run); }
