// SPDX-License-Identifier: MIT
// rc_pingpong with itself and with libibverbs' ibv_rc_pingpong at either end, with peers that are
// killed or violate the protocol, and with invalid options.
#include "support/catch.hpp"
#include "support/process.hpp"

#include "device/programs.hpp"

#include <netinet/in.h>
#include <pty.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <regex>
#include <string>
#include <utility>
#include <vector>

using asyncverbs::device::await_output;
using asyncverbs::device::await_that;
using asyncverbs::support::contains;
using asyncverbs::support::Process;

namespace {

using Arguments = std::vector<std::string>;

const std::string ours = RC_PINGPONG;
const std::string theirs = "ibv_rc_pingpong";

std::string environment(const char* name, const char* otherwise) {
    const char* value = std::getenv(name);
    return value != nullptr ? value : otherwise;
}

const std::string device_name = environment("RDMA_DEVICE", "rxe0");
const std::string gid_index_option = environment("RDMA_GID_INDEX", "1");
const std::string ib_port = environment("RDMA_PORT", "1");

Arguments command(const std::string& program, const Arguments& more) {
    Arguments all{program, "-d", device_name, "-i", ib_port, "-g", gid_index_option, "-e"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
}

Arguments with(Arguments arguments, const std::string& last) {
    arguments.push_back(last);
    return arguments;
}

bool is_listening() {
    const std::regex listening(":4853 [0-9A-F]+:0000 0A"); // 18515, state LISTEN
    for (const char* name : {"/proc/net/tcp", "/proc/net/tcp6"}) {
        std::ifstream file(name);
        for (std::string line; std::getline(file, line);) {
            if (std::regex_search(line, listening)) return true;
        }
    }
    return false;
}

void await_listener(Process& server) { await_that(server, is_listening); }

struct Outcome {
    int status;
    std::string output;
    std::string error;
};

Outcome outcome_of(Process& process) {
    const int status = process.wait();
    return {status, process.output(), process.error()};
}

Outcome run(const Arguments& arguments) {
    Process process(arguments);
    return outcome_of(process);
}

struct Outcomes {
    Outcome server;
    Outcome client;
};

Outcomes play(const Arguments& server_command, const Arguments& client_command) {
    Process server(server_command);
    await_listener(server);
    const Outcome client = run(with(client_command, "localhost"));
    return {outcome_of(server), client};
}

void check_lines(const std::string& output, int size, int iterations) {
    const std::string end = "LID 0x[0-9a-f]{4}, QPN 0x[0-9a-f]{6}, PSN 0x[0-9a-f]{6}, GID \\S+\n";
    const std::regex lines(
        "  local address:  " + end + "  remote address: " + end +
        std::to_string(2ll * size * iterations) + " bytes in [0-9.]+ seconds = [0-9.]+ Mbit/sec\n" +
        std::to_string(iterations) + " iters in [0-9.]+ seconds = [0-9.]+ usec/iter\n[^]*");
    INFO(output);
    CHECK(std::regex_match(output, lines));
}

void check_success(const Outcome& end) {
    INFO(end.output << end.error);
    CHECK(end.status == 0);
    CHECK(end.error.empty()); // no progress line: standard error is not a terminal
    CHECK(end.output.find("invalid") == std::string::npos);
}

void check_failure(const Outcome& end, const std::string& text) {
    INFO(end.output << end.error);
    CHECK(end.status == 1);
    CHECK(end.error.starts_with("error: "));
    CHECK_THAT(end.error, contains(text));
}

} // namespace

TEST_CASE("rc_pingpong works with itself and with ibv_rc_pingpong at either end") {
    for (const int size : {1, 64, 4096, 10'000}) {
        for (const auto& [server, client] :
             {std::pair{ours, ours}, {ours, theirs}, {theirs, ours}}) {
            CAPTURE(size, server, client);
            const Arguments options{"-c", "-n", "30", "-s", std::to_string(size)};
            const Outcomes ends = play(command(server, options), command(client, options));
            check_success(ends.server);
            check_success(ends.client);
            check_lines(ends.server.output, size, 30);
            check_lines(ends.client.output, size, 30);
        }
    }
}

TEST_CASE("rc_pingpong works with few receives, many receives, and another MTU") {
    for (const Arguments& options :
         {Arguments{"-r", "1"}, {"-r", "2"}, {"-r", "3"}, {"-r", "16000"}, {"-m", "4096"}}) {
        CAPTURE(options);
        const Arguments all = command(ours, with(with(options, "-n"), "40"));
        const Outcomes ends = play(all, all);
        check_success(ends.server);
        check_success(ends.client);
    }
}

TEST_CASE("rc_pingpong --chk reports a client that sends other data") {
    for (const std::string& client : {ours, theirs}) {
        CAPTURE(client);
        const Outcomes ends = play(command(ours, {"-c", "-n", "5"}), command(client, {"-n", "5"}));
        check_failure(ends.server, "invalid data in page 0: byte 0 is 123 instead of 0");
        check_success(ends.client);
    }
}

TEST_CASE("rc_pingpong --histogram draws all round trips and the statistics") {
    const Arguments options = command(ours, {"--histogram", "-n", "50"});
    const Outcomes ends = play(options, options);
    // The first message that the server receives is not a reply, so it counts one less.
    for (const auto& [end, round_trips] : {std::pair{ends.server, 49}, {ends.client, 50}}) {
        check_success(end);
        CHECK_THAT(end.output, contains("Round-trip times:") && contains("p99.9 ") &&
                                   contains("#") && contains("AsyncCq statistics:"));
        const std::regex row(" up to +[0-9.]+ +[a-z]+ +([0-9]+) +[0-9.]+ %");
        int total = 0;
        for (std::sregex_iterator it(end.output.begin(), end.output.end(), row), last; it != last;
             ++it) {
            total += std::stoi((*it)[1]);
        }
        CHECK(total == round_trips);
    }
}

TEST_CASE("rc_pingpong names the cause when the two ends disagree") {
    const Outcomes too_long = play(command(ours, {"-s", "100"}), command(ours, {"-s", "200"}));
    check_failure(too_long.server, "receive (wr_id 1) failed after 0 of 1000 iters");
    check_failure(too_long.client, "failed after 0 of 1000 iters");
    const Outcomes too_short = play(command(ours, {"-s", "200"}), command(ours, {"-s", "100"}));
    check_failure(too_short.server, "the peer sent a message of 100 bytes, not 200");
    CHECK(too_short.client.status == 1);
    const Outcomes too_few =
        play(command(ours, {"-n", "20", "--timeout=2"}), command(ours, {"-n", "10"}));
    check_success(too_few.client);
    CHECK(too_few.server.status == 1);
}

TEST_CASE("rc_pingpong ends when its peer is killed") {
    const Arguments options = command(ours, {"-n", "100000000", "--timeout=2"});
    for (const bool kill_server : {false, true}) {
        CAPTURE(kill_server);
        Process server(options);
        await_listener(server);
        Process client(with(options, "localhost"));
        await_output(server, "remote address");
        await_output(client, "remote address");
        Process& victim = kill_server ? server : client;
        Process& survivor = kill_server ? client : server;
        victim.kill();
        victim.wait();
        check_failure(outcome_of(survivor), "");
        CHECK_THAT(survivor.error(),
                   contains("failed after") || contains("has been silent for 2 s"));
    }
}

TEST_CASE("rc_pingpong ends when its peer violates the protocol") {
    Process server(command(ours, {}));
    await_listener(server);
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(18515);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    const std::string text = "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: somebody\r\n\r\n";
    REQUIRE(::send(fd, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()));
    check_failure(outcome_of(server), "malformed handshake: the peer sent \"GET / HTTP/1.1..Host");
    ::close(fd);
}

TEST_CASE("rc_pingpong rejects invalid options and names the valid ones") {
    const std::string port_name = "port " + ib_port + " of " + device_name;
    check_failure(run({ours, "-d", "nosuch"}), "no RDMA device is named \"nosuch\"; there are: ");
    check_failure(run({ours, "-d", device_name, "-i", "99"}), "port number 99 is out of range for");
    check_failure(run(command(ours, {"-g", "254"})), "GID index 254 of " + port_name);
    check_failure(run(command(ours, {"-s", "0"})), "--size: Value 0 not in range");
    check_failure(run(command(ours, {"-s", "4294967295"})), port_name + " takes at most");
    check_failure(run(command(ours, {"-r", "1000000000"})), device_name + " takes at most");
    check_failure(run(command(ours, {"--nosuch"})), "not expected: --nosuch; see --help");
    check_failure(run(command(ours, {""})), "HOST: must not be empty");
    check_failure(run(command(ours, {"localhost"})), "TCP port 18515: Connection refused");
    check_failure(run(command(ours, {"no such host"})), "cannot find the host \"no such host\"");

    Process server(command(ours, {}));
    await_listener(server);
    check_failure(run(command(ours, {})), "TCP port 18515 is in use");

    const Outcome help = run({ours, "--help"});
    check_success(help);
    CHECK_THAT(help.output, contains("--histogram"));
}

TEST_CASE("rc_pingpong shows its progress on a terminal, and erases it") {
    int terminal = -1;
    int end = -1;
    REQUIRE(::openpty(&terminal, &end, nullptr, nullptr, nullptr) == 0);
    const Arguments options = command(ours, {"-n", "4000000000", "--timeout=2"});
    Process server(options);
    await_listener(server);
    Process client(with(options, "localhost"), end);
    ::close(end);
    std::string shown;
    char c;
    while (!shown.ends_with(" left\033[K") && ::read(terminal, &c, 1) == 1) shown += c;
    CHECK(std::regex_match(
        shown,
        std::regex("\r[0-9]+ of 4000000000 iters, [0-9.]+ usec/iter, [0-9]+ s left\033\\[K")));
    server.kill();
    CHECK(client.wait() == 1);
    while (::read(terminal, &c, 1) == 1) shown += c;
    ::close(terminal);
    INFO(shown);
    CHECK_THAT(shown, contains("\r\033[Kerror: "));
    CHECK(shown.find('\n') == shown.size() - 1); // the error's
}
