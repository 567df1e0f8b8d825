// SPDX-License-Identifier: MIT
// The messages of rdma_cp, and bytes that are not a message.
#include "protocol.hpp"

#include <cstddef>
#include <string>
#include <vector>

#include "support/catch.hpp"

using namespace rdma_cp;
using asyncverbs::support::contains;

namespace {

Message passed_on(const Message& message) {
    const std::vector<std::byte> bytes = encode(message);
    CHECK(bytes.size() <= max_message);
    return decode(bytes);
}

void check_rejected(const std::vector<std::byte>& bytes, const char* why) {
    CHECK_THROWS_WITH(decode(bytes), contains(why));
}

} // namespace

TEST_CASE("rdma_cp: decoding an encoded message gives the same message") {
    Message message(Type::grant, 0x0102030405060708, "n\xc3\xa4me");
    message.address = 0xfedcba9876543210;
    message.rkey = 0x80000001;
    message.digest[0] = std::byte{1};
    message.digest[15] = std::byte{255};
    const Message same = passed_on(message);
    CHECK(same.type == Type::grant);
    CHECK(same.number == message.number);
    CHECK(same.address == message.address);
    CHECK(same.rkey == message.rkey);
    CHECK(same.digest == message.digest);
    CHECK(same.text == message.text);
    CHECK(passed_on(Message(Type::refusal)).type == Type::refusal);
}

TEST_CASE("rdma_cp: a long text is cut between characters") {
    CHECK(passed_on(Message(Type::refusal, 0, std::string(5000, 'x'))).text ==
          std::string(max_text, 'x'));
    std::string text;
    while (text.size() < 5000) text += "\xe6\x97\xa5";
    CHECK(passed_on(Message(Type::refusal, 0, text)).text == text.substr(0, max_text / 3 * 3));
}

TEST_CASE("rdma_cp: numbers are sent in network byte order") {
    const std::vector<std::byte> bytes = encode(Message(Type::start, 2));
    REQUIRE(bytes.size() == 37);
    CHECK(bytes[0] == std::byte{2}); // the type
    CHECK(bytes[8] == std::byte{2});
}

TEST_CASE("rdma_cp: bytes that are not a message are rejected") {
    std::vector<std::byte> bytes = encode(Message(Type::offer, 1, std::string(max_text, 'x')));
    bytes.push_back(std::byte{'x'});
    check_rejected(bytes, "too long");
    bytes.resize(36);
    check_rejected(bytes, "too short");
    check_rejected({}, "too short");
    bytes.resize(37);
    bytes[0] = std::byte{8};
    check_rejected(bytes, "unknown type");
}

TEST_CASE("rdma_cp: a text that a terminal would obey is rejected") {
    for (const char* text : {"name\x1b[2J", "two\nlines", "\x7f",
                             "c1\xc2\x9b"
                             "1m",
                             "raw\x9b"
                             "1m",
                             "\xe0\x82\x9b", "cut\xe6\x97"}) {
        CAPTURE(text);
        check_rejected(encode(Message(Type::offer, 1, text)), "control characters");
    }
    for (const char* text :
         {"n\xc3\xa4me", "n\xe4me", "\xe6\x97\xa5", "\xf0\x9f\x98\x80", "\xc2\xa0"}) {
        CAPTURE(text);
        CHECK(passed_on(Message(Type::offer, 1, text)).text == text);
    }
}
