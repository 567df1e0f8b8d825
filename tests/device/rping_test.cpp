// SPDX-License-Identifier: MIT
// The example rping, with rdma-core's at the other end, with itself, and with peers that fail.
#include "support/catch.hpp"
#include "support/process.hpp"

#include "device/programs.hpp"

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

using asyncverbs::device::await_output;
using asyncverbs::device::device_address;
using asyncverbs::support::contains;
using asyncverbs::support::Process;

namespace {

constexpr const char* theirs = "rping";

using Arguments = std::vector<std::string>;

Arguments with(const std::string& program, Arguments arguments) {
    arguments.insert(arguments.begin(), program);
    return arguments;
}

// A client that finds nobody is started again: rdma-core's server does not say when it listens.
int run_client(const std::string& program, const Arguments& arguments, std::string& output) {
    for (const auto late = std::chrono::steady_clock::now() + std::chrono::seconds(60);;) {
        Process client(with(program, arguments));
        const int status = client.wait();
        output = client.output() + client.error();
        const bool nobody_listens = output.find("nobody listens") != std::string::npos ||
                                    output.find("EVENT_REJECTED, error 8") != std::string::npos;
        if (!nobody_listens || std::chrono::steady_clock::now() > late) return status;
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
}

// That of rdma-core destroys, before version 61, the event channel that a thread of its own may
// still read: then it fails although all went well.
bool ended_well(int status, const std::string& program, const std::string& output) {
    return status == 0 || (program == theirs && status == 255 &&
                           output.find("rdma_get_cm_event: ") != std::string::npos);
}

} // namespace

TEST_CASE("rping: either end may be rdma-core's", "[rping]") {
    struct Ends {
        const char* server;
        const char* client;
        const char* port;
    };
    const Ends ends = GENERATE(Ends{RPING, theirs, "7180"}, Ends{theirs, RPING, "7181"},
                               Ends{RPING, RPING, "7182"});
    const std::string size = GENERATE("64", "65535");
    CAPTURE(ends.server, ends.client, size);
    const std::string port = std::to_string(std::stoi(ends.port) + (size == "64" ? 0 : 10));
    // rdma-core's server has a buffer of that size.
    Process server(with(ends.server, {"-s", "-v", "-S", size, "-a", device_address(), "-p", port}));
    std::string output;
    const int status = run_client(
        ends.client, {"-c", "-v", "-V", "-C", "3", "-S", size, "-a", device_address(), "-p", port},
        output);
    const int server_status = server.wait();
    INFO(output.substr(0, 1000));
    CAPTURE(status, server_status, server.error());
    CHECK(ended_well(status, ends.client, output));
    CHECK(ended_well(server_status, ends.server, server.error()));
    for (const char* ping : {"rdma-ping-0: ABCDE", "rdma-ping-1: BCDEF", "rdma-ping-2: CDEFG"}) {
        CHECK_THAT(output, contains(std::string("ping data: ") + ping));
        CHECK_THAT(server.output(), contains(std::string("server ping data: ") + ping));
    }
}

TEST_CASE("rping: one server, several clients, one of which is killed", "[rping]") {
    const std::string port = "7183";
    Process server(with(RPING, {"-s", "-P", "-v", "-p", port}));
    std::string output;
    REQUIRE(run_client(RPING, {"-c", "-C", "1", "-a", device_address(), "-p", port}, output) == 0);
    {
        Process killed(with(RPING, {"-c", "-v", "-a", device_address(), "-p", port}));
        await_output(killed, "rdma-ping-5:");
        const int status =
            run_client(theirs, {"-c", "-V", "-C", "3", "-a", device_address(), "-p", port}, output);
        INFO(output);
        CHECK(ended_well(status, theirs, output));
        killed.kill();
        CHECK(killed.wait() == 128 + SIGKILL);
    }
    CHECK(run_client(RPING, {"-c", "-V", "-C", "3", "-a", device_address(), "-p", port}, output) ==
          0);
    CHECK(server.is_running());
}

TEST_CASE("rping: a server that is killed is missed", "[rping]") {
    const std::string port = "7184";
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

TEST_CASE("rping: what is wrong is said", "[rping]") {
    const auto error_of = [](const Arguments& arguments) {
        Process process(with(RPING, arguments));
        CHECK(process.wait() == 1);
        return process.error();
    };
    CHECK_THAT(error_of({}), contains("one of -c and -s is needed"));
    CHECK_THAT(error_of({"-c", "-s"}), contains("one of -c and -s only"));
    CHECK_THAT(error_of({"-c"}), contains("a client needs the server's address, -a"));
    CHECK_THAT(error_of({"-s", "-S", "26"}), contains("-S takes a number from 27 to 65535"));
    CHECK_THAT(error_of({"-s", "-C", "x"}), contains("-C takes a number from 0"));
    CHECK_THAT(error_of({"-s", "-p"}), contains("-p takes a value"));
    CHECK_THAT(error_of({"-s", "-Q"}), contains("unknown option -Q"));
    CHECK_THAT(error_of({"-s", "more"}), contains("unexpected argument more"));
    CHECK_THAT(error_of({"-c", "-a", device_address(), "-p", "9"}), contains("nobody listens"));
}
