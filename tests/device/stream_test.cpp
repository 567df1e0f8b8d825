// SPDX-License-Identifier: MIT
// Streams on a device. A send without a posted receive is not retried (rnr_retry is 0), so a
// missing receive breaks the connection.
#include <asyncverbs/rdma/stream.hpp>

#include <asyncverbs/cm/connect.hpp>
#include <asyncverbs/cm/listener.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/coro/when_all.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/executor/with_timeout.hpp>
#include <asyncverbs/rdma/completion.hpp>
#include <asyncverbs/rdma/router.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "device/pair.hpp"
#include "device/programs.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using device::run_bounded;

namespace {

constexpr RtsOptions never_waits_for_receives{.timeout = 16, .retry_cnt = 6, .rnr_retry = 0};

// A stream with its own router.
struct StreamEnd {
    StreamEnd(EpollExecutor& loop, const Context& context, const StreamOptions& options)
        : domain(context),
          router(Router::create(context, static_cast<int>(2 * options.buffers + 16), loop)) {
        AsyncQp qp(router, domain, Stream::queue_pair_options(options));
        qp.queue_pair().init({.gid_index = device::gid_index()});
        address = qp.queue_pair().local_address();
        stream.emplace(std::move(qp), domain, options);
    }

    void connect(const StreamEnd& peer) {
        stream->queue_pair().connect(peer.address, {}, never_waits_for_receives);
    }

    ProtectionDomain domain;
    Router router;
    std::optional<Stream> stream;
    QueuePairAddress address;
};

struct StreamPair {
    StreamPair(EpollExecutor& loop_a, EpollExecutor& loop_b, const StreamOptions& for_a = {},
               const StreamOptions& for_b = {})
        : a(loop_a, context, for_a), b(loop_b, context, for_b) {
        a.connect(b);
        b.connect(a);
    }

    Context context = device::open_device();
    StreamEnd a;
    StreamEnd b;
};

// The sum depends on the order of the bytes, not on their division into calls of add().
struct Checksum {
    std::uint64_t count = 0;
    std::uint64_t sum = 14695981039346656037u;

    void add(std::span<const std::byte> bytes) noexcept {
        count += bytes.size();
        for (const std::byte byte : bytes) {
            sum = (sum ^ std::to_integer<std::uint64_t>(byte)) * 1099511628211u;
        }
    }
    friend bool operator==(const Checksum&, const Checksum&) = default;
};

// `largest` is the size of a write, at most.
Task<Checksum> send(Stream& stream, std::size_t total, unsigned seed,
                    std::size_t largest = 100'000) {
    std::minstd_rand random(seed);
    std::vector<std::byte> source(150'000);
    for (std::byte& byte : source) byte = static_cast<std::byte>(random());
    Checksum checksum;
    while (checksum.count < total) {
        const std::size_t left = total - static_cast<std::size_t>(checksum.count);
        const std::span from = std::span(source).subspan(random() % 50'000);
        const std::span part = from.first(std::min<std::size_t>(1 + random() % largest, left));
        checksum.add(part);
        co_await stream.write_all(part);
    }
    co_await stream.shutdown_write();
    co_return checksum;
}

// Pauses from time to time, so that the sender runs out of credits.
Task<Checksum> receive(Stream& stream, EpollExecutor& loop, unsigned seed) {
    std::minstd_rand random(seed);
    Checksum checksum;
    std::vector<std::byte> buffer(60'000);
    for (;;) {
        const std::span room(buffer.data(), 1 + random() % buffer.size());
        const std::size_t count = co_await stream.read_some(room);
        if (count == 0) break;
        checksum.add(room.first(count));
        if (random() % 64 == 0) co_await loop.sleep_for(1ms);
    }
    co_return checksum;
}

Task<> echo(Stream& stream) {
    std::vector<std::byte> buffer(5000);
    for (;;) {
        const std::size_t count = co_await stream.read_some(buffer);
        if (count == 0) break;
        co_await stream.write_all(std::span(buffer).first(count));
    }
    co_await stream.close();
}

} // namespace

TEST_CASE("device: a stream carries megabytes both ways and always has a receive posted",
          "[stream]") {
    constexpr std::size_t total = 2'000'000;
    const std::uint32_t buffers = GENERATE(1u, 3u, 16u);
    CAPTURE(buffers);
    EpollExecutor loop;
    StreamPair pair(loop, loop, {.buffer_size = 16384, .buffers = buffers},
                    {.buffer_size = 5000, .buffers = 4});
    Stream& a = *pair.a.stream;
    Stream& b = *pair.b.stream;
    const auto [from_a, from_b, at_a, at_b] =
        run_bounded(loop, when_all(send(a, total, 1), send(b, total, 2), receive(a, loop, 3),
                                   receive(b, loop, 4)));
    CHECK(from_a.count == total);
    CHECK(from_a == at_b);
    CHECK(from_b == at_a);
}

TEST_CASE("device: the ends of a stream on two threads", "[stream][threads]") {
    constexpr std::size_t total = 2'000'000;
    EpollExecutor loop_a;
    EpollExecutor loop_b;
    StreamPair pair(loop_a, loop_b, {.buffers = 4}, {.buffers = 4});
    Checksum from_b;
    Checksum at_b;
    std::thread other([&] {
        std::tie(from_b, at_b) = run_bounded(
            loop_b, when_all(send(*pair.b.stream, total, 2), receive(*pair.b.stream, loop_b, 4)));
    });
    Checksum from_a;
    Checksum at_a;
    std::tie(from_a, at_a) = run_bounded(
        loop_a, when_all(send(*pair.a.stream, total, 1), receive(*pair.a.stream, loop_a, 3)));
    other.join();
    CHECK(from_a.count == total);
    CHECK(from_a == at_b);
    CHECK(from_b == at_a);
}

TEST_CASE("device: streams are closed by both ends", "[stream]") {
    constexpr std::size_t total = 100'000;
    EpollExecutor loop;
    StreamPair pair(loop, loop);
    const auto client = [](Stream& stream, EpollExecutor& l) -> Task<> {
        auto [sent, received] = co_await when_all(send(stream, total, 1), receive(stream, l, 2));
        CHECK(sent == received);
        co_await stream.close();
    };
    run_bounded(loop, when_all(client(*pair.a.stream, loop), echo(*pair.b.stream)));
    CHECK_THROWS_AS(pair.a.stream->queue_pair(), std::system_error);
    CHECK_THROWS_AS(pair.b.stream->queue_pair(), std::system_error);
}

TEST_CASE("device: a read with a time limit loses nothing", "[stream]") {
    EpollExecutor loop;
    StreamPair pair(loop, loop);
    const auto play = [](EpollExecutor& l, Stream& a, Stream& b) -> Task<> {
        std::vector<std::byte> bytes(100);
        const auto read = [&](std::stop_token stop) { return b.read_some(bytes, std::move(stop)); };
        bool timed_out = false;
        try {
            (void)co_await with_timeout(l, 20ms, read);
        } catch (const std::system_error& error) {
            timed_out = error.code() == std::errc::timed_out;
        }
        CHECK(timed_out);
        co_await a.write_all(bytes);
        const std::size_t count = co_await b.read_some(bytes);
        CHECK(count == 100);
    };
    run_bounded(loop, play(loop, *pair.a.stream, *pair.b.stream));
}

TEST_CASE("device: after the peer vanishes, reads and writes fail with the cause", "[stream]") {
    EpollExecutor loop;
    StreamPair pair(loop, loop);
    const auto play = [](Stream& a, std::optional<Stream>& b) -> Task<> {
        std::vector<std::byte> bytes(100);
        co_await when_all(a.write_all(bytes), b->read_some(bytes));
        b.reset();
        co_await a.write_all(bytes); // returns before the send has failed
        std::vector<std::error_code> codes;
        try {
            (void)co_await a.read_some(bytes);
        } catch (const OperationError& error) {
            codes.push_back(error.code());
        }
        try {
            co_await a.write_all(bytes);
        } catch (const OperationError& error) {
            codes.push_back(error.code());
        }
        const std::error_code cause = make_wc_error(IBV_WC_RETRY_EXC_ERR);
        CHECK(codes == std::vector{cause, cause});
    };
    run_bounded(loop, play(*pair.a.stream, pair.b.stream));
}

TEST_CASE("Stream on a device: over a connection by address", "[rdma][cm][iwarp]") {
    EpollExecutor loop;
    Listener listener(loop, "", "0");
    const std::string host = device::device_address();
    constexpr std::size_t total = 300'000;
    const std::size_t largest_write = GENERATE(100'000u, 300u);
    const auto make = [&](const Context& context, auto& connection,
                          std::optional<Router>& router) -> Stream {
        const ProtectionDomain domain(context);
        router.emplace(Router::create(context, 64, loop));
        AsyncQp qp(*router, domain, Stream::queue_pair_options({}));
        connection.prepare(qp.queue_pair());
        return Stream(std::move(qp), domain);
    };
    const auto serve = [&]() -> Task<Checksum> {
        IncomingConnection incoming = co_await listener.accept();
        std::optional<Router> router;
        Stream stream = make(incoming.context(), incoming, router);
        Connection connection = co_await incoming.accept(stream.queue_pair());
        const Checksum received = co_await receive(stream, loop, 3);
        co_await stream.shutdown_write();
        static_cast<void>(co_await connection.disconnected());
        co_return received;
    };
    const auto dial = [&]() -> Task<Checksum> {
        OutgoingConnection outgoing = co_await resolve(loop, host, std::to_string(listener.port()));
        std::optional<Router> router;
        Stream stream = make(outgoing.context(), outgoing, router);
        Connection connection = co_await outgoing.connect(stream.queue_pair());
        const Checksum sent = co_await send(stream, total, 1, largest_write);
        std::array<std::byte, 1> rest{};
        CHECK(co_await stream.read_some(rest) == 0);
        co_await connection.disconnect();
        co_return sent;
    };
    const auto both = [&]() -> Task<> {
        const auto [received, sent] = co_await when_all(serve(), dial());
        CHECK(received == sent);
        CHECK(sent.count == total);
    };
    run_bounded(loop, both());
}
