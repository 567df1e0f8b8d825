// SPDX-License-Identifier: MIT
// Helpers for tests that run programs.
#pragma once

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "device/pair.hpp"
#include "support/catch.hpp"
#include "support/process.hpp"

#if defined(__SANITIZE_ADDRESS__)
#define ASYNCVERBS_IS_SANITIZED true
#elif defined(__has_feature)
#define ASYNCVERBS_IS_SANITIZED __has_feature(address_sanitizer)
#else
#define ASYNCVERBS_IS_SANITIZED false
#endif

namespace asyncverbs::device {

// A program with the sanitizers of the preset clang-asan needs descriptors to look at the types of
// objects, and takes them for wrong ones if there are none.
constexpr bool can_run_without_descriptors = !ASYNCVERBS_IS_SANITIZED;

inline std::string device_address() {
    const char* const text = std::getenv("RDMA_ADDRESS");
    return text != nullptr ? text : "127.0.0.1";
}

// What a client reports if there is no server. On soft-iWARP, rdma_connect itself fails.
inline std::string no_server() { return is_iwarp() ? "Connection refused" : "nobody listens"; }

// Waits for the condition. Fails the test if the process ends first, or after a minute.
template <class Condition>
void await_that(support::Process& process, Condition condition) {
    const auto late = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!condition()) {
        INFO(process.output() << process.error());
        REQUIRE(process.is_running());
        REQUIRE(std::chrono::steady_clock::now() < late);
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
}

inline void await_output(support::Process& process, const std::string& text) {
    await_that(process, [&] { return process.output().find(text) != std::string::npos; });
}

// Runs a program that must fail, and returns its standard error.
inline std::string error_of(const std::vector<std::string>& command) {
    support::Process process(command);
    CHECK(process.wait() == 1);
    return process.error();
}

// A command that runs `command` such that its limit on locked memory counts also for root.
inline std::vector<std::string> without_ipc_lock(const std::vector<std::string>& command) {
    std::vector<std::string> all{"setpriv", "--bounding-set=-ipc_lock"};
    all.insert(all.end(), command.begin(), command.end());
    return all;
}

} // namespace asyncverbs::device
