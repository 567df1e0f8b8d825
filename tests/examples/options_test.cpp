// SPDX-License-Identifier: MIT
#include "options.hpp"

#include "support/catch.hpp"

#include <string>

using namespace pingpong;
using asyncverbs::support::contains;

namespace {

Options parse(const std::string& command_line) {
    Options options;
    CLI::App app;
    add_options(app, options);
    app.parse(command_line);
    return options;
}

} // namespace

TEST_CASE("rc_pingpong has the options and defaults of ibv_rc_pingpong") {
    const Options defaults = parse("");
    CHECK_FALSE(defaults.is_client());
    CHECK(defaults.port == 18515);
    CHECK(defaults.size == 4096);
    CHECK(defaults.path_mtu() == IBV_MTU_1024);
    CHECK(defaults.rx_depth == 500);
    CHECK(defaults.iterations == 1000);
    const std::string command_line = GENERATE(
        as<std::string>(), "-p 1 -d rxe0 -i 2 -s 0x40 -m 4096 -r 7 -n 9 -l 15 -g 3 -e -c bob",
        "bob --port=1 --ib-dev=rxe0 --ib-port 2 --size=64 --mtu=4096 --rx-depth=7 "
        "--iters=9 --sl=15 --gid-idx=3 --events --chk");
    const Options options = parse(command_line);
    CHECK(options.host == "bob");
    CHECK(options.port == 1);
    CHECK(options.device == "rxe0");
    CHECK(options.ib_port == 2);
    CHECK(options.size == 64);
    CHECK(options.path_mtu() == IBV_MTU_4096);
    CHECK(options.rx_depth == 7);
    CHECK(options.iterations == 9);
    CHECK(options.service_level == 15);
    CHECK(options.gid_index == 3);
    CHECK(options.check);
    CHECK(parse("-c -n 1 -c -n 2").iterations == 2);
}

TEST_CASE("rc_pingpong names the option of a value that it rejects") {
    for (const auto& [arguments, text] : {std::pair{"-s 0", "--size"},
                                          {"-s 4294967296", "--size"},
                                          {"-s -1", "--size"},
                                          {"-p 65536", "--port"},
                                          {"-i 256", "--ib-port"},
                                          {"-r 0", "--rx-depth"},
                                          {"-n 0", "--iters"},
                                          {"-l 16", "--sl"},
                                          {"-g 256", "--gid-idx"},
                                          {"-m 1500", "--mtu"},
                                          {"-d ''", "--ib-dev"},

                                          {"--timeout=x", "--timeout"}}) {
        CAPTURE(arguments);
        CHECK_THROWS_WITH(parse(arguments), contains(text));
    }
}
