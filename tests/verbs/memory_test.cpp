// SPDX-License-Identifier: MIT
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/verbs/memory.hpp>

#include <sys/resource.h>
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
#include "verbs/failure.hpp"

using namespace asyncverbs;
using simulated::SimulatedVerbs;
using support::contains;
using support::failure_text;

static_assert(!std::is_copy_constructible_v<ProtectionDomain>);
static_assert(std::is_nothrow_move_constructible_v<ProtectionDomain>);

static_assert(!std::is_copy_constructible_v<MemoryRegion>);
static_assert(std::is_nothrow_move_constructible_v<MemoryRegion>);

static_assert(std::is_trivially_copyable_v<Slice>);
static_assert(!std::is_aggregate_v<Slice>,
              "GCC 12 destroys aggregates twice in expressions that await");

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

std::array<std::byte, 16> sliced{};
const Slice whole{sliced.data(), sliced.size(), 7};

constexpr std::size_t most = std::numeric_limits<std::size_t>::max();

} // namespace

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

TEST_CASE("a slice keeps nothing", "[verbs][memory_region]") {
    SimulatedVerbs verbs;
    std::array<std::byte, 64> memory{};
    Slice part;
    {
        const MemoryRegion region(ProtectionDomain(Context::open("sim0")), memory);
        part = region.slice(16).slice(8, 8);
    }
    CHECK(verbs.calls("ibv_dereg_mr") == 1);
    CHECK(part.bytes().data() == memory.data() + 24); // may still be looked at
}

TEST_CASE("an empty span cannot be registered", "[verbs][memory_region]") {
    SimulatedVerbs verbs;
    const ProtectionDomain domain(Context::open("sim0"));
    CHECK_THAT(failure_text(std::errc::invalid_argument,
                            [&] { MemoryRegion region(domain, std::span<std::byte>()); }),
               contains("empty span"));
    CHECK(verbs.calls("ibv_reg_mr") == 0);
}

TEST_CASE("the access of a region reaches the verb", "[verbs][memory_region]") {
    SimulatedVerbs verbs;
    std::array<std::byte, 64> memory{};
    const ProtectionDomain domain(Context::open("sim0"));
    CHECK(failure_text(std::errc::invalid_argument, [&] {
              MemoryRegion region(domain, memory, IBV_ACCESS_REMOTE_WRITE);
          }) == "ibv_reg_mr: Invalid argument");
}

TEST_CASE("access may include relaxed ordering", "[verbs][memory_region]") {
    SimulatedVerbs verbs;
    std::array<std::byte, 64> memory{};
    // Optional access flags use another function of libibverbs.
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

    // Freed after it was deregistered.
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
          }).starts_with("ibv_reg_mr"));
    CHECK(mapped_bytes() < before + size);
    const ProtectionDomain taken(std::move(domain));
    CHECK_THAT(failure_text(std::errc::invalid_argument,
                            [&] { (void)MemoryRegion::allocate(domain, size); }),
               contains("this ProtectionDomain was moved from"));
    CHECK(mapped_bytes() < before + size);
}

TEST_CASE("memory that cannot be allocated is reported", "[verbs][memory_region]") {
    SimulatedVerbs verbs;
    const ProtectionDomain domain(Context::open("sim0"));
    CHECK(failure_text(std::errc::invalid_argument, [&] {
              (void)MemoryRegion::allocate(domain, 0);
          }) == "mmap: Invalid argument");
    // ENOMEM; EINVAL under valgrind.
    CHECK_THROWS_WITH(
        (void)MemoryRegion::allocate(domain, std::numeric_limits<std::size_t>::max() / 2),
        contains("mmap: "));
    CHECK(verbs.calls("ibv_reg_mr") == 0);
}

TEST_CASE("a region of a dma-buf has the addresses that the caller chooses",
          "[verbs][memory_region]") {
    SimulatedVerbs verbs({simulated::DeviceOptions{.dmabuf = true}});
    const Context context = Context::open();
    const ProtectionDomain domain(context);
    std::array<std::byte, 64> memory{};
    const auto iova = reinterpret_cast<std::uintptr_t>(memory.data());
    {
        const MemoryRegion region = MemoryRegion::dmabuf(domain, 0, 4096, 64, iova);
        CHECK(region.slice().address == memory.data());
        CHECK(region.slice().length == 64);
        CHECK(region.remote_slice().address == iova);
        CHECK(region.remote_slice().rkey == region.native_handle()->rkey);
    }
    CHECK(verbs.calls("ibv_dereg_mr") == 1);
    CHECK(support::failure_of([&] { (void)MemoryRegion::dmabuf(domain, 0, 0, 0, iova); }).code() ==
          std::errc::invalid_argument);
}

TEST_CASE("a device without dma-bufs", "[verbs][memory_region]") {
    SimulatedVerbs verbs;
    const ProtectionDomain domain(Context::open());
    CHECK_THAT(failure_text(std::errc::operation_not_supported,
                            [&] { (void)MemoryRegion::dmabuf(domain, 0, 0, 64, 4096); }),
               contains("ibv_reg_dmabuf_mr"));
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

TEST_CASE("a slice of a slice", "[verbs][slice]") {
    const Slice part = whole.slice(4, 8);
    CHECK(part.address == sliced.data() + 4);
    CHECK(part.length == 8);
    CHECK(part.lkey == 7);
    CHECK(part.bytes().data() == sliced.data() + 4);
    CHECK(part.bytes().size() == 8);

    const Slice rest = part.slice(3);
    CHECK(rest.address == sliced.data() + 7);
    CHECK(rest.length == 5);
}

TEST_CASE("a slice reaches to the end of its region and may be empty", "[verbs][slice]") {
    CHECK(whole.slice(0, 16).length == 16);
    CHECK(whole.slice(0).length == 16);
    CHECK(whole.slice(15, 1).address == sliced.data() + 15);
    CHECK(whole.slice(16, 0).length == 0);
    CHECK(whole.slice(16).length == 0);
    CHECK(Slice{}.slice(0, 0).length == 0);
}

TEST_CASE("a slice outside its region is reported with the numbers", "[verbs][slice]") {
    const auto text = [](std::size_t offset, std::size_t length) {
        return failure_text(std::errc::invalid_argument,
                            [&] { (void)whole.slice(offset, length); });
    };
    CHECK_THAT(text(10, 7),
               contains("a slice of length 7 at offset 10 is outside its region of size 16"));
    CHECK_THAT(text(17, 0), contains("length 0 at offset 17"));
    CHECK_THAT(text(0, 17), contains("length 17 at offset 0"));
    // Sums that overflow.
    CHECK_THAT(text(8, most), contains("offset 8"));
    CHECK_THAT(text(most, 8), contains("length 8"));
    CHECK_THAT(text(most, most), contains("outside"));
    CHECK_THAT(failure_text(std::errc::invalid_argument, [] { (void)whole.slice(17); }),
               contains("offset 17"));
}

TEST_CASE("a slice becomes a scatter/gather element", "[verbs][slice]") {
    const ibv_sge sge = whole.slice(4, 8).sge();
    CHECK(sge.addr == reinterpret_cast<std::uintptr_t>(sliced.data() + 4));
    CHECK(sge.length == 8);
    CHECK(sge.lkey == 7);
}

TEST_CASE("a slice of 4 GiB does not fit a scatter/gather element", "[verbs][slice]") {
    const std::size_t greatest = std::numeric_limits<std::uint32_t>::max();
    CHECK(Slice{sliced.data(), greatest, 7}.sge().length == greatest);
    const Slice huge{sliced.data(), greatest + 1, 7};
    CHECK_THAT(failure_text(std::errc::invalid_argument, [&] { (void)huge.sge(); }),
               contains("4294967296 bytes"));
}

TEST_CASE("memory that cannot be registered: the limit on locked memory is named",
          "[verbs][memory]") {
    SimulatedVerbs verbs;
    const ProtectionDomain domain(Context::open("sim0"));
    const int error = GENERATE(ENOMEM, EPERM, EINVAL);
    const bool limited = GENERATE(true, false);
    rlimit old{};
    REQUIRE(::getrlimit(RLIMIT_MEMLOCK, &old) == 0);
    const rlimit limit{limited ? 64 * 1024 : RLIM_INFINITY, old.rlim_max};
    if (::setrlimit(RLIMIT_MEMLOCK, &limit) != 0) return; // only root may raise it
    verbs.fail("ibv_reg_mr", {.error = error});
    std::string text;
    try {
        const MemoryRegion region = MemoryRegion::allocate(domain, 64);
    } catch (const std::system_error& failure) {
        text = failure.what();
    }
    ::setrlimit(RLIMIT_MEMLOCK, &old);
    CHECK(contains("the limit on locked memory is 64 kB; raise it with ulimit -l").match(text) ==
          (limited && error != EINVAL));
}
