// SPDX-License-Identifier: MIT
// The notifiers of this library and that of the example conform, and each defect is found by its
// case.
#include <asyncverbs/testing/notifier_conformance.hpp>

#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/testing/async_cq_conformance.hpp>

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <memory>
#include <set>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "testing/defective_notifier.hpp"
#include "testing/harnesses.hpp"

using namespace asyncverbs;
using namespace asyncverbs::support;

namespace {

// Harnesses are default-constructed: this is their defect.
Defect defect_to_find = Defect::none;

struct DefectiveHarness {
    static constexpr bool edge_triggered = true;
    DefectiveNotifier notifier(int fd) { return DefectiveNotifier(loop, fd); }
    void run_once(std::chrono::milliseconds at_most) { loop.run_once(at_most); }
    DefectiveLoop loop{defect_to_find};
};

// Hides that its notifiers are edge-triggered.
struct MisdeclaredHarness : DefectiveHarness {
    static constexpr bool edge_triggered = false;
};

// The result of the case for a notifier with this defect.
std::string verdict(Defect defect, std::string_view name,
                    const std::vector<ConformanceCase>& cases) {
    defect_to_find = defect;
    const auto found = std::find_if(cases.begin(), cases.end(),
                                    [&](const ConformanceCase& each) { return each.name == name; });
    if (found == cases.end()) return "there is no such case";
    try {
        // On a busy machine an early timeout may come late enough once.
        for (int i = 0; i < (defect == Defect::times_out_early ? 20 : 1); ++i) found->run();
    } catch (const ConformanceFailure& failure) {
        CHECK_THAT(failure.what(), contains(std::string(name) + ": "));
        CHECK_THAT(failure.what(), contains(std::string(found->clause)));
        return failure.what();
    }
    return "it passes";
}

template <class Harness = DefectiveHarness>
std::string verdict(Defect defect, std::string_view name) {
    return verdict(defect, name,
                   notifier_cases<Harness>({.patience = std::chrono::milliseconds(300)}));
}

// The exit status of a child process that returns that of `body`, and what it prints.
struct Printed {
    int status;
    std::string output;
};
template <class Body>
Printed run_in_child(const Body& body) {
    const int file = ::memfd_create("stdout", MFD_CLOEXEC);
    std::fflush(stdout);
    const pid_t child = ::fork();
    if (child == 0) {
        ::dup2(file, STDOUT_FILENO);
        const int result = body();
        std::fflush(stdout);
        ::_exit(result);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    std::array<char, 4096> text{};
    const ssize_t size = ::pread(file, text.data(), text.size(), 0);
    ::close(file);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
            std::string(text.data(), static_cast<std::size_t>(size))};
}

} // namespace

TEMPLATE_TEST_CASE("Conformance:", "[conformance]", PollHarness, EpollHarness, BusyHarness,
                   EdgeHarness, DefectiveHarness) {
    defect_to_find = Defect::none;
    for (const ConformanceCase& each : notifier_cases<TestType>()) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
}

TEMPLATE_TEST_CASE("Conformance: AsyncCq", "[conformance]", PollHarness, EpollHarness, BusyHarness,
                   EdgeHarness, DefectiveHarness) {
    defect_to_find = Defect::none;
    const simulated::SimulatedVerbs sim;
    for (const ConformanceCase& each : async_cq_cases<TestType>(Context::open())) {
        DYNAMIC_SECTION(each.name) { each.run(); }
    }
}

// The device is removed: its channel has an error, and nothing to read.
TEMPLATE_TEST_CASE("Conformance: an error of the channel reaches the waiter", "[conformance]",
                   PollHarness, EpollHarness, BusyHarness, EdgeHarness, DefectiveHarness) {
    defect_to_find = Defect::none;
    simulated::SimulatedVerbs sim;
    const Context context = Context::open();
    TestType harness;
    AsyncCq cq = AsyncCq::create(context, 8, harness);
    std::array<ibv_wc, 1> wcs;
    std::error_code error;
    const auto wait = [&]() -> Coroutine { co_await cq.poll(wcs, error); };
    const Coroutine waiter = wait();
    harness.run_once(std::chrono::milliseconds(1));
    CHECK(!waiter.done());
    sim.disassociate(context.native_handle());
    for (int i = 0; i < 100 && !waiter.done(); ++i)
        harness.run_once(std::chrono::milliseconds(100));
    CHECK(waiter.done());
    CHECK(error == std::errc::io_error);
    sim.take_problems();
}

TEST_CASE("Conformance: each defect is found by its case", "[conformance]") {
    struct Row {
        Defect defect;
        std::string_view name;
        std::string verdict;
    };
    const Row rows[] = {
        {Defect::edge_without_waiter_is_lost, "readable: while nobody waits", "timeout"},
        {Defect::reads_the_descriptor, "readable: before the call", "the byte is gone"},
        {Defect::hang_up_is_ignored, "hang-up: while it waits", "timeout"},
        {Defect::error_is_ignored, "error: while it waits", "timeout"},
        {Defect::never_waits, "idle: the wait does not end with nothing to read", "spins"},
        {Defect::keeps_the_loop_busy,
         "idle: a readable fd that nobody awaits does not keep the loop busy", "the loop spins"},
        {Defect::wakes_the_other_notifier, "two notifiers: each its own descriptor", "timeout"},
        {Defect::resumes_twice, "readable: while it waits", "resumed twice"},
        {Defect::resumes_on_own_thread, "readable: while it waits", "another thread"},
        {Defect::resumes_in_await_suspend, "readable: while nobody waits",
         "before await_suspend() had returned"},
        {Defect::wait_within_the_resume_is_forgotten,
         "many rounds: each begins within the resume of the last", "timeout"},
        {Defect::throws, "readable: before the call", "thrown by the notifier"},

        {Defect::stop_before_the_call_is_ignored, "stop: before the call", "timeout"},
        {Defect::stop_while_suspending_is_ignored,
         "stop: between await_ready() and await_suspend()", "timeout"},
        {Defect::stop_is_ignored, "stop: while it waits", "timeout"},
        {Defect::stop_does_not_wake, "stop: from another thread while the loop sleeps", "timeout"},
        {Defect::stop_resumes_at_once, "stop: while it waits", "inside request_stop()"},
        {Defect::stop_resumes_at_once, "stop: by another coroutine that the loop resumes",
         "inside request_stop()"},
        {Defect::stop_resumes_at_once, "stop: from another thread while the loop sleeps",
         "another thread"},
        {Defect::stop_is_readable, "stop: before the call", "got {} each time"},
        {Defect::stop_loses_the_edge, "stop: then readable, in one iteration", "timeout"},
        {Defect::stop_affects_later_waits, "stop: while it waits", "a wait that nothing ends gave"},
        {Defect::stop_of_an_earlier_wait_counts, "stop: the token of an earlier wait",
         "a wait that nothing ends gave"},

        {Defect::destroyed_is_resumed, "destroyed: while it waits", "after it was destroyed"},
        {Defect::destroyed_in_the_iteration_is_resumed,
         "destroyed: by a coroutine that is resumed in the same iteration, by readiness",
         "after it was destroyed"},
        {Defect::destroyed_loses_the_edge,
         "destroyed: when it is readable; the next wait learns of it", "timeout"},
        {Defect::closes_the_descriptor, "notifier: destroyed; its descriptor is unchanged",
         "was closed"},
        {Defect::keeps_registration_by_number,
         "notifier: destroyed; the number of its descriptor is used again", "timeout"},
        {Defect::moving_forgets, "notifier: moved", "timeout"},

        {Defect::no_bound, "bounded: the time passes", "timeout"},
        {Defect::times_out_early, "bounded: the time passes", "before its time"},
        {Defect::bound_overflows, "bounded: readable in time", "gave"},
        {Defect::bound_of_an_earlier_wait_counts, "bounded: the bound of an earlier wait", "gave"},
        {Defect::zero_bound_does_not_suspend, "bounded: no time, which lets others run",
         "resumed only when this one had ended"},
        {Defect::zero_bound_is_never_readable, "bounded: no time", "expected {}"},
    };
    for (const Row& row : rows) {
        DYNAMIC_SECTION(row.name << ": " << row.verdict) {
            CHECK_THAT(verdict(row.defect, row.name), contains(row.verdict));
            CHECK(verdict(Defect::none, row.name) == "it passes");
        }
    }
    SECTION("readable: as long as it is not read, by an edge-triggered notifier") {
        CHECK_THAT(verdict<MisdeclaredHarness>(Defect::none, "readable: as long as it is not read"),
                   contains("timeout"));
        CHECK(verdict(Defect::none, "readable: as long as it is not read") ==
              "there is no such case");
    }
}

TEST_CASE("Conformance: defects that the cases on a device find", "[conformance]") {
    const std::pair<Defect, std::string_view> rows[] = {
        {Defect::wakes_the_other_notifier, "AsyncCq: one message at a time, 1,000 times"},
        {Defect::wait_within_the_resume_is_forgotten,
         "AsyncCq: one coroutine that waits 200 times"},
        {Defect::stop_is_ignored, "AsyncCq: stopped, and the next message"},
        {Defect::stop_does_not_wake, "AsyncCq: stopped, and the next message"},
        {Defect::no_bound, "AsyncCq: a longest wait"},
    };
    const simulated::SimulatedVerbs sim;
    const auto cases = async_cq_cases<DefectiveHarness>(
        Context::open(), {.patience = std::chrono::milliseconds(300)});
    for (const auto& [defect, name] : rows) {
        DYNAMIC_SECTION(name << ": " << static_cast<int>(defect)) {
            CHECK_THAT(verdict(defect, name, cases), contains("timeout"));
            CHECK(verdict(Defect::none, name, cases) == "it passes");
        }
    }
}

TEST_CASE("Conformance: run_conformance() prints results and returns the failures",
          "[conformance]") {
    const std::vector<ConformanceCase> cases = {
        {"good", "", [] {}},
        {"bad", "", [] { throw ConformanceFailure("bad: it is"); }},
        {"worse", "", [] { throw std::runtime_error("another exception"); }},
        {"crash", "", [] { ::_exit(42); }},
    };
    const Printed all = run_in_child([&] { return run_conformance(cases); });
    // The case that ends the program is named by the last line.
    CHECK(all.status == 42);
    CHECK(all.output == "good ... ok\nbad ... FAILED\n    bad: it is\n"
                        "worse ... FAILED\n    another exception\ncrash ... ");
    const Printed three =
        run_in_child([&] { return run_conformance({cases.begin(), cases.begin() + 3}); });
    CHECK(three.status == 2);
    CHECK_THAT(three.output, contains("3 cases, 2 failed\n"));
}

TEST_CASE("Conformance: the filter selects cases, the patience bounds a broken one",
          "[conformance]") {
    const ConformanceOptions options{.patience = std::chrono::milliseconds(1),
                                     .filter = "stop: before"};
    const auto cases = notifier_cases<DefectiveHarness>(options);
    REQUIRE(cases.size() == 1);
    CHECK(cases[0].name == "stop: before the call");
    defect_to_find = Defect::stop_before_the_call_is_ignored;
    CHECK_THROWS_WITH(cases[0].run(), contains("expected within 1 ms"));
    CHECK(check_notifier<DefectiveHarness>(options) == 1);
    CHECK(notifier_cases<DefectiveHarness>({.filter = "no such case"}).empty());
}

TEST_CASE("Conformance: names are unique, and each case has a clause", "[conformance]") {
    std::set<std::string> names;
    for (const ConformanceCase& each : notifier_cases<EpollHarness>()) {
        CHECK(names.insert(each.name).second);
        CHECK(!each.clause.empty());
    }
}

TEST_CASE("Conformance: a case that hangs aborts the program", "[conformance]") {
    const auto hang = [] {
        std::signal(SIGABRT, SIG_DFL); // not the test framework's handler
        ::rlimit no_core{};
        ::setrlimit(RLIMIT_CORE, &no_core);
        const detail::conformance::Watchdog dog("the case", std::chrono::milliseconds(50));
        for (;;) ::pause();
        return 0;
    };
    CHECK(run_in_child(hang).status == 128 + SIGABRT);
    const auto end = [] {
        detail::conformance::Watchdog dog("the case", std::chrono::seconds(60));
        dog.progress();
        return 0;
    };
    CHECK(run_in_child(end).status == 0);
}
