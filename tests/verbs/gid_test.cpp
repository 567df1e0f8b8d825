// SPDX-License-Identifier: MIT
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/verbs/device.hpp>

#include <cerrno>
#include <vector>

#include "support/catch.hpp"
#include "verbs/failure.hpp"

using namespace asyncverbs;
using simulated::GidEntry;
using simulated::ipv4_gid;
using simulated::link_local_gid;
using simulated::SimulatedVerbs;
using support::contains;
using support::failure_text;

namespace {

const GidEntry none{};
const GidEntry v1_ipv4{ipv4_gid(10, 7, 0, 1), IBV_GID_TYPE_ROCE_V1};
const GidEntry v1_local{link_local_gid(1), IBV_GID_TYPE_ROCE_V1};
const GidEntry v2_ipv4{ipv4_gid(10, 7, 0, 1), IBV_GID_TYPE_ROCE_V2};
const GidEntry v2_local{link_local_gid(1), IBV_GID_TYPE_ROCE_V2};
const GidEntry infiniband{link_local_gid(1), IBV_GID_TYPE_IB};

const GidEntry v2_ipv4_local{ipv4_gid(169, 254, 0, 1), IBV_GID_TYPE_ROCE_V2};
const GidEntry v2_ipv6{ibv_gid{{0xfd, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}},
                       IBV_GID_TYPE_ROCE_V2};

int selected(const std::vector<GidEntry>& gids) {
    SimulatedVerbs verbs;
    verbs.set_gids("sim0", 1, gids);
    return select_gid(Context::open("sim0"), 1);
}

} // namespace

TEST_CASE("a GID is written as an IPv6 address", "[verbs][gid_text]") {
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

TEST_CASE("the preferred GID is RoCE v2 and IPv4-mapped", "[verbs][gid]") {
    CHECK(selected({v1_local, v2_local, v1_ipv4, v2_ipv4}) == 3);
    CHECK(selected({v2_ipv4, v2_local}) == 0);
    CHECK(selected({none, none, v2_local, none, v2_ipv4}) == 4);
}

TEST_CASE("the next choice is any RoCE v2 GID", "[verbs][gid]") {
    CHECK(selected({v1_local, v1_ipv4, v2_local}) == 2);
    CHECK(selected({none, v2_local, v1_ipv4}) == 1);
}

TEST_CASE("a GID that can be routed is preferred to a link-local one", "[verbs][gid]") {
    CHECK(selected({v2_local, v2_ipv6}) == 1);
    CHECK(selected({v2_ipv4_local, v2_ipv4}) == 1);
    CHECK(selected({v2_ipv4_local, v2_local, v2_ipv6}) == 2);
    CHECK(selected({v2_local, v2_ipv4_local}) == 1);
    CHECK(selected({v2_ipv6, v2_ipv4}) == 1);
}

TEST_CASE("RoCE v1 and InfiniBand GIDs are the last choice", "[verbs][gid]") {
    CHECK(selected({none, v1_local}) == 1);
    CHECK(selected({infiniband}) == 0);
}

TEST_CASE("of several GIDs in the same class the first is selected", "[verbs][gid]") {
    CHECK(selected({v1_ipv4, v1_local}) == 0);
    CHECK(selected({v2_local, v2_local}) == 0);
    CHECK(selected({v2_ipv4, v2_ipv4}) == 0);
}

TEST_CASE("a GID beyond the index range of an address vector is not selected", "[verbs][gid]") {
    std::vector<GidEntry> gids(257);
    gids[256] = v2_ipv4;
    gids[255] = v1_local;
    CHECK(selected(gids) == 255);
}

TEST_CASE("a port without a GID is reported", "[verbs][gid]") {
    SimulatedVerbs verbs;
    verbs.set_gids("sim0", 1, {});
    const Context context = Context::open("sim0");
    const std::string text =
        failure_text(std::errc::address_not_available, [&] { (void)select_gid(context, 1); });
    CHECK_THAT(text, contains("port 1 of sim0 has no GID"));
}

TEST_CASE("a GID that cannot be read does not hide the others", "[verbs][gid]") {
    SimulatedVerbs verbs;
    const Context context = Context::open("sim0");
    verbs.fail("ibv_query_gid_ex", {.error = ENODEV, .nth = 2}); // the best one
    CHECK(select_gid(context, 1) == 0);
    CHECK(verbs.failures_injected() == 1);
}

TEST_CASE("a GID table that cannot be read names the verb", "[verbs][gid]") {
    SimulatedVerbs verbs;
    const Context context = Context::open("sim0");
    verbs.fail("ibv_query_gid_ex", {.error = ENODEV, .times = 1000});
    CHECK(failure_text(std::errc::no_such_device, [&] { (void)select_gid(context, 1); }) ==
          "ibv_query_gid_ex: No such device");
}

TEST_CASE("a GID is selected on a port that exists", "[verbs][gid]") {
    SimulatedVerbs verbs;
    const Context context = Context::open("sim0");
    CHECK_THAT(failure_text(std::errc::invalid_argument, [&] { (void)select_gid(context, 2); }),
               contains("port number 2 is out of range for sim0: valid are 1 to 1"));
}
