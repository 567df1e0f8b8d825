// SPDX-License-Identifier: MIT
// AsyncCq::close(): it destroys the CQ, or reports what uses it and can be repeated.
#include <asyncverbs/cq/async_cq.hpp>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/cq/shared_channel.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/memory.hpp>

#include <array>
#include <memory>
#include <optional>
#include <system_error>

#include "cq/fixture.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"

using namespace asyncverbs;
using namespace asyncverbs::support;
using asyncverbs::simulated::SimulatedVerbs;

namespace {

// A queue pair of the program, of which the library does not know.
struct RawQueuePair {
    explicit RawQueuePair(const AsyncCq& cq) : domain(cq.completion_queue().context()) {
        ibv_qp_init_attr attr{};
        attr.send_cq = attr.recv_cq = cq.native_handle();
        attr.qp_type = IBV_QPT_RC;
        native = ibv_create_qp(domain.native_handle(), &attr);
    }
    ProtectionDomain domain;
    ibv_qp* native;
};

// Closes the CQ while its wait loop is resuming this coroutine.
Coroutine close_after_poll(std::optional<AsyncCq>& cq, std::error_code& error) {
    std::array<ibv_wc, 1> wcs{};
    co_await cq->poll(wcs);
    error = cq->close();
}

} // namespace

TEST_CASE("AsyncCq: a raw queue pair that is left is reported, and the CQ can be closed later",
          "[close][I12]") {
    CqFixture f;
    const RawQueuePair raw(*f.cq);
    CHECK(f.cq->close() == std::errc::device_or_resource_busy);
    f.sim.take_problems(); // the simulation takes EBUSY for a mistake of the application

    // Until then it behaves as after a fatal error.
    f.complete({1});
    std::array<ibv_wc, 2> wcs{};
    CHECK(f.cq->try_poll(wcs).size() == 1);
    std::error_code error;
    const Coroutine late = poll_error(*f.cq, error);
    CHECK(error == std::errc::bad_file_descriptor);
    CHECK(f.cq->close() == std::errc::device_or_resource_busy);
    f.sim.take_problems();

    ibv_destroy_qp(raw.native);
    CHECK(f.cq->close() == std::error_code());
    CHECK(f.sim.calls("ibv_destroy_cq") == 3);
    CHECK(f.cq->close() == std::error_code()); // as of one that was moved from
}

TEST_CASE("AsyncCq: close() acks the events and forgets the waiters", "[close][I4]") {
    CqFixture f;
    WrIds got;
    const Coroutine first = poll_once(*f.cq, got);
    f.complete_and_wake({1});
    const Coroutine waiter = poll_once(*f.cq, got);
    CHECK(f.cq->close() == std::error_code());
    CHECK(f.sim.counters(f.native).events_acked == 1);
    f.run_until_idle();
    CHECK(got == WrIds{1});
}

TEST_CASE("AsyncCq: the coroutine that was just resumed closes it", "[close][I8][I12]") {
    SimulatedVerbs sim;
    EpollExecutor executor;
    const Context context = Context::open();
    std::optional<SharedChannel<EpollNotifier>> channel;
    std::optional<AsyncCq> cq;
    const bool shares = GENERATE(false, true);
    if (shares) {
        channel.emplace(context, executor);
        cq = AsyncCq::create(context, 16, *channel);
    } else {
        cq = AsyncCq::create(context, 16, executor);
    }
    std::error_code error = std::make_error_code(std::errc::interrupted);
    const Coroutine coroutine = close_after_poll(cq, error);
    ibv_cq* const native = cq->native_handle();

    SECTION("and nothing uses it") {
        // The channel has forgotten it: a new CQ may get its address before the wait loop ends.
        sim.on_call([&](const simulated::Call& call) {
            if (call.verb != "ibv_destroy_cq" || !shares) return;
            CHECK_NOTHROW(channel->notifier(cq->completion_queue()));
        });
        sim.complete(native, 1);
        executor.run_once();
        sim.on_call(nullptr);
        CHECK(error == std::error_code());
        CHECK(sim.calls("ibv_destroy_cq") == 1);
    }
    SECTION("and a raw queue pair uses it") {
        const RawQueuePair raw(*cq);
        sim.complete(native, 1);
        executor.run_once();
        CHECK(error == std::errc::device_or_resource_busy);
        sim.take_problems();
        ibv_destroy_qp(raw.native);
        CHECK(cq->close() == std::error_code());
    }
}
