// SPDX-License-Identifier: MIT
// Operations of queue pairs on a real device.
#include "pair.hpp"

#include <asyncverbs/cm/connect.hpp>
#include <asyncverbs/cm/listener.hpp>
#include <asyncverbs/coro/when_all.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/async_srq.hpp>
#include <asyncverbs/rdma/router.hpp>

#include <array>
#include <cstdio>
#include <cstring>
#include <exception>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "device/programs.hpp"
#include "support/catch.hpp"
#include "support/counters.hpp"

using namespace asyncverbs;
using namespace asyncverbs::device;
using support::counters;

namespace {

constexpr int all_access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE |
                           IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC;

void connect(AsyncQp& a, AsyncQp& b, int access_to_b = all_access) {
    a.queue_pair().init({.gid_index = gid_index(), .access = all_access});
    b.queue_pair().init({.gid_index = gid_index(), .access = access_to_b});
    a.queue_pair().connect(b.queue_pair().local_address());
    b.queue_pair().connect(a.queue_pair().local_address());
}

struct Ends {
    explicit Ends(const QueuePairOptions& options = {.max_inline_data = 64},
                  int access_to_b = all_access)
        : a(router, domain, options), b(router, domain, options) {
        if (options.type == IBV_QPT_RC) connect(a, b, access_to_b);
    }

    Ends(const Ends&) = delete;
    Ends& operator=(const Ends&) = delete;

    // If a test hangs, tells at what.
    ~Ends() {
        if (std::uncaught_exceptions() == 0) return;
        for (const RequestInFlight& request : router.in_flight()) {
            std::printf("in flight: queue pair %u, opcode %d, %s\n", request.qp_num, request.opcode,
                        request.posted ? "posted" : "waiting for room");
        }
    }

    Slice slice(std::size_t at, std::size_t length) const { return region.slice(at, length); }
    RemoteSlice remote(std::size_t at, std::size_t length) const {
        return region.remote_slice().slice(at, length);
    }
    std::uint64_t& number(std::size_t at) const {
        return *reinterpret_cast<std::uint64_t*>(region.bytes().data() + at);
    }

    EpollExecutor loop;
    Context context = open_device();
    ProtectionDomain domain{context};
    MemoryRegion region = MemoryRegion::allocate(domain, 65536, all_access);
    Router router = Router::create(context, 256, loop);
    AsyncQp a;
    AsyncQp b;
};

} // namespace

TEST_CASE("AsyncQp on a device: every kind of operation", "[rdma]") {
    Ends ends;
    const auto play = [](Ends& e) -> Task<> {
        e.number(0) = 42;
        Operation receive = e.b.post_recv(e.slice(1024, 64));
        co_await e.a.send(e.slice(0, 8));
        const Completion received = co_await receive;
        CHECK(received.bytes() == 8);
        CHECK(e.number(1024) == 42);

        Operation with_imm = e.b.post_recv(e.slice(1024, 64));
        co_await e.a.send_with_imm(e.slice(0, 8), 0x01020304, {.solicited = true});
        const Completion imm = co_await with_imm;
        CHECK(imm.imm() == 0x01020304);

        e.number(8) = 43;
        co_await e.a.write(e.slice(8, 8), e.remote(2048, 8), {.inline_data = true});
        CHECK(e.number(2048) == 43);
        Operation by_write = e.b.post_recv(Slices());
        co_await e.a.write_with_imm(e.slice(0, 8), e.remote(2056, 8), 7);
        const Completion written = co_await by_write;
        CHECK(written.imm() == 7);
        co_await e.a.read(e.slice(16, 8), e.remote(2048, 8));
        CHECK(e.number(16) == 43);
        co_await e.a.write({}, {}); // needs no memory of the peer

        co_await e.a.fetch_and_add(e.slice(24, 8), e.remote(2048, 8), 2);
        CHECK(e.number(24) == 43);
        CHECK(e.number(2048) == 45);
        co_await e.a.compare_and_swap(e.slice(24, 8), e.remote(2048, 8), 45, 1, {.fence = true});
        CHECK(e.number(24) == 45);
        CHECK(e.number(2048) == 1);
        co_await e.a.drain();
        co_await e.b.drain();
    };
    run_bounded(ends.loop, play(ends));
}

TEST_CASE("AsyncQp on a device: a memory window is taken back from the peer", "[rdma]") {
    const bool by_peer = GENERATE(false, true); // a send invalidates it
    CAPTURE(by_peer);
    Ends ends;
    const MemoryRegion served =
        MemoryRegion::allocate(ends.domain, 4096, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND);
    MemoryWindow window(served);

    const auto play = [](Ends& e, const MemoryRegion& region, MemoryWindow& opened,
                         bool peer) -> Task<> {
        co_await e.b.bind(opened, region.slice(0, 64), IBV_ACCESS_REMOTE_READ);
        co_await e.b.invalidate(opened);
        std::memset(region.bytes().data() + 64, 'x', 8);
        co_await e.b.bind(opened, region.slice(64, 64), IBV_ACCESS_REMOTE_READ);
        const RemoteSlice bound = opened.remote_slice();
        co_await e.a.read(e.slice(0, 8), bound.slice(0, 8));
        CHECK(e.number(0) == 0x7878787878787878);

        if (peer) {
            Operation at_b = e.b.post_recv(e.slice(1024, 8));
            co_await e.a.send_with_invalidate(e.slice(0, 8), bound.rkey);
            const Completion received = co_await at_b;
            CHECK(received.bytes() == 8); // soft-RoCE does not report the invalidated key
        } else {
            co_await e.b.invalidate(opened);
        }
        std::error_code error;
        Operation late = e.a.read(e.slice(0, 8), bound.slice(0, 8));
        co_await late.wait(error);
        CHECK(error == make_wc_error(IBV_WC_REM_ACCESS_ERR));
    };
    run_bounded(ends.loop, play(ends, served, window, by_peer));
}

TEST_CASE("AsyncQp on a device: a thousand messages through a queue of 16", "[rdma][I10]") {
    Ends ends({.max_send_wr = 16, .max_recv_wr = 16});
    constexpr std::size_t count = 1000;
    const auto receive = [](Ends& e) -> Task<> {
        std::vector<Operation> operations;
        for (std::size_t i = 0; i < count; ++i) {
            operations.push_back(e.b.post_recv(e.slice(32768 + 8 * i, 8)));
        }
        for (Operation& operation : operations) co_await operation;
    };
    const auto send = [](Ends& e) -> Task<> {
        std::vector<Operation> operations;
        for (std::size_t i = 0; i < count; ++i) {
            e.number(8 * i) = i;
            operations.push_back(e.a.send(e.slice(8 * i, 8), {.signaled = i % 4 == 0}));
        }
        for (std::size_t i = 0; i < count; i += 4) co_await operations[i];
    };
    const auto both = [&](Ends& e) -> Task<> { co_await when_all(receive(e), send(e)); };
    run_bounded(ends.loop, both(ends));
    for (std::size_t i = 0; i < count; ++i) REQUIRE(ends.number(32768 + 8 * i) == i);
}

TEST_CASE("AsyncQp on a device: the cause of a flush", "[rdma]") {
    Ends ends;
    const auto play = [](Ends& e) -> Task<> {
        Operation receive = e.a.post_recv(e.slice(1024, 64));
        RemoteSlice nowhere = e.remote(0, 8);
        nowhere.rkey ^= 0xffff00;
        std::error_code error;
        Operation write = e.a.write(e.slice(0, 8), nowhere);
        const Completion failed = co_await write.wait(error);
        CHECK(error == make_wc_error(IBV_WC_REM_ACCESS_ERR));
        CHECK(failed.opcode() == IBV_WC_RDMA_WRITE);
        const Completion flushed = co_await receive.wait(error);
        CHECK(flushed.status() == IBV_WC_WR_FLUSH_ERR);
        CHECK(flushed.cause() == IBV_WC_REM_ACCESS_ERR);
        co_await e.a.drain();
    };
    run_bounded(ends.loop, play(ends));
}

TEST_CASE("AsyncQp on a device: the access flags of init() restrict the peer", "[rdma]") {
    Ends ends({}, IBV_ACCESS_LOCAL_WRITE);
    const auto play = [](Ends& e) -> Task<> {
        std::error_code error;
        Operation write = e.a.write(e.slice(0, 8), e.remote(1024, 8));
        co_await write.wait(error);
        // Soft-RoCE reports an invalid request instead of an access error.
        CHECK((error == make_wc_error(IBV_WC_REM_ACCESS_ERR) ||
               error == make_wc_error(IBV_WC_REM_INV_REQ_ERR)));
    };
    run_bounded(ends.loop, play(ends));
}

TEST_CASE("AsyncQp on a device: destroyed with operations in flight", "[rdma][I12]") {
    const auto play = [](EpollExecutor& loop) -> Task<> {
        const Context context = open_device();
        const ProtectionDomain domain(context);
        Router router = Router::create(context, 256, loop);
        for (int i = 0; i < 50; ++i) {
            auto a = std::make_unique<AsyncQp>(router, domain);
            auto b = std::make_unique<AsyncQp>(router, domain);
            connect(*a, *b);
            Operation receive;
            {
                const MemoryRegion region = MemoryRegion::allocate(domain, 4096);
                receive = b->post_recv(region.slice(0, 64));
                if (i % 2 == 0) (void)a->send(region.slice(64, 64));
            }
            if (i % 3 == 0) co_await a->drain();
            a.reset();
            b.reset();
            std::error_code error;
            const Completion completion = co_await receive.wait(error);
            CHECK((error == std::errc::operation_canceled || !error ||
                   completion.status() != IBV_WC_SUCCESS));
        }
    };
    EpollExecutor loop;
    run_bounded(loop, play(loop));
}

TEST_CASE("AsyncQp on a device: datagrams", "[rdma]") {
    Ends ends({.type = IBV_QPT_UD});
    ends.a.queue_pair().init({.gid_index = gid_index()});
    ends.b.queue_pair().init({.gid_index = gid_index()});
    ends.a.queue_pair().activate();
    ends.b.queue_pair().activate();
    const auto play = [](Ends& e) -> Task<> {
        const AddressHandle peer(e.domain, e.a.queue_pair(), e.b.queue_pair().local_address());
        e.number(0) = 42;
        Operation receive = e.b.post_recv(e.slice(1024, 64));
        co_await e.a.send_to(e.slice(0, 8), peer, e.b.queue_pair().qp_num());
        const Completion received = co_await receive;
        CHECK(received.bytes() == 48);
        CHECK(received.src_qp() == e.a.queue_pair().qp_num());
        CHECK(e.number(1064) == 42);

        const AddressHandle back(e.domain, e.b.queue_pair(), received.wc(), e.slice(1024, 64));
        Operation reply = e.a.post_recv(e.slice(2048, 64));
        co_await e.b.send_to(e.slice(1064, 8), back, received.src_qp());
        co_await reply;
        CHECK(e.number(2048 + 40) == 42);
    };
    run_bounded(ends.loop, play(ends));
}

TEST_CASE("AsyncQp on a device: a hundred queue pairs share their receives", "[rdma]") {
    constexpr std::size_t count = 100;
    const auto play = [](EpollExecutor& loop) -> Task<> {
        const Context context = open_device();
        const ProtectionDomain domain(context);
        const MemoryRegion region = MemoryRegion::allocate(domain, 65536);
        Router router = Router::create(context, 4096, loop);
        AsyncSrq receives(router, domain, {.max_wr = 64});
        std::vector<AsyncQp> senders;
        std::vector<AsyncQp> receivers;
        for (std::size_t i = 0; i < count; ++i) {
            senders.emplace_back(router, domain, QueuePairOptions{.max_send_wr = 4});
            receivers.emplace_back(router, domain, receives, QueuePairOptions{.max_send_wr = 4});
            connect(senders.back(), receivers.back());
        }
        std::vector<Operation> operations;
        for (std::size_t i = 0; i < 2 * count; ++i) {
            operations.push_back(receives.post_recv(region.slice(64 * i, 64)));
        }
        for (std::size_t i = 0; i < 2 * count; ++i) {
            operations.push_back(senders[i % count].send(region.slice(32768, 8)));
        }
        std::size_t bytes = 0;
        for (std::size_t i = 0; i < operations.size(); ++i) {
            const Completion completion = co_await operations[i];
            if (completion.opcode() == IBV_WC_RECV) bytes += completion.bytes();
        }
        CHECK(bytes == 2 * count * 8);
        for (AsyncQp& sender : senders) co_await sender.drain();
    };
    EpollExecutor loop;
    run_bounded(loop, play(loop));
}

// The only queue pairs that iWARP has.
TEST_CASE("AsyncQp on a device: connected by address, and drained", "[rdma][cm][iwarp]") {
    struct End {
        End(EpollExecutor& loop, const Context& context)
            : domain(context), router(Router::create(context, 64, loop)), qp(router, domain) {}

        Slice slice(std::size_t at) const { return region.slice(at, 8); }
        std::uint64_t& number(std::size_t at) const {
            return *reinterpret_cast<std::uint64_t*>(region.bytes().data() + at);
        }

        ProtectionDomain domain;
        MemoryRegion region = MemoryRegion::allocate(
            domain, 4096,
            IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ);
        Router router;
        AsyncQp qp;
    };
    EpollExecutor loop;
    Listener listener(loop, "", "0");
    std::optional<End> server;
    std::optional<End> client;
    const auto serve = [&]() -> Task<Connection> {
        IncomingConnection incoming = co_await listener.accept();
        server.emplace(loop, incoming.context());
        co_return co_await incoming.accept(server->qp.queue_pair());
    };
    const auto dial = [&]() -> Task<Connection> {
        const auto make_qp = [&](const OutgoingConnection& outgoing) -> QueuePair& {
            return client.emplace(loop, outgoing.context()).qp.queue_pair();
        };
        co_return co_await connect(loop, device_address(), std::to_string(listener.port()),
                                   make_qp);
    };
    const auto play = [&]() -> Task<> {
        auto [accepted, connected] = co_await when_all(serve(), dial());
        const RemoteSlice remote = server->region.remote_slice();
        client->number(0) = 42;
        Operation unsignaled =
            client->qp.write(client->slice(0), remote.slice(8, 8), {.signaled = false});
        co_await client->qp.read(client->slice(16), remote.slice(8, 8));
        CHECK(unsignaled.done());
        CHECK(client->number(16) == 42);
        for (int i = 0; i < 3; ++i) {
            (void)client->qp.write(client->slice(0), remote.slice(8, 8), {.signaled = false});
        }
        co_await client->qp.drain();
        std::error_code later;
        Operation send = client->qp.send(client->slice(0));
        co_await send.wait(later);
        CHECK(later == make_wc_error(IBV_WC_WR_FLUSH_ERR));

        {
            const Connection left = std::move(connected);
        }
        co_await accepted.disconnected();
        // soft-RoCE does not flush a receive that is posted now.
        Operation missed =
            is_iwarp() ? server->qp.recv(server->slice(0)) : server->qp.send(server->slice(0));
        co_await missed.wait(later);
        CHECK(later == make_wc_error(IBV_WC_WR_FLUSH_ERR));
        co_await server->qp.drain();
    };
    run_bounded(loop, play());
}
