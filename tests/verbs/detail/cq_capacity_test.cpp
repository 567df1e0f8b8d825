// SPDX-License-Identifier: MIT
#include <asyncverbs/verbs/detail/cq_capacity.hpp>

#include <atomic>
#include <cstdint>
#include <limits>
#include <thread>
#include <vector>

#include "support/catch.hpp"

using asyncverbs::detail::CqCapacity;

TEST_CASE("capacity is reserved completely or not at all (I10)", "[verbs][cq_capacity][I10]") {
    CqCapacity capacity(10);
    CHECK(capacity.try_reserve(4));
    CHECK_FALSE(capacity.try_reserve(7));
    CHECK(capacity.reserved() == 4);
    CHECK(capacity.try_reserve(6));
    CHECK_FALSE(capacity.try_reserve(1));
    CHECK(capacity.try_reserve(0));
    capacity.release(6);
    CHECK(capacity.reserved() == 4);
    CHECK_FALSE(capacity.try_reserve(std::numeric_limits<std::uint64_t>::max()));
    CHECK(capacity.entries() == 10);
}

TEST_CASE("threads that share a queue never overbook it", "[verbs][cq_capacity][I10]") {
    CqCapacity capacity(3);
    std::atomic<int> holders = 0;
    std::atomic<bool> overbooked = false;
    const auto reserve_and_release = [&] {
        for (int i = 0; i < 10000; ++i) {
            if (capacity.try_reserve(1)) {
                if (holders.fetch_add(1) >= 3) {
                    overbooked = true;
                }
                holders.fetch_sub(1);
                capacity.release(1);
            }
        }
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back(reserve_and_release);
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    CHECK_FALSE(overbooked);
    CHECK(capacity.reserved() == 0);
}
