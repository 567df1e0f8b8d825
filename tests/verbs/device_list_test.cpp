// SPDX-License-Identifier: MIT
#include <asyncverbs/verbs/device.hpp>

#include <cerrno>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/simulated_verbs.hpp"
#include "verbs/failure.hpp"

using namespace asyncverbs;
using simulated::SimulatedVerbs;
using support::contains;
using support::failure_text;

static_assert(!std::is_copy_constructible_v<DeviceList>);
static_assert(std::is_nothrow_move_constructible_v<DeviceList>);
static_assert(std::is_nothrow_move_assignable_v<DeviceList>);

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

TEST_CASE("an unknown device is reported with those there are", "[verbs][device_list]") {
    SimulatedVerbs verbs({{.name = "mlx5_0"}, {.name = "rxe0"}});
    const DeviceList devices;
    const std::string text =
        failure_text(std::errc::no_such_device, [&] { (void)devices.find("rxe"); });
    CHECK_THAT(text, contains("no RDMA device is named \"rxe\""));
    CHECK_THAT(text, contains("mlx5_0, rxe0"));
    CHECK_THAT(failure_text(std::errc::no_such_device, [&] { (void)devices.find(""); }),
               contains("named \"\""));
}

TEST_CASE("a list without devices says what may help", "[verbs][device_list]") {
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

TEST_CASE("a device list that cannot be had names the verb", "[verbs][device_list]") {
    SimulatedVerbs verbs;
    verbs.fail("ibv_get_device_list", {.error = EPERM});
    CHECK(failure_text(std::errc::operation_not_permitted, [] { DeviceList devices; }) ==
          "ibv_get_device_list: Operation not permitted");
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
