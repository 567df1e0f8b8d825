// SPDX-License-Identifier: MIT
// Streams on simulated verbs. With rnr_retry 0, a send that finds no receive breaks the connection.
#include <asyncverbs/rdma/stream.hpp>

#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/rdma/router.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>
#include <asyncverbs/verbs/memory.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"

using namespace asyncverbs;
using support::contains;
using support::Coroutine;

static_assert(std::is_nothrow_move_constructible_v<Stream> &&
              !std::is_copy_constructible_v<Stream>);

namespace {

// The outcome of a call.
struct Result {
    std::string text;
    bool ended = false;
    bool done = false;
    std::optional<std::system_error> error;

    bool succeeded() const { return done && !error; }
    std::error_code code() const { return error ? error->code() : std::error_code(); }
};

std::span<const std::byte> bytes_of(std::string_view text) {
    return std::as_bytes(std::span(text));
}

// Until the end, or `most` bytes, or it fails.
Coroutine read(Stream& stream, std::size_t chunk, Result& result, std::size_t most = ~std::size_t{},
               std::stop_token stop = {}) {
    std::vector<std::byte> buffer(chunk);
    try {
        for (std::size_t count = 1; count > 0 && result.text.size() < most;) {
            count = co_await stream.read_some(buffer, stop);
            result.text.append(reinterpret_cast<const char*>(buffer.data()), count);
            result.ended = count == 0;
        }
    } catch (const std::system_error& error) {
        result.error = error;
    }
    result.done = true;
}

Coroutine write(Stream& stream, std::string text, std::size_t chunk, Result& result,
                std::stop_token stop = {}, bool and_end = false) {
    try {
        while (result.text.size() < text.size()) {
            const std::string part = text.substr(result.text.size(), chunk);
            co_await stream.write_all(bytes_of(part), stop);
            result.text += part;
        }
        if (and_end) co_await stream.shutdown_write();
    } catch (const std::system_error& error) {
        result.error = error;
    }
    result.done = true;
}

Coroutine write_and_end(Stream& stream, std::string text, std::size_t chunk, Result& result) {
    return write(stream, std::move(text), chunk, result, {}, true);
}

template <class Call>
Coroutine await(Call call, Result& result) {
    try {
        co_await std::move(call);
    } catch (const std::system_error& error) {
        result.error = error;
    }
    result.done = true;
}

// These start the coroutine of the same name and hold its outcome.
struct Reader : Result {
    template <class... Options>
    Reader(Stream& stream, std::size_t chunk, Options... options)
        : coroutine(read(stream, chunk, *this, options...)) {}
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;
    Coroutine coroutine;
};

struct Writer : Result {
    Writer(Stream& stream, std::string all, std::size_t chunk, std::stop_token stop = {},
           bool and_end = false)
        : coroutine(write(stream, std::move(all), chunk, *this, std::move(stop), and_end)) {}
    Writer(const Writer&) = delete;
    Writer& operator=(const Writer&) = delete;
    Coroutine coroutine;
};

struct EndingWriter : Writer {
    EndingWriter(Stream& stream, std::string all, std::size_t chunk)
        : Writer(stream, std::move(all), chunk, {}, true) {}
};

struct AwaitingStream : Result {
    template <class Call>
    explicit AwaitingStream(Call call) : coroutine(await(std::move(call), *this)) {}
    AwaitingStream(const AwaitingStream&) = delete;
    AwaitingStream& operator=(const AwaitingStream&) = delete;
    Coroutine coroutine;
};

std::string text_of(std::size_t size) {
    std::string text(size, '\0');
    for (std::size_t i = 0; i < size; ++i) text[i] = static_cast<char>('a' + i * 7 % 26 + i % 3);
    return text;
}

// A router, and queue pairs that are not connected yet.
struct Connection {
    explicit Connection(const StreamOptions& for_a = {}, const StreamOptions& for_b = {})
        : options_a(for_a), options_b(for_b),
          router(std::in_place, AsyncCq(CompletionQueue(context, 1024), notifier)) {}

    AsyncQp make_qp(const StreamOptions& options) {
        AsyncQp qp(*router, domain, Stream::queue_pair_options(options));
        qp.queue_pair().init();
        return qp;
    }

    static void connect(QueuePair& one, QueuePair& other) {
        one.connect(other.local_address(), {}, {.rnr_retry = 0});
        other.connect(one.local_address(), {}, {.rnr_retry = 0});
    }

    bool iterate() {
        notifier.notify();
        return notifier.run();
    }
    void run() {
        for (int i = 0; i < 16; ++i) iterate();
    }
    // The bound is exceeded only by a hang.
    template <class Done>
    void run_until(Done done) {
        for (int i = 0; i < 100'000 && !done(); ++i) iterate();
        REQUIRE(done());
    }

    StreamOptions options_a;
    StreamOptions options_b;
    simulated::SimulatedVerbs sim;
    ManualNotifier notifier;
    Context context = Context::open();
    ProtectionDomain domain{context};
    std::optional<Router> router;
};

struct StreamFixture : Connection {
    explicit StreamFixture(const StreamOptions& options = {}) : StreamFixture(options, options) {}
    StreamFixture(const StreamOptions& for_a, const StreamOptions& for_b)
        : Connection(for_a, for_b) {
        a.emplace(make_qp(options_a), domain, options_a);
        b.emplace(make_qp(options_b), domain, options_b);
        connect(a->queue_pair(), b->queue_pair());
    }

    // Exchanges the hello messages.
    void greet() {
        Result results[2];
        const Coroutine from_a = write(*a, "a", 1, results[0]);
        const Coroutine from_b = write(*b, "b", 1, results[1]);
        Result at_a;
        Result at_b;
        const Coroutine to_a = read(*a, 1, at_a, 1);
        const Coroutine to_b = read(*b, 1, at_b, 1);
        run();
        REQUIRE(at_a.text == "b");
        REQUIRE(at_b.text == "a");
    }

    // The number of messages since the last call.
    std::uint64_t new_messages() {
        return sim.calls("ibv_post_send") - std::exchange(messages, sim.calls("ibv_post_send"));
    }

    std::optional<Stream> a;
    std::optional<Stream> b;
    std::uint64_t messages = 0;
};

// A stream whose peer sends any messages.
struct RawPeerFixture : Connection {
    explicit RawPeerFixture(const StreamOptions& options = {.buffer_size = 16, .buffers = 2})
        : Connection(options, options), a(std::in_place, make_qp(options), domain, options),
          peer(*router, domain, {.max_send_wr = 32, .max_recv_wr = 32}) {
        peer.queue_pair().init();
        for (std::size_t i = 0; i < 32; ++i) {
            receives.push_back(peer.post_recv(region.slice(64 * i, 64)));
        }
        connect(a->queue_pair(), peer.queue_pair());
    }

    void send(std::vector<unsigned char> message) {
        REQUIRE(message.size() <= 64);
        const Slice slice = region.slice(2048 + 64 * sends.size(), message.size());
        std::ranges::copy(std::as_bytes(std::span(message)), slice.address);
        sends.push_back(peer.send(slice));
    }
    void greet(unsigned char buffers = 2) {
        send({1, 0, 0, 0, 'a', 'v', 's', '1', 0, 0, 0, buffers, 0, 0, 0, 16});
    }

    std::vector<std::byte> memory = std::vector<std::byte>(4096);
    MemoryRegion region{domain, memory};
    std::optional<Stream> a;
    AsyncQp peer;
    std::vector<Operation> receives;
    std::vector<Operation> sends;
};

} // namespace

// --- data ---

TEST_CASE("Stream: bytes arrive in order, and then the end", "[stream]") {
    StreamFixture f;
    Reader received(*f.b, 100);
    EndingWriter sent(*f.a, "hello, peer", 5);
    f.run();
    CHECK(sent.succeeded());
    CHECK(received.text == "hello, peer");
    CHECK(received.ended);
}

TEST_CASE("Stream: every split of a few bytes into writes, messages and reads", "[stream]") {
    constexpr std::size_t size = 6;
    const std::string text = text_of(size);
    const std::uint32_t buffers = GENERATE(1u, 2u, 3u);
    const std::size_t buffer_size = GENERATE(1u, 2u, 4u, 100u);
    const std::size_t chunk = GENERATE(1u, 2u, 5u, 100u);
    for (unsigned cuts = 0; cuts < 1u << (size - 1); ++cuts) {
        StreamFixture f({.buffer_size = buffer_size, .buffers = buffers});
        const auto write_parts = [&](Stream& stream) -> Coroutine {
            std::size_t from = 0;
            for (std::size_t to = 1; to <= size; ++to) {
                if (to < size && (cuts >> (to - 1) & 1) == 0) continue;
                co_await stream.write_all(bytes_of(text).subspan(from, to - from));
                from = to;
            }
            co_await stream.shutdown_write();
        };
        const Coroutine writer = write_parts(*f.a);
        Reader received(*f.b, chunk);
        f.run_until([&] { return received.done; });
        INFO(buffers << " buffers of " << buffer_size << ", read by " << chunk << ", cuts "
                     << cuts);
        REQUIRE(received.text == text);
        REQUIRE(received.ended);
        REQUIRE(writer.done());
        writer.get();
    }
}

TEST_CASE("Stream: random sizes both ways on a slow device", "[stream]") {
    const unsigned seed = GENERATE(range(0u, 60u));
    CAPTURE(seed);
    std::minstd_rand random(seed);
    const auto up_to = [&](unsigned most) { return 1 + static_cast<unsigned>(random()) % most; };
    const auto write_size = [&] { return up_to(seed % 2 == 0 ? 200 : 6); };
    StreamFixture f({.buffer_size = up_to(40), .buffers = up_to(5)},
                    {.buffer_size = up_to(40), .buffers = up_to(5)});
    const std::string to_b = text_of(up_to(3000));
    const std::string to_a = text_of(up_to(3000));
    Result results[4];
    f.sim.hold_delivery();
    const Coroutine all[] = {write_and_end(*f.a, to_b, write_size(), results[0]),
                             write_and_end(*f.b, to_a, write_size(), results[1]),
                             read(*f.b, up_to(100), results[2]),
                             read(*f.a, up_to(100), results[3])};
    f.run_until([&] {
        f.sim.deliver(static_cast<int>(up_to(4)));
        return std::all_of(std::begin(results), std::end(results),
                           [](const Result& result) { return result.done; });
    });
    for (const Result& result : results) CHECK(!result.error);
    CHECK(results[2].text == to_b);
    CHECK(results[3].text == to_a);
    CHECK(results[2].ended);
    CHECK(results[3].ended);
}

TEST_CASE("Stream: several spans in few messages", "[stream]") {
    StreamFixture f({.buffer_size = 8, .buffers = 4});
    const auto gather = [&](Stream& stream) -> Coroutine {
        const std::array<std::span<const std::byte>, 5> from{
            bytes_of("ab"), bytes_of(""), bytes_of("cdefghij"), bytes_of("klmnop"), bytes_of("")};
        co_await stream.write_all(from);
    };
    std::array<std::byte, 3> head{};
    std::array<std::byte, 100> rest{};
    std::size_t count = 0;
    const auto scatter = [&](Stream& stream) -> Coroutine {
        const std::array<std::span<std::byte>, 3> to{std::span<std::byte>(), head, rest};
        count = co_await stream.read_some(to);
    };
    f.greet();
    const std::uint64_t before = f.sim.calls("ibv_post_send");
    const Coroutine writer = gather(*f.a);
    CHECK(f.sim.calls("ibv_post_send") - before == 2);
    f.run();
    CHECK(writer.done());
    const Coroutine reader = scatter(*f.b);
    CHECK(count == 16);
    CHECK(std::memcmp(head.data(), "abc", 3) == 0);
    CHECK(std::memcmp(rest.data(), "defghijklmnop", 13) == 0);
}

TEST_CASE("Stream: a reader is woken once for all messages that arrive together", "[stream]") {
    StreamFixture f({.buffer_size = 4, .buffers = 8});
    f.greet();
    std::vector<std::size_t> counts;
    const auto read_counts = [&](Stream& stream) -> Coroutine {
        std::array<std::byte, 100> buffer{};
        for (;;) counts.push_back(co_await stream.read_some(buffer));
    };
    const Coroutine reader = read_counts(*f.b);
    Writer sent(*f.a, text_of(20), 20);
    f.run();
    CHECK(counts == std::vector<std::size_t>{20});
}

TEST_CASE("Stream: empty buffers", "[stream]") {
    StreamFixture f;
    Reader read_nothing(*f.a, 0);
    CHECK(read_nothing.done);
    AwaitingStream written(f.a->write_all(std::span<const std::byte>()));
    CHECK(written.succeeded());
}

// --- gathering ---

TEST_CASE("Stream: small writes are gathered while a message is in flight", "[stream]") {
    StreamFixture f;
    f.greet();
    f.sim.hold_delivery();
    f.new_messages();
    Writer first(*f.a, "a", 1);
    CHECK(f.new_messages() == 1); // it does not wait for more
    Writer many(*f.a, text_of(100), 1);
    const std::array<std::span<const std::byte>, 2> spans{bytes_of("xy"), bytes_of("z")};
    AwaitingStream several(f.a->write_all(spans));
    f.run();
    CHECK(many.succeeded());
    CHECK(several.succeeded());
    CHECK(f.new_messages() == 0);

    f.sim.release_delivery(); // and no further call
    f.run();
    CHECK(f.new_messages() == 1);
    Reader received(*f.b, 200, 1U);
    CHECK(received.text == "a" + text_of(100) + "xyz");

    Writer later(*f.a, "b", 1); // again there is none in flight
    CHECK(f.new_messages() == 1);
}

TEST_CASE("Stream: a full message is sent at once", "[stream]") {
    StreamFixture f({.buffer_size = 8, .buffers = 8});
    f.greet();
    f.sim.hold_delivery();
    f.new_messages();
    Writer first(*f.a, "a", 1);
    CHECK(f.new_messages() == 1);
    Writer almost(*f.a, "bcdefgh", 1);
    CHECK(f.new_messages() == 0);
    Writer filled(*f.a, "i", 1);
    CHECK(f.new_messages() == 1);
    Writer more(*f.a, text_of(8 * 3 + 1), 8 * 3 + 1);
    CHECK(f.new_messages() == 3);
    f.sim.release_delivery();
    f.run();
    CHECK(f.new_messages() == 1);
    Reader received(*f.b, 100, 1U);
    CHECK(received.text == "abcdefghi" + text_of(8 * 3 + 1));
}

TEST_CASE("Stream: the rest of a large write is sent when the messages before it have arrived",
          "[stream]") {
    StreamFixture f({.buffer_size = 8, .buffers = 8});
    f.greet();
    f.sim.hold_delivery();
    f.new_messages();
    Writer sent(*f.a, text_of(8 * 2 + 3), 8 * 2 + 3);
    CHECK(f.new_messages() == 2);
    f.sim.deliver(1);
    f.run();
    CHECK(f.new_messages() == 0);
    f.sim.deliver(1);
    f.run();
    CHECK(f.new_messages() == 1);
}

TEST_CASE("Stream: bytes that were gathered without a credit are sent with the next", "[stream]") {
    StreamFixture f({.buffer_size = 4, .buffers = 2});
    f.greet();
    f.new_messages();
    Writer sent(*f.a, text_of(11), 11);
    f.run();
    CHECK(sent.succeeded());
    CHECK(f.new_messages() == 2);
    Result received;
    const Coroutine four = read(*f.b, 4, received, 4);
    f.run();
    CHECK(f.new_messages() == 2); // the credits, and the rest of the data
    const Coroutine rest = read(*f.b, 4, received, 11);
    f.run();
    CHECK(received.text == text_of(11));
}

TEST_CASE("Stream: a coroutine that only writes waits when all buffers are full", "[stream][I9]") {
    StreamFixture f({.buffer_size = 8, .buffers = 3});
    f.greet();
    const bool held = GENERATE(false, true); // it waits for a free send buffer, or for credits
    if (held) f.sim.hold_delivery();
    Writer endless(*f.a, text_of(1000), 1);
    CHECK(!endless.done);
    CHECK(endless.text.size() < 8 * 4);
    f.run();
    CHECK(!endless.done);
    CHECK(endless.text.size() <= 8 * 4);
}

TEST_CASE("Stream: the end is sent behind gathered bytes, without waiting for others", "[stream]") {
    StreamFixture f;
    f.greet();
    f.sim.hold_delivery();
    const bool closes = GENERATE(false, true);
    f.new_messages();
    Writer sent(*f.a, "last words", 1);
    CHECK(f.new_messages() == 1);
    Result ended;
    const Coroutine end = closes ? await(f.a->close(), ended) : await(f.a->shutdown_write(), ended);
    CHECK(f.new_messages() == 2); // the data and the end
    CHECK(ended.done != closes);
    f.sim.release_delivery();
    f.run();
    CHECK(ended.succeeded());
    Reader received(*f.b, 100);
    CHECK(received.text == "last words");
    CHECK(received.ended);
}

TEST_CASE("Stream: the end waits for the credit that gathered bytes need", "[stream]") {
    StreamFixture f({.buffer_size = 4, .buffers = 2});
    f.greet();
    const bool closes = GENERATE(false, true);
    Writer sent(*f.a, text_of(8), 1);
    f.run();
    CHECK(sent.succeeded());
    Result ended;
    const Coroutine end = closes ? await(f.a->close(), ended) : await(f.a->shutdown_write(), ended);
    f.run();
    CHECK(!ended.done);
    SECTION("and the peer reads") {
        Reader received(*f.b, 3);
        f.run();
        CHECK(ended.succeeded());
        CHECK(received.text == text_of(8));
        CHECK(received.ended);
    }
    SECTION("and the peer closes") {
        AwaitingStream other(f.b->close());
        f.run();
        CHECK(ended.done);
        CHECK(ended.code() ==
              (closes ? std::error_code() : make_error_code(std::errc::broken_pipe)));
    }
}

TEST_CASE("Stream: bytes that were gathered and cannot be sent fail it", "[stream]") {
    StreamFixture f;
    f.greet();
    f.sim.hold_delivery();
    Writer first(*f.a, "a", 1);
    Writer gathered(*f.a, "bcd", 1);
    CHECK(gathered.succeeded());
    f.new_messages();
    SECTION("because the message before them failed") {
        f.sim.time_out();
        f.run();
        CHECK(f.new_messages() == 0);
    }
    SECTION("because the device does") {
        f.sim.deliver();
        f.run();
        CHECK(f.new_messages() == 1);
        f.sim.time_out();
        f.run();
    }
    const std::error_code cause = make_wc_error(IBV_WC_RETRY_EXC_ERR);
    Writer later(*f.a, "e", 1);
    CHECK(later.code() == cause);
    AwaitingStream ended(f.a->shutdown_write());
    CHECK(ended.code() == cause);
    AwaitingStream closed(f.a->close());
    CHECK(closed.code() == cause);
    Reader received(*f.a, 1);
    CHECK(received.code() == cause);
}

TEST_CASE("Stream: bytes of a coroutine that was destroyed are sent", "[stream]") {
    StreamFixture f({.buffer_size = 4, .buffers = 2});
    f.greet();
    f.sim.hold_delivery();
    Result result;
    std::optional<Coroutine> writer(write(*f.a, text_of(100), 3, result));
    f.run();
    CHECK(!result.done);
    writer->destroy();
    f.sim.release_delivery();
    f.run();
    AwaitingStream ended(f.a->shutdown_write());
    Reader received(*f.b, 10);
    f.run();
    CHECK(received.ended);
    CHECK(received.text.size() >= result.text.size());
    CHECK(received.text == text_of(received.text.size()));
}

// --- ends ---

TEST_CASE("Stream: each direction ends separately", "[stream]") {
    StreamFixture f;
    AwaitingStream ended(f.a->shutdown_write());
    Reader at_b(*f.b, 10);
    f.run();
    CHECK(ended.done);
    CHECK(at_b.ended);

    EndingWriter answer(*f.b, "still here", 100);
    Reader at_a(*f.a, 3);
    f.run();
    CHECK(!answer.error);
    CHECK(at_a.text == "still here");
    CHECK(at_a.ended);

    Writer late(*f.a, "x", 1);
    AwaitingStream again(f.a->shutdown_write());
    CHECK(late.code() == std::errc::broken_pipe);
    CHECK(again.succeeded());
}

TEST_CASE("Stream: the end may be the first message", "[stream]") {
    StreamFixture f({.buffers = 1});
    Result ended[2];
    Result read_by[2];
    const Coroutine all[] = {await(f.a->shutdown_write(), ended[0]),
                             await(f.b->shutdown_write(), ended[1])};
    f.run();
    const Coroutine readers[] = {read(*f.a, 1, read_by[0]), read(*f.b, 1, read_by[1])};
    for (const Result& result : ended) CHECK(result.succeeded());
    for (const Result& result : read_by) CHECK(result.ended);
}

TEST_CASE("Stream: the end is read although the connection broke afterwards", "[stream]") {
    StreamFixture f;
    EndingWriter sent(*f.a, "all", 3);
    Reader nothing(*f.b, 0);
    f.run();
    CHECK(sent.done);
    f.a.reset();
    f.sim.break_qp(f.b->queue_pair().native_handle());
    f.run();
    Reader received(*f.b, 2);
    CHECK(received.text == "all");
    CHECK(received.ended);
}

TEST_CASE("Stream: close() waits until all has arrived", "[stream]") {
    StreamFixture f;
    f.greet();
    f.sim.hold_delivery();
    Result closed;
    Writer sent(*f.a, "last words", 100);
    const Coroutine close = await(f.a->close(), closed);
    f.run();
    CHECK(sent.done);
    CHECK(!closed.done);
    f.sim.release_delivery();
    f.run();
    CHECK(closed.succeeded());
    CHECK_THROWS_WITH(f.a->queue_pair(), contains("closed"));

    Reader received(*f.b, 100);
    Writer answer(*f.b, "what?", 100);
    AwaitingStream closed_too(f.b->close());
    f.run();
    CHECK(received.text == "last words");
    CHECK(received.ended);
    CHECK(answer.code() == std::errc::broken_pipe);
    CHECK(closed_too.succeeded());

    AwaitingStream again(f.a->close());
    CHECK(again.succeeded());
}

TEST_CASE("Stream: close() ends a blocked write of the peer and a read of its own end",
          "[stream]") {
    StreamFixture f({.buffer_size = 4, .buffers = 2});
    Result received;
    Result closed;
    Writer stuck(*f.b, text_of(100), 100);
    const Coroutine reader = read(*f.a, 4, received, 4);
    f.run();
    CHECK(!stuck.done);
    const Coroutine waiting = read(*f.b, 4, received);
    const Coroutine close = await(f.a->close(), closed);
    f.run();
    CHECK(closed.done);
    CHECK(stuck.code() == std::errc::broken_pipe);
    CHECK(received.ended);
}

TEST_CASE("Stream: both ends close at the same time", "[stream]") {
    const bool ended = GENERATE(false, true);
    StreamFixture f;
    f.greet();
    Result results[4];
    std::vector<Coroutine> all;
    if (ended) {
        all.push_back(await(f.a->shutdown_write(), results[2]));
        all.push_back(await(f.b->shutdown_write(), results[3]));
        f.run();
    }
    f.sim.hold_delivery();
    all.push_back(await(f.a->close(), results[0]));
    all.push_back(await(f.b->close(), results[1]));
    f.sim.release_delivery();
    f.run();
    for (const Result* result : {&results[0], &results[1]}) CHECK(result->succeeded());
}

TEST_CASE("Stream: close() sends nothing after both ends have ended", "[stream]") {
    StreamFixture f;
    f.greet();
    Result results[3];
    const Coroutine ends[] = {await(f.a->shutdown_write(), results[0]),
                              await(f.b->shutdown_write(), results[1])};
    f.run();
    f.b.reset(); // it cannot answer
    const Coroutine close = await(f.a->close(), results[2]);
    f.run();
    CHECK(results[2].succeeded());
}

TEST_CASE("Stream: close() fails if the peer did not receive everything", "[stream]") {
    StreamFixture f;
    f.greet();
    f.sim.hold_delivery();
    Result closed;
    const Coroutine close = await(f.a->close(), closed);
    f.sim.time_out();
    f.run();
    CHECK(closed.code() == make_wc_error(IBV_WC_RETRY_EXC_ERR));
}

TEST_CASE("Stream: data that had arrived can be read after close()", "[stream]") {
    StreamFixture f;
    f.greet();
    Result closed;
    Writer sent(*f.b, "unread", 10);
    f.run();
    const Coroutine close = await(f.a->close(), closed);
    f.run();
    REQUIRE(closed.done);
    Reader received(*f.a, 10);
    CHECK(received.text == "unread");
    CHECK(received.code() == std::errc::operation_canceled);
}

// --- credits ---

TEST_CASE("Stream: a writer waits for a slow reader", "[stream]") {
    const std::uint32_t buffers = GENERATE(1u, 2u, 3u, 4u, 7u);
    CAPTURE(buffers);
    StreamFixture f({.buffer_size = 10, .buffers = buffers});
    const std::string text = text_of(1000);
    Result sent;
    Result received;
    Reader nothing(*f.b, 0);
    const Coroutine writer = write(*f.a, text, 10, sent);
    f.run();
    CHECK(sent.text.size() == 10 * (buffers + 1)); // the last buffer waits for a credit
    CHECK(!sent.done);
    while (received.text.size() < text.size()) {
        received.done = false;
        const Coroutine reader = read(*f.b, 7, received, received.text.size() + 1);
        f.run();
        REQUIRE(received.done);
        CHECK(sent.text.size() <= received.text.size() + 10 * (buffers + 2));
    }
    CHECK(sent.done);
    CHECK(received.text == text);
}

TEST_CASE("Stream: two ends that are out of credits do not deadlock", "[stream]") {
    const std::uint32_t buffers = GENERATE(1u, 2u, 3u, 4u, 5u);
    CAPTURE(buffers);
    StreamFixture f({.buffer_size = 4, .buffers = buffers});
    const std::string text = text_of(500);
    Result results[4];
    const Coroutine writers[] = {write_and_end(*f.a, text, 500, results[0]),
                                 write_and_end(*f.b, text, 500, results[1])};
    f.run();
    CHECK(!results[0].done);
    CHECK(!results[1].done);
    const Coroutine readers[] = {read(*f.a, 4, results[2]), read(*f.b, 4, results[3])};
    f.run_until([&] { return results[2].done && results[3].done; });
    CHECK(results[2].text == text);
    CHECK(results[3].text == text);
}

TEST_CASE("Stream: credits are sent alone when half are owed, else with data", "[stream]") {
    StreamFixture f({.buffer_size = 1, .buffers = 8});
    f.greet();
    Result received;
    const std::uint64_t before = f.sim.calls("ibv_post_send");
    Writer sent(*f.a, "abcdefgh", 1);
    f.run();
    // The credit of greet() is still owed.
    const Coroutine two = read(*f.b, 1, received, 2);
    f.run();
    CHECK(f.sim.calls("ibv_post_send") - before == 7);
    Writer answer(*f.b, "x", 1);
    f.run();
    CHECK(sent.done);
    CHECK(f.sim.calls("ibv_post_send") - before == 9);
    const Coroutine three = read(*f.b, 1, received, 5);
    f.run();
    CHECK(f.sim.calls("ibv_post_send") - before == 9);
    const Coroutine fourth = read(*f.b, 1, received, 6);
    CHECK(f.sim.calls("ibv_post_send") - before == 10);
    f.run();
}

TEST_CASE("Stream: all messages that a peer may send at once find a receive", "[stream]") {
    constexpr StreamOptions options{.buffer_size = 4, .buffers = 2};
    Connection c;
    ManualNotifier other_notifier;
    Router other_router(AsyncCq(CompletionQueue(c.context, 64), other_notifier));
    AsyncQp other_qp(other_router, c.domain, Stream::queue_pair_options(options));
    other_qp.queue_pair().init();
    Stream a(c.make_qp(options), c.domain, options);
    Stream b(std::move(other_qp), c.domain, options);
    Connection::connect(a.queue_pair(), b.queue_pair());
    const auto run_both = [&] {
        for (int i = 0; i < 16; ++i) {
            c.iterate();
            other_notifier.notify();
            other_notifier.run();
        }
    };
    Result nothing;
    const Coroutine greetings[] = {read(a, 0, nothing), read(b, 0, nothing)};
    run_both();
    Writer from_b(b, "12345678", 8);
    CHECK(from_b.done);
    run_both();

    // From now on `b` does not run: all its credits are returned, one by one, and all of `a`'s
    // are used.
    Result at_a;
    const Coroutine reader_a = read(a, 4, at_a, 4);
    c.run();
    const Coroutine again = read(a, 4, at_a, 8);
    c.run();
    CHECK(at_a.text == "12345678");
    Result closed;
    EndingWriter from_a(a, "abcdefgh", 8);
    c.run();
    CHECK(from_a.done);
    const Coroutine close = await(a.close(), closed);
    c.run();
    CHECK(closed.succeeded());
    Reader at_b(b, 4);
    run_both();
    CHECK(at_b.text == "abcdefgh");
    CHECK(at_b.ended);
}

// --- errors ---

TEST_CASE("Stream: a broken connection ends reading and writing with the cause", "[stream]") {
    StreamFixture f({.buffer_size = 4, .buffers = 2});
    f.greet();
    Result closed;
    f.sim.hold_delivery();
    Reader received(*f.a, 4);
    Writer sent(*f.a, text_of(100), 100);
    f.run();
    f.sim.time_out();
    f.run();
    CHECK(received.code() == make_wc_error(IBV_WC_RETRY_EXC_ERR));
    CHECK(sent.code() == make_wc_error(IBV_WC_RETRY_EXC_ERR));
    REQUIRE(sent.done);
    CHECK(sent.error->what() == std::string(received.error->what()));
    Writer later(*f.a, "x", 1);
    CHECK(later.code() == make_wc_error(IBV_WC_RETRY_EXC_ERR));
    const Coroutine close = await(f.a->close(), closed);
    CHECK(closed.code() == make_wc_error(IBV_WC_RETRY_EXC_ERR));
}

TEST_CASE("Stream: a receive that the device rejects ends it", "[stream]") {
    StreamFixture f({.buffer_size = 4, .buffers = 4});
    f.greet();
    Reader received(*f.b, 4);
    f.sim.fail("ibv_post_recv", {.error = ENOMEM}); // of the one that is posted after the read
    Writer sent(*f.a, "x", 1);
    f.run();
    CHECK(received.text == "x");
    CHECK(received.code() == std::errc::not_enough_memory);
    CHECK(f.sim.failures_injected() == 1);
}

TEST_CASE("Stream: data that had arrived is read before the failure", "[stream]") {
    StreamFixture f({.buffer_size = 4, .buffers = 4});
    f.greet();
    Writer sent(*f.a, "arrived", 7);
    f.run();
    f.sim.break_qp(f.b->queue_pair().native_handle());
    f.run();
    Reader received(*f.b, 4);
    CHECK(received.text == "arrived");
    CHECK(!received.ended);
    CHECK(received.code() == make_wc_error(IBV_WC_WR_FLUSH_ERR));
}

TEST_CASE("Stream: a write before it is connected fails", "[stream]") {
    Connection c;
    Stream stream(c.make_qp({}), c.domain);
    Writer sent(stream, "x", 1);
    CHECK_THAT(sent.error.value().what(), contains("ibv_post_send"));
    Reader received(stream, 1);
    CHECK_THAT(received.error.value().what(), contains("ibv_post_send"));
}

TEST_CASE("Stream: what it cannot be made of", "[stream]") {
    Connection c;
    CHECK_THROWS_WITH(Stream(c.make_qp({}), c.domain, {.buffers = 17}),
                      contains("an RC queue pair with 21 receives"));
    CHECK_THROWS_WITH(
        Stream(AsyncQp(*c.router, c.domain, {.type = IBV_QPT_UD, .max_recv_wr = 64}), c.domain),
        contains("an RC queue pair"));
    CHECK_THROWS_WITH(Stream(c.make_qp({}), c.domain, {.buffers = 0}),
                      contains("buffers 0 is out of range for a stream"));
    CHECK_THROWS_WITH(Stream(c.make_qp({}), c.domain, {.buffers = 65536}),
                      contains("buffers 65536 is out of range for a stream"));
    CHECK_THROWS_WITH(Stream(c.make_qp({}), c.domain, {.buffer_size = 0}),
                      contains("buffer_size 0 is out of range for a stream"));
    CHECK_THROWS_WITH(Stream(c.make_qp({}), c.domain, {.buffer_size = ~std::size_t{}}),
                      contains("buffer_size 1073741825 is out of range for a stream"));
    CHECK_THROWS_WITH(
        Stream(AsyncQp(*c.router, c.domain, Stream::queue_pair_options()), c.domain), // in RESET
        contains("ibv_post_recv"));
}

TEST_CASE("Stream: a second reader or writer at the same time is refused", "[stream]") {
    StreamFixture f;
    Result results[4];
    const Coroutine reader = read(*f.a, 1, results[0]);
    const Coroutine second_reader = read(*f.a, 1, results[1]);
    CHECK_THROWS_AS(second_reader.get(), std::logic_error);
    const Coroutine writer = write(*f.a, "x", 1, results[2]); // waits for the peer's hello
    const Coroutine second_writer = await(f.a->shutdown_write(), results[3]);
    CHECK_THROWS_AS(second_writer.get(), std::logic_error);
    CHECK(!results[0].done);
    CHECK(!results[2].done);
}

// --- a peer that breaks the protocol ---

TEST_CASE("Stream: a peer that breaks the protocol ends it", "[stream]") {
    struct Case {
        const char* text;
        bool greets;
        std::vector<std::vector<unsigned char>> messages;
    };
    const std::vector<unsigned char> hello{1, 0, 0, 0, 'a', 'v', 's', '1', 0, 0, 0, 2, 0, 0, 0, 16};
    auto wrong_magic = hello;
    wrong_magic[7] = '2';
    auto no_buffers = hello;
    no_buffers[11] = 0;
    auto many_buffers = hello;
    many_buffers[9] = 1;
    auto no_size = hello;
    no_size[15] = 0;
    auto early_credits = hello;
    early_credits[3] = 1;
    auto short_hello = hello;
    short_hello.pop_back();
    const Case cases[] = {
        {"a message of 0 bytes", false, {{}}},
        {"a message of 3 bytes", false, {{1, 0, 0}}},
        {"unknown kind 0", false, {{0, 0, 0, 0}}},
        {"unknown kind 6", true, {{6, 0, 0, 0}}},
        {"unknown kind 255", true, {{255, 0, 0, 0, 1}}},
        {"unknown kind 2", true, {{2, 1, 0, 0, 1}}},
        {"something else before its hello", false, {{2, 0, 0, 0, 'x'}}},
        {"something else before its hello", false, {{5, 0, 0, 0}}},
        {"a message of kind 1 with 0 bytes", false, {{1, 0, 0, 0}}},
        {"no hello of this version", false, {wrong_magic}},
        {"no hello of this version", false, {short_hello}},
        {"a hello of 0 buffers of 16 bytes", false, {no_buffers}},
        {"a hello of 65538 buffers of 16 bytes", false, {many_buffers}},
        {"a hello of 2 buffers of 0 bytes", false, {no_size}},
        {"more credits than it owed", false, {early_credits}},
        {"a second hello", true, {hello}},
        {"a message of kind 2 with 0 bytes", true, {{2, 0, 0, 0}}},
        {"a message of kind 3 with 1 bytes", true, {{3, 0, 0, 0, 1}}},
        {"a message of kind 4 with 1 bytes", true, {{4, 0, 0, 0, 1}}},
        {"a message of kind 5 with 2 bytes", true, {{5, 0, 0, 0, 1, 2}}},
        {"more credits than it owed", true, {{3, 0, 0, 1}}},
        {"more credits than it owed", true, {{2, 0, 255, 255, 'x'}}},
        {"more data than it had credits for",
         true,
         {{2, 0, 0, 0, 'x'}, {2, 0, 0, 0, 'x'}, {2, 0, 0, 0, 'x'}}},
        {"something else after its end", true, {{4, 0, 0, 0}, {2, 0, 0, 0, 'x'}}},
        {"something else after its end", true, {{4, 0, 0, 0}, {4, 0, 0, 0}}},
    };
    for (const Case& each : cases) {
        CAPTURE(each.text);
        RawPeerFixture f;
        Writer sent(*f.a, text_of(100), 100);
        if (each.greets) f.greet(1);
        for (const auto& message : each.messages) f.send(message);
        f.run();
        CHECK(sent.code() == std::errc::protocol_error);
        CHECK_THAT(sent.error.value().what(), contains(each.text));
        Reader received(*f.a, 1);
        CHECK(received.done);
    }
}

TEST_CASE("Stream: a protocol error ends a pending write", "[stream]") {
    RawPeerFixture f;
    f.greet(9);
    f.sim.hold_delivery();
    f.sim.deliver();
    Writer sent(*f.a, text_of(100), 100); // waits for a free send buffer
    f.run();
    CHECK(!sent.done);
    f.send({6, 0, 0, 0});
    f.sim.deliver_from(f.peer.queue_pair().native_handle());
    f.run();
    CHECK(sent.code() == std::errc::protocol_error);
}

TEST_CASE("Stream: data that does not fit a buffer breaks it", "[stream]") {
    std::vector<unsigned char> data(4 + 5, 'x');
    std::fill_n(data.begin(), 4, '\0');
    data[0] = 2;
    {
        RawPeerFixture f({.buffer_size = 4, .buffers = 2}); // a hello is longer
        f.greet();
        f.send(data);
        Result received;
        const Coroutine reader = read(*f.a, 1, received);
        f.run();
        CHECK_THAT(received.error.value().what(), contains("more data than fits a buffer"));
    }
    data.resize(4 + 17);
    RawPeerFixture f;
    f.greet();
    f.send(data);
    Result received;
    const Coroutine reader = read(*f.a, 1, received);
    f.run();
    CHECK(received.code() == make_wc_error(IBV_WC_LOC_LEN_ERR));
}

TEST_CASE("Stream: random bytes of a peer give data, the end or an error", "[stream]") {
    const unsigned seed = GENERATE(range(0u, 200u));
    CAPTURE(seed);
    std::minstd_rand random(seed);
    const auto any = [&](unsigned most) { return static_cast<unsigned>(random()) % most; };
    RawPeerFixture f;
    if (any(4) > 0) f.greet(static_cast<unsigned char>(1 + any(3)));
    Reader received(*f.a, 5);
    Writer sent(*f.a, text_of(100), 30);
    for (int i = 0; i < 8; ++i) {
        std::vector<unsigned char> message(any(24));
        for (unsigned char& byte : message) byte = static_cast<unsigned char>(any(256));
        if (message.size() > 3) {
            message[0] = static_cast<unsigned char>(any(7));
            message[1] = any(8) == 0;
            message[2] = 0;
            message[3] = static_cast<unsigned char>(any(3));
        }
        f.send(message);
        if (any(2) == 0) f.run();
    }
    f.run();
    CHECK(received.text.size() <= 8 * 16);
    CHECK((received.ended || received.error || !received.done));
}

// --- cancellation and destruction ---

TEST_CASE("Stream: a read that is cancelled loses nothing", "[stream]") {
    StreamFixture f;
    f.greet();
    std::stop_source stop;
    Reader cancelled(*f.b, 10, 10U, stop.get_token());
    f.run();
    CHECK(!cancelled.done);
    std::thread([&] { stop.request_stop(); }).join();
    f.run();
    CHECK(cancelled.code() == std::errc::operation_canceled);
    Writer sent(*f.a, "kept", 10);
    f.run();
    Reader received(*f.b, 10, 1U, stop.get_token()); // stopped before
    CHECK(received.text == "kept");
    CHECK(!received.error);
}

TEST_CASE("Stream: data that arrives with the stop is read", "[stream][I7]") {
    StreamFixture f;
    f.greet();
    std::stop_source stop;
    Reader received(*f.b, 10, 1U, stop.get_token());
    Writer sent(*f.a, "kept", 10);
    f.sim.on_call([&](const simulated::Call& call) {
        const bool polled = call.verb == "ibv_poll_cq" && call.value > 0;
        if (polled && call.moment == simulated::Call::Moment::after) stop.request_stop();
    });
    f.run();
    f.sim.on_call(nullptr);
    CHECK(stop.stop_requested());
    CHECK(received.text == "kept");
    CHECK(!received.error);
}

TEST_CASE("Stream: a write that is cancelled has sent some of it, from the front", "[stream]") {
    StreamFixture f({.buffer_size = 4, .buffers = 2});
    f.greet();
    const bool held = GENERATE(false, true); // it waits for a free send buffer, or for credits
    if (held) f.sim.hold_delivery();
    std::stop_source stop;
    Writer cancelled(*f.a, text_of(100), 100, stop.get_token());
    f.run();
    CHECK(!cancelled.done);
    stop.request_stop();
    f.run();
    CHECK(cancelled.code() == std::errc::operation_canceled);
    f.sim.release_delivery();
    Reader received(*f.b, 100);
    AwaitingStream ended(f.a->shutdown_write());
    f.run();
    CHECK(ended.done);
    CHECK(received.ended);
    CHECK(received.text == text_of(100).substr(0, held ? 8 : 12));
}

TEST_CASE("Stream: write_some() writes what there is room for", "[stream]") {
    StreamFixture f({.buffer_size = 4, .buffers = 2});
    f.greet();
    f.sim.hold_delivery();
    const std::string all = text_of(100);
    std::size_t written = 0;
    std::error_code error;
    const auto write = [&](std::string_view some, std::stop_token stop) -> Coroutine {
        try {
            written += co_await f.a->write_some(std::as_bytes(std::span(some)), stop);
        } catch (const std::system_error& failure) {
            error = failure.code();
        }
    };
    std::stop_source stop;
    const Coroutine first = write(all, stop.get_token());
    CHECK(written == 8); // two messages
    const Coroutine second = write(all, stop.get_token());
    f.run();
    CHECK(!second.done());
    stop.request_stop();
    f.run();
    CHECK(second.done());
    CHECK(error == std::errc::operation_canceled);
    CHECK(written == 8);
    const Coroutine nothing = write({}, {});
    CHECK(nothing.done());

    error.clear();
    const Coroutine third = write(all, {});
    f.sim.release_delivery();
    f.run();
    CHECK(third.done());
    CHECK(written > 8);
    const AwaitingStream ended(f.a->shutdown_write());
    const Reader received(*f.b, 100);
    f.run();
    CHECK(received.ended);
    CHECK(received.text.size() == written);
    const Coroutine last = write(all, {});
    CHECK(error == std::errc::broken_pipe);
}

TEST_CASE("Stream: close() that is cancelled may be called again", "[stream]") {
    StreamFixture f;
    f.greet();
    f.sim.hold_delivery();
    std::stop_source stop;
    const std::uint64_t before = f.sim.calls("ibv_post_send");
    AwaitingStream cancelled(f.a->close(stop.get_token()));
    f.run();
    stop.request_stop();
    f.run();
    CHECK(cancelled.code() == std::errc::operation_canceled);
    AwaitingStream closed(f.a->close());
    CHECK(f.sim.calls("ibv_post_send") - before == 1);
    f.sim.release_delivery();
    f.run();
    CHECK(closed.succeeded());
    Reader received(*f.b, 1);
    CHECK(received.ended);
}

TEST_CASE("Stream: the stream and its users may be destroyed at any time", "[stream]") {
    const int iterations = GENERATE(range(0, 40));
    const int what = GENERATE(range(0, 6));
    CAPTURE(iterations, what);
    StreamFixture f({.buffer_size = 4, .buffers = 3});
    Result results[4];
    Coroutine all[] = {write_and_end(*f.a, text_of(60), 7, results[0]), //
                       read(*f.a, 3, results[1]),
                       write_and_end(*f.b, text_of(60), 9, results[2]), //
                       read(*f.b, 5, results[3])};
    f.sim.hold_delivery();
    for (int i = 0; i < iterations; ++i) {
        f.sim.deliver(1);
        f.iterate();
    }
    if (what == 0) {
        f.a.reset();
        f.run();
        CHECK(results[0].done);
        CHECK(results[1].done);
        if (results[0].error) CHECK(results[0].code() == std::errc::operation_canceled);
    } else if (what == 1) {
        all[2].destroy(); // they refer to f.b
        all[3].destroy();
        *f.a = std::move(*f.b);
        f.run();
        CHECK(results[0].done);
    } else if (what == 2) {
        f.router.reset();
        f.a.reset();
    } else {
        all[what - 3].destroy();
    }
    f.sim.release_delivery();
    f.run();
    f.b.reset();
    f.run();
    if (what == 0) {
        for (const Result& result : results) CHECK(result.done);
    }
}

TEST_CASE("Stream: destroyed by its reader", "[stream]") {
    StreamFixture f;
    f.greet();
    Reader waiting(*f.b, 1);
    const auto read_and_destroy = [&](std::optional<Stream>& stream) -> Coroutine {
        std::array<std::byte, 4> buffer{};
        (void)co_await stream->read_some(buffer);
        stream.reset();
    };
    const Coroutine reader = read_and_destroy(f.a);
    Writer sent(*f.b, "x", 1);
    f.run();
    CHECK(reader.done());
    CHECK(!f.a);
}

// --- when the device fails ---

TEST_CASE("Stream: any verb may fail once", "[stream]") {
    int failures = 0;
    for (int nth = 1;; ++nth) {
        CAPTURE(nth);
        Connection c({.buffer_size = 8, .buffers = 2}, {.buffer_size = 5, .buffers = 3});
        c.sim.fail_any({.nth = nth});
        const std::string text = text_of(100);
        Result results[4];
        try {
            std::optional<Stream> a(std::in_place, c.make_qp(c.options_a), c.domain, c.options_a);
            std::optional<Stream> b(std::in_place, c.make_qp(c.options_b), c.domain, c.options_b);
            Connection::connect(a->queue_pair(), b->queue_pair());
            const Coroutine all[] = {write_and_end(*a, text, 30, results[0]),
                                     write_and_end(*b, text, 30, results[1]),
                                     read(*a, 7, results[2]), read(*b, 7, results[3])};
            for (int i = 0; i < 200; ++i) c.iterate();
            a.reset();
            b.reset();
            c.run();
            for (const Result& result : results) CHECK(result.done);
        } catch (const std::system_error&) { // construction failed
        }
        for (const Result& read_by : {results[2], results[3]}) {
            CHECK(text.compare(0, read_by.text.size(), read_by.text) == 0);
            if (read_by.ended) CHECK(read_by.text == text);
        }
        c.sim.clear_failures();
        if (c.sim.failures_injected() == 0) break;
        ++failures;
    }
    CHECK(failures > 60);
}

// --- cost ---

TEST_CASE("Stream: once it is warm, nothing is allocated", "[stream]") {
    StreamFixture f({.buffer_size = 16, .buffers = 2});
    f.greet();
    std::array<std::byte, 16> memory{};
    const std::span<std::byte> bytes(memory.data(), GENERATE(16u, 3u));
    std::size_t rounds = 0;
    const auto write_each = [&](Stream& stream) -> Coroutine {
        for (std::size_t i = 0; i < 100; ++i) co_await stream.write_all(bytes);
    };
    const auto read_each = [&](Stream& stream) -> Coroutine {
        std::array<std::byte, 16> buffer{};
        const auto room = std::span(buffer).first(bytes.size());
        for (; rounds < 100; ++rounds) (void)co_await stream.read_some(room);
    };
    const Coroutine writer = write_each(*f.a);
    const Coroutine reader = read_each(*f.b);
    std::size_t allocations = 0;
    std::size_t simulated = 0;
    f.sim.on_call([&](const simulated::Call& call) { // not counted: allocations of the simulation
        const std::size_t now = support::counters().allocations;
        if (call.moment == simulated::Call::Moment::before) {
            simulated -= now;
        } else {
            simulated += now;
        }
    });
    const std::size_t rounds_before = rounds;
    allocations -= support::counters().allocations;
    for (int i = 0; i < 50; ++i) f.iterate();
    allocations += support::counters().allocations;
    f.sim.on_call(nullptr);
    const std::size_t done = rounds - rounds_before;
    CHECK(done > 20);
    CHECK(allocations == simulated);
}
