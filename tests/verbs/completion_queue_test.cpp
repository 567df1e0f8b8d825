// SPDX-License-Identifier: MIT
#include <asyncverbs/verbs/completion_queue.hpp>

#include <cerrno>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include <fcntl.h>

#include "support/catch.hpp"
#include "support/simulated_verbs.hpp"
#include "verbs/failure.hpp"

using namespace asyncverbs;
using simulated::SimulatedVerbs;
using support::contains;
using support::failure_text;

static_assert(!std::is_copy_constructible_v<CompletionQueue>);
static_assert(std::is_nothrow_move_constructible_v<CompletionQueue>);
static_assert(std::is_nothrow_move_assignable_v<CompletionQueue>);

TEST_CASE("a completion queue has a channel of its own", "[verbs][completion_queue]") {
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

TEST_CASE("the depth is what the device gave", "[verbs][completion_queue]") {
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

TEST_CASE("a channel of another context is refused", "[verbs][completion_queue]") {
    SimulatedVerbs verbs;
    const Context context = Context::open("sim0");
    const CompletionChannel channel(Context::open("sim0"));
    CHECK_THAT(failure_text(std::errc::invalid_argument,
                            [&] { CompletionQueue cq(context, 16, channel); }),
               contains("channel belongs to another Context"));
    CHECK(verbs.calls("ibv_create_cq") == 0);
}

TEST_CASE("a completion queue that cannot be had names the verb", "[verbs][completion_queue]") {
    SimulatedVerbs verbs;
    const Context context = Context::open("sim0");
    const int objects = verbs.live_objects();
    verbs.fail("ibv_create_cq", {.error = ENOMEM});
    CHECK(failure_text(std::errc::not_enough_memory, [&] { CompletionQueue cq(context, 16); }) ==
          "ibv_create_cq: Cannot allocate memory");
    verbs.fail("ibv_create_cq", {.error = ENOMEM, .sign = simulated::ErrnoSign::negative});
    CHECK(failure_text(std::errc::not_enough_memory, [&] { CompletionQueue cq(context, 16); }) ==
          "ibv_create_cq: Cannot allocate memory");
    CHECK(verbs.live_objects() == objects);
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
