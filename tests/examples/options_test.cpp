// SPDX-License-Identifier: MIT
// The command line of rc_pingpong: what ibv_rc_pingpong takes is taken, all else is refused in
// words.
#include "options.hpp"

#include "support/catch.hpp"

#include <string>
#include <vector>

using namespace pingpong;
using asyncverbs::support::contains;

namespace {

Options parse(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "rc_pingpong");
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    return parse_options(static_cast<int>(arguments.size()), argv.data());
}

} // namespace

TEST_CASE("the defaults are those of ibv_rc_pingpong") {
    const Options options = parse({});
    CHECK_FALSE(options.is_client());
    CHECK(options.port == 18515);
    CHECK(options.device.empty());
    CHECK(options.ib_port == 1);
    CHECK(options.size == 4096);
    CHECK(options.mtu == IBV_MTU_1024);
    CHECK(options.rx_depth == 500);
    CHECK(options.iterations == 1000);
    CHECK(options.service_level == 0);
    CHECK_FALSE(options.gid_index.has_value());
    CHECK_FALSE(options.check);
    CHECK_FALSE(options.histogram);
}

TEST_CASE("short and long options mean the same") {
    const std::vector<std::string> shorts{"-p", "1",  "-d",   "rxe0", "-i", "2",  "-s",
                                          "64", "-m", "4096", "-r",   "7",  "-n", "9",
                                          "-l", "15", "-g",   "3",    "-e", "-c", "host"};
    const std::vector<std::string> longs{"host",      "--port=1",  "--ib-dev=rxe0", "--ib-port",
                                         "2",         "--size=64", "--mtu=4096",    "--rx-depth=7",
                                         "--iters=9", "--sl=15",   "--gid-idx=3",   "--events",
                                         "--chk"};
    for (const auto& arguments : {shorts, longs}) {
        const Options options = parse(arguments);
        CHECK(options.host == "host");
        CHECK(options.port == 1);
        CHECK(options.device == "rxe0");
        CHECK(options.ib_port == 2);
        CHECK(options.size == 64);
        CHECK(options.mtu == IBV_MTU_4096);
        CHECK(options.rx_depth == 7);
        CHECK(options.iterations == 9);
        CHECK(options.service_level == 15);
        CHECK(options.gid_index == 3);
        CHECK(options.check);
    }
}

TEST_CASE("numbers may be hexadecimal, as in ibv_rc_pingpong") {
    CHECK(parse({"-s", "0x40"}).size == 64);
    CHECK(parse({"-s", "4294967295"}).size == 4294967295u);
}

TEST_CASE("what ibv_rc_pingpong does not have") {
    CHECK(parse({"--histogram"}).histogram);
    CHECK(parse({"--timeout=0"}).timeout == std::chrono::seconds(0));
    CHECK(parse({"--help"}).help);
    CHECK(parse({"-h"}).help);
}

TEST_CASE("unusable values are refused with option, value and range") {
    struct Case {
        std::vector<std::string> arguments;
        const char* text;
    };
    const Case cases[] = {
        {{"-s", "0"}, "--size takes a number from 1 to 4294967295, not \"0\""},
        {{"-s", "4294967296"}, "not \"4294967296\""},
        {{"-s", "99999999999999999999999"}, "not \"99999999999999999999999\""},
        {{"-s", "-1"}, "not \"-1\""},
        {{"-s", " 1"}, "not \" 1\""},
        {{"-s", "+1"}, "not \"+1\""},
        {{"-s", "1k"}, "not \"1k\""},
        {{"-s", ""}, "--size takes a number"},
        {{"-p", "0"}, "--port takes a number from 1 to 65535"},
        {{"-p", "65536"}, "--port takes a number from 1 to 65535"},
        {{"-i", "0"}, "--ib-port takes a number from 1 to 255"},
        {{"-i", "256"}, "--ib-port takes a number from 1 to 255"},
        {{"-r", "0"}, "--rx-depth takes a number from 1"},
        {{"-n", "0"}, "--iters takes a number from 1"},
        {{"-l", "16"}, "--sl takes a number from 0 to 15"},
        {{"-g", "-1"}, "--gid-idx takes a number from 0 to 255"},
        {{"-g", "256"}, "--gid-idx takes a number from 0 to 255"},
        {{"-m", "1500"}, "--mtu takes 256, 512, 1024, 2048 or 4096, not \"1500\""},
        {{"-d", ""}, "--ib-dev takes a name"},
        {{"--timeout=x"}, "--timeout takes a number"},
        {{"-x"}, "unknown option -x"},
        {{"-o"}, "unknown option -o"},
        {{"-ex"}, "unknown option -x"},
        {{"--nosuch"}, "unknown or ambiguous option --nosuch"},
        {{"--s=1"}, "unknown or ambiguous option --s"},
        {{"--chk=yes"}, "--chk takes no value"},
        {{"-s"}, "--size takes a value"},
        {{"--size"}, "--size takes a value"},
        {{"one", "two"}, "one host at most, not \"one\" and \"two\""},
        {{""}, "the host is empty"},
    };
    for (const Case& each : cases) {
        CAPTURE(each.text);
        CHECK_THROWS_AS(parse(each.arguments), UsageError);
        CHECK_THROWS_WITH(parse(each.arguments), contains(each.text));
    }
}

TEST_CASE("the help names every option") {
    const std::string help = help_text("rc_pingpong");
    for (const char* name :
         {"--port", "--ib-dev", "--ib-port", "--size", "--mtu", "--rx-depth", "--iters", "--sl",
          "--gid-idx", "--events", "--chk", "--histogram", "--timeout", "--help"}) {
        CHECK_THAT(help, contains(name));
    }
}
