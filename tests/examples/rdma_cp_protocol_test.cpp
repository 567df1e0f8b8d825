// SPDX-License-Identifier: MIT
// What the ends of rdma_cp say to each other, and what nobody says.
#include "protocol.hpp"

#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "support/catch.hpp"

using namespace rdma_cp;

namespace {

template <class T>
T passed_on(const T& message) {
    const std::vector<std::byte> bytes = encode(message);
    CHECK(bytes.size() <= max_message);
    return std::get<T>(decode(bytes));
}

std::vector<std::byte> bytes_of(const Message& message) { return encode(message); }

} // namespace

TEST_CASE("rdma_cp: a message is what was sent") {
    const Offer offer = passed_on(Offer{"name", 0x0102030405060708, UINT64_MAX});
    CHECK(offer.name == "name");
    CHECK(offer.size == 0x0102030405060708);
    CHECK(offer.modified == UINT64_MAX);
    const Grant grant = passed_on(Grant{1, 0xfedcba9876543210, 0x80000001});
    CHECK(grant.offset == 1);
    CHECK(grant.address == 0xfedcba9876543210);
    CHECK(grant.rkey == 0x80000001);
    Finish finish{};
    finish.digest[0] = std::byte{1};
    finish.digest[15] = std::byte{255};
    CHECK(passed_on(finish).digest == finish.digest);
    CHECK(passed_on(Refusal{true, "busy"}).for_now);
    CHECK(passed_on(Refusal{false, "full"}).reason == "full");
    passed_on(Credit{});
    passed_on(Done{});
}

TEST_CASE("rdma_cp: the order of bytes is the network's") {
    const std::vector<std::byte> bytes = bytes_of(Grant{1, 2, 3});
    REQUIRE(bytes.size() == 21);
    CHECK(bytes[0] == std::byte{1});
    CHECK(bytes[8] == std::byte{1});
    CHECK(bytes[16] == std::byte{2});
    CHECK(bytes[20] == std::byte{3});
}

TEST_CASE("rdma_cp: a text that is too long is cut where it is sent") {
    CHECK(passed_on(Refusal{false, std::string(1000, 'x')}).reason == std::string(max_text, 'x'));
}

TEST_CASE("rdma_cp: what is no message is refused") {
    const auto refused = [](std::vector<std::byte> bytes, const char* why) {
        try {
            static_cast<void>(decode(bytes));
            FAIL("it was taken for a message");
        } catch (const std::runtime_error& error) {
            CHECK_THAT(error.what(), asyncverbs::support::contains(why));
        }
    };
    refused({}, "too short");
    refused({std::byte{6}}, "unknown type");
    refused({std::byte{255}}, "unknown type");
    for (const Message& message :
         {Message(Offer{"", 1, 2}), Message(Grant{1, 2, 3}), Message(Finish{})}) {
        std::vector<std::byte> bytes = bytes_of(message);
        while (bytes.size() > 1) {
            bytes.pop_back();
            refused(bytes, "too short");
        }
    }
    for (const Message& message : {Message(Credit{}), Message(Grant{}), Message(Done{})}) {
        std::vector<std::byte> bytes = bytes_of(message);
        bytes.push_back(std::byte{0});
        refused(bytes, "too long");
    }
    std::vector<std::byte> offer = bytes_of(Offer{std::string(max_text, 'x'), 1, 2});
    offer.push_back(std::byte{'x'});
    refused(offer, "too long");
    refused(bytes_of(Offer{"name\x1b[2J", 1, 2}), "control characters");
    refused(bytes_of(Refusal{false, "two\nlines"}), "control characters");
    CHECK(passed_on(Offer{"n\xc3\xa4me", 1, 2}).name == "n\xc3\xa4me");
}
