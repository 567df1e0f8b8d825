// SPDX-License-Identifier: MIT
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/verbs/device.hpp>

#include <cerrno>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "verbs/failure.hpp"
#include "verbs/fixture.hpp"

using namespace asyncverbs;
using simulated::DeviceOptions;
using simulated::ErrnoSign;
using simulated::PortOptions;
using simulated::SimulatedVerbs;
using support::contains;
using support::failure_text;
using support::port_in;

static_assert(!std::is_copy_constructible_v<DeviceList>);
static_assert(std::is_nothrow_move_constructible_v<DeviceList>);
static_assert(std::is_nothrow_move_assignable_v<DeviceList>);

static_assert(!std::is_copy_constructible_v<Context>);
static_assert(std::is_nothrow_move_constructible_v<Context>);
static_assert(!std::is_convertible_v<ibv_device*, Context>);

TEST_CASE("the device list is a range of devices", "[verbs][device_list]") {
    SimulatedVerbs verbs({{.name = "mlx5_0"}, {.name = "rxe0"}});
    const DeviceList devices;
    std::vector<std::string> names;
    for (ibv_device* device : devices) {
        names.emplace_back(ibv_get_device_name(device));
    }
    CHECK(names == std::vector<std::string>{"mlx5_0", "rxe0"});
    CHECK(devices.size() == 2);
    CHECK_FALSE(devices.empty());
    CHECK(devices[1] == devices.find("rxe0"));
    CHECK(devices.native_handle()[0] == devices[0]);
    CHECK(devices.native_handle()[2] == nullptr);
}

TEST_CASE("an unknown device is reported with the existing ones", "[verbs][device_list]") {
    SimulatedVerbs verbs({{.name = "mlx5_0"}, {.name = "rxe0"}});
    const DeviceList devices;
    const std::string text =
        failure_text(std::errc::no_such_device, [&] { (void)devices.find("rxe"); });
    CHECK_THAT(text, contains("no RDMA device is named \"rxe\""));
    CHECK_THAT(text, contains("mlx5_0, rxe0"));
    CHECK_THAT(failure_text(std::errc::no_such_device, [&] { (void)devices.find(""); }),
               contains("named \"\""));
}

TEST_CASE("an empty list is reported with advice", "[verbs][device_list]") {
    SimulatedVerbs verbs(std::vector<simulated::DeviceOptions>{});
    const DeviceList devices;
    CHECK(devices.empty());
    CHECK(devices.begin() == devices.end());
    for (const char* name : {"rxe0", ""}) {
        const std::string text =
            failure_text(std::errc::no_such_device, [&] { (void)devices.find(name); });
        CHECK_THAT(text, contains("no RDMA device found"));
        CHECK_THAT(text, contains("rdma link add"));
    }
}

TEST_CASE("a kernel without RDMA has no devices", "[verbs][device_list]") {
    SimulatedVerbs verbs;
    for (auto sign : {simulated::ErrnoSign::usual, simulated::ErrnoSign::negative}) {
        verbs.fail("ibv_get_device_list", {.error = ENOSYS, .sign = sign});
        const DeviceList devices;
        CHECK(devices.empty());
        CHECK(devices.begin() == devices.end());
        CHECK(devices.native_handle() == nullptr);
    }
    CHECK(verbs.failures_injected() == 2);
}

TEST_CASE("a moved-from device list is empty", "[verbs][device_list]") {
    SimulatedVerbs verbs;
    DeviceList first;
    DeviceList second(std::move(first));
    CHECK(second.size() == 1);
    CHECK(first.empty());
    CHECK(first.begin() == first.end());
    CHECK(first.native_handle() == nullptr);
    DeviceList third;
    third = std::move(second);
    CHECK(third.size() == 1);
    CHECK(second.empty());
    CHECK(verbs.calls("ibv_free_device_list") == 1); // the list that was assigned to
}

TEST_CASE("a device is opened by name", "[verbs][context]") {
    SimulatedVerbs verbs({{.name = "mlx5_0"}, {.name = "rxe0"}});
    const Context context = Context::open("rxe0");
    CHECK(context.name() == "rxe0");
    CHECK(context.native_handle()->device->name == std::string("rxe0"));
    CHECK(context.shared_handle().get() == context.native_handle());
}

TEST_CASE("a device is opened from a list", "[verbs][context]") {
    SimulatedVerbs verbs;
    const DeviceList devices;
    const Context context(devices[0]);
    CHECK(context.name() == "sim0");
}

TEST_CASE("without a name the first device with an active port is opened", "[verbs][context]") {
    SimulatedVerbs verbs({{.name = "down", .ports = {port_in(IBV_PORT_DOWN)}},
                          {.name = "armed", .ports = {port_in(IBV_PORT_ARMED)}},
                          {.name = "second", .ports = {port_in(IBV_PORT_DOWN), PortOptions{}}},
                          {.name = "later"}});
    CHECK(Context::open().name() == "second");
    CHECK(Context::open().active_port() == 2);
    CHECK(verbs.live_objects() == 0);
}

TEST_CASE("a named device is opened even if its port is down", "[verbs][context]") {
    SimulatedVerbs verbs({{.name = "down", .ports = {port_in(IBV_PORT_DOWN)}}});
    CHECK(Context::open("down").name() == "down");
}

TEST_CASE("a device has at least one completion vector", "[verbs][context]") {
    SimulatedVerbs verbs;
    const Context context = Context::open();
    for (const int reported : {8, 1, 0}) {
        context.native_handle()->num_comp_vectors = reported;
        CHECK(context.num_comp_vectors() == (reported == 8 ? 8 : 1));
    }
}

TEST_CASE("without an active port the error names all ports", "[verbs][context]") {
    SimulatedVerbs verbs(
        {{.name = "mlx5_0", .ports = {port_in(IBV_PORT_DOWN), port_in(IBV_PORT_INIT)}},
         {.name = "rxe0", .ports = {port_in(IBV_PORT_DOWN)}},
         {.name = "bare", .ports = {}}});
    const std::string text = failure_text(std::errc::no_such_device, [] { (void)Context::open(); });
    CHECK_THAT(text, contains("no RDMA device with an active port"));
    CHECK_THAT(text, contains(std::string("mlx5_0 (port 1 ") + ibv_port_state_str(IBV_PORT_DOWN) +
                              ", port 2 " + ibv_port_state_str(IBV_PORT_INIT) + ")"));
    CHECK_THAT(text, contains("rxe0 (port 1 "));
    CHECK_THAT(text, contains("bare (it has no ports)"));
    CHECK(verbs.live_objects() == 0);
}

TEST_CASE("without a device the error has advice", "[verbs][context]") {
    SimulatedVerbs verbs(std::vector<DeviceOptions>{});
    for (const char* name : {"", "rxe0"}) {
        CHECK_THAT(failure_text(std::errc::no_such_device, [&] { (void)Context::open(name); }),
                   contains("no RDMA device found"));
    }
}

TEST_CASE("an unknown device name is reported with the existing ones", "[verbs][context]") {
    SimulatedVerbs verbs({{.name = "mlx5_0"}, {.name = "rxe0"}});
    CHECK_THAT(failure_text(std::errc::no_such_device, [] { (void)Context::open("mlx4_0"); }),
               contains("\"mlx4_0\"; there are: mlx5_0, rxe0"));
}

TEST_CASE("a device that cannot be opened does not hide the next", "[verbs][context]") {
    SimulatedVerbs verbs({{.name = "mlx5_0"}, {.name = "rxe0"}});
    const char* verb = GENERATE("ibv_open_device", "ibv_query_device", "ibv_query_port");
    verbs.fail(verb, {.error = EACCES});
    CHECK(Context::open().name() == "rxe0");
    verbs.fail("ibv_open_device", {.error = EACCES, .times = 2});
    const std::string text = failure_text(std::errc::no_such_device, [] { (void)Context::open(); });
    CHECK_THAT(text, contains("mlx5_0 (ibv_open_device: Permission denied)"));
    CHECK_THAT(text, contains("rxe0 (ibv_open_device: Permission denied)"));
}

TEST_CASE("a null device is rejected", "[verbs][context]") {
    SimulatedVerbs verbs;
    CHECK_THAT(failure_text(std::errc::invalid_argument,
                            [] { Context context(static_cast<ibv_device*>(nullptr)); }),
               contains("null ibv_device"));
    CHECK_THAT(failure_text(std::errc::invalid_argument,
                            [] { Context context(std::shared_ptr<ibv_context>{}); }),
               contains("null ibv_context"));
}

TEST_CASE("the device stays open while a handle exists", "[verbs][context]") {
    SimulatedVerbs verbs;
    std::shared_ptr<ibv_context> handle = Context::open("sim0").shared_handle();
    CHECK(verbs.calls("ibv_close_device") == 0);
    {
        const Context context(handle);
        CHECK(context.native_handle() == handle.get());
        handle.reset();
        CHECK(context.query_port().state == IBV_PORT_ACTIVE);
    }
    CHECK(verbs.calls("ibv_close_device") == 1);
}

TEST_CASE("a moved-from context owns nothing", "[verbs][context]") {
    SimulatedVerbs verbs;
    Context first = Context::open("sim0");
    const Context second(std::move(first));
    CHECK(first.native_handle() == nullptr);
    CHECK(first.shared_handle() == nullptr);
    const auto inert = [&](auto use) {
        CHECK_THAT(failure_text(std::errc::invalid_argument, use), contains("was moved from"));
    };
    inert([&] { (void)first.name(); });
    inert([&] { (void)first.query_device(); });
    inert([&] { (void)first.query_port(); });
    inert([&] { (void)first.query_gid(1, 0); });
    inert([&] { (void)first.active_port(); });
    CHECK(second.name() == "sim0");
}

TEST_CASE("the limits of the device are queried", "[verbs][context]") {
    DeviceOptions device;
    device.attr.max_cqe = 123;
    SimulatedVerbs verbs({device});
    const Context context = Context::open("sim0");
    CHECK(context.query_device().max_cqe == 123);
    CHECK(context.query_device().phys_port_cnt == 1);
}

TEST_CASE("a port out of range is reported with the valid ones", "[verbs][context]") {
    SimulatedVerbs verbs({{.name = "dual", .ports = {PortOptions{}, PortOptions{}}}});
    const Context context = Context::open("dual");
    CHECK(context.query_port(2).active_mtu == IBV_MTU_4096);
    for (int port : {0, 3, -1, 257}) {
        CHECK_THAT(
            failure_text(std::errc::invalid_argument, [&] { (void)context.query_port(port); }),
            contains("port number " + std::to_string(port) +
                     " is out of range for dual: valid are 1 to 2"));
    }
}

TEST_CASE("the first active port is found", "[verbs][context]") {
    SimulatedVerbs verbs(
        {{.name = "dual", .ports = {port_in(IBV_PORT_DOWN), port_in(IBV_PORT_ACTIVE_DEFER)}}});
    const Context context = Context::open("dual");
    CHECK(context.active_port() == 2);
    verbs.set_port_state("dual", 2, IBV_PORT_DOWN);
    const std::string text =
        failure_text(std::errc::network_down, [&] { (void)context.active_port(); });
    CHECK_THAT(text, contains("no port of dual is active: port 1 "));
    CHECK_THAT(text, contains(std::string(", port 2 ") + ibv_port_state_str(IBV_PORT_DOWN)));
}

TEST_CASE("a GID is read with its type", "[verbs][context]") {
    SimulatedVerbs verbs;
    const Context context = Context::open("sim0");
    CHECK(gid_text(context.query_gid(1, 1)) == "::ffff:10.7.0.1");
    CHECK(context.query_gid_entry(1, 1).gid_type == IBV_GID_TYPE_ROCE_V2);
    CHECK(context.query_gid_entry(1, 1).gid_index == 1);
}

TEST_CASE("a GID index out of range is reported with the range", "[verbs][context]") {
    SimulatedVerbs verbs;
    const Context context = Context::open("sim0");
    for (int index : {-1, 1024, 70000}) {
        CHECK_THAT(
            failure_text(std::errc::invalid_argument, [&] { (void)context.query_gid(1, index); }),
            contains("GID index " + std::to_string(index) +
                     " is out of range for port 1 of sim0: valid are 0 to 1023"));
    }
    CHECK_THAT(failure_text(std::errc::invalid_argument, [&] { (void)context.query_gid(2, 0); }),
               contains("port number 2"));
}

TEST_CASE("an empty GID is reported with those in use", "[verbs][context]") {
    SimulatedVerbs verbs;
    const Context context = Context::open("sim0");
    const auto text = [&] {
        return failure_text(std::errc::invalid_argument, [&] { (void)context.query_gid(1, 2); });
    };
    CHECK_THAT(text(), contains("GID index 2 of port 1 of sim0 is empty"));
    CHECK_THAT(text(), contains("in use are: 0 (fe80::ff:fe00:1), 1 (::ffff:10.7.0.1):"));

    std::vector<simulated::GidEntry> many(20, {simulated::ipv4_gid(10, 7, 0, 1)});
    many[2] = {};
    verbs.set_gids("sim0", 1, many);
    CHECK_THAT(text(), contains("8 (::ffff:10.7.0.1), and more:"));

    verbs.set_gids("sim0", 1, {});
    CHECK_THAT(text(), contains("in use are: none"));
}

TEST_CASE("an empty GID is recognised in either sign of the errno", "[verbs][context]") {
    SimulatedVerbs verbs;
    const Context context = Context::open("sim0");
    verbs.fail("ibv_query_gid_ex", {.error = ENODATA, .sign = ErrnoSign::negative});
    CHECK_THAT(failure_text(std::errc::invalid_argument, [&] { (void)context.query_gid(1, 1); }),
               contains("GID index 1 of port 1 of sim0 is empty"));
}

TEST_CASE("a device whose file cannot be opened: the error names the place", "[verbs][device]") {
    SimulatedVerbs verbs;
    const DeviceList devices;
    verbs.fail("ibv_open_device", {.error = ENOENT});
    CHECK_THAT(failure_text(std::errc::no_such_file_or_directory,
                            [&] { const Context context(devices[0]); }),
               contains("may this user open the files in /dev/infiniband?"));
}
