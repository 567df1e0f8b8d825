// SPDX-License-Identifier: MIT
// rdma_echo: a server that returns every message, and its client. One thread and one completion
// queue serve any number of clients, each in its own coroutine that reads like a blocking program.
#include "program.hpp"
#include "serve.hpp"
#include "terminal.hpp"

#include <asyncverbs/cm.hpp>
#include <asyncverbs/rdma.hpp>
#include <asyncverbs/rdma/keep_alive.hpp>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

using namespace asyncverbs;
using namespace std::chrono_literals;

namespace {

struct Options {
    std::optional<std::string> host; // none: be the server
    std::string bind;
    std::uint16_t port = 7471;
    std::uint32_t size = 64;
    std::uint32_t count = 1000;
    std::uint32_t connections = 1;
    std::uint32_t clients = 0;
};

constexpr std::uint32_t max_size = 1 << 20;
constexpr std::uint32_t max_clients = 1024;
constexpr QueuePairOptions queue_pair_options{.max_send_wr = 2, .max_recv_wr = 2};

// The private data of a client's connection request.
struct Hello {
    std::array<char, 8> protocol{'e', 'c', 'h', 'o', '1'};
    std::uint32_t size = 0; // of its messages, big-endian
};

// The device, and the completion queue that all connections share. The first connection opens it,
// since the route to the peer decides which device it is.
class Device {
public:
    explicit Device(EpollExecutor& loop) : loop_(loop) {}

    void open(const Context& context) {
        if (router_ && context.native_handle() != domain_->context().native_handle()) {
            throw std::runtime_error("this program serves the connections of one device only");
        }
        if (router_) return;
        constexpr int entries = queue_pair_options.max_send_wr + queue_pair_options.max_recv_wr;
        const int depth = static_cast<int>(max_clients) * entries;
        domain_.emplace(context);
        router_.emplace(Router::create(context, depth, loop_));
    }
    AsyncQp make_queue_pair() { return AsyncQp(*router_, *domain_, queue_pair_options); }
    MemoryRegion allocate(std::size_t size) { return MemoryRegion::allocate(*domain_, size); }
    std::vector<RequestInFlight> in_flight() const {
        return router_ ? router_->in_flight() : std::vector<RequestInFlight>();
    }

private:
    EpollExecutor& loop_;
    std::optional<ProtectionDomain> domain_;
    std::optional<Router> router_;
};

// --- the server ---

std::uint32_t message_size(const IncomingConnection& incoming) {
    Hello hello;
    if (incoming.private_data().size() < sizeof hello) return 0;
    const auto expected = hello.protocol;
    std::memcpy(&hello, incoming.private_data().data(), sizeof hello);
    const std::uint32_t size = ntohl(hello.size);
    return hello.protocol == expected && size <= max_size ? size : 0;
}

void refuse(IncomingConnection incoming, const std::string& reason) {
    std::printf("%s: refused: %s\n", incoming.peer_address().text().c_str(), reason.c_str());
    incoming.reject(std::as_bytes(std::span(reason)));
}

Task<> echo(EpollExecutor& loop, Device& device, IncomingConnection incoming) {
    const std::uint32_t size = message_size(incoming);
    if (size == 0) {
        refuse(std::move(incoming), "not a client of this server, or its messages are too long");
        co_return;
    }
    const std::string peer = incoming.peer_address().text();
    device.open(incoming.context());
    AsyncQp qp = device.make_queue_pair();
    const MemoryRegion memory = device.allocate(2 * std::size_t{size});
    const Slice buffers[] = {memory.slice(0, size), memory.slice(size, size)};

    incoming.prepare(qp.queue_pair());
    Operation receive = qp.post_recv(buffers[0]);
    const Connection connection = co_await incoming.accept(qp.queue_pair());
    std::printf("%s: connected\n", peer.c_str());
    Scope watcher; // a client that vanishes fails the receive
    watcher.spawn(keep_alive(loop, qp, 10s));

    std::uint64_t messages = 0;
    std::error_code error;
    for (;;) {
        const Completion received = co_await receive.wait(error);
        if (error) break;
        // Post the next receive before the answer: the client then sends its next message.
        const Slice& message = buffers[messages++ % 2];
        receive = qp.post_recv(buffers[messages % 2]);
        Operation answer = qp.send(message.slice(0, received.bytes()));
        co_await answer.wait(error);
        if (error) break;
    }
    // When a client disconnects, the posted receive is flushed.
    const bool left = error == make_wc_error(IBV_WC_WR_FLUSH_ERR);
    std::printf("%s: %s after %llu messages\n", peer.c_str(),
                left ? "left" : error.message().c_str(), static_cast<unsigned long long>(messages));
}

// With the time since they were printed first.
void print(const std::vector<RequestInFlight>& requests) {
    std::printf("%zu requests in flight\n", requests.size());
    for (const RequestInFlight& request : requests) {
        const char* const kind = request.opcode == IBV_WC_RECV ? "receive" : "send";
        const auto time =
            std::chrono::duration_cast<std::chrono::milliseconds>(request.reported_for);
        std::printf("queue pair %u: %s, since %lld ms\n", request.qp_num, kind,
                    static_cast<long long>(time.count()));
    }
}

Task<> run_server(EpollExecutor& loop, const Options& options) {
    Device device(loop);
    Scope printer;
    std::stop_source served;
    const auto print_requests = [&device] { print(device.in_flight()); }; // what is stuck?
    printer.spawn(program::on_signal(loop, SIGUSR1, served.get_token(), print_requests));
    Listener listener(loop, options.bind, std::to_string(options.port));
    std::printf("listening on port %u\n", listener.port());
    const auto serve = [&](IncomingConnection incoming) {
        return echo(loop, device, std::move(incoming));
    };
    co_await program::serve_clients(loop, listener, options.clients, serve);
    served.request_stop();
    co_await printer.join();
}

// --- the client ---

Task<> talk(EpollExecutor& loop, Device& device, const Options& options) {
    Hello hello;
    hello.size = htonl(options.size);
    ConnectOptions connect_options;
    connect_options.private_data = std::as_bytes(std::span(&hello, 1));
    connect_options.retry_count = 6; // 7 means no limit to soft-RoCE
    std::optional<AsyncQp> queue_pair;
    const auto make_queue_pair = [&](const OutgoingConnection& outgoing) -> const QueuePair& {
        device.open(outgoing.context());
        return queue_pair.emplace(device.make_queue_pair()).queue_pair();
    };
    Connection connection = co_await connect(loop, *options.host, std::to_string(options.port),
                                             make_queue_pair, connect_options);
    AsyncQp& qp = *queue_pair;
    const MemoryRegion memory = device.allocate(2 * std::size_t{options.size});
    const Slice message = memory.slice(0, options.size);
    const Slice answer = memory.slice(options.size, options.size);

    for (std::uint32_t i = 0; i < options.count; ++i) {
        std::memset(message.address, static_cast<int>('a' + i % 26), message.length);
        Operation receive = qp.post_recv(answer);
        co_await qp.send(message);
        const Completion received = co_await receive;
        if (received.bytes() != options.size ||
            std::memcmp(answer.address, message.address, options.size) != 0) {
            throw std::runtime_error("the answer is not what was sent");
        }
    }
    co_await connection.disconnect();
}

Task<> run_client(EpollExecutor& loop, const Options& options) {
    Device device(loop);
    const auto start = std::chrono::steady_clock::now();
    Scope connections;
    for (std::uint32_t i = 0; i < options.connections; ++i) {
        connections.spawn(talk(loop, device, options));
    }
    co_await connections.join();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    const double messages = static_cast<double>(options.count) * options.connections;
    std::printf("%.0f messages of %u bytes over %u connections in %.2f s: %.0f a second\n",
                messages, options.size, options.connections, elapsed.count(),
                messages / elapsed.count());
}

// --- the command line ---

void add_options(CLI::App& app, Options& options) {
    app.description("A server that returns every message, to any number of clients on one thread, "
                    "and its client.\nWithout HOST it is the server.");
    app.add_option("HOST", options.host, "Be a client of the server on HOST")
        ->check(program::not_empty, "");
    app.add_option("-p,--port", options.port, "Port of the server")->check(CLI::Range(1u, 65'535u));
    app.add_option("-b,--bind", options.bind, "Server: listen on this address only");
    app.add_option("--clients", options.clients, "Server: end after this many clients; 0: never");
    app.add_option("-s,--size", options.size, "Client: bytes of a message")
        ->check(CLI::Range(1u, max_size));
    app.add_option("-n,--count", options.count, "Client: messages on each connection")
        ->check(CLI::Range(1u, UINT32_MAX));
    app.add_option("-c,--connections", options.connections, "Client: connections at a time")
        ->check(CLI::Range(1u, max_clients));
}

// Why the server refused the connection, if it said so.
std::string reason(const ConnectionRejected& rejected) {
    const std::span<const std::byte> data = rejected.private_data();
    const std::string_view text(reinterpret_cast<const char*>(data.data()), data.size());
    const std::string words(text.substr(0, text.find('\0')));
    return words.empty() ? "" : ": " + terminal::printable(words);
}

void run(const Options& options) {
    EpollExecutor loop;
    try {
        loop.run(options.host ? run_client(loop, options) : run_server(loop, options));
    } catch (const ConnectionRejected& rejected) {
        throw std::runtime_error(rejected.what() + reason(rejected));
    }
}

} // namespace

int main(int argc, char** argv) { return program::main(argc, argv, add_options, run); }
