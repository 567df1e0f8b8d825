// SPDX-License-Identifier: MIT
#include <asyncverbs/verbs/gid.hpp>

#include "support/catch.hpp"
#include "support/simulated_verbs.hpp"

using namespace asyncverbs;
using simulated::ipv4_gid;
using simulated::link_local_gid;

TEST_CASE("a GID reads like an IPv6 address", "[verbs][gid_text]") {
    CHECK(gid_text(ipv4_gid(10, 7, 0, 1)) == "::ffff:10.7.0.1");
    CHECK(gid_text(link_local_gid(1)) == "fe80::ff:fe00:1");
    CHECK(gid_text(ibv_gid{}) == "::");
}

TEST_CASE("a GID of zeros is empty", "[verbs][gid_text]") {
    CHECK(is_empty_gid(ibv_gid{}));
    for (auto& byte : {0, 7, 15}) {
        ibv_gid gid{};
        gid.raw[byte] = 1;
        CHECK_FALSE(is_empty_gid(gid));
    }
}

TEST_CASE("a GID may hold an IPv4 address", "[verbs][gid_text]") {
    CHECK(is_ipv4_mapped_gid(ipv4_gid(10, 7, 0, 1)));
    CHECK_FALSE(is_ipv4_mapped_gid(link_local_gid(1)));
    CHECK_FALSE(is_ipv4_mapped_gid(ibv_gid{}));
    ibv_gid almost = ipv4_gid(10, 7, 0, 1);
    almost.raw[0] = 1;
    CHECK_FALSE(is_ipv4_mapped_gid(almost));
    almost = ipv4_gid(10, 7, 0, 1);
    almost.raw[11] = 0;
    CHECK_FALSE(is_ipv4_mapped_gid(almost));
}
