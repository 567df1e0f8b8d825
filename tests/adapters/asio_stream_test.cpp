// SPDX-License-Identifier: MIT
// AsioStream: Asio's composed operations and TLS on a Stream, on the simulated verbs. The same
// source is compiled for standalone Asio and for Boost.Asio.
#include <asyncverbs/adapters/asio_stream.hpp>

#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/router.hpp>

#if defined(ASYNCVERBS_BOOST_ASIO)
#include <boost/asio/buffer.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/write.hpp>
#else
#include <asio/buffer.hpp>
#include <asio/read.hpp>
#include <asio/read_until.hpp>
#include <asio/write.hpp>
#endif

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "adapters/asio.hpp"
#include "adapters/tls.hpp"
#include "support/catch.hpp"
#include "support/counters.hpp"

using namespace asyncverbs;
using namespace asyncverbs::adapters;

namespace {

using IoStream = AsioStream<IoExecutor>;

// What a handler was called with.
struct Transfer {
    auto handler() {
        return [this, kept = alive](const Error& e, std::size_t n) {
            ++calls;
            error = e;
            bytes = n;
        };
    }
    bool done(std::size_t n) const { return calls == 1 && !error && bytes == n; }
    bool failed(const Error& e, std::size_t n = 0) const {
        return calls == 1 && error == e && bytes == n;
    }

    int calls = 0;
    Error error;
    std::size_t bytes = 0;
    std::shared_ptr<int> alive = std::make_shared<int>();
};

// Two streams, connected to each other, with small buffers.
struct StreamFixture {
    explicit StreamFixture(const StreamOptions& chosen = {.buffer_size = 64, .buffers = 2})
        : options(chosen) {
        a->stream().queue_pair().connect(b->stream().queue_pair().local_address());
        b->stream().queue_pair().connect(a->stream().queue_pair().local_address());
    }

    IoStream make() {
        AsyncQp qp(*router, domain, Stream::queue_pair_options(options));
        qp.queue_pair().init();
        return IoStream(*io, Stream(std::move(qp), domain, options));
    }
    void run_ready() {
        for (int i = 0; i < 8; ++i) adapters::run_ready(*io);
    }

    StreamOptions options;
    simulated::SimulatedVerbs sim;
    Context context = Context::open();
    ProtectionDomain domain{context};
    std::optional<net::io_context> io{std::in_place};
    AsioLoop<IoExecutor> loop{*io};
    std::optional<Router> router{Router::create(context, 64, loop)};
    std::optional<IoStream> a{make()};
    std::optional<IoStream> b{make()};
};

std::string text(std::size_t length) {
    std::string all;
    for (std::size_t i = 0; i < length; ++i) all += static_cast<char>('a' + i % 26);
    return all;
}

} // namespace

TEST_CASE("AsioStream: Asio's composed operations, both ways") {
    StreamFixture f;
    const std::string sent = text(1000);
    std::string got(1000, ' ');
    Transfer write;
    Transfer read;
    SECTION("one buffer") {
        net::async_write(*f.a, net::buffer(sent), write.handler());
        net::async_read(*f.b, net::buffer(got), read.handler());
    }
    SECTION("many buffers, more than a call takes") {
        std::vector<net::const_buffer> from;
        std::vector<net::mutable_buffer> to;
        for (std::size_t i = 0; i < 1000; i += 10) from.push_back(net::buffer(&sent[i], 10));
        for (std::size_t i = 0; i < 1000; i += 20) to.push_back(net::buffer(&got[i], 20));
        net::async_write(*f.b, from, write.handler());
        net::async_read(*f.a, to, read.handler());
    }
    CHECK(write.calls + read.calls == 0); // not within the initiating function
    f.run_ready();
    for (int i = 0; i < 50 && read.calls == 0; ++i) f.run_ready();
    CHECK(write.done(1000));
    CHECK(read.done(1000));
    CHECK(got == sent);
}

TEST_CASE("AsioStream: read_until, and the end of the data") {
    StreamFixture f;
    Transfer write;
    net::async_write(*f.a, net::buffer("first line\nsecond", 17), write.handler());
    std::string lines;
    Transfer line;
    net::async_read_until(*f.b, net::dynamic_buffer(lines), '\n', line.handler());
    f.run_ready();
    CHECK(line.done(11));

    const auto shut_down = [&]() -> Task<> { co_await f.a->stream().shutdown_write(); };
    Scope scope;
    scope.spawn(shut_down());
    Transfer rest;
    net::async_read_until(*f.b, net::dynamic_buffer(lines), "no such text", rest.handler());
    f.run_ready();
    CHECK(rest.failed(net::error::eof, rest.bytes));
    CHECK(lines == "first line\nsecond");
    Transfer nothing;
    f.b->async_read_some(net::buffer(lines.data(), 0), nothing.handler());
    f.run_ready();
    CHECK(nothing.done(0)); // an empty buffer is not the end
}

TEST_CASE("AsioStream: a call that is cancelled has transferred nothing", "[I7]") {
    StreamFixture f;
    f.run_ready();
    std::string got(64, ' ');
    Transfer read;
    f.b->async_read_some(net::buffer(got), read.handler());
    f.run_ready();
    f.b->cancel();
    f.run_ready();
    CHECK(read.failed(net::error::operation_aborted));

    // Writes until both buffers are full at both ends.
    const std::string sent = text(1000);
    Transfer write;
    net::async_write(*f.a, net::buffer(sent), write.handler());
    f.run_ready();
    CHECK(write.calls == 0);
    f.a->cancel();
    f.run_ready();
    REQUIRE(write.calls == 1);
    CHECK(write.error == net::error::operation_aborted);
    CHECK(write.bytes > 0);
    CHECK(write.bytes < 1000);
    Transfer rest;
    net::async_write(*f.a, net::buffer(sent) + write.bytes, rest.handler());
    std::string all(1000, ' ');
    Transfer whole;
    net::async_read(*f.b, net::buffer(all), whole.handler());
    for (int i = 0; i < 50 && whole.calls == 0; ++i) f.run_ready();
    CHECK(whole.done(1000));
    CHECK(all == sent);
}

#if defined(ASYNCVERBS_ASIO_CANCELLATION)
TEST_CASE("AsioStream: the handler's cancellation slot ends its call only") {
    StreamFixture f;
    const std::string sent = text(1000);
    std::string got(8, ' ');
    Transfer read;
    Transfer write;
    net::cancellation_signal signal;
    net::async_write(*f.b, net::buffer(sent), write.handler());
    f.b->async_read_some(net::buffer(got),
                         net::bind_cancellation_slot(signal.slot(), read.handler()));
    f.run_ready();
    signal.emit(net::cancellation_type::total);
    f.run_ready();
    CHECK(read.failed(net::error::operation_aborted));
    CHECK(write.calls == 0);
}
#endif

TEST_CASE("AsioStream: a second call of the same direction is an error") {
    StreamFixture f;
    std::string got(8, ' ');
    Transfer first;
    Transfer second;
    f.b->async_read_some(net::buffer(got), first.handler());
    f.b->async_read_some(net::buffer(got), second.handler());
    f.run_ready();
    CHECK(first.calls == 0);
    CHECK(second.calls == 1);
    CHECK(second.error.value() == EBUSY);
}

TEST_CASE("AsioStream: empty buffers are passed over, and complete beside a call that waits") {
    StreamFixture f;
    std::string got(8, ' ');
    Transfer read;
    Transfer nothing;
    std::vector<net::mutable_buffer> to(20); // more empty ones than a call takes
    to.push_back(net::buffer(got));
    f.b->async_read_some(to, read.handler());
    f.b->async_read_some(net::buffer(got.data(), 0), nothing.handler());
    f.run_ready();
    CHECK(nothing.done(0));
    CHECK(read.calls == 0);
    f.a->async_write_some(net::buffer("hello", 5), [](const Error&, std::size_t) {});
    f.run_ready();
    CHECK(read.done(5));
}

TEST_CASE("AsioStream: async_close() delivers what was written") {
    StreamFixture f;
    const std::string sent = text(1000);
    std::string got(1000, ' ');
    Transfer read;
    Transfer write;
    std::optional<Error> closed;
    net::async_read(*f.b, net::buffer(got), read.handler());
    net::async_write(*f.a, net::buffer(sent), write.handler());
    for (int i = 0; i < 50 && write.calls == 0; ++i) f.run_ready();
    f.a->async_close([&](const Error& error) { closed = error; });
    for (int i = 0; i < 50 && !closed; ++i) f.run_ready();
    CHECK(closed == Error());
    CHECK(read.done(1000));
    CHECK(got == sent);
    Transfer late;
    f.b->async_write_some(net::buffer("x", 1), late.handler());
    f.run_ready();
    CHECK(late.failed(net::error::broken_pipe));
}

TEST_CASE("AsioStream: a broken connection fails the calls with the cause") {
    StreamFixture f;
    std::string got(8, ' ');
    Transfer read;
    f.b->async_read_some(net::buffer(got), read.handler());
    f.run_ready();
    f.sim.break_qp(f.b->stream().queue_pair().native_handle());
    f.run_ready();
    CHECK(read.calls == 1);
    CHECK(read.error);
    CHECK(read.error != net::error::eof);
    CHECK(read.error != net::error::operation_aborted);
    Transfer write;
    f.b->async_write_some(net::buffer("x", 1), write.handler());
    f.run_ready();
    CHECK(write.failed(read.error));
}

TEST_CASE("AsioStream: destroyed while calls wait", "[lifetimes]") {
    std::string got(8, ' ');
    Transfer read;
    Transfer write;
    const std::string sent = text(1000);
    {
        StreamFixture f;
        f.a->async_read_some(net::buffer(got), read.handler());
        net::async_write(*f.a, net::buffer(sent), write.handler());
        f.run_ready();
        REQUIRE(read.calls + write.calls == 0);
        SECTION("the streams") {
            f.a.reset();
            f.b.reset();
            f.run_ready();
            CHECK(read.calls == 1);
            CHECK(write.calls == 1);
            CHECK(read.error == net::error::operation_aborted);
            CHECK(write.error == net::error::operation_aborted);
        }
        SECTION("the streams, and then the context") {
            f.a.reset();
            f.b.reset();
            f.router.reset();
            f.io.reset();
        }
        SECTION("the context first") {
            f.io.reset();
            CHECK(read.calls + write.calls == 0);
        }
        SECTION("one that its handler owns") {
            auto owned = std::make_shared<IoStream>(std::move(*f.b));
            IoStream& stream = *owned;
            f.b.reset();
            net::async_write(stream, net::buffer(sent),
                             [kept = std::move(owned)](const Error&, std::size_t) {});
            f.run_ready();
            f.io.reset();
        }
    }
    CHECK(read.alive.use_count() == 1);
    CHECK(write.alive.use_count() == 1);
}

TEST_CASE("AsioStream: a call is one allocation") {
    StreamFixture f;
    std::string got(8, ' ');
    const auto transfer = [&] {
        std::size_t calls = 0;
        const auto count = [&calls](const Error&, std::size_t) { ++calls; };
        f.b->async_read_some(net::buffer(got), count);
        f.a->async_write_some(net::buffer("12345678", 8), count);
        f.run_ready();
        return calls;
    };
    CHECK(transfer() == 2); // also makes what is kept
    std::size_t simulated = 0;
    f.sim.on_call([&](const simulated::Call& call) {
        const std::size_t now = support::counters().allocations;
        simulated += call.moment == simulated::Call::Moment::before ? 0 - now : now;
    });
    const support::Counters before = support::counters();
    CHECK(transfer() == 2);
    CHECK((support::counters() - before).allocations - simulated == 2);
    f.sim.on_call(nullptr);
}

TEST_CASE("AsioStream: each failing allocation is an exception or an error", "[no_memory]") {
    for (std::size_t n = 0;; ++n) {
        CAPTURE(n);
        StreamFixture f;
        std::string got(8, ' ');
        f.b->async_read_some(net::buffer(got), [](const Error&, std::size_t) {}); // greets
        f.a->async_write_some(net::buffer("first", 5), [](const Error&, std::size_t) {});
        f.run_ready();
        std::optional<support::FailureShelter> shelter; // of the simulation
        f.sim.on_call([&](const simulated::Call& call) {
            const bool before = call.moment == simulated::Call::Moment::before;
            before ? void(shelter.emplace()) : shelter.reset();
        });
        Transfer read;
        Transfer write;
        int started = 0;
        support::fail_allocation(n);
        try {
            f.b->async_read_some(net::buffer(got), read.handler());
            ++started;
            f.a->async_write_some(net::buffer("12345678", 8), write.handler());
            ++started;
        } catch (const std::bad_alloc&) {
        }
        f.run_ready();
        const bool failed = support::stop_failing();
        f.sim.on_call(nullptr);
        if (started == 2) {
            CHECK(write.calls == 1);
            CHECK(read.calls == 1);
        }
        Transfer again;
        f.a->async_write_some(net::buffer("again", 5), again.handler());
        f.run_ready();
        CHECK(again.done(5));
        if (!failed) break;
    }
}

#if defined(ASIO_HAS_CO_AWAIT) || defined(BOOST_ASIO_HAS_CO_AWAIT)
TEST_CASE("AsioStream: with use_awaitable") {
    StreamFixture f;
    std::string got(5, ' ');
    struct Local {
        static net::awaitable<void> write(StreamFixture& f) {
            co_await net::async_write(*f.a, net::buffer("hello", 5), net::use_awaitable);
        }
        static net::awaitable<void> read(StreamFixture& f, std::string& got) {
            co_await net::async_read(*f.b, net::buffer(got), net::use_awaitable);
        }
    };
    net::co_spawn(*f.io, Local::write(f), net::detached);
    net::co_spawn(*f.io, Local::read(f, got), net::detached);
    f.run_ready();
    CHECK(got == "hello");
}
#endif

TEST_CASE("AsioStream: TLS") {
    StreamFixture f(StreamOptions{}); // the server's first messages are not read at once
    talk_over_tls(std::move(*f.a), std::move(*f.b), text(5000), [&](auto done) {
        for (int i = 0; i < 200 && !done(); ++i) f.run_ready();
    });
}
