// SPDX-License-Identifier: MIT
#include <asyncverbs/verbs/memory_window.hpp>

#include <asyncverbs/rdma/async_qp.hpp>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <system_error>
#include <utility>

#include "rdma/fixture.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using asyncverbs::support::Awaiting;
using asyncverbs::support::contains;
using asyncverbs::support::RouterFixture;

namespace {

constexpr int windows_too = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND;

// Queue pair b of the fixture serves a region that only windows open to its peer, a.
struct WindowFixture : RouterFixture {
    std::error_code code(Operation operation) {
        Awaiting awaiting(std::move(operation));
        run();
        REQUIRE(awaiting.done());
        return awaiting.code();
    }
    std::error_code bind(std::size_t at, std::size_t length, unsigned rights) {
        return code(b->bind(*window, served->slice(at, length), rights));
    }

    std::optional<MemoryRegion> served = MemoryRegion::allocate(domain, 64, windows_too);
    std::optional<MemoryWindow> window{*served};
};

const std::error_code access_refused = make_wc_error(IBV_WC_REM_ACCESS_ERR);

} // namespace

TEST_CASE("MemoryWindow: the peer reads what is bound, until it is invalidated", "[rdma]") {
    WindowFixture f;
    CHECK(f.window->remote_slice().length == 0);
    std::memcpy(f.served->bytes().data() + 16, "window", 6);
    REQUIRE(!f.bind(16, 8, IBV_ACCESS_REMOTE_READ));
    const RemoteSlice bound = f.window->remote_slice();
    CHECK(bound.address == reinterpret_cast<std::uintptr_t>(f.served->bytes().data() + 16));
    CHECK(bound.length == 8);
    REQUIRE(!f.code(f.a->read(f.slice(0, 8), bound)));
    CHECK(std::memcmp(f.memory.data(), "window", 6) == 0);

    REQUIRE(!f.code(f.b->invalidate(*f.window)));
    CHECK(f.code(f.a->read(f.slice(0, 8), bound)) == access_refused);
}

TEST_CASE("MemoryWindow: range and rights are those of the bind", "[rdma]") {
    WindowFixture f;
    REQUIRE(!f.bind(16, 8, IBV_ACCESS_REMOTE_WRITE));
    RemoteSlice bound = f.window->remote_slice();
    REQUIRE(!f.code(f.a->write(f.slice(0, 8), bound)));
    SECTION("beyond the end") {
        bound.length = 9;
        CHECK(f.code(f.a->write(f.slice(0, 9), bound)) == access_refused);
    }
    SECTION("before the beginning") {
        --bound.address;
        CHECK(f.code(f.a->write(f.slice(0, 8), bound)) == access_refused);
    }
    SECTION("a read") { CHECK(f.code(f.a->read(f.slice(0, 8), bound)) == access_refused); }
    SECTION("of another queue pair") {
        CHECK(f.code(f.b->write(f.slice(0, 8), bound)) == access_refused);
    }
}

TEST_CASE("MemoryWindow: each bind has another key", "[rdma]") {
    WindowFixture f;
    std::uint32_t last = 0;
    for (std::size_t i = 0; i < 300; ++i) { // more than there are keys
        REQUIRE(!f.bind(i % 8, 8, IBV_ACCESS_REMOTE_READ));
        const RemoteSlice bound = f.window->remote_slice();
        REQUIRE(bound.rkey != last);
        last = bound.rkey;
        REQUIRE(!f.code(f.a->read(f.slice(0, 8), bound)));
        REQUIRE(!f.code(f.b->invalidate(*f.window)));
    }
    REQUIRE(!f.bind(0, 8, IBV_ACCESS_REMOTE_READ));
    RemoteSlice late = f.window->remote_slice();
    late.rkey = last;
    CHECK(f.code(f.a->read(f.slice(0, 8), late)) == access_refused);
}

TEST_CASE("MemoryWindow: a bind and the message with its key are one chain", "[rdma]") {
    WindowFixture f;
    Awaiting received(f.a->recv(f.slice(0, 8)));
    const SendRequest requests[] = {
        SendRequest::bind(*f.window, f.served->slice(), IBV_ACCESS_REMOTE_READ,
                          {.signaled = false}),
        SendRequest::send(f.slice(8, 8)),
    };
    std::array<Operation, 2> operations;
    const auto doorbells = f.sim.calls("ibv_post_send");
    f.b->post(requests, operations);
    CHECK(f.sim.calls("ibv_post_send") == doorbells + 1);
    Awaiting bound(std::move(operations[0]));
    f.run();
    REQUIRE(received.completion);
    REQUIRE(bound.completion);
    CHECK(bound.completion->opcode() == IBV_WC_BIND_MW);
    CHECK(!f.code(f.a->read(f.slice(0, 64), f.window->remote_slice())));
    REQUIRE(!f.code(f.b->invalidate(*f.window)));
    CHECK(!f.bind(0, 8, IBV_ACCESS_REMOTE_READ));
}

TEST_CASE("MemoryWindow: several binds without waiting, also of one batch", "[rdma]") {
    WindowFixture f;
    std::array<Operation, 4> operations;
    const auto post = [&] {
        for (std::size_t i = 0; i < 4; i += 2) {
            operations[i] = f.b->bind(*f.window, f.served->slice(i, 8), IBV_ACCESS_REMOTE_READ);
            operations[i + 1] = f.b->invalidate(*f.window);
        }
    };
    SECTION("at once") { post(); }
    SECTION("while a batch is delivered") { f.run_in_batch(post); }
    f.run();
    for (Operation& operation : operations) CHECK(!f.code(std::move(operation)));
}

TEST_CASE("MemoryWindow: a bind that the device rejects changes nothing", "[rdma]") {
    WindowFixture f;
    f.sim.fail("ibv_post_send", {.error = ENOMEM});
    CHECK(f.bind(0, 8, IBV_ACCESS_REMOTE_READ) == std::errc::not_enough_memory);
    CHECK(!f.bind(0, 8, IBV_ACCESS_REMOTE_READ));
    CHECK(!f.code(f.a->read(f.slice(0, 8), f.window->remote_slice())));
}

TEST_CASE("MemoryWindow: binds and invalidations wait for room, as all operations do", "[rdma]") {
    WindowFixture f; // of 4 sends
    f.sim.hold_delivery();
    std::array<Operation, 4> full;
    for (Operation& each : full) each = f.b->write(f.slice(0, 1), f.remote(8, 1));
    Awaiting bound(f.b->bind(*f.window, f.served->slice(0, 8), IBV_ACCESS_REMOTE_READ));
    Awaiting taken_back(f.b->invalidate(*f.window));
    f.sim.release_delivery();
    f.run();
    REQUIRE(bound.completion);
    REQUIRE(taken_back.completion);
    CHECK(taken_back.completion->opcode() == IBV_WC_LOCAL_INV);
}

TEST_CASE("MemoryWindow: what cannot be bound", "[rdma]") {
    WindowFixture f;
    const auto posted = f.sim.calls("ibv_post_send");
    CHECK_THROWS_WITH(f.b->bind(*f.window, f.slice(0, 8), IBV_ACCESS_REMOTE_READ),
                      contains("the slice is of another region than the memory window"));
    CHECK(f.sim.calls("ibv_post_send") == posted);

    SECTION("a region that was registered without IBV_ACCESS_MW_BIND") {
        MemoryWindow other(*f.region);
        CHECK(f.code(f.b->bind(other, f.slice(0, 8), IBV_ACCESS_REMOTE_READ)) ==
              make_wc_error(IBV_WC_MW_BIND_ERR));
    }
    SECTION("a window that is bound") {
        REQUIRE(!f.bind(0, 8, IBV_ACCESS_REMOTE_READ));
        CHECK(f.bind(8, 8, IBV_ACCESS_REMOTE_READ) == make_wc_error(IBV_WC_MW_BIND_ERR));
    }
    SECTION("nothing was bound") {
        CHECK(f.code(f.b->invalidate(*f.window)) == make_wc_error(IBV_WC_LOC_QP_OP_ERR));
    }
    SECTION("a window that was moved from") {
        const MemoryWindow moved(std::move(*f.window));
        CHECK_THROWS_WITH(f.b->bind(*f.window, f.served->slice(), IBV_ACCESS_REMOTE_READ),
                          contains("this MemoryWindow was moved from and owns nothing"));
        CHECK(f.window->native_handle() == nullptr);
    }
}

TEST_CASE("MemoryWindow: it keeps its region registered", "[rdma]") {
    WindowFixture f;
    REQUIRE(!f.bind(0, 8, IBV_ACCESS_REMOTE_READ));
    CHECK(f.served->close() == std::errc::device_or_resource_busy);
    f.served.reset();
    CHECK(f.sim.calls("ibv_dereg_mr") == 0);
    CHECK(!f.code(f.a->read(f.slice(0, 8), f.window->remote_slice())));
    CHECK(!f.window->close()); // it is still bound
    CHECK(f.sim.calls("ibv_dealloc_mw") == 1);
    CHECK(f.sim.calls("ibv_dereg_mr") == 1);
    CHECK(f.window->native_handle() == nullptr);
    CHECK(!f.window->close());
}

TEST_CASE("MemoryWindow: a device without windows", "[rdma]") {
    WindowFixture f;
    f.sim.fail("ibv_alloc_mw", {.error = EOPNOTSUPP});
    try {
        const MemoryWindow window(*f.served);
        FAIL("no error");
    } catch (const std::system_error& error) {
        CHECK(error.code() == std::errc::operation_not_supported);
        CHECK_THAT(error.what(),
                   contains("ibv_alloc_mw (the device has no memory windows of type 2)"));
    }
    MemoryRegion moved(std::move(*f.served));
    CHECK_THROWS_WITH(MemoryWindow(*f.served),
                      contains("this MemoryRegion was moved from and owns nothing"));
}
