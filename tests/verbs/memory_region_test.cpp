// SPDX-License-Identifier: MIT
#include <asyncverbs/verbs/memory_region.hpp>

#include <array>
#include <cerrno>
#include <cstddef>
#include <span>
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

static_assert(!std::is_copy_constructible_v<MemoryRegion>);
static_assert(std::is_nothrow_move_constructible_v<MemoryRegion>);

TEST_CASE("a memory region names its memory and keys", "[verbs][memory_region]") {
    SimulatedVerbs verbs;
    std::array<std::byte, 64> memory{};
    const ProtectionDomain domain(Context::open("sim0"));
    const MemoryRegion region(domain, memory);
    CHECK(region.bytes().data() == memory.data());
    CHECK(region.bytes().size() == 64);
    CHECK(region.lkey() == region.native_handle()->lkey);
    CHECK(region.rkey() == region.native_handle()->rkey);
    CHECK(region.lkey() != region.rkey());
    CHECK(region.native_handle()->pd == domain.native_handle());

    const Slice part = region.slice(16, 32);
    CHECK(part.address == memory.data() + 16);
    CHECK(part.length == 32);
    CHECK(part.lkey == region.lkey());
    CHECK(region.slice().length == 64);
    CHECK(region.slice(60).length == 4);
}

TEST_CASE("a slice outside the region is reported", "[verbs][memory_region]") {
    SimulatedVerbs verbs;
    std::array<std::byte, 64> memory{};
    const MemoryRegion region(ProtectionDomain(Context::open("sim0")), memory);
    CHECK_THAT(failure_text(std::errc::invalid_argument, [&] { (void)region.slice(60, 5); }),
               contains("length 5 at offset 60 is outside its region of size 64"));
    CHECK_THAT(failure_text(std::errc::invalid_argument, [&] { (void)region.slice(65); }),
               contains("offset 65"));
}

TEST_CASE("a memory region keeps its domain and device", "[verbs][memory_region]") {
    SimulatedVerbs verbs;
    std::array<std::byte, 64> memory{};
    {
        const MemoryRegion region(ProtectionDomain(Context::open("sim0")), memory);
        CHECK(verbs.calls("ibv_dealloc_pd") == 0);
        CHECK(verbs.calls("ibv_close_device") == 0);
    }
    CHECK(verbs.live_objects() == 0);
}

TEST_CASE("an empty span is no memory region", "[verbs][memory_region]") {
    SimulatedVerbs verbs;
    const ProtectionDomain domain(Context::open("sim0"));
    CHECK_THAT(failure_text(std::errc::invalid_argument,
                            [&] { MemoryRegion region(domain, std::span<std::byte>()); }),
               contains("empty span"));
    CHECK(verbs.calls("ibv_reg_mr") == 0);
}

TEST_CASE("a region that cannot be registered names the verb", "[verbs][memory_region]") {
    SimulatedVerbs verbs;
    std::array<std::byte, 64> memory{};
    const ProtectionDomain domain(Context::open("sim0"));
    verbs.fail("ibv_reg_mr", {.error = ENOMEM});
    CHECK(failure_text(std::errc::not_enough_memory,
                       [&] { MemoryRegion region(domain, memory); }) ==
          "ibv_reg_mr: Cannot allocate memory");
    CHECK(failure_text(std::errc::invalid_argument,
                       [&] { MemoryRegion region(domain, memory, IBV_ACCESS_REMOTE_WRITE); }) ==
          "ibv_reg_mr: Invalid argument");
}

TEST_CASE("access may be relaxed ordering too", "[verbs][memory_region]") {
    SimulatedVerbs verbs;
    std::array<std::byte, 64> memory{};
    // Optional access flags go by another function of libibverbs.
    volatile int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_RELAXED_ORDERING;
    const MemoryRegion region(ProtectionDomain(Context::open("sim0")), memory, access);
    CHECK(region.bytes().size() == 64);
}

TEST_CASE("a moved-from memory region owns nothing", "[verbs][memory_region]") {
    SimulatedVerbs verbs;
    std::array<std::byte, 64> memory{};
    ProtectionDomain domain(Context::open("sim0"));
    MemoryRegion first(domain, memory);
    const MemoryRegion second(std::move(first));
    CHECK(first.native_handle() == nullptr);
    CHECK(first.bytes().empty());
    const auto inert = [&](auto use) {
        CHECK_THAT(failure_text(std::errc::invalid_argument, use),
                   contains("this MemoryRegion was moved from"));
    };
    inert([&] { (void)first.lkey(); });
    inert([&] { (void)first.rkey(); });
    inert([&] { (void)first.slice(); });
    inert([&] { (void)first.slice(0); });
    inert([&] { (void)first.slice(0, 0); });
    CHECK(second.bytes().size() == 64);

    const ProtectionDomain taken(std::move(domain));
    CHECK_THAT(
        failure_text(std::errc::invalid_argument, [&] { MemoryRegion region(domain, memory); }),
        contains("this ProtectionDomain was moved from"));
}
