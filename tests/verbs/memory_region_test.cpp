// SPDX-License-Identifier: MIT
#include <asyncverbs/verbs/memory.hpp>

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <limits>
#include <memory>
#include <optional>
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

namespace {

std::size_t page_size() { return static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)); }

bool is_mapped(const std::byte* page) {
    const auto address = reinterpret_cast<std::uintptr_t>(page);
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        std::size_t end = 0;
        const std::uintptr_t from = std::stoull(line, &end, 16);
        const std::uintptr_t to = std::stoull(line.substr(end + 1), nullptr, 16);
        if (from <= address && address < to) return true;
    }
    return false;
}

std::size_t mapped_bytes() {
    std::size_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    return pages * page_size();
}

} // namespace

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

    std::shared_ptr<ibv_mr> handle =
        MemoryRegion(ProtectionDomain(Context::open("sim0")), memory).shared_handle();
    CHECK(verbs.calls("ibv_dereg_mr") == 1);
    handle.reset();
    CHECK(verbs.live_objects() == 0);
}

TEST_CASE("a slice keeps its region registered", "[verbs][memory_region]") {
    SimulatedVerbs verbs;
    std::array<std::byte, 64> memory{};
    Slice part;
    {
        const MemoryRegion region(ProtectionDomain(Context::open("sim0")), memory);
        part = region.slice(16).slice(8, 8);
    }
    CHECK(verbs.calls("ibv_dereg_mr") == 0);
    part = Slice();
    CHECK(verbs.calls("ibv_dereg_mr") == 1);
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
    CHECK(failure_text(std::errc::not_enough_memory, [&] {
              MemoryRegion region(domain, memory);
          }) == "ibv_reg_mr: Cannot allocate memory");
    CHECK(failure_text(std::errc::invalid_argument, [&] {
              MemoryRegion region(domain, memory, IBV_ACCESS_REMOTE_WRITE);
          }) == "ibv_reg_mr: Invalid argument");
}

TEST_CASE("access may be relaxed ordering too", "[verbs][memory_region]") {
    SimulatedVerbs verbs;
    std::array<std::byte, 64> memory{};
    // Optional access flags go by another function of libibverbs.
    volatile int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_RELAXED_ORDERING;
    const MemoryRegion region(ProtectionDomain(Context::open("sim0")), memory, access);
    CHECK(region.bytes().size() == 64);
}

TEST_CASE("a memory region may own its memory", "[verbs][memory_region]") {
    SimulatedVerbs verbs;
    const ProtectionDomain domain(Context::open("sim0"));
    std::optional<MemoryRegion> region =
        MemoryRegion::allocate(domain, 5000, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ);
    const std::span<std::byte> bytes = region->bytes();
    CHECK(bytes.size() == 5000);
    CHECK(reinterpret_cast<std::uintptr_t>(bytes.data()) % page_size() == 0);
    CHECK(std::ranges::all_of(bytes, [](std::byte byte) { return byte == std::byte{0}; }));
    std::ranges::fill(bytes, std::byte{1});

    // Freed, but not before the device has let go of it.
    bool mapped_after_dereg = false;
    verbs.on_call([&](const simulated::Call& call) {
        if (call.verb == "ibv_dereg_mr" && call.moment == simulated::Call::Moment::after) {
            mapped_after_dereg = is_mapped(bytes.data());
        }
    });
    std::shared_ptr<ibv_mr> handle = region->shared_handle();
    region.reset();
    CHECK(is_mapped(bytes.data()));
    CHECK(verbs.calls("ibv_dereg_mr") == 0);
    handle.reset();
    CHECK(mapped_after_dereg);
    CHECK_FALSE(is_mapped(bytes.data()));
    verbs.on_call(nullptr);
}

TEST_CASE("memory that cannot be registered is freed", "[verbs][memory_region]") {
    SimulatedVerbs verbs;
    ProtectionDomain domain(Context::open("sim0"));
    constexpr std::size_t size = 64 << 20;
    const std::size_t before = mapped_bytes();
    verbs.fail("ibv_reg_mr", {.error = ENOMEM});
    CHECK(failure_text(std::errc::not_enough_memory, [&] {
              (void)MemoryRegion::allocate(domain, size);
          }) == "ibv_reg_mr: Cannot allocate memory");
    CHECK(mapped_bytes() < before + size);
    const ProtectionDomain taken(std::move(domain));
    CHECK_THAT(failure_text(std::errc::invalid_argument,
                            [&] { (void)MemoryRegion::allocate(domain, size); }),
               contains("this ProtectionDomain was moved from"));
    CHECK(mapped_bytes() < before + size);
}

TEST_CASE("memory that is not there is reported", "[verbs][memory_region]") {
    SimulatedVerbs verbs;
    const ProtectionDomain domain(Context::open("sim0"));
    CHECK(failure_text(std::errc::invalid_argument, [&] {
              (void)MemoryRegion::allocate(domain, 0);
          }) == "mmap: Invalid argument");
    // ENOMEM, but valgrind says EINVAL.
    CHECK_THROWS_WITH(
        (void)MemoryRegion::allocate(domain, std::numeric_limits<std::size_t>::max() / 2),
        contains("mmap: "));
    CHECK(verbs.calls("ibv_reg_mr") == 0);
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
