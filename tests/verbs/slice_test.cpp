// SPDX-License-Identifier: MIT
#include <asyncverbs/verbs/memory.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

#include "support/catch.hpp"
#include "verbs/failure.hpp"

using namespace asyncverbs;
using support::contains;
using support::failure_text;

static_assert(std::is_nothrow_copy_constructible_v<Slice>);
static_assert(!std::is_aggregate_v<Slice>, "GCC 12 destroys aggregates twice where one awaits");

namespace {

std::array<std::byte, 16> memory{};
const Slice whole{memory.data(), memory.size(), 7};

constexpr std::size_t most = std::numeric_limits<std::size_t>::max();

} // namespace

TEST_CASE("a slice can be cut", "[verbs][slice]") {
    const Slice part = whole.slice(4, 8);
    CHECK(part.address == memory.data() + 4);
    CHECK(part.length == 8);
    CHECK(part.lkey == 7);
    CHECK(part.bytes().data() == memory.data() + 4);
    CHECK(part.bytes().size() == 8);

    const Slice rest = part.slice(3);
    CHECK(rest.address == memory.data() + 7);
    CHECK(rest.length == 5);
}

TEST_CASE("a slice reaches to the end of its region and may be empty", "[verbs][slice]") {
    CHECK(whole.slice(0, 16).length == 16);
    CHECK(whole.slice(0).length == 16);
    CHECK(whole.slice(15, 1).address == memory.data() + 15);
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
    // Sums that wrap around must not look small.
    CHECK_THAT(text(8, most), contains("offset 8"));
    CHECK_THAT(text(most, 8), contains("length 8"));
    CHECK_THAT(text(most, most), contains("outside"));
    CHECK_THAT(failure_text(std::errc::invalid_argument, [] { (void)whole.slice(17); }),
               contains("offset 17"));
}

TEST_CASE("a slice becomes a scatter/gather element", "[verbs][slice]") {
    const ibv_sge sge = whole.slice(4, 8).sge();
    CHECK(sge.addr == reinterpret_cast<std::uintptr_t>(memory.data() + 4));
    CHECK(sge.length == 8);
    CHECK(sge.lkey == 7);
}

TEST_CASE("a slice of 4 GiB does not fit a scatter/gather element", "[verbs][slice]") {
    const std::size_t greatest = std::numeric_limits<std::uint32_t>::max();
    CHECK(Slice{memory.data(), greatest, 7}.sge().length == greatest);
    const Slice huge{memory.data(), greatest + 1, 7};
    CHECK_THAT(failure_text(std::errc::invalid_argument, [&] { (void)huge.sge(); }),
               contains("4294967296 bytes"));
}
