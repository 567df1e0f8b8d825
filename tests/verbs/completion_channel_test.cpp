// SPDX-License-Identifier: MIT
#include <asyncverbs/verbs/completion_queue.hpp>

#include <cerrno>
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

static_assert(!std::is_copy_constructible_v<CompletionChannel>);
static_assert(std::is_nothrow_move_constructible_v<CompletionChannel>);

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

TEST_CASE("a channel that cannot be had names the verb", "[verbs][completion_channel]") {
    SimulatedVerbs verbs;
    const Context context = Context::open("sim0");
    verbs.fail("ibv_create_comp_channel", {.error = EMFILE});
    CHECK(failure_text(std::errc::too_many_files_open, [&] { CompletionChannel one(context); }) ==
          "ibv_create_comp_channel: Too many open files");
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
