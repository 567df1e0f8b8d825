// SPDX-License-Identifier: MIT
// Memory regions that are destroyed while operations use them: each stays registered until its last
// request has ended, and no longer. The simulation fails a test whose device uses a region that is
// not registered.
#include "rdma/fixture.hpp"

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "support/counters.hpp"

using namespace asyncverbs;
using namespace asyncverbs::support;

namespace {

struct RegionUsesFixture : RouterFixture {
    using RouterFixture::RouterFixture;

    int deregistered() const { return static_cast<int>(sim.calls("ibv_dereg_mr")); }

    // A write of bytes of `from` to the fixture's memory.
    Operation write_from(const MemoryRegion& from) {
        return a->write(from.slice(0, 8), remote(200, 8));
    }
    std::optional<MemoryRegion> make_region() {
        return MemoryRegion::allocate(domain, 4096, all_access);
    }
};

} // namespace

TEST_CASE("Regions: one that no request uses any more is deregistered at once", "[rdma]") {
    RegionUsesFixture f;
    std::optional<MemoryRegion> used = f.make_region();
    std::optional<MemoryRegion> refused = f.make_region();
    const Operation written = f.write_from(*used);
    f.sim.fail("ibv_post_send", {.error = EINVAL});
    const Operation failed = f.write_from(*refused);
    CHECK(failed.done());
    f.run();
    CHECK(written.done());
    used.reset();
    CHECK(f.deregistered() == 1);
    refused.reset();
    CHECK(f.deregistered() == 2);
    CHECK(!f.notifier.stop_requested()); // the router has nothing to look at
}

TEST_CASE("Regions: one that a request uses is deregistered after the completion", "[rdma]") {
    RegionUsesFixture f;
    std::optional<MemoryRegion> region = f.make_region();
    f.sim.hold_delivery();
    Operation operations[] = {f.write_from(*region), f.write_from(*region)};
    region.reset();
    f.sim.deliver(1);
    f.run();
    CHECK(operations[0].done());
    CHECK(f.deregistered() == 0);
    f.sim.deliver(1);
    f.run();
    CHECK(operations[1].done());
    CHECK(f.deregistered() == 1);
}

TEST_CASE("Regions: the router looks again, as it may have completed the request meanwhile",
          "[rdma]") {
    RegionUsesFixture f;
    std::optional<MemoryRegion> region = f.make_region();
    f.sim.hold_delivery();
    const Operation operation = f.write_from(*region);
    std::thread([&] { region.reset(); }).join();
    CHECK(f.notifier.stop_requested());
    f.notifier.run();
    CHECK(f.deregistered() == 0);
    f.sim.release_delivery();
    f.run();
    CHECK(f.deregistered() == 1);
}

TEST_CASE("Regions: a request may use several", "[rdma]") {
    RegionUsesFixture f;
    std::array<std::optional<MemoryRegion>, 3> regions{f.make_region(), f.make_region(),
                                                       f.make_region()};
    const auto slices = [&] {
        return std::array{regions[0]->slice(0, 2), regions[1]->slice(0, 3),
                          regions[2]->slice(0, 3)};
    };
    f.sim.hold_delivery();
    const Operation first = f.a->write(slices(), f.remote(200, 8));
    const Operation second = f.a->write(slices(), f.remote(200, 8));
    regions = {};
    f.sim.deliver(1);
    f.run();
    CHECK(f.deregistered() == 0);
    f.sim.deliver(1);
    f.run();
    CHECK(f.deregistered() == 3);
}

TEST_CASE("Regions: what waits for room keeps its regions", "[rdma]") {
    RegionUsesFixture f;
    std::optional<MemoryRegion> one = f.make_region();
    std::optional<MemoryRegion> two = f.make_region();
    f.sim.hold_delivery();
    std::vector<Operation> posted;
    for (int i = 0; i < 4; ++i) posted.push_back(f.write_from(*f.region));
    std::vector<Operation> waiting;
    waiting.push_back(f.write_from(*one));
    waiting.push_back(f.a->write(std::array{one->slice(0, 4), two->slice(0, 4)}, f.remote(208, 8)));
    waiting.push_back(f.b->recv(f.slice(100, 8)));
    one.reset();
    two.reset();
    CHECK(f.deregistered() == 0);
    SECTION("until it has completed") {
        f.sim.release_delivery();
        f.run();
        for (const Operation& operation : std::span(waiting).first(2)) CHECK(operation.done());
        CHECK(f.deregistered() == 2);
    }
    SECTION("until it is destroyed") {
        std::vector<Operation> moved = std::move(waiting);
        CHECK(f.deregistered() == 0);
        moved.clear();
        CHECK(f.deregistered() == 2);
    }
    SECTION("until its queue pair is destroyed") {
        f.a.reset();
        CHECK(f.deregistered() == 2);
    }
}

TEST_CASE("Regions: a chain keeps them, posted and waiting for room", "[rdma]") {
    RegionUsesFixture f;
    std::vector<std::optional<MemoryRegion>> regions;
    std::vector<SendRequest> requests;
    for (int i = 0; i < 6; ++i) {
        regions.push_back(f.make_region());
        requests.push_back(SendRequest::write(regions.back()->slice(0, 8), f.remote(200, 8)));
    }
    std::array<Operation, 6> operations;
    f.sim.hold_delivery();
    f.a->post(requests, operations);
    regions.clear();
    for (int i = 0; i < 6; ++i) {
        CHECK(f.deregistered() == i);
        f.sim.deliver(1);
        f.run();
    }
    CHECK(f.deregistered() == 6);
}

TEST_CASE("Regions: a request that the device rejects keeps none", "[rdma]") {
    RegionUsesFixture f;
    std::optional<MemoryRegion> region = f.make_region();
    const auto write = [&] { return SendRequest::write(region->slice(0, 8), f.remote(200, 8)); };
    const std::array<SendRequest, 2> requests{write(), write()};
    std::array<Operation, 2> operations;
    f.sim.fail("ibv_post_send", {.error = EINVAL});
    f.a->post(requests, operations);
    region.reset();
    CHECK(f.deregistered() == 1);
}

TEST_CASE("Regions: a destroyed queue pair keeps none", "[rdma][I12]") {
    RegionUsesFixture f;
    std::optional<MemoryRegion> before = f.make_region();
    std::optional<MemoryRegion> after = f.make_region();
    f.sim.hold_delivery();
    const Operation operations[] = {f.write_from(*before), f.write_from(*after)};
    const bool routed = GENERATE(true, false);
    if (!routed) f.router.reset();
    before.reset();
    CHECK(f.deregistered() == 0);
    f.a.reset();
    CHECK(f.deregistered() == 1);
    after.reset();
    CHECK(f.deregistered() == 2);
}

TEST_CASE("Regions: close() reports that an operation uses the region", "[rdma][close]") {
    RegionUsesFixture f;
    std::optional<MemoryRegion> region = f.make_region();
    f.sim.hold_delivery();
    Operation operation = f.write_from(*region);
    CHECK(region->close() == std::errc::device_or_resource_busy);
    CHECK(region->lkey() != 0);
    f.sim.release_delivery();
    f.run();
    CHECK(operation.done());
    operation = f.write_from(*region); // nothing has changed
    f.run();
    CHECK(operation.done());
    f.sim.fail("ibv_dereg_mr", {.error = EBUSY});
    CHECK(region->close() == std::errc::device_or_resource_busy);
    operation = f.write_from(*region);
    f.run();
    CHECK(operation.done());
    CHECK(region->close() == std::error_code());
    CHECK(region->bytes().empty());
}

TEST_CASE("Regions: a shared handle keeps the region registered", "[rdma]") {
    RegionUsesFixture f;
    std::optional<MemoryRegion> region = f.make_region();
    std::shared_ptr<ibv_mr> handle = region->shared_handle();
    const Operation operation = f.write_from(*region);
    f.run();
    region.reset();
    CHECK(f.deregistered() == 0);
    handle.reset();
    CHECK(f.deregistered() == 1);
}

TEST_CASE("Regions: each router that uses a region keeps it for its own requests", "[rdma]") {
    RegionUsesFixture f;
    std::optional<MemoryRegion> region = f.make_region();
    ManualNotifier notifier;
    std::optional<Router> other(std::in_place, AsyncCq(CompletionQueue(f.context, 64), notifier));
    std::optional<AsyncQp> qp(std::in_place, *other, f.domain);
    qp->queue_pair().init();
    const Operation receive = qp->recv(region->slice(8, 8));
    f.sim.hold_delivery();
    const Operation write = f.write_from(*region);
    region.reset();
    f.sim.release_delivery();
    f.run();
    CHECK(write.done());
    CHECK(f.deregistered() == 0);
    qp.reset();
    CHECK(f.deregistered() == 1);
    other.reset();

    // A region outlives routers that have used it.
    region = f.make_region();
    for (int i = 0; i < 3; ++i) {
        Router temporary(AsyncCq(CompletionQueue(f.context, 64), notifier));
        AsyncQp receiver(temporary, f.domain);
        receiver.queue_pair().init();
        (void)receiver.recv(region->slice(8, 8));
    }
    region.reset();
    CHECK(f.deregistered() == 2);
}

TEST_CASE("Regions: many, of which few exist at a time", "[rdma]") {
    RegionUsesFixture f;
    std::optional<MemoryRegion> previous;
    for (int i = 0; i < 1000; ++i) {
        std::optional<MemoryRegion> region = f.make_region();
        const Operation first = f.write_from(*region);
        f.sim.hold_delivery();
        const Operation second = f.write_from(*region);
        if (i % 2 == 0) previous = std::move(region);
        region.reset();
        f.sim.release_delivery();
        f.run();
    }
    previous.reset();
    CHECK(f.deregistered() == 1000);
}

TEST_CASE("Regions: many at the same time", "[rdma]") {
    constexpr int count = 300;
    RegionUsesFixture f;
    const auto use_regions = [&] {
        const Counters before = counters();
        std::vector<std::optional<MemoryRegion>> regions;
        for (int i = 0; i < count; ++i) {
            regions.push_back(f.make_region());
            const Operation written = f.write_from(*regions.back());
            f.run();
            CHECK(written.done());
        }
        f.sim.hold_delivery();
        std::vector<Operation> operations;
        for (auto& region : regions) operations.push_back(f.write_from(*region));
        const int deregistered = f.deregistered();
        regions.clear();
        CHECK(f.deregistered() == deregistered);
        f.sim.release_delivery();
        f.run();
        for (int i = 0; i < 100; ++i) f.run();
        return (counters() - before).allocations;
    };
    const std::size_t first = use_regions();
    CHECK(f.deregistered() == count);
    std::size_t least = first;
    for (int i = 0; i < 10; ++i) least = std::min(least, use_regions());
    CHECK(f.deregistered() == 11 * count);
    CHECK(least + count <= first); // the router uses its records of destroyed regions again
}

// --- several threads ---

namespace {

// A router on a thread of its own, whose queue pair is connected to itself.
class Core {
public:
    Core(const Context& context, const ProtectionDomain& domain)
        : router_(Router::create(context, 32, executor_)), qp_(router_, domain) {
        qp_.queue_pair().init({.access = all_access});
        qp_.queue_pair().connect(qp_.queue_pair().local_address());
        thread_ = std::thread([this] { executor_.run(work()); });
    }
    Core(const Core&) = delete;
    Core& operator=(const Core&) = delete;
    ~Core() { thread_.join(); }

    /// Starts writes of `slice` to `remote`, or, if it is empty, ends the thread.
    void start(const Slice& slice, const RemoteSlice& remote = {}) {
        slice_ = slice;
        remote_ = remote;
        posted_.store(false);
        started_.store(true);
        started_.notify_one();
    }
    void wait_until_posted() const { posted_.wait(false); }

private:
    Task<> work() {
        for (;;) {
            started_.wait(false);
            started_.store(false);
            if (slice_.length == 0) co_return;
            Operation first = qp_.write(slice_, remote_);
            Operation second = qp_.write(slice_, remote_);
            posted_.store(true);
            posted_.notify_one();
            co_await first;
            co_await second;
        }
    }

    EpollExecutor executor_;
    Router router_;
    AsyncQp qp_;
    Slice slice_;
    RemoteSlice remote_;
    std::atomic<bool> started_{false};
    std::atomic<bool> posted_{false};
    std::thread thread_;
};

} // namespace

TEST_CASE("Regions: destroyed by another thread while two routers use it", "[rdma][stress]") {
    constexpr int rounds = 2000;
    simulated::SimulatedVerbs sim;
    const Context context = Context::open();
    const ProtectionDomain domain(context);
    const MemoryRegion target = MemoryRegion::allocate(domain, 64, all_access);
    const RemoteSlice remote = target.remote_slice().slice(0, 8);
    {
        Core cores[] = {Core(context, domain), Core(context, domain)};
        for (int i = 0; i < rounds; ++i) {
            const MemoryRegion source = MemoryRegion::allocate(domain, 64, all_access);
            for (Core& core : cores) core.start(source.slice(0, 8), remote);
            for (const Core& core : cores) core.wait_until_posted();
        } // while the writes complete
        for (Core& core : cores) core.start(Slice());
    }
    CHECK(sim.calls("ibv_dereg_mr") == rounds);
}
