// SPDX-License-Identifier: MIT
#pragma once

#include <infiniband/verbs.h>

#include <cerrno>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <asyncverbs/simulation/simulated_device.hpp>

/// A replacement for libibverbs and librdmacm that needs no device, for the tests of a program.
namespace asyncverbs::simulated {

class Simulation;

/// Called for each problem that the audit has found. By default it prints the problem, and the exit
/// status of the process becomes EXIT_FAILURE. To fail a test instead, define it in your program:
///
///     void asyncverbs::simulated::report_problem(const std::string& problem) {
///         ADD_FAILURE() << problem; // GoogleTest; Catch2: FAIL_CHECK(problem)
///     }
void report_problem(const std::string& problem);

/// How a failing verb reports its error. libibverbs documents one way for each verb; providers use
/// others, too. If errno has no meaning, it is set to ENOANO.
enum class ErrnoSign { usual, positive, negative, minus_one };

/// Starting with the nth call from now, `times` calls fail and have no other effect.
struct Failure {
    int error = EIO;                   ///< an errno value
    int nth = 1;                       ///< from 1
    int times = 1;                     ///< how many calls
    ErrnoSign sign = ErrnoSign::usual; ///< how it is reported
};

/// A call of a verb, for a hook.
struct Call {
    /// When the hook is called.
    enum class Moment { before, after };

    std::string_view verb;          ///< "ibv_poll_cq"
    const void* object = nullptr;   ///< the first argument
    Moment moment = Moment::before; ///< the rest is set after the call
    int error = 0;                  ///< an errno value, or 0
    int value = 0;                  ///< the result of an int verb that succeeded
};

/// What happened to a completion queue.
struct CqCounters {
    std::uint64_t polls = 0;              ///< calls of ibv_poll_cq
    std::uint64_t empty_polls = 0;        ///< those that found nothing
    std::uint64_t arms = 0;               ///< calls of ibv_req_notify_cq
    std::uint64_t arms_lost = 0;          ///< see ProviderModel::loses_arm_without_poll
    std::uint64_t completions_pushed = 0; ///< by the device
    std::uint64_t completions_polled = 0; ///< by the program
    std::uint64_t completions_lost = 0;   ///< to an overrun, or purged with their queue pair
    std::uint64_t events_queued = 0;      ///< by the kernel
    std::uint64_t events_dropped = 0;     ///< see drop_events()
    std::uint64_t events_reported = 0;    ///< returned by ibv_get_cq_event
    std::uint64_t events_acked = 0;       ///< by ibv_ack_cq_events
};

/// Simulated RDMA devices, as long as it exists: the verbs of the process act on them. Queue pairs
/// of the process connect to each other and carry data; descriptors are real, so that epoll works.
///
///     simulated::SimulatedVerbs verbs;      // one device, "sim0"
///     Client client(loop);                  // your program, unchanged
///     verbs.fail("ibv_post_send", {.error = ENOMEM});
///     CHECK(client.request() == std::errc::not_enough_memory);
///
/// Link asyncverbs::simulated_verbs: it takes the place of libibverbs and librdmacm in the program.
/// It has all verbs that this library calls; others of libibverbs must not be called.
///
/// The audit: a call that would hang, corrupt memory or misuse an object is a problem, as is each
/// object that is alive when this is destroyed, an event that was read and not acknowledged, and
/// memory that is deregistered while a request uses it. report_problem() gets them at the end.
///
/// One at a time. Thread: all functions may be called from any thread. They throw
/// std::invalid_argument for objects that are not of this simulation.
class SimulatedVerbs {
public:
    /// One device, "sim0", with one active port.
    explicit SimulatedVerbs(const ProviderModel& provider = rxe);
    /// These devices, or none.
    explicit SimulatedVerbs(const std::vector<DeviceOptions>& devices);
    /// Audits.
    ~SimulatedVerbs();

    SimulatedVerbs(const SimulatedVerbs&) = delete;
    SimulatedVerbs& operator=(const SimulatedVerbs&) = delete;

    // --- devices ---

    /// Is found by the next ibv_get_device_list(3).
    void add_device(const DeviceOptions& options);
    /// Open contexts get IBV_EVENT_PORT_ACTIVE or IBV_EVENT_PORT_ERR. Messages pass nevertheless.
    void set_port_state(std::string_view name, std::uint8_t port, ibv_port_state state);
    /// Replaces the GID table of a port.
    void set_gids(std::string_view name, std::uint8_t port, const std::vector<GidEntry>& gids);
    /// The device is removed: IBV_EVENT_DEVICE_FATAL, then EPOLLERR without EPOLLIN on its
    /// descriptors and EIO from reading them. Polling and releases still work, other verbs fail
    /// with EIO.
    void disassociate(ibv_context* context);

    // --- completions and events ---

    /// The device writes a completion. If the queue is full, it is lost and the queue is broken.
    void push(ibv_cq* cq, const ibv_wc& wc, bool solicited = false);
    /// The same with the usual values: a successful IBV_WC_SEND, or an error completion with
    /// garbage in all fields except wr_id, status, qp_num and vendor_err.
    void complete(ibv_cq* cq, std::uint64_t wr_id, ibv_wc_status status = IBV_WC_SUCCESS,
                  std::uint32_t qp_num = 0);
    /// The queue fails as after an overrun: IBV_EVENT_CQ_ERR, and no arm ever fires again.
    void break_cq(ibv_cq* cq);
    /// Events without an arm: spurious ones, duplicates, a burst on one edge.
    void push_events(ibv_cq* cq, int count = 1);
    /// The kernel drops the next events, as it does without memory.
    void drop_events(ibv_cq* cq, int count = 1);
    /// The next events are queued twice.
    void duplicate_events(ibv_cq* cq, int count = 1);
    /// The descriptor becomes readable, but ibv_get_cq_event finds no event: EAGAIN, or it blocks.
    void push_false_readiness(ibv_comp_channel* channel);
    /// ibv_get_async_event(3) returns it.
    void push_async_event(ibv_context* context, const ibv_async_event& event);
    /// Sets the counts of read and acknowledged events, to test the wrap-around at 2^32.
    void start_event_counts_at(ibv_cq* cq, std::uint32_t count);

    // --- queue pairs ---

    /// From now on posted requests are held until deliver(), which executes up to `count` of them
    /// and returns how many.
    void hold_delivery();
    int deliver(int count = std::numeric_limits<int>::max()); ///< See hold_delivery().
    /// The same for the sends of one queue pair.
    int deliver_from(const ibv_qp* qp, int count = 1);
    /// The held sends of a queue pair will be executed in reverse order, as the device may do for
    /// IBV_QPT_DRIVER.
    void reverse_sends(const ibv_qp* qp);
    /// Executes all held requests, and new ones at once.
    void release_delivery();
    /// The peers are dead: all retry timers expire. The first send of each waiting queue pair fails
    /// with IBV_WC_RETRY_EXC_ERR, the others are flushed. Sends that wait for a receive stay.
    void time_out();
    /// A fatal error: the queue pair goes to ERR, its requests are flushed, IBV_EVENT_QP_FATAL.
    void break_qp(ibv_qp* qp);
    /// The next queue pair gets this number, which may have been used before.
    void set_next_qp_num(std::uint32_t qp_num);

    // --- failing calls, hooks ---

    /// Lets a verb fail, by its name, as "ibv_reg_mr" or "rdma_connect".
    void fail(std::string_view verb, Failure failure = {});
    /// Counts all verbs that can fail, except releases: a failed release is a leak that no caller
    /// can avoid.
    void fail_any(Failure failure = {});
    void clear_failures();         ///< Forgets failures that are still to come.
    int failures_injected() const; ///< How many calls have failed by fail() and fail_any().
    /// Calls `hook` before and after every verb, with no lock held: it may call all functions of
    /// this class. Verbs that the hook calls call it again.
    void on_call(std::function<void(const Call&)> hook);

    // --- observation ---

    std::uint64_t calls(std::string_view verb) const;         ///< How often a verb was called.
    std::uint64_t calls() const;                              ///< All verbs.
    CqCounters counters(const ibv_cq* cq) const;              ///< Also of a destroyed queue.
    CqCounters counters() const;                              ///< The sum over all queues.
    bool armed(const ibv_cq* cq) const;                       ///< An arm is outstanding.
    ibv_moderate_cq moderation(const ibv_cq* cq) const;       ///< What ibv_modify_cq(3) has set.
    int queued_completions(const ibv_cq* cq) const;           ///< Not polled yet.
    int queued_events(const ibv_comp_channel* channel) const; ///< Not read yet.
    int posted_sends(const ibv_qp* qp) const;                 ///< Not complete yet.
    int posted_receives(const ibv_qp* qp) const;              ///< Not complete yet.
    ibv_qp_state qp_state(const ibv_qp* qp) const;            ///< The state of the device.
    int live_objects() const;                                 ///< Objects of all kinds.

    // --- the audit ---

    /// Returns the problems that were found so far, and forgets them.
    std::vector<std::string> take_problems();
    /// Makes a problem of each object that is alive, as the destructor does.
    void audit();

private:
    std::unique_ptr<Simulation> simulation_;
};

} // namespace asyncverbs::simulated
