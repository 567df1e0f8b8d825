// SPDX-License-Identifier: MIT
#include <asyncverbs/verbs/memory.hpp>

#include <cerrno>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "support/catch.hpp"
#include "support/simulated_verbs.hpp"
#include "verbs/failure.hpp"

using namespace asyncverbs;
using simulated::SimulatedVerbs;
using support::contains;
using support::failure_text;

static_assert(!std::is_copy_constructible_v<ProtectionDomain>);
static_assert(std::is_nothrow_move_constructible_v<ProtectionDomain>);

TEST_CASE("a protection domain keeps its device open", "[verbs][protection_domain]") {
    SimulatedVerbs verbs;
    {
        const ProtectionDomain domain(Context::open("sim0"));
        CHECK(verbs.calls("ibv_close_device") == 0);
        CHECK(domain.context().name() == "sim0");
        CHECK(domain.native_handle()->context == domain.context().native_handle());
    }
    CHECK(verbs.calls("ibv_dealloc_pd") == 1);
    CHECK(verbs.calls("ibv_close_device") == 1);

    std::shared_ptr<ibv_pd> handle = ProtectionDomain(Context::open("sim0")).shared_handle();
    CHECK(verbs.calls("ibv_dealloc_pd") == 1);
    CHECK(verbs.calls("ibv_close_device") == 1);
    handle.reset();
    CHECK(verbs.live_objects() == 0);
}

TEST_CASE("a protection domain that cannot be had names the verb", "[verbs][protection_domain]") {
    SimulatedVerbs verbs;
    const Context context = Context::open("sim0");
    verbs.fail("ibv_alloc_pd", {.error = ENOMEM});
    CHECK(failure_text(std::errc::not_enough_memory, [&] { ProtectionDomain domain(context); }) ==
          "ibv_alloc_pd: Cannot allocate memory");
}

TEST_CASE("a moved-from protection domain owns nothing", "[verbs][protection_domain]") {
    SimulatedVerbs verbs;
    Context context = Context::open("sim0");
    ProtectionDomain first(context);
    const ProtectionDomain second(std::move(first));
    CHECK(first.native_handle() == nullptr);
    CHECK(first.shared_handle() == nullptr);
    CHECK(second.native_handle() != nullptr);
    const Context taken(std::move(context));
    CHECK_THAT(failure_text(std::errc::invalid_argument, [&] { ProtectionDomain domain(context); }),
               contains("this Context was moved from"));
}
