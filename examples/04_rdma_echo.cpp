// SPDX-License-Identifier: MIT
// rdma_echo: sends back what it is sent. One thread, one completion queue, any number of clients:
// each has a coroutine of its own that reads like a blocking program.
#include <asyncverbs/cm.hpp>
#include <asyncverbs/rdma.hpp>

#include <getopt.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

using namespace asyncverbs;

namespace {

struct Options {
    std::string host; // empty: be the server
    std::string bind;
    std::string port = "7471";
    std::uint32_t size = 64;
    std::uint32_t count = 1000;
    std::uint32_t connections = 1;
    std::uint32_t clients = 0;
};

constexpr std::uint32_t max_size = 1 << 20;
constexpr std::uint32_t max_clients = 1024;
constexpr QueuePairOptions queue_pair_options{.max_send_wr = 1, .max_recv_wr = 2};

// What a client says with its request for a connection.
struct Hello {
    std::array<char, 8> protocol{'e', 'c', 'h', 'o', '1'};
    std::uint32_t size = 0; // of its messages, big-endian
};

// A device with the completion queue that all connections share. It is that of the first
// connection: the way to the peer decides.
class Device {
public:
    explicit Device(EpollExecutor& loop) : loop_(loop) {}

    void open(const Context& context) {
        if (router_ && context.native_handle() != domain_->context().native_handle()) {
            throw std::runtime_error("this program serves the connections of one device only");
        }
        if (router_) return;
        constexpr int entries = queue_pair_options.max_send_wr + 1 + queue_pair_options.max_recv_wr;
        const int depth = static_cast<int>(max_clients) * entries;
        domain_.emplace(context);
        router_.emplace(Router::create(context, depth, loop_));
    }
    AsyncQp make_queue_pair() { return AsyncQp(*router_, *domain_, queue_pair_options); }
    MemoryRegion allocate(std::size_t size) { return MemoryRegion::allocate(*domain_, size); }

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

Task<> echo(Device& device, IncomingConnection incoming) {
    const std::uint32_t size = message_size(incoming);
    if (size == 0) {
        refuse(std::move(incoming), "not a client of this server, or a message too long for it");
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

    std::uint64_t messages = 0;
    std::error_code error;
    for (;; ++messages) {
        const Completion received = co_await receive.wait(error);
        if (error) break;
        // The next message may come as soon as this one is answered: its buffer comes first.
        receive = qp.post_recv(buffers[(messages + 1) % 2]);
        Operation answer = qp.send(buffers[messages % 2].slice(0, received.bytes()));
        co_await answer.wait(error);
        if (error) break;
    }
    // A client that leaves flushes the receive that waits for it.
    const bool left = error == make_wc_error(IBV_WC_WR_FLUSH_ERR);
    std::printf("%s: %s after %llu messages\n", peer.c_str(),
                left ? "left" : error.message().c_str(), static_cast<unsigned long long>(messages));
    co_await qp.drain();
}

// One client's trouble is not that of the others.
Task<> serve(Device& device, IncomingConnection incoming) {
    const std::string peer = incoming.peer_address().text();
    try {
        co_await echo(device, std::move(incoming));
    } catch (const std::exception& error) {
        std::printf("%s: %s\n", peer.c_str(), error.what());
    }
}

Task<> run_server(EpollExecutor& loop, const Options& options) {
    Device device(loop);
    Listener listener(loop, options.bind, options.port);
    std::printf("listening on port %u\n", listener.port());
    Scope clients;
    for (std::uint32_t i = 0; options.clients == 0 || i < options.clients; ++i) {
        IncomingConnection incoming = co_await listener.accept();
        clients.spawn(serve(device, std::move(incoming)));
    }
    co_await clients.join();
}

// --- the client ---

Task<> talk(EpollExecutor& loop, Device& device, const Options& options) {
    OutgoingConnection outgoing = co_await resolve(loop, options.host, options.port);
    device.open(outgoing.context());
    AsyncQp qp = device.make_queue_pair();
    const MemoryRegion memory = device.allocate(2 * std::size_t{options.size});
    const Slice message = memory.slice(0, options.size);
    const Slice answer = memory.slice(options.size, options.size);

    Hello hello;
    hello.size = htonl(options.size);
    ConnectOptions connect_options;
    connect_options.private_data = std::as_bytes(std::span(&hello, 1));
    connect_options.retry_count = 6; // soft-RoCE takes 7 for no limit
    Connection connection = co_await outgoing.connect(qp.queue_pair(), connect_options);

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

constexpr const char* help = R"(Usage: rdma_echo [OPTION...]        start a server
       rdma_echo [OPTION...] HOST   be a client of the server on HOST

The server sends back what it is sent, to any number of clients on one thread. A client sends
messages one after the other, and checks what comes back.

  -p, --port=PORT          port of the server (7471)
  -b, --bind=ADDRESS       server: listen on this address only
      --clients=COUNT      server: end after so many clients (0: never)
  -s, --size=BYTES         client: size of a message, up to 1 MiB (64)
  -n, --count=COUNT        client: messages on each connection (1000)
  -c, --connections=COUNT  client: connections at a time, up to 1024 (1)
  -h, --help               print this text
)";

struct UsageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

std::uint32_t number(const char* name, std::uint32_t low, std::uint32_t high) {
    char* end = nullptr;
    const unsigned long value = std::strtoul(optarg, &end, 10);
    if (optarg[0] < '0' || optarg[0] > '9' || *end != '\0' || value < low || value > high) {
        throw UsageError(std::string(name) + " takes a number from " + std::to_string(low) +
                         " to " + std::to_string(high) + ", not \"" + optarg + "\"");
    }
    return static_cast<std::uint32_t>(value);
}

// Nothing: the help was asked for.
std::optional<Options> parse(int argc, char** argv) {
    constexpr int clients_option = 256;
    constexpr option long_options[] = {{"port", required_argument, nullptr, 'p'},
                                       {"bind", required_argument, nullptr, 'b'},
                                       {"clients", required_argument, nullptr, clients_option},
                                       {"size", required_argument, nullptr, 's'},
                                       {"count", required_argument, nullptr, 'n'},
                                       {"connections", required_argument, nullptr, 'c'},
                                       {"help", no_argument, nullptr, 'h'},
                                       {nullptr, 0, nullptr, 0}};
    Options options;
    opterr = 0;
    for (;;) {
        switch (getopt_long(argc, argv, ":p:b:s:n:c:h", long_options, nullptr)) {
        case -1:
            if (argc - optind > 1) throw UsageError("one host at most");
            if (optind < argc) options.host = argv[optind];
            if (optind < argc && options.host.empty()) throw UsageError("the host is empty");
            return options;
        case 'p':
            options.port = std::to_string(number("--port", 1, 65535));
            break;
        case 'b':
            options.bind = optarg;
            break;
        case clients_option:
            options.clients = number("--clients", 0, UINT32_MAX);
            break;
        case 's':
            options.size = number("--size", 1, max_size);
            break;
        case 'n':
            options.count = number("--count", 1, UINT32_MAX);
            break;
        case 'c':
            options.connections = number("--connections", 1, max_clients);
            break;
        case 'h':
            std::fputs(help, stdout);
            return std::nullopt;
        case ':':
            throw UsageError(std::string(argv[optind - 1]) + " takes a value");
        default:
            throw UsageError(std::string("unknown option ") + argv[optind - 1]);
        }
    }
}

// What a server that refuses has to say.
std::string reason(const ConnectionRejected& rejected) {
    const std::span<const std::byte> data = rejected.private_data();
    const auto* const text = reinterpret_cast<const char*>(data.data());
    const std::string words(text, data.empty() ? 0 : strnlen(text, data.size()));
    return words.empty() ? "" : ": " + words;
}

} // namespace

int main(int argc, char** argv) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0); // a server's lines are news, also in a file
    try {
        const std::optional<Options> options = parse(argc, argv);
        if (!options) return 0;
        EpollExecutor loop;
        loop.run(options->host.empty() ? run_server(loop, *options) : run_client(loop, *options));
        return 0;
    } catch (const UsageError& error) {
        std::fprintf(stderr, "error: %s; see --help\n", error.what());
    } catch (const ConnectionRejected& error) {
        std::fprintf(stderr, "error: %s%s\n", error.what(), reason(error).c_str());
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
    }
    return 1;
}
