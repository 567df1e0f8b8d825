// SPDX-License-Identifier: MIT
// rping: speaks the protocol of rdma-core's rping, which may be at the other end. For each ping,
// the client advertises its text, which the server reads, and then a buffer, to which the server
// writes the text.
#include "program.hpp"
#include "serve.hpp"

#include <asyncverbs/cm.hpp>
#include <asyncverbs/rdma.hpp>

#include <endian.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

using namespace asyncverbs;

namespace {

struct Options {
    bool server = false;
    bool client = false;
    bool persistent = false;
    bool verbose = false;
    bool validate = false;
    std::string address;
    std::uint16_t port = 7174;
    std::uint32_t size = 64;
    std::uint32_t count = 0; // 0: without end
};

constexpr std::uint32_t min_size = 27; // the longest number fits
constexpr std::uint32_t max_size = 65'535;
// An iWARP device writes what this end reads as if the peer wrote it.
constexpr int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE;

// --- both ends ---

// The only message: where the peer may read or write, big-endian. From the server it means
// "continue".
struct Advertisement {
    std::uint64_t address = 0;
    std::uint32_t rkey = 0;
    std::uint32_t size = 0;
};
static_assert(sizeof(Advertisement) == 16);

// A queue pair and its two messages: one to send, and one whose receive is always posted.
struct End {
    End(EpollExecutor& loop, const Context& context)
        : domain(context), router(Router::create(context, 8, loop)),
          qp(router, domain, {.max_send_wr = 2, .max_recv_wr = 2}),
          messages(MemoryRegion::allocate(domain, 2 * sizeof(Advertisement))) {}

    // Call it when the queue pair accepts receives, before the peer may send.
    void start() { posted_receive = qp.post_recv(incoming); }

    // Returns nothing if the peer has disconnected.
    Task<std::optional<RemoteSlice>> receive() {
        std::error_code error;
        const Completion received = co_await posted_receive.wait(error);
        if (error == make_wc_error(IBV_WC_WR_FLUSH_ERR)) co_return std::nullopt;
        if (error) throw std::system_error(error, "receiving from the peer");
        if (received.bytes() != sizeof(Advertisement)) {
            throw std::runtime_error("the peer sent " + std::to_string(received.bytes()) +
                                     " bytes, which is not a message of rping");
        }
        Advertisement message;
        std::memcpy(&message, incoming.address, sizeof message);
        start(); // before the answer: the peer then sends its next message
        co_return RemoteSlice{be64toh(message.address), be32toh(message.size),
                              be32toh(message.rkey)};
    }

    // Throws if the peer has disconnected.
    Task<RemoteSlice> expect(const char* error) {
        const std::optional<RemoteSlice> message = co_await receive();
        if (!message) throw std::runtime_error(error);
        co_return *message;
    }

    Task<> send(RemoteSlice slice) {
        const Advertisement message{htobe64(slice.address), htobe32(slice.rkey),
                                    htobe32(static_cast<std::uint32_t>(slice.length))};
        std::memcpy(outgoing.address, &message, sizeof message);
        co_await qp.send(outgoing);
    }

    ProtectionDomain domain;
    Router router;
    AsyncQp qp;
    MemoryRegion messages;
    Slice outgoing = messages.slice(0, sizeof(Advertisement));
    Slice incoming = messages.slice(sizeof(Advertisement), sizeof(Advertisement));
    Operation posted_receive;
};

// Up to the terminating zero.
void print(const char* what, const Slice& slice) {
    const auto* const text = reinterpret_cast<const char*>(slice.address);
    std::printf("%s: %.*s\n", what, static_cast<int>(slice.length), text);
}

// --- the server ---

void check_length(const RemoteSlice& slice, std::size_t low, std::size_t high) {
    if (slice.length >= low && slice.length <= high) return;
    throw std::runtime_error("the client advertised " + std::to_string(slice.length) +
                             " bytes, not " + std::to_string(low) + " to " + std::to_string(high));
}

Task<> answer_pings(EpollExecutor& loop, IncomingConnection incoming, const Options& options) {
    End end(loop, incoming.context());
    const MemoryRegion memory = MemoryRegion::allocate(end.domain, max_size, access);
    incoming.prepare(end.qp.queue_pair());
    end.start();
    const Connection connection = co_await incoming.accept(end.qp.queue_pair());

    while (const std::optional<RemoteSlice> source = co_await end.receive()) {
        check_length(*source, 1, max_size);
        const Slice ping = memory.slice(0, source->length);
        co_await end.qp.read(ping, *source);
        if (options.verbose) print("server ping data", ping);
        co_await end.send({});

        const RemoteSlice sink = co_await end.expect("the client left in the middle of a ping");
        check_length(sink, ping.length, UINT32_MAX);
        co_await end.qp.write(ping, sink);
        co_await end.send({});
    }
    co_await end.qp.drain();
}

Task<> run_server(EpollExecutor& loop, const Options& options) {
    Listener listener(loop, options.address, std::to_string(options.port));
    if (!options.persistent) {
        IncomingConnection incoming = co_await listener.accept();
        co_await answer_pings(loop, std::move(incoming), options);
        co_return;
    }
    const auto serve = [&](IncomingConnection incoming) {
        return answer_pings(loop, std::move(incoming), options);
    };
    co_await program::serve_clients(loop, listener, 0, serve);
}

// --- the client ---

// "rdma-ping-N: ", letters that start with another one each time, and a terminating zero.
void write_text(const Slice& slice, std::uint32_t ping) {
    constexpr unsigned letters = 'z' - 'A' + 1;
    auto* const bytes = reinterpret_cast<char*>(slice.address);
    auto i = static_cast<std::size_t>(std::snprintf(bytes, slice.length, "rdma-ping-%u: ", ping));
    for (; i + 1 < slice.length; ++i) bytes[i] = static_cast<char>('A' + ping++ % letters);
    bytes[slice.length - 1] = '\0';
}

Task<> run_client(EpollExecutor& loop, const Options& options) {
    std::optional<End> opened;
    const auto open = [&](const OutgoingConnection& outgoing) -> const QueuePair& {
        opened.emplace(loop, outgoing.context());
        outgoing.prepare(opened->qp.queue_pair());
        opened->start();
        return opened->qp.queue_pair();
    };
    Connection connection =
        co_await connect(loop, options.address, std::to_string(options.port), open,
                         {.retry_count = 6}); // 7 means no limit to soft-RoCE
    End& end = *opened;
    const MemoryRegion memory =
        MemoryRegion::allocate(end.domain, 2 * std::size_t{options.size}, access);
    const Slice source = memory.slice(0, options.size);
    const Slice sink = memory.slice(options.size, options.size);
    const RemoteSlice remote_source = memory.remote_slice().slice(0, options.size);
    const RemoteSlice remote_sink = memory.remote_slice().slice(options.size);
    for (std::uint32_t ping = 0; options.count == 0 || ping < options.count; ++ping) {
        write_text(source, ping);
        co_await end.send(remote_source);
        co_await end.expect("the server has left");
        co_await end.send(remote_sink);
        co_await end.expect("the server has left");
        if (options.validate && std::memcmp(source.address, sink.address, options.size) != 0) {
            throw std::runtime_error("ping " + std::to_string(ping) +
                                     ": the server returned another text");
        }
        if (options.verbose) print("ping data", sink);
    }
    co_await connection.disconnect();
}

// --- the command line ---

void add_options(CLI::App& app, Options& options) {
    app.description("Pings by RDMA reads and writes. rdma-core's rping may be at the other end.");
    app.set_help_flag("-h", "Print this help");
    CLI::App* const side = app.add_option_group("Side");
    side->require_option(1);
    side->add_flag("-s", options.server, "Be the server, of one client");
    CLI::Option* const client = side->add_flag("-c", options.client, "Be a client");
    CLI::Option* const address =
        app.add_option("-a", options.address, "Client: the server; server: where to listen");
    client->needs(address);
    app.add_flag("-P", options.persistent, "Server: serve any number of clients");
    app.add_option("-p", options.port, "Port of the server")->check(CLI::Range(1u, 65'535u));
    app.add_flag("-v", options.verbose, "Print the text of each ping");
    app.add_flag("-V", options.validate, "Client: check the text that the server returns");
    app.add_option("-S", options.size, "Client: bytes of a ping")
        ->check(CLI::Range(min_size, max_size));
    app.add_option("-C", options.count, "Client: number of pings; 0: without end")
        ->check(CLI::Range(0u, 2'147'483'647u));
}

void run(const Options& options) {
    EpollExecutor loop;
    loop.run(options.server ? run_server(loop, options) : run_client(loop, options));
}

} // namespace

int main(int argc, char** argv) { return program::main(argc, argv, add_options, run); }
