// SPDX-License-Identifier: MIT
// The messages of rdma_cp, and bytes that are not a message.
#include "protocol.hpp"

#include <cstddef>
#include <stdexcept>
#include <string>
#include <variant>
#include <utility>
#include <variant>
#include <vector>

#include "support/catch.hpp"

using namespace rdma_cp;
using asyncverbs::support::contains;

namespace {

template <class T>
T passed_on(const T& message) {
    const std::vector<std::byte> bytes = encode(message);
    CHECK(bytes.size() <= max_message);
    return std::get<T>(decode(bytes));
}

} // namespace

TEST_CASE("rdma_cp: decoding an encoded message gives the same message") {
    const Offer offer = passed_on(Offer{"n\xc3\xa4me", 0x0102030405060708, UINT64_MAX});
    CHECK(offer.name == "n\xc3\xa4me");
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
    CHECK(passed_on(Refusal{false, std::string(1000, 'x')}).reason == std::string(max_text, 'x'));
    const Block block = passed_on(Block{1, 0x00fedcba});
    CHECK(block.slot == 1);
    CHECK(block.length == 0x00fedcba);
    passed_on(Credit{});
    passed_on(Done{});
}

TEST_CASE("rdma_cp: numbers are sent in network byte order") {
    const std::vector<std::byte> bytes = encode(Grant{1, 2, 3});
    REQUIRE(bytes.size() == 21);
    CHECK(bytes[0] == std::byte{1}); // the type
    CHECK(bytes[8] == std::byte{1});
    CHECK(bytes[16] == std::byte{2});
    CHECK(bytes[20] == std::byte{3});
}

TEST_CASE("rdma_cp: bytes that are not a message are rejected") {
    const auto check_rejected = [](const std::vector<std::byte>& bytes, const char* why) {
        CHECK_THROWS_WITH(decode(bytes), contains(why));
    };
    check_rejected({}, "too short");
    check_rejected({std::byte{std::variant_size_v<Message>}}, "unknown type");
    check_rejected({std::byte{255}}, "unknown type");
    for (const Message& message :
         {Message(Offer{"", 1, 2}), Message(Grant{1, 2, 3}), Message(Finish{})}) {
        std::vector<std::byte> bytes = encode(message);
        while (bytes.size() > 1) {
            bytes.pop_back();
            check_rejected(bytes, "too short");
        }
    }
    for (const Message& message : {Message(Credit{}), Message(Grant{}), Message(Done{}),
                                   Message(Offer{std::string(max_text, 'x'), 1, 2})}) {
        std::vector<std::byte> bytes = encode(message);
        bytes.push_back(std::byte{'x'});
        check_rejected(bytes, "too long");
    }
    check_rejected(encode(Offer{"name\x1b[2J", 1, 2}), "control characters");
    check_rejected(encode(Refusal{false, "two\nlines"}), "control characters");
}
