// SPDX-License-Identifier: MIT
// Every call fails once. Each operation of the library runs with its first, second, … nth call
// failing, until it passes: the verbs, with each sign of the error, the allocations, and the system
// calls. The error names the failed call; nothing leaks, hangs or terminates; and every posted
// request completes or is flushed, once.
#include <asyncverbs/cm.hpp>
#include <asyncverbs/cq/shared_channel.hpp>
#include <asyncverbs/rdma.hpp>
#include <asyncverbs/simulation/simulated_cm.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>

#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <iostream>
#include <new>
#include <optional>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"
#include "support/pipe.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using simulated::Call;
using simulated::ErrnoSign;
using simulated::SimulatedVerbs;
using support::contains;
using support::Coroutine;
using support::FailureShelter;

namespace {

enum class Kind { verb, allocation, system_call };

struct Failing {
    const char* name;
    Kind kind;
    ErrnoSign sign = ErrnoSign::usual;
};

constexpr auto failings = std::to_array<Failing>({
    {"verbs, in their usual sign", Kind::verb},
    {"verbs that return errno", Kind::verb, ErrnoSign::positive},
    {"verbs that return -errno", Kind::verb, ErrnoSign::negative},
    {"verbs that return -1", Kind::verb, ErrnoSign::minus_one},
    {"allocations", Kind::allocation},
    {"system calls", Kind::system_call},
});

// One run of an operation, on a new device.
class Trial {
public:
    Trial(const Failing& failing, int nth) : failing_(failing), nth_(nth) {
        sim.on_call([this](const Call& call) { on_call(call); });
    }
    ~Trial() { sim.on_call(nullptr); }
    Trial(const Trial&) = delete;
    Trial& operator=(const Trial&) = delete;

    SimulatedVerbs sim;

    // Runs the operation. It must call only the library: allocations of the test would fail, too.
    template <class Operation>
    void attempt(Operation&& operation) {
        start_failing();
        std::exception_ptr thrown;
        try {
            operation();
        } catch (...) {
            thrown = std::current_exception();
        }
        stop_failing();
        judge(thrown);
    }

    bool failed() const noexcept { return failed_; }

    // The operation continues if this call fails.
    void tolerate(std::string_view call) { tolerated_.push_back(call); }

private:
    void start_failing() {
        const auto skip = static_cast<std::size_t>(nth_ - 1);
        if (failing_.kind == Kind::verb) {
            sim.fail_any({.error = EIO, .nth = nth_, .sign = failing_.sign});
        } else if (failing_.kind == Kind::allocation) {
            support::fail_allocation(skip);
        } else {
            support::fail_system_call(skip);
        }
    }

    void stop_failing() {
        failed_ = support::stop_failing() || sim.failures_injected() > 0;
        if (failing_.kind == Kind::system_call) what_failed_ = support::failed_system_call();
        if (failing_.kind == Kind::allocation && failed_) what_failed_ = "bad_alloc";
        sim.clear_failures();
    }

    // Allocations of the simulated device do not fail.
    void on_call(const Call& call) {
        if (call.moment == Call::Moment::before) {
            shelter_.emplace();
            return;
        }
        shelter_.reset();
        if (what_failed_.empty() && sim.failures_injected() > 0) what_failed_ = call.verb;
    }

    void judge(const std::exception_ptr& thrown) const {
        if (!thrown) {
            CHECK((!failed_ || std::ranges::find(tolerated_, what_failed_) != tolerated_.end()));
            return;
        }
        CHECK(failed_);
        try {
            std::rethrow_exception(thrown);
        } catch (const std::bad_alloc&) {
            CHECK(failing_.kind == Kind::allocation);
        } catch (const std::system_error& error) {
            const bool no_memory = error.code() == std::errc::not_enough_memory;
            if (failing_.kind == Kind::allocation && no_memory) return;
            CHECK_THAT(error.what(), contains(std::string(what_failed_)));
            // DeviceList reports a device that cannot be opened as no_such_device, with the cause
            // in the text.
            CHECK((failing_.kind == Kind::allocation || error.code() == std::errc::io_error ||
                   error.code() == std::errc::no_such_device));
        } catch (const std::exception& error) {
            FAIL_CHECK(error.what());
        }
    }

    const Failing& failing_;
    const int nth_;
    bool failed_ = false;
    std::string_view what_failed_;
    // An unreadable GID may be skipped. An fd without a waiter that cannot be masked is removed
    // from the epoll set instead. A failing read of events is reported to the next waiter if the
    // current one has all its events.
    std::vector<std::string_view> tolerated_{"ibv_query_gid_ex", "epoll_ctl", "rdma_get_cm_event"};
    std::optional<FailureShelter> shelter_;
};

// --- fixtures of the operations ---

struct Host {
    Context context = Context::open("sim0");
    ProtectionDomain domain{context};
    std::array<std::byte, 64> memory{};
    MemoryRegion region{domain, memory};
};

// A queue pair that is its own peer. Counts the posted requests.
class Loopback {
public:
    Loopback(Host& host, const CompletionQueue& cq)
        : host_(host), qp_(host.domain, cq, cq, {.max_send_wr = 8, .max_recv_wr = 8}) {
        qp_.connect(qp_.local_address());
    }

    void receive() {
        ibv_sge sge = host_.region.slice().sge();
        ibv_recv_wr wr{};
        wr.wr_id = posted_;
        wr.sg_list = &sge;
        wr.num_sge = 1;
        qp_.post_recv(wr);
        ++posted_;
    }

    void send() {
        ibv_send_wr wr{};
        wr.wr_id = posted_;
        wr.opcode = IBV_WR_SEND;
        wr.send_flags = IBV_SEND_SIGNALED;
        qp_.post_send(wr);
        ++posted_;
    }

    void to_error() { qp_.to_error(); }

    // A message: two completions.
    void exchange() {
        receive();
        send();
    }

    void complete(const ibv_wc& wc) noexcept {
        const bool expected = wc.wr_id < posted_ && !completed_.at(wc.wr_id);
        completed_.at(wc.wr_id) = true;
        if (expected) {
            ++completions_;
        } else {
            ++strays_;
        }
    }
    void complete(std::span<const ibv_wc> wcs) noexcept {
        for (const ibv_wc& wc : wcs) complete(wc);
    }

    // Every posted request completes or is flushed, once.
    template <class Poll>
    void settle(Poll&& poll) {
        to_error();
        std::array<ibv_wc, 4> wcs{};
        for (int polls = 0; polls < 20; ++polls) complete(poll(std::span<ibv_wc>(wcs)));
        CHECK(completions_ == posted_);
        CHECK(strays_ == 0);
    }
    void settle(AsyncCq& cq) {
        settle([&](std::span<ibv_wc> wcs) { return cq.try_poll(wcs); });
    }

    std::uint64_t last() const noexcept { return posted_ - 1; }

private:
    Host& host_;
    QueuePair qp_;
    std::array<bool, 32> completed_{};
    std::uint64_t posted_ = 0;
    std::uint64_t completions_ = 0;
    int strays_ = 0;
};

// An AsyncCq whose loop is driven by the test, and a connection on it.
struct Connected : Host {
    Connected() : cq(CompletionQueue(context, 32), notifier), link(*this, cq.completion_queue()) {}

    // Runs the loop until there is nothing to do.
    void run_until_idle() {
        for (int i = 0; i < 20 && cq_readable(); ++i) {
            notifier.notify();
            if (!notifier.run()) return;
        }
        while (notifier.run()) {
        }
    }
    void settle() { link.settle(cq); }

    ManualNotifier notifier;
    AsyncCq cq;
    Loopback link;

private:
    bool cq_readable() const {
        pollfd channel{cq.completion_queue().channel().fd(), POLLIN, 0};
        return ::poll(&channel, 1, 0) == 1;
    }
};

Coroutine consume(AsyncCq& cq, Loopback& link, std::size_t count, std::stop_token stop = {}) {
    std::array<ibv_wc, 2> wcs{};
    for (std::size_t got = 0; got < count;) {
        const std::span<ibv_wc> done = co_await cq.poll(wcs, stop);
        link.complete(done);
        got += done.size();
    }
}

Coroutine consume_one(AsyncCq& cq, Loopback& link, std::uint64_t wr_id, std::stop_token stop = {}) {
    const ibv_wc wc = co_await cq.poll_wr_id(wr_id, stop);
    link.complete(wc);
}

// No coroutine may still wait. Rethrows their exceptions.
void finish(std::initializer_list<const Coroutine*> coroutines) {
    for (const Coroutine* each : coroutines) {
        if (!each->done()) throw std::logic_error("a coroutine was left behind: it hangs");
    }
    for (const Coroutine* each : coroutines) each->get();
}

void finish_cancelled(const Coroutine& coroutine) {
    try {
        finish({&coroutine});
        throw std::logic_error("not cancelled");
    } catch (const std::system_error& error) {
        if (error.code() != std::errc::operation_canceled) throw;
    }
}

Coroutine start(Task<> task) { co_await std::move(task); }

void run(EpollExecutor& executor, Task<> task) {
    const Coroutine coroutine = start(std::move(task));
    for (int i = 0; i < 200 && !coroutine.done(); ++i) executor.run_once();
    finish({&coroutine});
}

// --- operations ---

struct Operation {
    const char* name;
    void (*run)(Trial&);
};

const auto owner_operations = std::to_array<Operation>({
    {"DeviceList", [](Trial& trial) { trial.attempt([] { const DeviceList devices; }); }},
    {"Context::open by name",
     [](Trial& trial) { trial.attempt([] { (void)Context::open("sim0"); }); }},
    {"Context::open the first with an active port",
     [](Trial& trial) { trial.attempt([] { (void)Context::open(); }); }},
    {"Context queries",
     [](Trial& trial) {
         const Context context = Context::open("sim0");
         trial.attempt([&] {
             (void)context.query_device();
             (void)context.query_port(context.active_port());
             (void)context.query_gid(1, select_gid(context, 1));
         });
     }},
    {"ProtectionDomain",
     [](Trial& trial) {
         const Context context = Context::open("sim0");
         trial.attempt([&] { const ProtectionDomain domain(context); });
     }},
    {"MemoryRegion",
     [](Trial& trial) {
         Host host;
         trial.attempt([&] { const MemoryRegion region(host.domain, host.memory); });
     }},
    {"MemoryRegion::allocate",
     [](Trial& trial) {
         const Host host;
         trial.attempt([&] { (void)MemoryRegion::allocate(host.domain, 64); });
     }},
    {"CompletionChannel",
     [](Trial& trial) {
         const Context context = Context::open("sim0");
         trial.attempt([&] { const CompletionChannel channel(context); });
     }},
    {"CompletionQueue",
     [](Trial& trial) {
         const Context context = Context::open("sim0");
         trial.attempt([&] { const CompletionQueue cq(context, 8); });
     }},
    {"CompletionQueue on a shared channel",
     [](Trial& trial) {
         const Context context = Context::open("sim0");
         const CompletionChannel channel(context);
         trial.attempt([&] { const CompletionQueue cq(context, 8, channel); });
     }},
    {"QueuePair",
     [](Trial& trial) {
         const Host host;
         const CompletionQueue cq(host.context, 32);
         trial.attempt([&] { const QueuePair qp(host.domain, cq, cq); });
         CHECK(cq.reserved() == 0);
     }},
    {"QueuePair: init",
     [](Trial& trial) {
         const Host host;
         const CompletionQueue cq(host.context, 32);
         QueuePair qp(host.domain, cq, cq);
         trial.attempt([&] { qp.init(); });
     }},
    {"QueuePair: connect",
     [](Trial& trial) {
         const Host host;
         const CompletionQueue cq(host.context, 32);
         QueuePair qp(host.domain, cq, cq);
         trial.attempt([&] { qp.connect(qp.local_address()); });
     }},
    {"QueuePair: activate",
     [](Trial& trial) {
         const Host host;
         const CompletionQueue cq(host.context, 32);
         QueuePair qp(host.domain, cq, cq, {.type = IBV_QPT_UD});
         trial.attempt([&] { qp.activate(); });
     }},
    {"QueuePair: state and to_error",
     [](Trial& trial) {
         Host host;
         const CompletionQueue cq(host.context, 32);
         QueuePair qp(host.domain, cq, cq);
         qp.init();
         trial.attempt([&] {
             (void)qp.state();
             qp.to_error();
         });
     }},
    {"SharedReceiveQueue, and a queue pair that is made with it",
     [](Trial& trial) {
         Host host;
         const CompletionQueue cq(host.context, 32);
         trial.attempt([&] {
             SharedReceiveQueue receives(host.domain);
             const QueuePair qp(host.domain, cq, cq, receives);
             ibv_recv_wr wr{};
             receives.post_recv(wr);
             receives.arm_limit(1);
         });
         CHECK(cq.reserved() == 0);
     }},
    {"AddressHandle",
     [](Trial& trial) {
         const Host host;
         const CompletionQueue cq(host.context, 32);
         QueuePair qp(host.domain, cq, cq, {.type = IBV_QPT_UD});
         qp.activate();
         const QueuePairAddress address = qp.local_address();
         trial.attempt([&] { const AddressHandle handle(host.domain, qp, address); });
     }},
    {"everything from the device to a connected queue pair",
     [](Trial& trial) {
         trial.attempt([] {
             Host host;
             const CompletionQueue cq(host.context, 32);
             const Loopback link(host, cq);
         });
     }},
});

const auto poll_operations = std::to_array<Operation>({
    {"CqPoller",
     [](Trial& trial) {
         const Context context = Context::open("sim0");
         CompletionQueue cq(context, 8);
         trial.attempt([&] { const CqPoller poller(std::move(cq)); });
     }},
    {"CqPoller: its loop",
     [](Trial& trial) {
         Host host;
         CqPoller poller(CompletionQueue(host.context, 32), 2);
         Loopback link(host, poller.completion_queue());
         std::array<ibv_wc, 4> wcs{};
         trial.attempt([&] {
             for (int messages = 0; messages < 3; ++messages) {
                 while (const std::size_t count = poller.poll_or_arm(wcs)) {
                     link.complete(std::span(wcs).first(count));
                 }
                 link.exchange();
                 poller.consume();
             }
         });
         link.settle([&](std::span<ibv_wc> some) { return some.first(poller.poll(some)); });
     }},
    {"AsyncCq",
     [](Trial& trial) {
         const Context context = Context::open("sim0");
         CompletionQueue cq(context, 8);
         trial.attempt([&] { const AsyncCq taken(std::move(cq), ManualNotifier()); });
     }},
    {"AsyncCq: a request is posted, and a poll finds it",
     [](Trial& trial) {
         Connected connected;
         trial.attempt([&] {
             connected.link.exchange();
             const Coroutine consumer = consume(connected.cq, connected.link, 2);
             finish({&consumer});
         });
         connected.settle();
     }},
    {"AsyncCq: a sleeping poll",
     [](Trial& trial) {
         Connected connected;
         trial.attempt([&] {
             const Coroutine consumer = consume(connected.cq, connected.link, 4);
             connected.link.exchange();
             connected.run_until_idle();
             connected.link.exchange();
             connected.run_until_idle();
             finish({&consumer});
         });
         connected.settle();
     }},
    {"AsyncCq: polls that report by std::error_code",
     [](Trial& trial) {
         Connected connected;
         struct Local {
             static Coroutine run(AsyncCq& cq, Loopback& link) {
                 std::array<ibv_wc, 1> wcs{};
                 std::error_code error;
                 const std::span<ibv_wc> done = co_await cq.poll(wcs, error);
                 link.complete(done);
                 if (done.empty() != static_cast<bool>(error)) throw std::logic_error("both");
                 const ibv_wc wc = co_await cq.poll_wr_id(1, error);
                 if (!error) link.complete(wc);
                 std::array<ibv_wc, 1> rest{};
                 co_await cq.poll(rest); // throws what the two before reported, by name
                 link.complete(rest);
             }
         };
         trial.attempt([&] {
             const Coroutine consumer = Local::run(connected.cq, connected.link);
             connected.link.exchange();
             connected.run_until_idle();
             connected.link.receive();
             connected.link.send();
             connected.run_until_idle();
             finish({&consumer});
         });
         connected.settle();
     }},
    {"AsyncCq: poll_wr_id while others are kept",
     [](Trial& trial) {
         Connected connected;
         trial.attempt([&] {
             for (int messages = 0; messages < 3; ++messages) connected.link.exchange();
             const Coroutine one = consume_one(connected.cq, connected.link, connected.link.last());
             finish({&one});
             const Coroutine rest = consume(connected.cq, connected.link, 5);
             finish({&rest});
         });
         connected.settle();
     }},
    {"AsyncCq: a sleeping poll_wr_id",
     [](Trial& trial) {
         Connected connected;
         trial.attempt([&] {
             const Coroutine one = consume_one(connected.cq, connected.link, 3);
             connected.link.exchange();
             connected.run_until_idle();
             connected.link.exchange();
             connected.run_until_idle();
             finish({&one});
         });
         connected.settle();
     }},
    {"AsyncCq: try_poll",
     [](Trial& trial) {
         Connected connected;
         trial.attempt([&] {
             connected.link.exchange();
             std::array<ibv_wc, 1> wcs{};
             connected.link.complete(connected.cq.try_poll(wcs));
         });
         connected.settle();
     }},
    {"AsyncCq: several waiters, one of them for one request",
     [](Trial& trial) {
         Connected connected;
         trial.attempt([&] {
             const Coroutine first = consume(connected.cq, connected.link, 2);
             const Coroutine one = consume_one(connected.cq, connected.link, 2);
             const Coroutine second = consume(connected.cq, connected.link, 1);
             connected.link.exchange();
             connected.link.exchange();
             connected.run_until_idle();
             finish({&first, &one, &second});
         });
         connected.settle();
     }},
    {"AsyncCq: a waiter is cancelled, the other goes on",
     [](Trial& trial) {
         Connected connected;
         trial.attempt([&] {
             std::stop_source stop;
             const Coroutine cancelled = consume(connected.cq, connected.link, 1, stop.get_token());
             const Coroutine other = consume(connected.cq, connected.link, 2);
             stop.request_stop();
             connected.run_until_idle();
             connected.link.exchange();
             connected.run_until_idle();
             finish_cancelled(cancelled);
             finish({&other});
         });
         connected.settle();
     }},
    {"AsyncCq: a waiter is destroyed, the other goes on",
     [](Trial& trial) {
         Connected connected;
         trial.attempt([&] {
             Coroutine destroyed = consume(connected.cq, connected.link, 1);
             const Coroutine other = consume(connected.cq, connected.link, 2);
             connected.link.exchange();
             destroyed.destroy();
             connected.run_until_idle();
             finish({&other});
         });
         connected.settle();
     }},
    {"AsyncCq: a notifier that times out, and an arm that is repeated",
     [](Trial& trial) {
         Connected connected;
         trial.attempt([&] {
             const Coroutine consumer = consume(connected.cq, connected.link, 2);
             connected.notifier.notify(std::make_error_code(std::errc::timed_out));
             connected.run_until_idle();
             connected.link.exchange();
             connected.run_until_idle();
             finish({&consumer});
         });
         connected.settle();
     }},
    {"SharedChannel: a message for each of two queues, after a stop",
     [](Trial& trial) {
         // As with rdma_get_cm_event: the events that the two waited for were read already.
         trial.tolerate("ibv_get_cq_event");
         Host host;
         ManualNotifier notifier;
         trial.attempt([&] {
             SharedChannel channel(CompletionChannel(host.context), notifier);
             AsyncCq first = AsyncCq::create(host.context, 32, channel);
             AsyncCq second = AsyncCq::create(host.context, 32, channel);
             Loopback first_link(host, first.completion_queue());
             Loopback second_link(host, second.completion_queue());
             std::stop_source stop;
             const Coroutine cancelled = consume(first, first_link, 1, stop.get_token());
             const Coroutine on_first = consume(first, first_link, 2);
             const Coroutine on_second = consume(second, second_link, 2);
             stop.request_stop();
             while (notifier.run()) {
             }
             first_link.exchange();
             second_link.exchange();
             for (int wakes = 0; wakes < 2; ++wakes) {
                 notifier.notify();
                 while (notifier.run()) {
                 }
             }
             finish_cancelled(cancelled);
             finish({&on_first, &on_second});
         });
     }},
    {"AsyncCq: teardown in the documented order",
     [](Trial& trial) {
         trial.attempt([] {
             Connected connected;
             for (int i = 0; i < 4; ++i) connected.link.receive();
             const Coroutine consumer = consume(connected.cq, connected.link, 4);
             connected.link.to_error();
             connected.run_until_idle();
             finish({&consumer});
         });
     }},
});

const auto executor_operations = std::to_array<Operation>({
    {"EpollExecutor", [](Trial& trial) { trial.attempt([] { EpollExecutor executor; }); }},
    {"EpollExecutor: run, schedule, sleep_for, post",
     [](Trial& trial) {
         trial.attempt([] {
             EpollExecutor executor;
             int called = 0;
             struct Local {
                 static Task<int> run(EpollExecutor& loop, int& calls) {
                     loop.post([&calls] { ++calls; });
                     co_await loop.schedule();
                     const std::error_code error = co_await loop.sleep_for(1us);
                     if (error) throw std::system_error(error, "sleep_for");
                     co_return calls;
                 }
             };
             if (executor.run(Local::run(executor, called)) != 1) throw std::logic_error("lost");
         });
     }},
    {"EpollNotifier: readable, with and without a bound",
     [](Trial& trial) {
         EpollExecutor executor;
         const support::Pipe pipe;
         struct Local {
             static Task<> run(EpollExecutor& loop, const support::Pipe& input) {
                 EpollNotifier notifier = loop.notifier(input.reader());
                 std::error_code error = co_await notifier.readable({}, 0ns);
                 if (error != std::errc::timed_out) throw std::system_error(error, "readable");
                 co_await loop.sleep_for(0ns); // readable without a waiter: masked
                 input.put();
                 co_await loop.sleep_for(0ns);
                 co_await loop.sleep_for(0ns);
                 error = co_await notifier.readable();
                 if (error) throw std::system_error(error, "epoll_ctl");
             }
         };
         trial.attempt([&] { run(executor, Local::run(executor, pipe)); });
     }},
    {"Scope, when_all and sync_wait",
     [](Trial& trial) {
         EpollExecutor executor;
         struct Local {
             static Task<int> one(EpollExecutor& loop) {
                 co_await loop.schedule();
                 co_return 1;
             }
             static Task<> add(EpollExecutor& loop, int& sum) { sum += co_await one(loop); }
             static Task<int> at_once() { co_return 1; }
             static Task<> run(EpollExecutor& loop) {
                 int sum = sync_wait(at_once());
                 Scope scope;
                 scope.spawn(add(loop, sum));
                 scope.spawn(add(loop, sum));
                 const auto [a, b] = co_await when_all(one(loop), one(loop));
                 std::vector<Task<int>> tasks;
                 tasks.push_back(one(loop));
                 tasks.push_back(one(loop));
                 const std::vector<int> more = co_await when_all(std::move(tasks));
                 co_await scope.join();
                 if (sum + a + b + more[0] + more[1] != 7) throw std::logic_error("lost");
             }
         };
         trial.attempt([&] { run(executor, Local::run(executor)); });
     }},
    {"AsyncCq::create",
     [](Trial& trial) {
         const Context context = Context::open("sim0");
         EpollExecutor executor;
         trial.attempt([&] { (void)AsyncCq::create(context, 8, executor); });
     }},
    {"AsyncCq on EpollExecutor: two waiters, a stop, a maximum wait",
     [](Trial& trial) {
         Host host;
         EpollExecutor executor;
         AsyncCq cq = AsyncCq::create(host.context, 32, executor, {.max_wait = 1ms});
         Loopback link(host, cq.completion_queue());
         struct Local {
             static Task<> waits(AsyncCq& queue, Loopback& traffic, std::stop_token stop) {
                 std::array<ibv_wc, 1> wcs{};
                 traffic.complete(co_await queue.poll(wcs, stop));
             }
             static Task<> cancelled(AsyncCq& queue, Loopback& traffic, std::stop_token stop) {
                 std::array<ibv_wc, 1> wcs{};
                 std::error_code error;
                 traffic.complete(co_await queue.poll(wcs, error, stop));
             }
             static Task<> run(EpollExecutor& loop, AsyncCq& queue, Loopback& traffic) {
                 std::stop_source stop;
                 Scope scope;
                 scope.spawn(waits(queue, traffic, {}));
                 scope.spawn(cancelled(queue, traffic, stop.get_token()));
                 scope.spawn(waits(queue, traffic, {}));
                 co_await loop.schedule();
                 stop.request_stop();
                 co_await loop.schedule();
                 traffic.exchange();
                 co_await scope.join();
             }
         };
         trial.attempt([&] { run(executor, Local::run(executor, cq, link)); });
         link.settle(cq);
     }},
    {"BufferPool: one buffer, two waiters, a stop",
     [](Trial& trial) {
         const Host host;
         EpollExecutor executor;
         struct Local {
             static Task<> wait(BufferPool<EpollExecutor>& pool) {
                 const PooledBuffer buffer = co_await pool.acquire();
             }
             static Task<> cancelled(BufferPool<EpollExecutor>& pool, std::stop_token stop) {
                 try {
                     const PooledBuffer buffer = co_await pool.acquire(stop);
                 } catch (const std::system_error& error) {
                     if (error.code() != std::errc::operation_canceled) throw;
                     co_return;
                 }
                 throw std::logic_error("not cancelled");
             }
             static Task<> run(EpollExecutor& loop, const ProtectionDomain& domain) {
                 BufferPool pool(loop, domain, 1, 64);
                 std::optional<PooledBuffer> held = pool.try_acquire();
                 std::stop_source stop;
                 Scope scope;
                 scope.spawn(cancelled(pool, stop.get_token()));
                 scope.spawn(wait(pool));
                 stop.request_stop();
                 held.reset();
                 co_await scope.join();
                 if (pool.available() != 1) throw std::logic_error("lost");
             }
         };
         trial.attempt([&] { run(executor, Local::run(executor, host.domain)); });
     }},
    {"DeviceEvents: an overrun reaches the waiters of the queue",
     [](Trial& trial) {
         const Context context = Context::open("sim0");
         EpollExecutor executor;
         AsyncCq cq = AsyncCq::create(context, 8, executor);
         struct Local {
             static Task<> wait(AsyncCq& queue) {
                 std::array<ibv_wc, 1> wcs{};
                 try {
                     co_await queue.poll(wcs);
                 } catch (const std::system_error& error) {
                     if (!std::string(error.what()).starts_with("the device reported")) throw;
                     co_return;
                 }
                 throw std::logic_error("a completion from nowhere");
             }
             static Task<> run(const Context& device, EpollExecutor& loop, AsyncCq& queue,
                               SimulatedVerbs& sim) {
                 DeviceEvents events(device, loop.notifier(device.native_handle()->async_fd));
                 Scope scope;
                 scope.spawn(wait(queue));
                 {
                     const FailureShelter shelter;
                     sim.break_cq(queue.native_handle());
                 }
                 const ibv_async_event event = co_await events.next();
                 if (event.event_type != IBV_EVENT_CQ_ERR) throw std::logic_error("not this");
                 co_await scope.join();
             }
         };
         trial.attempt([&] { run(executor, Local::run(context, executor, cq, trial.sim)); });
     }},
});

// Two ends of a connection on one loop. A failure of one ends both.
struct BothEnds {
    Task<> accept() {
        IncomingConnection incoming = co_await listener.accept(stop.get_token());
        server_cq.emplace(incoming.context(), 8);
        server_domain.emplace(incoming.context());
        server_qp.emplace(*server_domain, *server_cq, *server_cq,
                          QueuePairOptions{.max_send_wr = 1, .max_recv_wr = 1});
        incoming.prepare(*server_qp);
        server.emplace(co_await incoming.accept(*server_qp, {}, stop.get_token()));
    }

    Task<> reject() {
        IncomingConnection incoming = co_await listener.accept(stop.get_token());
        incoming.reject();
    }

    Task<> dial() {
        const auto make_qp = [this](const OutgoingConnection& outgoing) -> QueuePair& {
            client_cq.emplace(outgoing.context(), 8);
            client_domain.emplace(outgoing.context());
            client_qp.emplace(*client_domain, *client_cq, *client_cq,
                              QueuePairOptions{.max_send_wr = 1, .max_recv_wr = 1});
            outgoing.prepare(*client_qp);
            return *client_qp;
        };
        client.emplace(co_await connect(loop, "10.7.0.1", port, make_qp, {}, stop.get_token()));
    }

    Task<> dial_rejected() {
        try {
            co_await dial();
        } catch (const ConnectionRejected&) {
            co_return;
        }
        throw std::logic_error("it was accepted");
    }

    Task<> connect_both() { co_await both(accept(), dial()); }

    Task<> both(Task<> one, Task<> other) {
        co_await when_all(or_stop(std::move(one)), or_stop(std::move(other)));
    }
    Task<> or_stop(Task<> task) {
        try {
            co_await std::move(task);
        } catch (...) {
            stop.request_stop();
            throw;
        }
    }

    simulated::SimulatedCm cm;
    EpollExecutor loop;
    std::stop_source stop;
    Listener listener{loop, "10.7.0.1", ""};
    std::string port = std::to_string(listener.port());
    std::optional<ProtectionDomain> server_domain;
    std::optional<ProtectionDomain> client_domain;
    std::optional<CompletionQueue> server_cq;
    std::optional<CompletionQueue> client_cq;
    std::optional<QueuePair> server_qp;
    std::optional<QueuePair> client_qp;
    std::optional<Connection> server;
    std::optional<Connection> client;
};

const auto connection_operations = std::to_array<Operation>({
    {"Listener, until a coroutine waits for it",
     [](Trial& trial) {
         simulated::SimulatedCm cm;
         EpollExecutor loop;
         trial.attempt([&] {
             std::stop_source stop;
             Listener listener(loop, "10.7.0.1", "");
             const auto accept = [&]() -> Task<> {
                 static_cast<void>(co_await listener.accept(stop.get_token()));
             };
             const Coroutine waiting = start(accept());
             stop.request_stop();
             for (int i = 0; i < 10; ++i) loop.run_once();
             finish_cancelled(waiting);
         });
     }},
    {"resolve",
     [](Trial& trial) {
         simulated::SimulatedCm cm;
         EpollExecutor loop;
         const auto resolve_route = [&]() -> Task<> {
             static_cast<void>(co_await resolve(loop, "10.7.0.1", "7471"));
         };
         trial.attempt([&] { run(loop, resolve_route()); });
     }},
    {"connect and accept",
     [](Trial& trial) {
         BothEnds ends;
         trial.attempt([&] { run(ends.loop, ends.connect_both()); });
     }},
    {"connect and reject",
     [](Trial& trial) {
         // The identifier and its queue pair are destroyed in any case.
         trial.tolerate("ibv_modify_qp");
         BothEnds ends;
         trial.attempt([&] { run(ends.loop, ends.both(ends.reject(), ends.dial_rejected())); });
     }},
    {"disconnect and disconnected",
     [](Trial& trial) {
         // The peer is notified when the connection is destroyed.
         trial.tolerate("rdma_disconnect");
         trial.tolerate("ibv_modify_qp");
         BothEnds ends;
         run(ends.loop, ends.connect_both());
         ends.cm.hold("rdma_disconnect");
         ends.cm.push(ends.client->native_handle(), RDMA_CM_EVENT_DISCONNECTED);
         const auto wait = [&]() -> Task<> {
             static_cast<void>(co_await ends.client->disconnected());
         };
         const auto leave = [&]() -> Task<> { co_await ends.client->disconnect(); };
         trial.attempt([&] { run(ends.loop, ends.both(leave(), wait())); });
     }},
});

// Awaits all of them, then throws the first failure.
Coroutine await_all(std::span<asyncverbs::Operation> operations) {
    std::exception_ptr first;
    for (asyncverbs::Operation& operation : operations) {
        try {
            co_await operation;
        } catch (const OperationError&) { // the consequence of another one that was rejected
        } catch (...) {
            if (!first) first = std::current_exception();
        }
    }
    if (first) std::rethrow_exception(first);
}

// Two queue pairs on a router whose loop is driven by the test.
struct Routed : Host {
    void make() {
        router.emplace(AsyncCq(CompletionQueue(context, 64), notifier));
        a.emplace(*router, domain, small);
        b.emplace(*router, domain, small);
        a->queue_pair().init();
        b->queue_pair().connect(a->queue_pair().local_address());
        a->queue_pair().connect(b->queue_pair().local_address());
    }

    // Runs the loop until there is nothing to do.
    void run_until_idle() {
        while (notifier.run()) {
        }
        for (int i = 0; i < 20 && readable(); ++i) {
            notifier.notify();
            if (!notifier.run()) return;
        }
    }
    bool readable() const {
        pollfd channel{router->completion_queue().channel().fd(), POLLIN, 0};
        return ::poll(&channel, 1, 0) == 1;
    }

    // An error that came too late for the waiters is reported to the next operation.
    void probe() {
        asyncverbs::Operation next = a->recv(region.slice());
        if (!next.done()) return;
        const Coroutine waiter = await_all({&next, 1});
        waiter.get();
    }

    static constexpr QueuePairOptions small{
        .max_send_wr = 2, .max_recv_wr = 2, .max_send_sge = 2, .max_recv_sge = 2};
    ManualNotifier notifier;
    std::optional<Router> router;
    std::optional<AsyncSrq> srq;
    std::optional<AsyncQp> a;
    std::optional<AsyncQp> b;
};

const auto rdma_operations = std::to_array<Operation>({
    {"Router and AsyncQp",
     [](Trial& trial) {
         Routed routed;
         trial.attempt([&] {
             routed.make();
             routed.probe();
         });
     }},
    {"AsyncSrq and its AsyncQp",
     [](Trial& trial) {
         Routed routed;
         routed.make();
         trial.attempt([&] {
             routed.srq.emplace(*routed.router, routed.domain);
             routed.a.emplace(*routed.router, routed.domain, *routed.srq, Routed::small);
             std::array<asyncverbs::Operation, 1> receive{routed.srq->recv(routed.region.slice())};
             if (receive.front().done()) await_all(receive).get();
         });
     }},
    {"operations, more than there is room for",
     [](Trial& trial) {
         Routed routed;
         routed.make();
         trial.attempt([&] {
             std::array<asyncverbs::Operation, 10> operations;
             const std::array<Slice, 2> slices{routed.region.slice(0, 8),
                                               routed.region.slice(8, 8)};
             for (std::size_t i = 0; i < operations.size(); i += 2) {
                 operations[i] = routed.b->recv(slices);
                 operations[i + 1] = routed.a->send(slices);
             }
             const Coroutine waiter = await_all(operations);
             routed.run_until_idle();
             routed.a->queue_pair().to_error(); // a refused receive leaves a send waiting
             routed.b->queue_pair().to_error();
             routed.run_until_idle();
             finish({&waiter});
             routed.probe();
         });
     }},
    {"a chain",
     [](Trial& trial) {
         Routed routed;
         routed.make();
         trial.attempt([&] {
             std::array<asyncverbs::Operation, 4> operations;
             const std::vector<SendRequest> requests(
                 4, SendRequest::write(routed.region.slice(0, 8), {1, 8, routed.region.rkey()}));
             routed.a->post(requests, operations);
             const Coroutine waiter = await_all(operations);
             routed.run_until_idle();
             finish({&waiter});
             routed.probe();
         });
     }},
    {"drain",
     [](Trial& trial) {
         Routed routed;
         routed.make();
         trial.attempt([&] {
             std::array<asyncverbs::Operation, 2> operations{
                 routed.a->recv(routed.region.slice()),
                 routed.a->send(routed.region.slice(), {.signaled = false})};
             const Coroutine waiter = await_all(operations);
             const auto drain = [&]() -> Task<> { co_await routed.a->drain(); };
             const Coroutine drainer = start(drain());
             routed.run_until_idle();
             finish({&drainer}); // where that fails, nothing is flushed
             finish({&waiter});
             routed.probe();
         });
     }},
    {"a stop",
     [](Trial& trial) {
         Routed routed;
         routed.make();
         trial.attempt([&] {
             std::stop_source stop;
             asyncverbs::Operation receive = routed.a->recv(routed.region.slice());
             const auto wait = [&]() -> Task<> { co_await receive.wait(stop.get_token()); };
             const Coroutine waiter = start(wait());
             stop.request_stop();
             routed.run_until_idle();
             finish_cancelled(waiter);
             routed.probe();
         });
     }},
});

// Returns the number of calls of that kind that the operation makes.
int fail_each_call(const Operation& operation, const Failing& failing) {
    for (int nth = 1; nth < 1000; ++nth) {
        INFO(operation.name << ", " << failing.name << ", call " << nth);
        Trial trial(failing, nth);
        operation.run(trial);
        CHECK(trial.sim.live_objects() == 0);
        CHECK(trial.sim.take_problems().empty());
        if (!trial.failed()) return nth - 1;
    }
    FAIL_CHECK(operation.name << " never passes");
    return 0;
}

// Returns the number of pairs of operation and failing call.
int sweep(std::span<const Operation> operations, const char* layer) {
    int all = 0;
    for (const Failing& failing : failings) {
        int pairs = 0;
        for (const Operation& operation : operations) pairs += fail_each_call(operation, failing);
        std::cout << layer << ": " << operations.size() << " operations, " << failing.name << ": "
                  << pairs << " pairs of operation and failing call\n";
        all += pairs;
    }
    return all;
}

} // namespace

TEST_CASE("every call fails once: the owners", "[proof][failing_calls][I5]") {
    CHECK(sweep(owner_operations, "owners") > 300);
}

TEST_CASE("every call fails once: polling and waiting", "[proof][failing_calls][I5]") {
    CHECK(sweep(poll_operations, "polling and waiting") > 300);
}

TEST_CASE("every call fails once: the executor", "[proof][failing_calls][I5]") {
    CHECK(sweep(executor_operations, "the executor") > 50);
}

TEST_CASE("every call fails once: connections", "[proof][failing_calls][I5]") {
    CHECK(sweep(connection_operations, "connections") > 300);
}

TEST_CASE("every call fails once: operations of queue pairs", "[proof][failing_calls][I5]") {
    CHECK(sweep(rdma_operations, "operations of queue pairs") > 300);
}
