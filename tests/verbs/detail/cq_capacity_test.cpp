// SPDX-License-Identifier: MIT
#include <asyncverbs/verbs/detail/cq_capacity.hpp>

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "verbs/failure.hpp"
using asyncverbs::detail::CqCapacity;
using asyncverbs::detail::CqReservation;
using asyncverbs::support::contains;
using asyncverbs::support::failure_text;

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

TEST_CASE("a reservation ends with its object", "[verbs][cq_capacity]") {
    const auto send = std::make_shared<CqCapacity>(10);
    const auto recv = std::make_shared<CqCapacity>(10);
    {
        const CqReservation two(send, 3, recv, 4);
        CHECK(send->reserved() == 3);
        CHECK(recv->reserved() == 4);
        const CqReservation one(send, 3, send, 4);
        CHECK(send->reserved() == 10);
    }
    CHECK(send->reserved() == 0);
    CHECK(recv->reserved() == 0);
}

TEST_CASE("a reservation that does not fit is reported with the numbers", "[verbs][cq_capacity]") {
    const auto send = std::make_shared<CqCapacity>(10);
    const auto recv = std::make_shared<CqCapacity>(5);
    const CqReservation before(send, 3, recv, 0);
    using Account = std::shared_ptr<CqCapacity>;
    const auto text = [](Account first, std::uint64_t sends, Account second, std::uint64_t recvs) {
        return failure_text(std::errc::no_buffer_space,
                            [&] { CqReservation reservation(first, sends, second, recvs); });
    };
    CHECK_THAT(text(send, 8, recv, 1),
               contains("8 send work requests need 8 entries of their completion queue, which has "
                        "10, 3 of them reserved by other queue pairs"));
    CHECK_THAT(text(send, 7, recv, 6),
               contains("6 receive work requests need 6 entries of their completion queue, which "
                        "has 5, 0 of them"));
    CHECK_THAT(text(send, 4, send, 4),
               contains("4 send and 4 receive work requests need 8 entries"));
    // A rejected reservation reserves nothing, in neither queue.
    CHECK(send->reserved() == 3);
    CHECK(recv->reserved() == 0);
}

TEST_CASE("a reservation can be kept permanently", "[verbs][cq_capacity]") {
    const auto send = std::make_shared<CqCapacity>(10);
    const auto recv = std::make_shared<CqCapacity>(10);
    CqReservation(send, 3, recv, 4).keep();
    CHECK(send->reserved() == 3);
    CHECK(recv->reserved() == 4);
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
