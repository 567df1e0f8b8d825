// SPDX-License-Identifier: MIT
// rping: speaks the protocol of rdma-core's rping, so that either may be at the other end. For each
// ping the client advertises its text, which the server reads, and then a buffer, to which the
// server writes the text back.
#include <asyncverbs/cm.hpp>
#include <asyncverbs/rdma.hpp>

#include <endian.h>
#include <getopt.h>

#include <climits>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

using namespace asyncverbs;

namespace {

struct Options {
    enum class Side { none, client, server } side = Side::none;
    bool persistent = false;
    bool verbose = false;
    bool validate = false;
    std::string address;
    std::string port = "7174";
    std::uint32_t size = 64;
    std::uint32_t count = 0; // endless
};

constexpr std::uint32_t min_size = 27; // the longest number fits
constexpr std::uint32_t max_size = 65'535;

// --- what both ends say ---

// Where the peer may read or write; big-endian. A server that says it means "go on".
struct Advertisement {
    std::uint64_t address = 0;
    std::uint32_t rkey = 0;
    std::uint32_t size = 0;
};
static_assert(sizeof(Advertisement) == 16);

// A queue pair with its messages: one to send, and one that can be received at any time.
class End {
public:
    End(EpollExecutor& loop, const Context& context)
        : domain_(context), router_(Router::create(context, 8, loop)),
          qp_(router_, domain_, {.max_send_wr = 2, .max_recv_wr = 2}),
          messages_(MemoryRegion::allocate(domain_, 2 * sizeof(Advertisement))) {}

    const ProtectionDomain& domain() const { return domain_; }
    AsyncQp& qp() { return qp_; }

    // To be called once the queue pair takes receives, before the peer may send.
    void start() { receive_ = qp_.post_recv(incoming_); }

    // Nothing: the peer has left.
    Task<std::optional<RemoteSlice>> receive() {
        std::error_code error;
        const Completion received = co_await receive_.wait(error);
        if (error == make_wc_error(IBV_WC_WR_FLUSH_ERR)) co_return std::nullopt;
        if (error) throw std::system_error(error, "receiving from the peer");
        if (received.bytes() != sizeof(Advertisement)) {
            throw std::runtime_error("the peer sent " + std::to_string(received.bytes()) +
                                     " bytes, which is no message of rping");
        }
        Advertisement message;
        std::memcpy(&message, incoming_.address, sizeof message);
        start(); // before the peer is answered, whereupon it sends the next one
        co_return RemoteSlice{be64toh(message.address), be32toh(message.size),
                              be32toh(message.rkey)};
    }

    Task<> send(RemoteSlice slice) {
        const Advertisement message{htobe64(slice.address), htobe32(slice.rkey),
                                    htobe32(static_cast<std::uint32_t>(slice.length))};
        std::memcpy(outgoing_.address, &message, sizeof message);
        co_await qp_.send(outgoing_);
    }

private:
    ProtectionDomain domain_;
    Router router_;
    AsyncQp qp_;
    MemoryRegion messages_;
    Slice outgoing_ = messages_.slice(0, sizeof(Advertisement));
    Slice incoming_ = messages_.slice(sizeof(Advertisement), sizeof(Advertisement));
    Operation receive_;
};

std::string_view text(const Slice& slice) {
    const auto* const bytes = reinterpret_cast<const char*>(slice.address);
    return {bytes, strnlen(bytes, slice.length)};
}

void print(const char* what, const Slice& slice) {
    const std::string_view words = text(slice);
    std::printf("%s: %.*s\n", what, static_cast<int>(words.size()), words.data());
}

// --- the server ---

void check_length(const RemoteSlice& slice, std::size_t low, std::size_t high, const char* what) {
    if (slice.length >= low && slice.length <= high) return;
    throw std::runtime_error(std::string("the client's ") + what + " is of " +
                             std::to_string(slice.length) + " bytes, not of " +
                             std::to_string(low) + " to " + std::to_string(high));
}

Task<> answer_pings(EpollExecutor& loop, IncomingConnection incoming, const Options& options) {
    End end(loop, incoming.context());
    const MemoryRegion memory = MemoryRegion::allocate(end.domain(), max_size);
    incoming.prepare(end.qp().queue_pair());
    end.start();
    const Connection connection = co_await incoming.accept(end.qp().queue_pair());

    while (const std::optional<RemoteSlice> source = co_await end.receive()) {
        check_length(*source, 1, max_size, "text");
        const Slice ping = memory.slice(0, source->length);
        co_await end.qp().read(ping, *source);
        if (options.verbose) print("server ping data", ping);
        co_await end.send({});

        const std::optional<RemoteSlice> sink = co_await end.receive();
        if (!sink) throw std::runtime_error("the client left in the middle of a ping");
        check_length(*sink, ping.length, SIZE_MAX, "buffer");
        co_await end.qp().write(ping, *sink);
        co_await end.send({});
    }
    co_await end.qp().drain();
}

// One client's trouble is not that of the others.
Task<> serve(EpollExecutor& loop, IncomingConnection incoming, const Options& options) {
    const std::string peer = incoming.peer_address().text();
    try {
        co_await answer_pings(loop, std::move(incoming), options);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s: %s\n", peer.c_str(), error.what());
    }
}

Task<> run_server(EpollExecutor& loop, const Options& options) {
    Listener listener(loop, options.address, options.port);
    if (!options.persistent) {
        IncomingConnection incoming = co_await listener.accept();
        co_await answer_pings(loop, std::move(incoming), options);
        co_return;
    }
    Scope clients;
    for (;;) {
        IncomingConnection incoming = co_await listener.accept();
        clients.spawn(serve(loop, std::move(incoming), options));
    }
}

// --- the client ---

// "rdma-ping-N: " and letters from another one on each time, with a zero at the end.
void write_text(const Slice& slice, std::uint32_t ping) {
    constexpr unsigned letters = 'z' - 'A' + 1;
    auto* const bytes = reinterpret_cast<char*>(slice.address);
    const int head = std::snprintf(bytes, slice.length, "rdma-ping-%u: ", ping);
    for (auto i = static_cast<std::size_t>(head); i + 1 < slice.length; ++i) {
        bytes[i] = static_cast<char>('A' + (ping + i - static_cast<unsigned>(head)) % letters);
    }
    bytes[slice.length - 1] = '\0';
}

Task<RemoteSlice> go_on(End& end) {
    const std::optional<RemoteSlice> message = co_await end.receive();
    if (!message) throw std::runtime_error("the server has left");
    co_return *message;
}

Task<> run_client(EpollExecutor& loop, const Options& options) {
    OutgoingConnection outgoing = co_await resolve(loop, options.address, options.port);
    End end(loop, outgoing.context());
    const MemoryRegion memory = MemoryRegion::allocate(
        end.domain(), 2 * std::size_t{options.size},
        IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE);
    const Slice source = memory.slice(0, options.size);
    const Slice sink = memory.slice(options.size, options.size);
    const auto advertise = [&](const Slice& slice) {
        return end.send(
            {reinterpret_cast<std::uintptr_t>(slice.address), slice.length, memory.rkey()});
    };
    outgoing.prepare(end.qp().queue_pair());
    end.start();
    ConnectOptions connect_options;
    connect_options.retry_count = 6; // soft-RoCE takes 7 for no limit
    Connection connection = co_await outgoing.connect(end.qp().queue_pair(), connect_options);

    for (std::uint32_t ping = 0; options.count == 0 || ping < options.count; ++ping) {
        write_text(source, ping);
        co_await advertise(source);
        co_await go_on(end);
        co_await advertise(sink);
        co_await go_on(end);
        if (options.validate && std::memcmp(source.address, sink.address, options.size) != 0) {
            throw std::runtime_error("ping " + std::to_string(ping) +
                                     ": what came back is not what was sent");
        }
        if (options.verbose) print("ping data", sink);
    }
    co_await connection.disconnect();
}

// --- the command line ---

constexpr const char* help = R"(Usage: rping -s [-v] [-P] [-a ADDRESS] [-p PORT]
       rping -c [-vV] [-S SIZE] [-C COUNT] -a ADDRESS [-p PORT]

Pings by RDMA reads and writes. At the other end may be another one or rdma-core's rping.

  -s           be a server, of one client
  -P           of any number of clients
  -c           be a client
  -a ADDRESS   client: of the server; server: where to listen (everywhere)
  -p PORT      port of the server (7174)
  -v           print what the pings carry
  -V           client: check what comes back
  -S SIZE      client: bytes of a ping, from 27 to 65535 (64)
  -C COUNT     client: pings (0: without end)
  -h           print this text
)";

struct UsageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

std::uint32_t number(char name, std::uint32_t low, std::uint32_t high) {
    char* end = nullptr;
    const unsigned long value = std::strtoul(optarg, &end, 10);
    if (optarg[0] < '0' || optarg[0] > '9' || *end != '\0' || value < low || value > high) {
        throw UsageError(std::string("-") + name + " takes a number from " + std::to_string(low) +
                         " to " + std::to_string(high) + ", not \"" + optarg + "\"");
    }
    return static_cast<std::uint32_t>(value);
}

void check(const Options& options) {
    if (options.side == Options::Side::none) throw UsageError("one of -c and -s is needed");
    if (options.side == Options::Side::client && options.address.empty()) {
        throw UsageError("a client needs the server's address, -a");
    }
}

// Nothing: the help was asked for.
std::optional<Options> parse(int argc, char** argv) {
    Options options;
    opterr = 0;
    for (int name; (name = getopt(argc, argv, ":scPvVha:p:S:C:")) != -1;) {
        switch (name) {
        case 's':
        case 'c':
            if (options.side != Options::Side::none) throw UsageError("one of -c and -s only");
            options.side = name == 's' ? Options::Side::server : Options::Side::client;
            break;
        case 'P':
            options.persistent = true;
            break;
        case 'v':
            options.verbose = true;
            break;
        case 'V':
            options.validate = true;
            break;
        case 'a':
            options.address = optarg;
            break;
        case 'p':
            options.port = std::to_string(number('p', 1, 65'535));
            break;
        case 'S':
            options.size = number('S', min_size, max_size);
            break;
        case 'C':
            options.count = number('C', 0, INT_MAX);
            break;
        case 'h':
            std::fputs(help, stdout);
            return std::nullopt;
        case ':':
            throw UsageError(std::string("-") + static_cast<char>(optopt) + " takes a value");
        default:
            throw UsageError(std::string("unknown option ") + argv[optind - 1]);
        }
    }
    if (optind < argc) throw UsageError(std::string("unexpected argument ") + argv[optind]);
    check(options);
    return options;
}

} // namespace

int main(int argc, char** argv) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0); // a server's lines are news, also in a file
    try {
        const std::optional<Options> options = parse(argc, argv);
        if (!options) return 0;
        const bool serves = options->side == Options::Side::server;
        EpollExecutor loop;
        loop.run(serves ? run_server(loop, *options) : run_client(loop, *options));
        return 0;
    } catch (const UsageError& error) {
        std::fprintf(stderr, "error: %s; see -h\n", error.what());
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
    }
    return 1;
}
