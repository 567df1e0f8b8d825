// SPDX-License-Identifier: MIT
// AsyncCq on a ring and a real device: its notifiers meet the contract, no completion is lost, and
// a sleep costs the documented system calls.
#include <asyncverbs/adapters/io_uring.hpp>

#include <sys/syscall.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <span>

#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/testing/async_cq_conformance.hpp>
#include <asyncverbs/testing/notifier_conformance.hpp>

#include "adapters/io_uring_harnesses.hpp"
#include "adapters/ring.hpp"
#include "device/pair.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/system_calls.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using asyncverbs::device::Pair;
using asyncverbs::support::Coroutine;
using asyncverbs::support::Ring;

namespace {

struct IoUringDeviceFixture {
    explicit IoUringDeviceFixture(unsigned flags = 0) : ring(64, flags) {}

    void run(const Coroutine& until) {
        for (int turns = 0; turns < 1'000'000 && !until.done(); ++turns)
            ring.run_once(poller, 10ms);
        REQUIRE(until.done());
        until.get();
    }

    Ring ring;
    IoUringPoller poller{ring.get()};
    std::optional<Pair<IoUringPoller>> pair{std::in_place, poller};
};

Coroutine take(AsyncCq& cq, std::uint64_t& next, std::uint64_t end) {
    std::array<ibv_wc, 8> wcs{};
    while (next < end) {
        for (const ibv_wc& wc : co_await cq.poll(wcs)) {
            REQUIRE(wc.status == IBV_WC_SUCCESS);
            REQUIRE(wc.wr_id == next++);
        }
    }
}

} // namespace

TEMPLATE_TEST_CASE("device, io_uring: conformance", "[ring][conformance]", support::LevelHarness<0>,
                   support::LevelHarness<support::deferred>, support::EdgeHarness<0>,
                   support::OldKernelHarness) {
    if (!support::kernel_has(TestType::flags)) return;
    for (const ConformanceCase& each : notifier_cases<TestType>()) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
    for (const ConformanceCase& each : async_cq_cases<TestType>(device::open_device())) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
}

TEST_CASE("device, io_uring: bursts and gaps, every completion once and in order", "[ring]") {
    IoUringDeviceFixture f;
    constexpr std::uint64_t count = 5'000;
    std::uint64_t sent = 0;
    std::uint64_t received = 0;
    const Coroutine sender = take(*f.pair->send_cq, sent, count);
    const Coroutine receiver = take(*f.pair->recv_cq, received, count);
    std::minstd_rand random(5);
    for (std::uint64_t posted = 0; posted < count;) {
        for (auto burst = 1 + random() % 16; burst > 0 && posted < count; --burst, ++posted) {
            f.pair->post_recv(posted);
            f.pair->post_send(posted);
        }
        // Wait until at most 32 are outstanding, so that the next burst overlaps with them.
        while (posted > 64 && (sent < posted - 32 || received < posted - 32)) {
            f.ring.run_once(f.poller, 10ms);
        }
        if (random() % 4 == 0) f.ring.run_once(f.poller);
    }
    f.run(sender);
    f.run(receiver);
}

TEST_CASE("device, io_uring: a sleep costs one io_uring_enter, one read and one arm", "[ring]") {
    constexpr int rounds = 50;
    const auto calls = support::count_system_calls([] {
        IoUringDeviceFixture f;
        std::uint64_t next = 0;
        constexpr std::uint64_t last = rounds;
        const Coroutine receiver = take(*f.pair->recv_cq, next, last + 1);
        for (std::uint64_t i = 0; i <= last; ++i) f.pair->post_recv(i);
        for (std::uint64_t i = 0; i <= last; ++i) {
            if (i == 1) support::begin_counting();
            f.pair->post_send(i, 0); // one write
            while (next <= i) {
                io_uring_submit_and_wait(&f.ring.get(), 1);
                f.ring.take(f.poller);
            }
        }
        support::end_counting();
        REQUIRE(receiver.done());
    });
    const auto of = [&](long number) {
        const auto found = calls.find(number);
        return found == calls.end() ? 0 : found->second;
    };
    const int sleeps = of(SYS_io_uring_enter);
    CHECK(sleeps == rounds);
    CHECK(of(SYS_read) == rounds); // ibv_get_cq_event
    // A send per round, and an arm per round except the last. libibverbs makes both by write or
    // ioctl.
    CHECK(of(SYS_write) + of(SYS_ioctl) == 2 * rounds - 1);
    CHECK(calls.size() <= 4);
}
