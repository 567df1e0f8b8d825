// SPDX-License-Identifier: MIT
// What Stream costs, between two processes. The mode write writes one way, `size` bytes a write,
// and reads up to as much at a time. The mode pingpong sends `size` bytes there and back.
#include "setup.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/router.hpp>
#include <asyncverbs/rdma/stream.hpp>

namespace {

using namespace asyncverbs;
using benchmark::Host;
using benchmark::Options;

Options one_at_a_time(Options options) {
    options.in_flight = options.queue_pairs = 1;
    return options;
}

struct Setup {
    explicit Setup(const Options& given)
        : options(one_at_a_time(given)), host(options),
          router(Router::create(host.context(), 256, executor)) {}

    Stream make_stream() {
        AsyncQp qp(router, host.domain(), Stream::queue_pair_options());
        benchmark::init(qp.queue_pair());
        return Stream(std::move(qp), host.domain());
    }

    const Options options;
    const Host host;
    EpollExecutor executor;
    Router router;
};

Task<> read_all(Stream& stream, std::span<std::byte> bytes) {
    while (!bytes.empty()) bytes = bytes.subspan(co_await stream.read_some(bytes));
}

Task<> ping(Stream& stream, const Setup& setup) {
    const std::span<std::byte> outgoing = setup.host.outgoing(0).bytes();
    const std::span<std::byte> incoming = setup.host.incoming(0).bytes();
    for (std::uint32_t i = 0; i < setup.options.count; ++i) {
        co_await stream.write_all(outgoing);
        co_await read_all(stream, incoming);
    }
}

Task<> pong(Stream& stream, const Setup& setup) {
    const std::span<std::byte> outgoing = setup.host.outgoing(0).bytes();
    const std::span<std::byte> incoming = setup.host.incoming(0).bytes();
    for (std::uint32_t i = 0; i < setup.options.count; ++i) {
        co_await read_all(stream, incoming);
        co_await stream.write_all(outgoing);
    }
}

Task<> read_to_the_end(Stream& stream, const Setup& setup) {
    const std::span<std::byte> bytes = setup.host.incoming(0).bytes();
    std::size_t count = 1;
    while (count > 0) count = co_await stream.read_some(bytes);
}

Task<> write_each(Stream& stream, const Setup& setup) {
    const std::span<std::byte> bytes = setup.host.outgoing(0).bytes();
    for (std::uint32_t i = 0; i < setup.options.count; ++i) co_await stream.write_all(bytes);
    co_await stream.shutdown_write();
    co_await read_to_the_end(stream, setup); // until the other process has read everything
}

Task<> close(Stream& stream) { co_await stream.close(); }

using End = Task<>(Stream&, const Setup&);

// Runs one end in this process, which measures, and one in another.
void run(const Options& options, End& here, End& there) {
    benchmark::Peer peer;
    Setup setup(options);
    Stream stream = setup.make_stream();
    peer.connect(stream.queue_pair());

    const benchmark::Stopwatch stopwatch;
    setup.executor.run((peer.is_server() ? there : here)(stream, setup));
    if (!peer.is_server()) stopwatch.report(setup.options, setup.router.statistics().wakes);
    setup.executor.run(close(stream)); // both do, so that neither is destroyed too early
}

} // namespace

int main(int argc, char** argv) {
    return benchmark::run(
        argc, argv, [](const Options& options) { run(options, ping, pong); },
        [](const Options& options) { run(options, write_each, read_to_the_end); });
}
