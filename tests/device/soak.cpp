// SPDX-License-Identifier: MIT
#include "device/soak.hpp"

#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include <malloc.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <exception>
#include <fstream>
#include <mutex>
#include <random>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "device/pair.hpp"

namespace asyncverbs::device {

namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

struct Memory {
    std::ptrdiff_t heap = 0;
    std::ptrdiff_t resident = 0;

    static Memory now() {
        std::ifstream statm("/proc/self/statm");
        std::ptrdiff_t size = 0;
        std::ptrdiff_t resident = 0;
        statm >> size >> resident;
        return {static_cast<std::ptrdiff_t>(::mallinfo2().uordblks),
                resident * ::sysconf(_SC_PAGESIZE)};
    }
};

// Lets the other thread cancel a coroutine's waits, any number of times.
class Cancellation {
public:
    std::stop_token token() {
        const std::lock_guard lock(mutex_);
        return source_.get_token();
    }
    void request() {
        std::stop_source source;
        {
            const std::lock_guard lock(mutex_);
            source = source_;
        }
        source.request_stop();
    }
    void renew() {
        const std::lock_guard lock(mutex_);
        source_ = {};
    }

private:
    std::mutex mutex_;
    std::stop_source source_;
};

// Sends on one thread and receives on another, so that completions arrive at any point between
// poll, arm and wait. Each thread cancels the waits of the other.
class Soak {
public:
    explicit Soak(const SoakOptions& options)
        : options_(options), pair_(sender_.loop, receiver_.loop, {.ack_batch = ack_batch}) {
        ::mallopt(M_ARENA_MAX, 1); // mallinfo2() reports only the first arena
        sender_.random.seed(options.seed);
        receiver_.random.seed(options.seed + 1);
    }

    SoakResult run() {
        const std::uint64_t messages = options_.completions / 2;
        for (std::uint64_t id = 0; id < receives; ++id) pair_.post_recv(id);
        transfer(messages / 10);
        const Memory before = Memory::now();
        transfer(messages);
        const Memory after = Memory::now();
        drain();
        SoakResult result;
        result.completions = 2 * messages;
        result.cancelled = sender_.cancelled + receiver_.cancelled;
        result.selected = selected_;
        result.sends = check_events(*pair_.send_cq);
        result.receives = check_events(*pair_.recv_cq);
        result.heap_growth = after.heap - before.heap;
        result.resident_growth = after.resident - before.resident;
        return result;
    }

private:
    static constexpr unsigned ack_batch = 5;
    static constexpr std::uint64_t receives = 64; // posted at any time
    static constexpr std::chrono::seconds stall_bound{30};

    // The state of one thread.
    struct Side {
        std::chrono::microseconds idle_time() { return std::chrono::microseconds(random() % 3000); }

        EpollExecutor loop;
        std::minstd_rand random;
        std::uint64_t cancelled = 0;
    };

    // Runs until this number of messages has been sent and received. When it returns, only the
    // posted receives are outstanding.
    void transfer(std::uint64_t messages) {
        messages_ = messages;
        done_ = {};
        {
            const std::jthread thread([this] { run_side(sender_, send_all()); });
            run_side(receiver_, receive_all());
        }
        if (!failure_.empty()) throw std::runtime_error(context() + failure_);
    }

    // The first error must stop both sides, or one would wait for the other indefinitely.
    void run_side(Side& side, Task<> task) {
        try {
            side.loop.run(std::move(task));
        } catch (const std::exception& error) {
            fail_both(error.what());
        }
    }

    void fail_both(const char* error) {
        const std::lock_guard lock(failure_mutex_);
        if (failed_) return; // the other side failed first
        failed_ = true;
        failure_ = error;
        sender_.loop.stop();
        receiver_.loop.stop();
    }

    Task<> guard(Task<> task) {
        try {
            co_await std::move(task);
        } catch (const std::exception& error) {
            fail_both(error.what());
        }
    }

    Task<> send_all() {
        Scope scope;
        scope.spawn(guard(send()));
        scope.spawn(guard(cancel_receivers()));
        co_await scope.join();
    }

    Task<> receive_all() {
        Scope scope;
        for (Cancellation& each : receiver_cancellations_) scope.spawn(guard(receive(each)));
        scope.spawn(guard(cancel_sender()));
        scope.spawn(guard(watch()));
        co_await scope.join();
    }

    // Several of these coroutines wait for one CQ. Together they must get the completions in order.
    Task<> receive(Cancellation& cancellation) {
        std::array<ibv_wc, 16> wcs{};
        while (received_ < messages_) {
            const std::span<ibv_wc> some =
                std::span(wcs).first(1 + receiver_.random() % wcs.size());
            std::error_code error;
            const std::span<ibv_wc> got =
                co_await pair_.recv_cq->poll(some, error, cancellation.token());
            if (error) renew(receiver_, cancellation, error);
            for (const ibv_wc& wc : got) on_received(wc);
            if (receiver_.random() % 64 == 0) {
                co_await receiver_.loop.sleep_for(receiver_.idle_time(), done_.get_token());
            }
        }
        end_if_done();
    }

    void on_received(const ibv_wc& wc) {
        check(wc, received_, "receive");
        if (pair_.received(received_) != received_) fail("receive", received_, "has other data");
        pair_.post_recv(received_ + receives);
        ++received_;
    }

    Task<> send() {
        std::array<ibv_wc, 16> wcs{};
        while (sent_ < messages_) {
            post_burst();
            if (posted_ == sent_) { // the receivers are behind
                co_await sender_.loop.sleep_for(50us, done_.get_token());
                continue;
            }
            const bool select = sender_.random() % 8 == 0;
            if (select) co_await select_last();
            while (sent_ < posted_ - (select ? 1 : 0)) {
                std::error_code error;
                const std::span<ibv_wc> got =
                    co_await pair_.send_cq->poll(wcs, error, sender_cancellation_.token());
                if (error) renew(sender_, sender_cancellation_, error);
                for (const ibv_wc& wc : got) check(wc, sent_++, "send");
                if (!select) break; // post more while others are in flight
            }
            if (select) ++sent_;
            if (sender_.random() % 2 == 0) co_await catch_up();
            if (sender_.random() % 8 == 0) {
                co_await sender_.loop.sleep_for(sender_.idle_time(), done_.get_token());
            }
        }
        end_if_done();
    }

    // Waits until every message was received, so that the receivers sleep when the next one is
    // sent. If that wake is lost, no later message can hide the loss.
    Task<> catch_up() {
        while (received_ < posted_ && !done_.stop_requested()) {
            co_await sender_.loop.schedule();
        }
    }

    // Posts as many sends as there are receives, or more: the excess may have to wait.
    void post_burst() {
        const std::uint64_t burst = std::uint64_t{1} << sender_.random() % 8;
        const std::uint64_t ahead = sender_.random() % 4 == 0 ? 2 * receives : receives;
        while (posted_ < messages_ && posted_ - sent_ < burst && posted_ - received_ < ahead) {
            pair_.post_send(posted_++);
        }
    }

    // Waits for the newest send first. The completions before it are kept for later polls.
    Task<> select_last() {
        std::error_code error;
        do {
            const ibv_wc wc = co_await pair_.send_cq->poll_wr_id(posted_ - 1, error,
                                                                 sender_cancellation_.token());
            if (error) {
                renew(sender_, sender_cancellation_, error);
            } else {
                check(wc, posted_ - 1, "selected send");
            }
        } while (error);
        ++selected_;
    }

    // Counts a cancellation and prepares the next wait. Other errors are thrown.
    void renew(Side& side, Cancellation& cancellation, std::error_code error) {
        if (error != std::errc::operation_canceled) throw std::system_error(error);
        ++side.cancelled;
        cancellation.renew();
    }

    Task<> cancel_receivers() {
        while (!done_.stop_requested()) {
            co_await pause(sender_);
            if (in_quiet_phase()) continue;
            receiver_cancellations_[sender_.random() % receiver_cancellations_.size()].request();
        }
    }

    Task<> cancel_sender() {
        while (!done_.stop_requested()) {
            co_await pause(receiver_);
            if (in_quiet_phase()) continue;
            sender_cancellation_.request();
        }
    }

    // A cancelled waiter polls again, which would hide a lost wake. So send half of the messages
    // without cancellations.
    bool in_quiet_phase() const noexcept { return received_ / 1024 % 2 == 1; }

    Task<> pause(Side& side) {
        co_await side.loop.sleep_for(std::chrono::microseconds(side.random() % 1000),
                                     done_.get_token());
    }

    Task<> watch() {
        std::uint64_t seen = 0;
        Clock::time_point last_change = Clock::now();
        while (!done_.stop_requested()) {
            co_await receiver_.loop.sleep_for(250ms, done_.get_token());
            const std::uint64_t completions = sent_ + received_;
            if (options_.progress) options_.progress(completions);
            if (completions != seen) {
                seen = completions;
                last_change = Clock::now();
            } else if (Clock::now() - last_change > stall_bound) {
                throw std::runtime_error("nothing has completed for 30 s; " +
                                         std::to_string(sent_) + " sends and " +
                                         std::to_string(received_) + " receives before");
            }
        }
    }

    void end_if_done() {
        if (sent_ < messages_ || received_ < messages_) return;
        done_.request_stop();
        for (Cancellation& each : receiver_cancellations_) each.request();
    }

    // Checks that each outstanding receive is flushed once, and that no other completion is left.
    void drain() {
        pair_.receiver->to_error();
        for (std::uint64_t i = 0; i < receives; ++i, ++received_) {
            const ibv_wc wc = receiver_.loop.run(next_received());
            if (wc.wr_id != received_ || wc.status != IBV_WC_WR_FLUSH_ERR) {
                throw std::runtime_error(context() + "receive " + std::to_string(received_) +
                                         " is not flushed: wr_id " + std::to_string(wc.wr_id) +
                                         ", " + ibv_wc_status_str(wc.status));
            }
        }
        std::array<ibv_wc, 1> wcs{};
        if (!pair_.recv_cq->try_poll(wcs).empty() || !pair_.send_cq->try_poll(wcs).empty()) {
            throw std::runtime_error(context() + "more completed than was posted");
        }
    }

    Task<ibv_wc> next_received() {
        std::array<ibv_wc, 1> wcs{};
        co_await pair_.recv_cq->poll(wcs);
        co_return wcs[0];
    }

    // Checks that an arm preceded each event, that each arm except the last caused an event, and
    // that libibverbs has counted an ack for each event read, except for a batch that is not full
    // yet. Destroying the CQ acks the rest: with a wrong count it would not return.
    const CqStatistics& check_events(const AsyncCq& cq) {
        const CqStatistics& counts = cq.statistics();
        const std::uint32_t acked = cq.native_handle()->comp_events_completed;
        if (counts.events > counts.arms || counts.arms > counts.events + 1 ||
            counts.events > counts.wakes || counts.acks > counts.events ||
            counts.events - counts.acks >= ack_batch ||
            acked != static_cast<std::uint32_t>(counts.acks)) {
            throw std::runtime_error(context() + "arms " + std::to_string(counts.arms) +
                                     ", wakes " + std::to_string(counts.wakes) + ", events " +
                                     std::to_string(counts.events) + ", acks " +
                                     std::to_string(counts.acks) + ", of which libibverbs knows " +
                                     std::to_string(acked));
        }
        return counts;
    }

    static void check(const ibv_wc& wc, std::uint64_t expected, const char* what) {
        if (wc.wr_id != expected) {
            fail(what, expected, "is missing: wr_id " + std::to_string(wc.wr_id) + " came");
        }
        if (wc.status != IBV_WC_SUCCESS) fail(what, expected, ibv_wc_status_str(wc.status));
    }

    [[noreturn]] static void fail(const char* what, std::uint64_t id, const std::string& how) {
        throw std::runtime_error(what + (' ' + std::to_string(id)) + ": " + how);
    }

    std::string context() const {
        return "soak --completions " + std::to_string(options_.completions) + " --seed " +
               std::to_string(options_.seed) + ": ";
    }

    const SoakOptions& options_;
    Side sender_;
    Side receiver_;
    Pair<> pair_;
    Cancellation sender_cancellation_;
    std::array<Cancellation, 3> receiver_cancellations_;
    std::stop_source done_;
    std::uint64_t messages_ = 0;          // to be sent and received
    std::uint64_t posted_ = 0;            // sends
    std::atomic<std::uint64_t> sent_ = 0; // completed
    std::atomic<std::uint64_t> received_ = 0;
    std::uint64_t selected_ = 0;
    std::mutex failure_mutex_;
    bool failed_ = false;
    std::string failure_;
};

} // namespace

SoakResult soak(const SoakOptions& options) { return Soak(options).run(); }

} // namespace asyncverbs::device
