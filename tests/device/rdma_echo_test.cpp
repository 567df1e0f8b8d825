// SPDX-License-Identifier: MIT
// rdma_echo: one thread serves many clients, and what is wrong is said.
#include "support/catch.hpp"
#include "support/process.hpp"

#include "device/programs.hpp"

#include <chrono>
#include <cstdlib>
#include <string>
#include <string_view>
#include <thread>

using asyncverbs::device::await_output;
using asyncverbs::device::device_address;
using asyncverbs::support::contains;
using asyncverbs::support::Process;

namespace {

std::size_t count(std::string_view text, std::string_view part) {
    std::size_t found = 0;
    for (std::size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++found;
    return found;
}

} // namespace

TEST_CASE("rdma_echo: one thread serves 200 clients", "[rdma_echo]") {
    Process server({RDMA_ECHO, "--port=7472", "--clients=200"});
    await_output(server, "listening on port 7472");
    Process clients(
        {RDMA_ECHO, "--port=7472", "--connections=200", "--count=20", device_address()});
    INFO(server.output() << server.error() << clients.output() << clients.error());
    CHECK(clients.wait() == 0);
    CHECK_THAT(clients.output(), contains("4000 messages of 64 bytes over 200 connections"));
    CHECK(server.wait() == 0);
    CHECK(count(server.output(), "left after 20 messages") == 200);
}

TEST_CASE("rdma_echo: a client that is killed does not disturb the others", "[rdma_echo]") {
    Process server({RDMA_ECHO, "--port=7473", "--clients=2"});
    await_output(server, "listening");
    {
        Process killed({RDMA_ECHO, "--port=7473", "--count=1000000", device_address()});
        await_output(server, "connected");
        killed.kill();
        CHECK(killed.wait() == 128 + SIGKILL);
    }
    Process client({RDMA_ECHO, "--port=7473", "--size=100000", "--count=5", device_address()});
    INFO(server.output() << server.error() << client.output() << client.error());
    CHECK(client.wait() == 0);
    CHECK(server.wait() == 0);
    CHECK(count(server.output(), "connected") == 2);
}

TEST_CASE("rdma_echo: what is wrong is said", "[rdma_echo]") {
    const auto error_of = [](std::vector<std::string> arguments) {
        arguments.insert(arguments.begin(), RDMA_ECHO);
        Process process(std::move(arguments));
        CHECK(process.wait() == 1);
        return process.error();
    };
    CHECK_THAT(error_of({"--size=0", "host"}), contains("--size takes a number from 1 to 1048576"));
    CHECK_THAT(error_of({"a", "b"}), contains("one host at most"));
    CHECK_THAT(error_of({"--nonsense"}), contains("unknown option --nonsense"));
    CHECK_THAT(error_of({"--count"}), contains("--count takes a value"));
    CHECK_THAT(error_of({"--port=9", device_address()}), contains("rejected (nobody listens)"));
}
