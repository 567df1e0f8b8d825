// SPDX-License-Identifier: MIT
// All classes, and the functions that are templates: in a user's project none of them may warn.
#include "every_class.hpp"

#include <asyncverbs/testing/async_cq_conformance.hpp>
#include <asyncverbs/testing/notifier_conformance.hpp>

#include <array>
#include <chrono>
#include <string>
#include <vector>

namespace asyncverbs {

namespace {

struct Tracer {
    void before_wait(const CqStatistics&) noexcept { ++waits; }
    void after_wait(const CqStatistics&, std::error_code) noexcept {}
    unsigned waits = 0;
};

struct Harness {
    EpollNotifier notifier(int fd) { return executor.notifier(fd); }
    void run_once(std::chrono::milliseconds at_most) {
        if (at_most.count() == 0) {
            executor.run_once();
        } else {
            executor.run([](EpollExecutor& e, std::chrono::milliseconds m) -> Task<> {
                co_await e.sleep_for(m);
            }(executor, at_most));
        }
    }
    EpollExecutor executor;
};

Task<int> one() { co_return 1; }
Task<std::string> text() { co_return "text"; }
Task<> nothing() { co_return; }

Task<> combined(EpollExecutor& executor) {
    auto [number, string] = co_await when_all(one(), text());
    std::vector<Task<int>> tasks;
    tasks.push_back(one());
    const std::vector<int> numbers = co_await when_all(std::move(tasks));
    Scope scope;
    scope.spawn(nothing());
    co_await scope.join();
    co_await executor.schedule();
}

Task<> completions(EpollExecutor& executor, const Context& context) {
    auto cq = AsyncCq::create(context, 16, executor, {}, Tracer{});
    SharedChannel channel(context, executor);
    auto shared = AsyncCq::create(context, 16, channel);
    AsyncCq by_hand(CompletionQueue(context, 16), ManualNotifier());
    std::array<ibv_wc, 4> wcs{};
    std::array<std::uint64_t, 4> timestamps{};
    std::error_code error;
    const std::stop_source stop;
    co_await cq.poll(wcs, stop.get_token());
    co_await shared.poll(wcs, error);
    co_await by_hand.poll_wr_id(1, error);
    co_await cq.poll_timestamped(wcs, timestamps, stop.get_token());
    shared = std::move(cq);
}

Task<> connections(EpollExecutor& executor, const QueuePair& qp) {
    Listener listener(executor, "", "");
    auto make_queue_pair = [&](const OutgoingConnection&) -> const QueuePair& { return qp; };
    auto connection = co_await connect(executor, "10.7.0.1", "7471", make_queue_pair);
    co_await connection.disconnect();
}

} // namespace

// Not called: what it compiles is what it is for.
int every_function(EpollExecutor& executor, const Context& context, const QueuePair& qp) {
    executor.run(combined(executor));
    executor.run(completions(executor, context));
    executor.run(connections(executor, qp));
    ExecutorPool().run([](EpollExecutor& each, std::size_t) { return combined(each); });
    const std::string text = gid_text(context.query_gid(1, select_gid(context, 1)));
    return static_cast<int>(text.size()) + sync_wait(one()) + check_notifier<Harness>() +
           check_async_cq<Harness>(Context(context.shared_handle()));
}

} // namespace asyncverbs

int main() {}
