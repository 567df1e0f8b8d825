// SPDX-License-Identifier: MIT
#include <asyncverbs/cq/cq_poller.hpp>

#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/device.hpp>

#include <fcntl.h>
#include <poll.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "support/counters.hpp"

using namespace asyncverbs;
using namespace asyncverbs::simulated;
using namespace std::chrono_literals;
using asyncverbs::support::contains;

namespace {

bool readable(int fd) {
    pollfd entry{fd, POLLIN, 0};
    return ::poll(&entry, 1, 0) == 1;
}

struct CqPollerFixture {
    explicit CqPollerFixture(const ProviderModel& provider = rxe, unsigned ack_batch = 16)
        : sim(provider), context(Context::open()), poller(CompletionQueue(context, 8), ack_batch),
          cq(poller.completion_queue().native_handle()) {}
    explicit CqPollerFixture(const AsyncCqOptions& options)
        : context(Context::open()), poller(CompletionQueue(context, 8), options),
          cq(poller.completion_queue().native_handle()) {}

    void complete(std::uint64_t wr_id) { sim.complete(cq, wr_id); }
    std::size_t poll_or_arm() { return poller.poll_or_arm(wcs); }

    SimulatedVerbs sim;
    Context context;
    CqPoller poller;
    ibv_cq* cq;
    std::array<ibv_wc, 4> wcs{};
};

} // namespace

TEST_CASE("CqPoller: a completion between the poll and the arm is found by the second poll (I1)",
          "[field-1][I1]") {
    const auto model = GENERATE(ArmModel::flag, ArmModel::index);
    CqPollerFixture f(ProviderModel{.arm_model = model});
    bool once = true;
    f.sim.on_call([&](const Call& call) {
        if (call.verb == "ibv_req_notify_cq" && call.moment == Call::Moment::before && once) {
            once = false;
            f.complete(7);
        }
    });
    REQUIRE(f.poll_or_arm() == 1);
    CHECK(f.wcs[0].wr_id == 7);
    CHECK_FALSE(f.poller.may_wait());
    f.sim.on_call(nullptr);
}

TEST_CASE("CqPoller: an outstanding arm is not repeated", "[I1]") {
    CqPollerFixture f;
    REQUIRE(f.poll_or_arm() == 0);
    REQUIRE(f.poll_or_arm() == 0);
    CHECK(f.poller.may_wait());
    CHECK(f.poller.statistics().arms == 1);
    CHECK(f.poller.statistics().polls == 3);
}

TEST_CASE("CqPoller: an armed CQ makes its fd readable; consuming the event disarms it") {
    CqPollerFixture f;
    REQUIRE(f.poll_or_arm() == 0);
    CHECK_FALSE(readable(f.poller.fd()));
    f.complete(1);
    REQUIRE(readable(f.poller.fd()));
    REQUIRE(f.poller.consume());
    CHECK_FALSE(f.poller.may_wait());
    CHECK_FALSE(readable(f.poller.fd()));
    REQUIRE(f.poll_or_arm() == 1);
    REQUIRE(f.poll_or_arm() == 0);
    CHECK(f.poller.statistics().arms == 2);
    CHECK(f.poller.statistics().events == 1);
}

TEST_CASE("CqPoller: a wake without an event is spurious, and nothing is acked for it (I2, I4)",
          "[field-14][field-26][I2][I4]") {
    CqPollerFixture f;
    REQUIRE(f.poll_or_arm() == 0);
    f.sim.push_false_readiness(f.poller.completion_queue().channel().native_handle());
    CHECK_FALSE(f.poller.consume());
    CHECK(f.poller.statistics().wakes == 1);
    CHECK(f.poller.statistics().events == 0);
    CHECK(f.poll_or_arm() == 0);
    CHECK(f.poller.statistics().arms == 1); // still armed
}

TEST_CASE("CqPoller: EINTR is retried", "[field-15][I5]") {
    CqPollerFixture f;
    REQUIRE(f.poll_or_arm() == 0);
    f.complete(1);
    f.sim.fail("ibv_get_cq_event", {.error = EINTR, .times = 3});
    CHECK(f.poller.consume());
}

TEST_CASE("CqPoller: a channel handed over in blocking mode does not block", "[field-16][I3]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    CompletionQueue cq(context, 8);
    const int fd = cq.channel().fd();
    REQUIRE(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK) == 0);
    CqPoller poller(std::move(cq));
    CHECK_FALSE(poller.consume());
}

TEST_CASE("CqPoller: events are acked in batches and the rest at the end (I4)", "[field-25][I4]") {
    std::optional<CqPollerFixture> f(std::in_place, rxe, 3u);
    for (int i = 0; i < 5; ++i) {
        REQUIRE(f->poll_or_arm() == 0);
        f->complete(1);
        REQUIRE(f->poller.consume());
        REQUIRE(f->poll_or_arm() == 1);
    }
    CHECK(f->sim.counters(f->cq).events_acked == 3);
    CHECK(f->poller.statistics().acks == 3);
    f.reset(); // the simulation fails the test if anything stays unacked
}

TEST_CASE("CqPoller: an event that was queued but never read is not acked (I4)", "[field-30][I4]") {
    CqPollerFixture f;
    REQUIRE(f.poll_or_arm() == 0);
    f.complete(1);
    CHECK(f.sim.queued_events(f.poller.completion_queue().channel().native_handle()) == 1);
}

TEST_CASE("CqPoller: the event counts may wrap", "[field-28][I4]") {
    CqPollerFixture f(rxe, 2);
    f.sim.start_event_counts_at(f.cq, 0xfffffffeu);
    for (int i = 0; i < 5; ++i) {
        REQUIRE(f.poll_or_arm() == 0);
        f.complete(1);
        REQUIRE(f.poller.consume());
        REQUIRE(f.poll_or_arm() == 1);
    }
}

TEST_CASE(
    "CqPoller: an event is credited to the CQ that it names, and the next one is read (I3, I4)",
    "[field-18][field-27][I3][I4]") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    const CompletionChannel channel(context);
    const CompletionQueue other(context, 8, channel);
    CqPoller poller(CompletionQueue(context, 8, channel));
    std::array<ibv_wc, 4> wcs{};
    REQUIRE(poller.poll_or_arm(wcs) == 0);
    sim.push_events(other.native_handle(), 2);
    sim.complete(poller.completion_queue().native_handle(), 1);
    CHECK(poller.consume());
    CHECK(sim.counters(other.native_handle()).events_acked == 2);
    CHECK(poller.statistics().events == 1);
    CHECK(poller.poll_or_arm(wcs) == 1);
}

TEST_CASE("CqPoller: stale events cannot hide a completion", "[field-6][I2][I3]") {
    const auto model = GENERATE(ArmModel::flag, ArmModel::index);
    CqPollerFixture f(ProviderModel{.arm_model = model});
    REQUIRE(f.poll_or_arm() == 0);
    f.sim.push_events(f.cq, 3);
    for (int i = 0; i < 4; ++i) {
        REQUIRE(f.poller.consume() == (i < 3));
        REQUIRE(f.poll_or_arm() == 0);
    }
    f.complete(9);
    CHECK(readable(f.poller.fd()));
    CHECK(f.poller.consume());
    CHECK(f.poll_or_arm() == 1);
}

TEST_CASE("CqPoller: a dropped event is found by arming again", "[I3]") {
    CqPollerFixture f;
    REQUIRE(f.poll_or_arm() == 0);
    f.sim.drop_events(f.cq);
    f.complete(1);
    CHECK_FALSE(readable(f.poller.fd()));
    REQUIRE(f.poll_or_arm() == 1);
    f.poller.forget_arm();
    REQUIRE(f.poll_or_arm() == 0);
    CHECK(f.poller.statistics().arms == 2);
    f.complete(2);
    CHECK(readable(f.poller.fd()));
}

TEST_CASE("CqPoller: every failing verb is named, in either sign (I5)", "[field-7][field-50][I5]") {
    const auto sign =
        GENERATE(ErrnoSign::usual, ErrnoSign::positive, ErrnoSign::negative, ErrnoSign::minus_one);
    CqPollerFixture f;
    SECTION("arm") {
        f.sim.fail("ibv_req_notify_cq", {.error = ENOMEM, .sign = sign});
        CHECK_THROWS_WITH(f.poll_or_arm(), "ibv_req_notify_cq: Cannot allocate memory");
        CHECK_FALSE(f.poller.may_wait());
    }
    SECTION("poll, whose result is not an errno") {
        f.sim.fail("ibv_poll_cq", {.error = ENOMEM, .sign = sign});
        CHECK_THROWS_WITH(f.poll_or_arm(), "ibv_poll_cq: Input/output error");
    }
    SECTION("get event") {
        REQUIRE(f.poll_or_arm() == 0);
        f.complete(1);
        f.sim.fail("ibv_get_cq_event", {.error = EIO, .sign = sign});
        CHECK_THROWS_WITH(f.poller.consume(), "ibv_get_cq_event: Input/output error");
        CHECK(f.poller.consume());
    }
}

TEST_CASE("CqPoller: bad input") {
    SimulatedVerbs sim;
    const Context context = Context::open();
    CHECK_THROWS_WITH(CqPoller(CompletionQueue(context, 8), 0),
                      contains("ack_batch must be at least 1"));
    CHECK_THROWS_WITH(
        CqPoller(CompletionQueue(context, 8), AsyncCqOptions{.busy_poll = {.limit = -1ns}}),
        contains("busy_poll.limit"));
    CqPoller poller(CompletionQueue(context, 8));
    CHECK_THROWS_WITH(poller.poll_or_arm({}), contains("span for completions is empty"));
    CompletionQueue moved_from(context, 8);
    const CompletionQueue moved_to = std::move(moved_from);
    CHECK_THROWS_WITH(CqPoller(std::move(moved_from)), contains("moved from"));
}

TEST_CASE("CqPoller: consume() waits if the channel was made blocking") {
    CqPollerFixture f;
    REQUIRE(::fcntl(f.poller.fd(), F_SETFL, 0) == 0);
    REQUIRE(f.poll_or_arm() == 0);
    std::thread device([&] { f.complete(1); });
    CHECK(f.poller.consume());
    CHECK(f.poll_or_arm() == 1);
    device.join();
}

// --- spin, then sleep ---

TEST_CASE("CqPoller: busy polling finds a completion without arming") {
    const bool yield = GENERATE(false, true);
    CqPollerFixture f(AsyncCqOptions{.busy_poll = {.limit = 1h, .yield = yield}});
    const auto before = support::counters();
    int polls = 0;
    f.sim.on_call([&](const Call& call) {
        const bool polled = call.verb == "ibv_poll_cq" && call.moment == Call::Moment::after;
        if (polled && ++polls == 10) f.complete(1);
    });
    CHECK(f.poll_or_arm() == 1);
    CHECK(f.poller.statistics().polls == 11);
    CHECK(f.poller.statistics().busy_polls == 10);
    CHECK(f.poller.statistics().completions == 1);
    CHECK(f.poller.statistics().arms == 0);
    CHECK((support::counters() - before).sched_yield == (yield ? 10 : 0));
}

TEST_CASE("CqPoller: after busy polling the CQ is armed and polled once more (I1)", "[I1]") {
    CqPollerFixture f(AsyncCqOptions{.busy_poll = {.limit = 100us}});
    CHECK(f.poll_or_arm() == 0);
    CHECK(f.poller.may_wait());
    CHECK(f.sim.armed(f.cq));
    CHECK(f.poller.statistics().busy_polls > 0);
    CHECK(f.poller.statistics().polls == f.poller.statistics().busy_polls + 2);
    const auto before = f.poller.statistics().busy_polls;
    CHECK(f.poll_or_arm() == 0); // armed already
    CHECK(f.poller.statistics().busy_polls == before);
    CHECK(f.poller.statistics().arms == 1);
}

TEST_CASE("CqPoller: adaptive busy polling begins when sleeps are short") {
    CqPollerFixture f(AsyncCqOptions{.busy_poll = {.limit = 1h, .adaptive = true}});
    CHECK(f.poll_or_arm() == 0);
    CHECK(f.poller.statistics().busy_polls == 0);
    f.complete(1);
    CHECK(f.poller.consume()); // within the hour
    CHECK(f.poll_or_arm() == 1);
    bool completed = false;
    f.sim.on_call([&](const Call& call) {
        if (call.verb == "ibv_poll_cq" && f.poller.statistics().busy_polls == 5 && !completed) {
            completed = true;
            f.complete(2);
        }
    });
    CHECK(f.poll_or_arm() == 1);
    CHECK(f.poller.statistics().busy_polls >= 5);
    CHECK(f.poller.statistics().arms == 1);
}

TEST_CASE("CqPoller: an idle CQ is polled for shorter and shorter times, also with bounded waits") {
    CqPollerFixture f(AsyncCqOptions{.busy_poll = {.limit = 20ms, .adaptive = true}});
    // On a busy machine the first sleeps may take longer than the limit.
    for (int i = 0; i < 1000 && f.poller.statistics().busy_polls == 0; ++i) {
        CHECK(f.poll_or_arm() == 0);
        f.complete(1);
        CHECK(f.poller.consume());
        CHECK(f.poll_or_arm() == 1);
    }
    REQUIRE(f.poller.statistics().busy_polls > 0);
    for (int i = 0; i < 10; ++i) { // as max_wait does
        f.poller.forget_arm();
        CHECK(f.poll_or_arm() == 0);
    }
    const auto before = f.poller.statistics().busy_polls;
    f.poller.forget_arm();
    CHECK(f.poll_or_arm() == 0);
    CHECK(f.poller.statistics().busy_polls == before);
}

// --- solicited completions ---

TEST_CASE("CqPoller: with an arm for solicited completions, others do not wake", "[field-9]") {
    CqPollerFixture f(AsyncCqOptions{.solicited_only = true});
    CHECK(f.poll_or_arm() == 0);
    f.complete(1);
    CHECK_FALSE(readable(f.poller.fd()));
    ibv_wc wc{};
    wc.wr_id = 2;
    f.sim.push(f.cq, wc, true);
    CHECK(readable(f.poller.fd()));
    CHECK(f.poller.consume());
    CHECK(f.poll_or_arm() == 2); // together with the one before
    CHECK(f.poll_or_arm() == 0);
    f.sim.complete(f.cq, 3, IBV_WC_WR_FLUSH_ERR);
    CHECK(readable(f.poller.fd())); // an error wakes, too
}

// --- extended completion queues ---

namespace {

struct Extended {
    Extended()
        : sim({DeviceOptions{.name = "sim0", .completion_timestamps = true}}),
          context(Context::open()) {}
    CompletionQueue queue(std::uint64_t flags) {
        return CompletionQueue::extended(context, 8, flags);
    }
    SimulatedVerbs sim;
    Context context;
    std::array<ibv_wc, 4> wcs{};
    std::array<std::uint64_t, 4> timestamps{};
};

ibv_wc receive(std::uint64_t wr_id) {
    ibv_wc wc{};
    wc.wr_id = wr_id;
    wc.opcode = IBV_WC_RECV;
    wc.byte_len = 99;
    wc.imm_data = 0x01020304;
    wc.qp_num = 17;
    wc.src_qp = 18;
    wc.wc_flags = IBV_WC_WITH_IMM | IBV_WC_GRH;
    wc.slid = 5;
    wc.sl = 6;
    wc.dlid_path_bits = 7;
    return wc;
}

} // namespace

TEST_CASE("CqPoller: an extended CQ gives the fields of ibv_poll_cq, and timestamps") {
    Extended f;
    const bool wall_clock = GENERATE(false, true);
    CqPoller poller(f.queue(wall_clock ? IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK
                                       : IBV_WC_EX_WITH_COMPLETION_TIMESTAMP));
    ibv_cq* const cq = poller.completion_queue().native_handle();
    for (std::uint64_t id = 1; id <= 5; ++id) f.sim.push(cq, receive(id));
    REQUIRE(poller.poll_or_arm(f.wcs, f.timestamps.data()) == 4);
    const std::uint64_t unit = wall_clock ? 1'000'000 : 1;
    for (std::size_t i = 0; i < 4; ++i) {
        const ibv_wc& wc = f.wcs[i];
        CHECK(wc.wr_id == i + 1);
        CHECK(wc.status == IBV_WC_SUCCESS);
        CHECK(wc.opcode == IBV_WC_RECV);
        CHECK(wc.byte_len == 99);
        CHECK(wc.imm_data == 0x01020304);
        CHECK(wc.qp_num == 17);
        CHECK(wc.src_qp == 18);
        CHECK(wc.wc_flags == (IBV_WC_WITH_IMM | IBV_WC_GRH));
        CHECK(wc.slid == 5);
        CHECK(wc.sl == 6);
        CHECK(wc.dlid_path_bits == 7);
        CHECK(f.timestamps[i] == (1001 + i) * unit);
    }
    CHECK(poller.poll_or_arm(f.wcs) == 1); // without timestamps
    CHECK(f.wcs[0].wr_id == 5);
    CHECK(poller.poll_or_arm(f.wcs) == 0);
    CHECK(f.sim.armed(cq));
    CHECK(f.sim.calls("ibv_poll_cq") == 0);
}

TEST_CASE("CqPoller: only the valid fields of an error completion are read from an extended CQ",
          "[I11][field-51]") {
    Extended f;
    CqPoller poller(f.queue(IBV_WC_EX_WITH_COMPLETION_TIMESTAMP));
    f.sim.complete(poller.completion_queue().native_handle(), 3, IBV_WC_RETRY_EXC_ERR, 17);
    f.timestamps[0] = 1;
    REQUIRE(poller.poll_or_arm(f.wcs, f.timestamps.data()) == 1);
    CHECK(f.wcs[0].wr_id == 3);
    CHECK(f.wcs[0].status == IBV_WC_RETRY_EXC_ERR);
    CHECK(f.wcs[0].qp_num == 17);
    CHECK(f.wcs[0].byte_len == 0);
    CHECK(f.timestamps[0] == 0);
}

TEST_CASE("CqPoller: errors of polling an extended CQ", "[I5][I7]") {
    Extended f;
    CqPoller poller(f.queue(0));
    ibv_cq* const cq = poller.completion_queue().native_handle();
    f.sim.fail("ibv_start_poll", {.error = EIO});
    CHECK_THROWS_WITH(poller.poll(f.wcs), "ibv_start_poll: Input/output error");
    f.sim.complete(cq, 1);
    f.sim.complete(cq, 2);
    f.sim.fail("ibv_next_poll", {.error = EIO});
    CHECK(poller.poll(f.wcs) == 1); // it has left the CQ
    CHECK(poller.poll(f.wcs) == 1);
    CHECK(f.wcs[0].wr_id == 2);
}
