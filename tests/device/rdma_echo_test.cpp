// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/process.hpp"

#include "device/programs.hpp"

#include <csignal>
#include <cstddef>
#include <string>
#include <string_view>

using asyncverbs::device::await_output;
using asyncverbs::device::await_that;
using asyncverbs::device::can_run_without_descriptors;
using asyncverbs::device::device_address;
using asyncverbs::device::error_of;
using asyncverbs::device::no_server;
using asyncverbs::device::without_ipc_lock;
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

TEST_CASE("rdma_echo: a client that is killed does not disturb the others", "[rdma_echo][iwarp]") {
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

TEST_CASE("rdma_echo: a server prints what is in flight", "[rdma_echo][iwarp]") {
    Process server({RDMA_ECHO, "--port=7477"});
    await_output(server, "listening");
    server.signal(SIGUSR1);
    await_output(server, "0 requests in flight");
    Process client({RDMA_ECHO, "--port=7477", "--count=1000000", device_address()});
    await_output(server, "connected");
    client.signal(SIGSTOP); // from now on the server waits for its next message
    for (std::size_t i = 1; i <= 2; ++i) {
        server.signal(SIGUSR1);
        await_that(server, [&] { return count(server.output(), ": receive, since ") >= i; });
    }
    CHECK(server.is_running());
}

TEST_CASE("rdma_echo: a client for which there is no descriptor is refused", "[rdma_echo]") {
    if constexpr (!can_run_without_descriptors) {
        WARN("skipped: the sanitizers need descriptors");
        return;
    }
    Process server({"prlimit", "--nofile=24", RDMA_ECHO, "--port=7474"});
    await_output(server, "listening");
    Process first({RDMA_ECHO, "--port=7474", "--count=1000000", device_address()});
    await_output(server, "connected");
    CHECK_THAT(error_of({RDMA_ECHO, "--port=7474", "--connections=30", device_address()}),
               contains("rejected") || contains("timed out"));
    INFO(server.output() << server.error());
    CHECK_THAT(server.error(), contains("Too many open files"));
    CHECK(first.is_running());
    Process next({RDMA_ECHO, "--port=7474", "--count=5", device_address()});
    CHECK(next.wait() == 0);
    CHECK(server.is_running());
}

TEST_CASE("rdma_echo: a client for which there is no locked memory is refused", "[rdma_echo]") {
    Process server(without_ipc_lock({"prlimit", "--memlock=1000000", RDMA_ECHO, "--port=7476"}));
    await_output(server, "listening");
    Process first({RDMA_ECHO, "--port=7476", "--count=1000000", device_address()});
    await_output(server, "connected");
    CHECK_THAT(error_of({RDMA_ECHO, "--port=7476", "--size=1000000", device_address()}),
               contains("rejected"));
    CHECK_THAT(server.error(), contains("limit on locked memory"));
    CHECK(first.is_running());
    Process next({RDMA_ECHO, "--port=7476", "--count=5", device_address()});
    CHECK(next.wait() == 0);
    CHECK(server.is_running());
}

TEST_CASE("rdma_echo: errors name their cause", "[rdma_echo][iwarp]") {
    Process server({RDMA_ECHO, "--port=7475"});
    await_output(server, "listening");
    CHECK_THAT(error_of({RDMA_ECHO, "--port=7475"}), contains("Address already in use"));
    CHECK_THAT(error_of({RDMA_ECHO, "--size=0", "host"}),
               contains("error: --size: Value 0 not in range"));
    CHECK_THAT(error_of({RDMA_ECHO, "a", "b"}), contains("not expected: b; see --help"));
    CHECK_THAT(error_of({RDMA_ECHO, ""}), contains("HOST: must not be empty"));
    CHECK_THAT(error_of({RDMA_ECHO, "--port=9", device_address()}), contains(no_server()));
}
