// SPDX-License-Identifier: MIT
// The example rping with rdma-core's rping, with itself, and with peers that are killed.
#include "support/catch.hpp"
#include "support/process.hpp"

#include "device/programs.hpp"

#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <list>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using asyncverbs::device::await_output;
using asyncverbs::device::await_that;
using asyncverbs::device::can_run_without_descriptors;
using asyncverbs::device::device_address;
using asyncverbs::device::error_of;
using asyncverbs::device::is_iwarp;
using asyncverbs::device::no_server;
using asyncverbs::device::without_ipc_lock;
using asyncverbs::support::contains;
using asyncverbs::support::Process;

namespace {

constexpr const char* their_rping = "rping";

using Arguments = std::vector<std::string>;

Arguments with(const std::string& program, Arguments arguments) {
    arguments.insert(arguments.begin(), program);
    return arguments;
}

// The listener of soft-iWARP is a TCP socket of the kernel.
bool has_tcp_listener(const std::string& port) {
    std::array<char, 8> digits{};
    std::snprintf(digits.data(), digits.size(), ":%04X", std::stoi(port));
    for (const char* const table : {"/proc/net/tcp", "/proc/net/tcp6"}) {
        std::ifstream sockets(table);
        for (std::string line; std::getline(sockets, line);) {
            std::string number, local, remote, state;
            std::istringstream(line) >> number >> local >> remote >> state;
            if (state == "0A" && local.ends_with(digits.data())) return true;
        }
    }
    return false;
}

// A client of rdma-core that soft-iWARP refuses does not always end, so it must not be too early.
void await_listener(Process& server, const std::string& port) {
    if (is_iwarp()) await_that(server, [&] { return has_tcp_listener(port); });
}

// Restarts a client until a server listens: rdma-core's server does not report when it does.
int run_client(const std::string& program, const Arguments& arguments, std::string& output) {
    for (const auto late = std::chrono::steady_clock::now() + std::chrono::seconds(60);;) {
        Process client(with(program, arguments));
        const int status = client.wait();
        output = client.output() + client.error();
        const bool nobody_listens = output.find("nobody listens") != std::string::npos ||
                                    output.find("EVENT_REJECTED, error 8") != std::string::npos ||
                                    output.find("Connection refused") != std::string::npos;
        if (!nobody_listens || std::chrono::steady_clock::now() > late) return status;
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
}

// Before version 61, rdma-core's rping destroys its event channel while another of its threads may
// still read it. It then fails although all pings succeeded.
bool ended_well(int status, const std::string& program, const std::string& output) {
    return status == 0 || (program == their_rping && status == 255 &&
                           output.find("rdma_get_cm_event: ") != std::string::npos);
}

} // namespace

TEST_CASE("rping: either end may be rdma-core's", "[rping][iwarp]") {
    const auto [server_program, client_program] = GENERATE(
        std::pair(RPING, their_rping), std::pair(their_rping, RPING), std::pair(RPING, RPING));
    const std::string size = GENERATE("64", "65535");
    CAPTURE(server_program, client_program, size);
    static int next_port = 7180;
    const std::string port = std::to_string(next_port++);
    // -S sets the buffer size of rdma-core's server.
    Process server(
        with(server_program, {"-s", "-v", "-S", size, "-a", device_address(), "-p", port}));
    await_listener(server, port);
    std::string output;
    const int status = run_client(
        client_program,
        {"-c", "-v", "-V", "-C", "3", "-S", size, "-a", device_address(), "-p", port}, output);
    const int server_status = server.wait();
    INFO(output.substr(0, 1000));
    CAPTURE(status, server_status, server.error());
    CHECK(ended_well(status, client_program, output));
    CHECK(ended_well(server_status, server_program, server.error()));
    for (const char* ping : {"rdma-ping-0: ABCDE", "rdma-ping-1: BCDEF", "rdma-ping-2: CDEFG"}) {
        CHECK_THAT(output, contains(std::string("ping data: ") + ping));
        CHECK_THAT(server.output(), contains(std::string("server ping data: ") + ping));
    }
}

TEST_CASE("rping: one server, several clients, one of which is killed", "[rping][iwarp]") {
    const std::string port = "7190";
    Process server(with(RPING, {"-s", "-P", "-v", "-p", port}));
    std::string output;
    REQUIRE(run_client(RPING, {"-c", "-C", "1", "-a", device_address(), "-p", port}, output) == 0);
    {
        Process killed(with(RPING, {"-c", "-v", "-a", device_address(), "-p", port}));
        await_output(killed, "rdma-ping-5:");
        const int status = run_client(
            their_rping, {"-c", "-V", "-C", "3", "-a", device_address(), "-p", port}, output);
        INFO(output);
        CHECK(ended_well(status, their_rping, output));
        killed.kill();
        CHECK(killed.wait() == 128 + SIGKILL);
    }
    CHECK(run_client(RPING, {"-c", "-V", "-C", "3", "-a", device_address(), "-p", port}, output) ==
          0);
    CHECK(server.is_running());
}

TEST_CASE("rping: a client for which there is no locked memory or descriptor is refused",
          "[rping]") {
    const auto [limit, words, port] = GENERATE(table<std::string, std::string, std::string>(
        {{"--memlock=150000", "limit on locked memory", "7192"},
         {"--nofile=24", "Too many open files", "7193"}}));
    if (limit == "--nofile=24" && !can_run_without_descriptors) return;
    Process server(without_ipc_lock({"prlimit", limit, RPING, "-s", "-P", "-p", port}));
    std::string output;
    REQUIRE(run_client(RPING, {"-c", "-C", "1", "-a", device_address(), "-p", port}, output) == 0);
    const Arguments endless = with(RPING, {"-c", "-v", "-a", device_address(), "-p", port});
    Process first(endless);
    await_output(first, "rdma-ping-5:");
    std::list<Process> others;
    const auto is_refused = [&] {
        if (others.size() < 8) others.emplace_back(endless);
        return server.error().find(words) != std::string::npos;
    };
    await_that(server, is_refused);
    others.clear();
    CHECK(first.is_running());
    const auto is_served = [&] {
        return run_client(RPING, {"-c", "-C", "1", "-a", device_address(), "-p", port}, output) ==
               0;
    };
    await_that(server, is_served);
}

TEST_CASE("rping: the client ends when its server is killed", "[rping][iwarp]") {
    const std::string port = "7191";
    Process server(with(RPING, {"-s", "-P", "-p", port}));
    std::string output;
    REQUIRE(run_client(RPING, {"-c", "-C", "1", "-a", device_address(), "-p", port}, output) == 0);
    Process client(with(RPING, {"-c", "-v", "-a", device_address(), "-p", port}));
    await_output(client, "rdma-ping-5:");
    server.kill();
    CHECK(server.wait() == 128 + SIGKILL);
    CHECK(client.wait() == 1);
    CHECK_THAT(client.error(), contains("error: "));
}

TEST_CASE("rping: errors name their cause", "[rping][iwarp]") {
    CHECK_THAT(error_of({RPING}), contains("[-s,-c] is required"));
    CHECK_THAT(error_of({RPING, "-c"}), contains("-c requires -a"));
    CHECK_THAT(error_of({RPING, "-s", "-S", "26"}), contains("-S: Value 26 not in range"));
    CHECK_THAT(error_of({RPING, "-s", "-Q"}), contains("not expected: -Q; see -h"));
    CHECK_THAT(error_of({RPING, "-c", "-a", device_address(), "-p", "9"}), contains(no_server()));
}
