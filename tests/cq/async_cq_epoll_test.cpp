// SPDX-License-Identifier: MIT
// AsyncCq on simulated verbs under real epoll: on EpollExecutor, and edge-triggered.
#include <asyncverbs/cq/async_cq.hpp>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/coro/when_all.hpp>
#include <asyncverbs/cq/shared_channel.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/verbs/device.hpp>

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <random>
#include <span>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "cq/fixture.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"
#include "support/epoll.hpp"

using namespace asyncverbs;
using namespace asyncverbs::simulated;
using namespace asyncverbs::support;
using namespace std::chrono_literals;

namespace {

Task<std::uint64_t> next_wr_id(AsyncCq& cq, std::stop_token stop) {
    std::array<ibv_wc, 1> wcs{};
    const std::span<ibv_wc> done = co_await cq.poll(wcs, stop);
    co_return done[0].wr_id;
}

Task<> consume(AsyncCq& cq, std::vector<std::uint64_t>& got, std::size_t count) {
    std::array<ibv_wc, 3> wcs{};
    while (got.size() < count) {
        for (const ibv_wc& wc : co_await cq.poll(wcs)) got.push_back(wc.wr_id);
    }
}

struct AsyncCqEpollFixture {
    explicit AsyncCqEpollFixture(int depth) : cq(AsyncCq::create(context, depth, executor)) {}

    SimulatedVerbs sim;
    Context context = Context::open();
    EpollExecutor executor;
    AsyncCq cq;
    ibv_cq* native = cq.native_handle();
};

// Runs the executor on another thread, and calls `use` on this one. To be called in a child
// process.
template <class Use>
void use_on_another_thread(EpollExecutor& executor, Use use) {
    std::atomic<bool> runs{false};
    executor.post([&] { runs = true; });
    const std::jthread loop([&] { executor.run(); });
    while (!runs) std::this_thread::yield();
    use();
    executor.stop();
}

// The signal that ends a child process that calls `body`, 0 if none does.
template <class Body>
int signal_of_child(Body body) {
    const pid_t child = ::fork();
    if (child == 0) {
        std::signal(SIGABRT, SIG_DFL);
        const int null = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
        ::dup2(null, STDERR_FILENO); // the message of the assertion
        body();
        ::_exit(0);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

} // namespace

TEST_CASE("AsyncCq on EpollExecutor: every descriptor is closed on exec") {
    const auto inherited = [] {
        std::vector<std::string> files;
        for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
            const int fd = std::stoi(entry.path().filename());
            std::error_code gone; // the descriptor of the directory itself
            const auto file = std::filesystem::read_symlink(entry.path(), gone);
            if (!gone && (::fcntl(fd, F_GETFD) & FD_CLOEXEC) == 0) files.push_back(file);
        }
        return files;
    };
    const std::vector<std::string> before = inherited();
    SimulatedVerbs sim;
    EpollExecutor executor;
    const AsyncCq cq = AsyncCq::create(Context::open(), 16, executor);
    CHECK(inherited() == before);
}

#ifndef NDEBUG
TEST_CASE("AsyncCq on EpollExecutor: a poll on another thread than the loop's is noticed") {
    const bool shares = GENERATE(false, true);
    const bool awaits = GENERATE(false, true);
    CAPTURE(shares, awaits);
    SimulatedVerbs sim;
    const Context context = Context::open();
    EpollExecutor executor;
    std::optional<SharedChannel<EpollNotifier>> channel;
    if (shares) channel.emplace(context, executor);
    AsyncCq cq =
        shares ? AsyncCq::create(context, 16, *channel) : AsyncCq::create(context, 16, executor);
    sim.complete(cq.native_handle(), 1); // otherwise the notifier would notice the wait
    const auto poll = [&] {
        std::array<ibv_wc, 1> wcs{};
        std::vector<std::uint64_t> got;
        if (awaits) {
            poll_once<1>(cq, got);
        } else {
            cq.try_poll(wcs);
        }
    };
    CHECK(signal_of_child([&] { use_on_another_thread(executor, poll); }) == SIGABRT);
    CHECK(signal_of_child([&] {
              std::jthread(poll).join(); // nothing runs the loop
              use_on_another_thread(executor, [&] { executor.post(poll); });
          }) == 0);
}
#endif

TEST_CASE("AsyncCq on EpollExecutor: an arm that the device has lost is repeated (mana)",
          "[I1][I2]") {
    SimulatedVerbs sim(mana);
    const Context context = Context::open();
    EpollExecutor executor;
    AsyncCq cq = AsyncCq::create(context, 16, executor);
    std::stop_source stop;
    const auto give_up = [&]() -> Coroutine {
        const std::error_code slept = co_await executor.sleep_for(30s);
        if (!slept) stop.request_stop();
    };
    const Coroutine bound = give_up();
    executor.post([&] { sim.push_events(cq.native_handle()); }); // a spurious wake
    sim.on_call([&](const Call& call) {
        const bool lost = sim.counters(cq.native_handle()).arms_lost == 1;
        if (lost && call.verb == "ibv_poll_cq" && call.moment == Call::Moment::after) {
            sim.on_call(nullptr);
            sim.complete(cq.native_handle(), 7); // which reports nothing
        }
    });
    CHECK(executor.run(next_wr_id(cq, stop.get_token())) == 7);
}

TEST_CASE("AsyncCq on EpollExecutor: a ready poll costs no system call and no allocation") {
    AsyncCqEpollFixture f(1024);
    for (std::uint64_t id = 0; id < 1000; ++id) f.sim.complete(f.native, id);
    struct Local {
        static Task<Counters> run(AsyncCq& queue) {
            std::array<ibv_wc, 1> wcs{};
            const Counters before = counters();
            for (int i = 0; i < 1000; ++i) co_await queue.poll(wcs);
            co_return counters() - before;
        }
    };
    const Counters cost = f.executor.run(Local::run(f.cq));
    CHECK(cost.system_calls() == 0);
    CHECK(cost.allocations == 0);
    CHECK(f.cq.statistics().polls == 1000);
    CHECK(f.cq.statistics().arms == 0);
}

TEST_CASE("AsyncCq on EpollExecutor: a sleeping poll costs one epoll_wait and no allocation") {
    // What the verbs cost on a real device is counted on one: tests/device.
    AsyncCqEpollFixture f(16);
    std::vector<std::uint64_t> got;
    got.reserve(200);
    bool posted = false;
    std::vector<Counters> at_arm;
    at_arm.reserve(200);
    // Each arm is followed by a completion: the consumer always sleeps, and never for long.
    f.sim.on_call([&](const Call& call) {
        if (call.verb != "ibv_poll_cq" || call.moment != Call::Moment::after) return;
        if (!f.sim.armed(f.native)) {
            posted = false;
        } else if (!posted && f.cq.statistics().polls % 3 != 0) {
            posted = true;
            at_arm.push_back(counters());
            f.sim.complete(f.native, 1);
        }
    });
    f.executor.run(consume(f.cq, got, 100));
    f.sim.on_call(nullptr);
    CHECK(f.cq.statistics().wakes == 100);
    CHECK(f.cq.statistics().arms == 100);
    const Counters total = at_arm.back() - at_arm.front();
    CHECK(total.epoll_wait == at_arm.size() - 1);
    CHECK(total.epoll_ctl == 0);
}

TEST_CASE("AsyncCq: nothing is lost under level- and edge-triggered epoll (I3)", "[field-13][I3]") {
    const auto model = GENERATE(ArmModel::flag, ArmModel::index);
    const auto stale = GENERATE(0, 1, 3);
    const bool duplicates = GENERATE(false, true);
    const std::uint32_t trigger = GENERATE(std::uint32_t{0}, std::uint32_t{EPOLLET});
    CqFixture<> f(ProviderModel{.arm_model = model});
    Epoll epoll(f.cq->completion_queue().channel().fd(), trigger);
    const auto run_once = [&] {
        if (epoll.events() != 0) f.notifier.notify();
        f.notifier.run();
    };
    std::minstd_rand random(17);
    WrIds got;
    const std::size_t count = 500;
    const Coroutine consumer = poll_until<2>(*f.cq, got, count);
    std::uint64_t next = 0;
    while (next < count) {
        if (stale > 0 && random() % 4 == 0) f.sim.push_events(f.native, stale);
        if (duplicates && random() % 4 == 0) f.sim.duplicate_events(f.native);
        // Not more than the CQ holds.
        for (auto burst = random() % 5; burst > 0 && next < std::min(count, got.size() + 60);
             --burst) {
            f.complete({next++});
        }
        run_once();
    }
    for (int i = 0; i < 2000 && !consumer.done(); ++i) run_once();
    REQUIRE(consumer.done());
    for (std::size_t i = 0; i < count; ++i) REQUIRE(got[i] == i);
}

TEST_CASE(
    "AsyncCq on EpollExecutor: a removed device fails every waiter, and the loop does not spin",
    "[field-20][I5]") {
    AsyncCqEpollFixture f(16);
    struct Local {
        static Task<std::error_code> wait(AsyncCq& queue) {
            std::array<ibv_wc, 1> wcs{};
            std::error_code error;
            co_await queue.poll(wcs, error);
            co_return error;
        }
    };
    f.executor.post([&] { f.sim.disassociate(f.context.native_handle()); });
    const auto [first, second] = f.executor.run(when_all(Local::wait(f.cq), Local::wait(f.cq)));
    CHECK(first == std::errc::io_error);
    CHECK(second == std::errc::io_error);
    while (f.executor.run_once()) {
    }
    const Counters before = counters();
    CHECK_FALSE(f.executor.run_once());
    CHECK((counters() - before).system_calls() == 1);
}
