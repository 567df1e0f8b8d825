// SPDX-License-Identifier: MIT
#include <asyncverbs/verbs/queue_pair_options.hpp>

#include "support/catch.hpp"
#include "support/simulated_verbs.hpp"

using namespace asyncverbs;

TEST_CASE("queue pair addresses compare by all they hold", "[verbs][queue_pair_address]") {
    const QueuePairAddress address{1, 2, 3, simulated::ipv4_gid(10, 7, 0, 1)};
    CHECK(address == address);
    CHECK(QueuePairAddress{} == QueuePairAddress{});
    CHECK_FALSE(address == QueuePairAddress{2, 2, 3, address.gid});
    CHECK_FALSE(address == QueuePairAddress{1, 3, 3, address.gid});
    CHECK_FALSE(address == QueuePairAddress{1, 2, 2, address.gid});
    CHECK_FALSE(address == QueuePairAddress{1, 2, 3, simulated::ipv4_gid(10, 7, 0, 2)});
}
