// SPDX-License-Identifier: MIT
// The adapter for Asio on a real device: its notifier serves AsyncCq, and async_poll() loses
// nothing.
#include <asyncverbs/testing/async_cq_conformance.hpp>

#include <array>
#include <cstdint>
#include <random>
#include <span>

#include "adapters/asio_harness.hpp"
#include "device/pair.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using namespace asyncverbs::adapters;
using asyncverbs::device::Pair;

TEMPLATE_TEST_CASE("device, Asio: conformance", "[asio][conformance]", OnContext, OnStrand) {
    for (const auto& each : async_cq_cases<AsioHarness<TestType>>(device::open_device())) {
        DYNAMIC_SECTION(each.name) { CHECK_NOTHROW(each.run()); }
    }
}

namespace {

using Loop = AsioLoop<IoExecutor>;

struct AsioPair {
    net::io_context io;
    Loop loop{io};
    Pair<Loop> pair{loop};
    AsioCq<IoExecutor> send_cq{loop.get_executor(), std::move(*pair.send_cq)};
    AsioCq<IoExecutor> recv_cq{loop.get_executor(), std::move(*pair.recv_cq)};
};

// Takes completions repeatedly. They must come in order.
struct Consumer {
    AsioCq<IoExecutor>& cq;
    std::uint64_t end;
    std::uint64_t next = 0;
    std::array<ibv_wc, 8> wcs{};

    void take() {
        async_poll(cq, wcs, [this](const Error& error, std::span<ibv_wc> done) {
            for (const ibv_wc& wc : done) {
                REQUIRE(wc.status == IBV_WC_SUCCESS);
                REQUIRE(wc.wr_id == next++);
            }
            if (!error && next < end) take();
        });
    }
};

} // namespace

TEST_CASE("device, Asio: bursts and gaps, every completion once and in order", "[asio]") {
    AsioPair f;
    constexpr std::uint64_t count = 5'000;
    Consumer sent{f.send_cq, count};
    Consumer received{f.recv_cq, count};
    sent.take();
    received.take();
    std::minstd_rand random(5);
    for (std::uint64_t posted = 0; posted < count;) {
        for (auto burst = 1 + random() % 16; burst > 0 && posted < count; --burst, ++posted) {
            f.pair.post_recv(posted);
            f.pair.post_send(posted);
        }
        // Wait until at most 32 are outstanding, so that the next burst overlaps with them.
        while (posted > 64 && (sent.next < posted - 32 || received.next < posted - 32)) {
            f.io.run_one();
        }
        if (random() % 4 == 0) f.io.poll();
    }
    f.io.run(); // returns when both have all completions
    CHECK(sent.next == count);
    CHECK(received.next == count);
}
