// SPDX-License-Identifier: MIT
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>

#include <fcntl.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "support/catch.hpp"
#include "verbs/failure.hpp"

using namespace asyncverbs;
using simulated::SimulatedVerbs;
using support::contains;
using support::failure_text;

static_assert(!std::is_copy_constructible_v<CompletionChannel>);
static_assert(std::is_nothrow_move_constructible_v<CompletionChannel>);

static_assert(!std::is_copy_constructible_v<CompletionQueue>);
static_assert(std::is_nothrow_move_constructible_v<CompletionQueue>);
static_assert(std::is_nothrow_move_assignable_v<CompletionQueue>);

TEST_CASE("a completion channel does not block", "[verbs][completion_channel]") {
    SimulatedVerbs verbs;
    const CompletionChannel channel(Context::open("sim0"));
    CHECK(channel.fd() == channel.native_handle()->fd);
    CHECK((fcntl(channel.fd(), F_GETFL) & O_NONBLOCK) != 0);
    ibv_cq* cq = nullptr;
    void* cq_context = nullptr;
    CHECK(ibv_get_cq_event(channel.native_handle(), &cq, &cq_context) == -1);
    CHECK(errno == EAGAIN);
}

TEST_CASE("a completion channel keeps its device open", "[verbs][completion_channel]") {
    SimulatedVerbs verbs;
    {
        const CompletionChannel channel(Context::open("sim0"));
        CHECK(verbs.calls("ibv_close_device") == 0);
    }
    CHECK(verbs.calls("ibv_destroy_comp_channel") == 1);
    CHECK(verbs.live_objects() == 0);
}

TEST_CASE("a moved-from completion channel owns nothing", "[verbs][completion_channel]") {
    SimulatedVerbs verbs;
    Context context = Context::open("sim0");
    CompletionChannel first(context);
    const CompletionChannel second(std::move(first));
    CHECK(first.native_handle() == nullptr);
    CHECK(first.fd() == -1);
    CHECK(second.fd() >= 0);
    const Context taken(std::move(context));
    CHECK_THAT(failure_text(std::errc::invalid_argument, [&] { CompletionChannel one(context); }),
               contains("this Context was moved from"));
}

TEST_CASE("a completion queue has its own channel", "[verbs][completion_queue]") {
    SimulatedVerbs verbs;
    const Context context = Context::open("sim0");
    const CompletionQueue cq(context, 16);
    CHECK(cq.depth() == 16);
    CHECK(cq.reserved() == 0);
    CHECK(cq.channel().native_handle() == cq.native_handle()->channel);
    CHECK((fcntl(cq.channel().fd(), F_GETFL) & O_NONBLOCK) != 0);
    CHECK(cq.context().native_handle() == context.native_handle());
    CHECK(cq.shared_handle().get() == cq.native_handle());
    CHECK(cq.capacity()->entries() == 16);
}

TEST_CASE("the depth is the one that the device granted", "[verbs][completion_queue]") {
    SimulatedVerbs verbs({{.name = "sim0", .provider = {.rounds_up_cqe = true}}});
    const CompletionQueue cq(Context::open("sim0"), 16);
    CHECK(cq.depth() == cq.native_handle()->cqe);
    CHECK(cq.depth() == 31);
    CHECK(cq.capacity()->entries() == 31);
}

TEST_CASE("completion queues can share a channel", "[verbs][completion_queue]") {
    SimulatedVerbs verbs;
    const Context context = Context::open("sim0");
    auto channel = std::make_unique<CompletionChannel>(context);
    const CompletionQueue first(context, 16, *channel);
    const CompletionQueue second(context, 16, *channel);
    CHECK(first.channel().native_handle() == channel->native_handle());
    CHECK(second.channel().native_handle() == channel->native_handle());
    channel.reset();
    CHECK(verbs.calls("ibv_destroy_comp_channel") == 0);
    CHECK(first.channel().fd() >= 0);
}

TEST_CASE("a completion queue keeps channel and device", "[verbs][completion_queue]") {
    SimulatedVerbs verbs;
    {
        std::shared_ptr<ibv_cq> handle;
        {
            const CompletionQueue cq(Context::open("sim0"), 16);
            handle = cq.shared_handle();
        }
        CHECK(verbs.calls("ibv_destroy_cq") == 0);
        CHECK(verbs.calls("ibv_destroy_comp_channel") == 0);
        CHECK(verbs.calls("ibv_close_device") == 0);
    }
    CHECK(verbs.live_objects() == 0);
}

TEST_CASE("a depth out of range is reported with the range", "[verbs][completion_queue]") {
    SimulatedVerbs verbs;
    const Context context = Context::open("sim0");
    const int most = context.query_device().max_cqe;
    for (int depth : {0, -1, most + 1}) {
        CHECK_THAT(
            failure_text(std::errc::invalid_argument, [&] { CompletionQueue cq(context, depth); }),
            contains("completion queue depth " + std::to_string(depth) +
                     " is out of range for sim0: valid are 1 to " + std::to_string(most)));
    }
    CHECK(verbs.calls("ibv_create_cq") == 0);
    CHECK(CompletionQueue(context, 1).depth() == 1);
    CHECK(CompletionQueue(context, most).depth() == most);
}

TEST_CASE("a completion vector out of range is reported", "[verbs][completion_queue]") {
    SimulatedVerbs verbs;
    const Context context = Context::open("sim0");
    context.native_handle()->num_comp_vectors = 2;
    CHECK(CompletionQueue(context, 16, 1).depth() == 16);
    for (int vector : {2, -1}) {
        CHECK_THAT(failure_text(std::errc::invalid_argument,
                                [&] { CompletionQueue cq(context, 16, vector); }),
                   contains("completion vector " + std::to_string(vector) +
                            " is out of range for sim0: valid are 0 to 1"));
    }
}

TEST_CASE("a channel of another context is rejected", "[verbs][completion_queue]") {
    SimulatedVerbs verbs;
    const Context context = Context::open("sim0");
    const CompletionChannel channel(Context::open("sim0"));
    CHECK_THAT(failure_text(std::errc::invalid_argument,
                            [&] { CompletionQueue cq(context, 16, channel); }),
               contains("channel belongs to another Context"));
    CHECK(verbs.calls("ibv_create_cq") == 0);
}

TEST_CASE("a moved-from completion queue owns nothing", "[verbs][completion_queue]") {
    SimulatedVerbs verbs;
    Context context = Context::open("sim0");
    CompletionQueue first(context, 16);
    CompletionQueue second(std::move(first));
    CHECK(first.native_handle() == nullptr);
    CHECK(first.shared_handle() == nullptr);
    CHECK(first.depth() == 0);
    CHECK(first.reserved() == 0);
    CHECK(first.channel().fd() == -1);
    CHECK(first.capacity() == nullptr);
    first = std::move(second);
    CHECK(first.depth() == 16);
    CHECK(second.depth() == 0);
    CompletionChannel channel(context);
    const CompletionChannel taken_channel(std::move(channel));
    CHECK_THAT(failure_text(std::errc::invalid_argument,
                            [&] { CompletionQueue cq(context, 16, channel); }),
               contains("this CompletionChannel was moved from"));
    const Context taken(std::move(context));
    CHECK_THAT(failure_text(std::errc::invalid_argument, [&] { CompletionQueue cq(context, 16); }),
               contains("this Context was moved from"));
}

TEST_CASE("an extended completion queue has its flags", "[verbs][completion_queue]") {
    SimulatedVerbs verbs({{.name = "sim0", .completion_timestamps = true}});
    const Context context = Context::open("sim0");
    CompletionQueue cq =
        CompletionQueue::extended(context, 16, IBV_WC_EX_WITH_COMPLETION_TIMESTAMP);
    CHECK(cq.depth() == 16);
    CHECK(cq.wc_flags() == IBV_WC_EX_WITH_COMPLETION_TIMESTAMP);
    CHECK(ibv_cq_ex_to_cq(cq.extended_handle()) == cq.native_handle());
    const CompletionQueue moved(std::move(cq));
    CHECK(cq.extended_handle() == nullptr);
    CHECK(moved.extended_handle() != nullptr);
    const CompletionQueue shared =
        CompletionQueue::extended(context, 16, 0, moved.channel()); // without timestamps
    CHECK(shared.native_handle()->channel == moved.native_handle()->channel);
    CHECK(shared.wc_flags() == 0);
    const CompletionQueue plain(context, 16);
    CHECK(plain.extended_handle() == nullptr);
    CHECK(plain.wc_flags() == 0);
}

TEST_CASE("a device without timestamps is reported", "[verbs][completion_queue]") {
    SimulatedVerbs verbs;
    const Context context = Context::open("sim0");
    const auto make = [&](std::uint64_t flags) { CompletionQueue::extended(context, 16, flags); };
    CHECK(failure_text(std::errc::operation_not_supported, [&] {
              make(IBV_WC_EX_WITH_COMPLETION_TIMESTAMP);
          }) == "ibv_create_cq_ex: Operation not supported");
    CHECK_NOTHROW(make(0));
    CHECK_THAT(failure_text(std::errc::invalid_argument, [&] { make(IBV_WC_EX_WITH_CVLAN); }),
               contains("no timestamps"));
    CHECK(verbs.calls("ibv_create_cq_ex") == 2);
}

TEST_CASE("the events of a completion queue are moderated", "[verbs][completion_queue]") {
    using std::chrono::microseconds;
    SimulatedVerbs verbs({{.name = "sim0", .cq_moderation = true}, {.name = "sim1"}});
    const CompletionQueue cq(Context::open("sim0"), 16);
    cq.moderate(8, microseconds(65'535));
    CHECK(verbs.moderation(cq.native_handle()).cq_count == 8);
    CHECK(verbs.moderation(cq.native_handle()).cq_period == 65'535);
    cq.moderate(0, microseconds(0));
    CHECK(verbs.moderation(cq.native_handle()).cq_count == 0);
    for (const int period : {-1, 65'536}) {
        CHECK_THAT(failure_text(std::errc::invalid_argument,
                                [&] { cq.moderate(1, microseconds(period)); }),
                   contains("valid are 0 to 65535"));
    }
    verbs.fail("ibv_modify_cq", {.error = EINVAL});
    CHECK(failure_text(std::errc::invalid_argument, [&] { cq.moderate(1, microseconds(1)); }) ==
          "ibv_modify_cq: Invalid argument");
    CompletionQueue elsewhere(Context::open("sim1"), 16);
    CHECK(failure_text(std::errc::operation_not_supported, [&] {
              elsewhere.moderate(1, microseconds(1));
          }) == "ibv_modify_cq: Operation not supported");
    const CompletionQueue moved(std::move(elsewhere));
    CHECK_THAT(
        failure_text(std::errc::invalid_argument, [&] { elsewhere.moderate(1, microseconds(1)); }),
        contains("moved from"));
}
