// SPDX-License-Identifier: MIT
//
// Simulated verbs: a link-time stand-in for libibverbs. A test links these files instead of the
// library, declares a SimulatedVerbs first, and the shipped headers run unchanged. The descriptors
// are real, so real epoll is what is tested; whatever would hang or corrupt fails the test instead.
#pragma once

#include "support/simulated_verbs_options.hpp"

#include <infiniband/verbs.h>

#include <cerrno>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace asyncverbs::simulated {

class Simulation;

// How a failing verb reports its error. `usual` is what libibverbs documents for that verb; the
// others are seen in providers. Where errno carries no meaning it is overwritten with ENOANO.
enum class ErrnoSign { usual, positive, negative, minus_one };

// From the nth call on, counted from now, `times` calls fail and do nothing else.
struct Failure {
    int error = EIO;
    int nth = 1;
    int times = 1;
    ErrnoSign sign = ErrnoSign::usual;
};

// What a hook is told: the verb, its first argument, and after the call its error (0: none) and, if
// there is none, what an int verb returned.
struct Call {
    enum class Moment { before, after };

    std::string_view verb;
    const void* object = nullptr;
    Moment moment = Moment::before;
    int error = 0;
    int value = 0;
};

struct CqCounters {
    std::uint64_t polls = 0;
    std::uint64_t empty_polls = 0;
    std::uint64_t arms = 0;
    std::uint64_t completions_pushed = 0;
    std::uint64_t completions_polled = 0;
    std::uint64_t completions_lost = 0; // to an overrun, or purged with their queue pair
    std::uint64_t events_queued = 0;
    std::uint64_t events_dropped = 0;
    std::uint64_t events_reported = 0; // read by ibv_get_cq_event
    std::uint64_t events_acked = 0;
};

// One simulation, alive as long as this object; there is one at a time. Every function may be
// called from any thread. The destructor audits: each problem that was recorded, and each object
// that was not destroyed, is a failure of the running test.
class SimulatedVerbs {
public:
    // One device, "sim0", with an active port as rxe0 has it.
    explicit SimulatedVerbs(const ProviderModel& provider = rxe);
    // These devices, or none.
    explicit SimulatedVerbs(const std::vector<DeviceOptions>& devices);
    ~SimulatedVerbs();

    SimulatedVerbs(const SimulatedVerbs&) = delete;
    SimulatedVerbs& operator=(const SimulatedVerbs&) = delete;

    // --- devices ---

    void add_device(const DeviceOptions& options);
    // The device is unplugged: no list shows it, and its open contexts are disassociated.
    void remove_device(std::string_view name);
    // Open contexts get IBV_EVENT_PORT_ACTIVE or IBV_EVENT_PORT_ERR. Nothing moves over a port
    // that is not active; what was posted waits, see time_out().
    void set_port_state(std::string_view name, std::uint8_t port, ibv_port_state state);
    void set_gids(std::string_view name, std::uint8_t port, const std::vector<GidEntry>& gids);

    // --- completions ---

    // The device writes a completion: into a full queue it is lost, and the queue is broken.
    void push(ibv_cq* cq, const ibv_wc& wc, bool solicited = false);
    // The same with what matters: a success of IBV_WC_SEND, or an error in which everything but
    // wr_id, status, qp_num and vendor_err is garbage.
    void complete(ibv_cq* cq, std::uint64_t wr_id, ibv_wc_status status = IBV_WC_SUCCESS,
                  std::uint32_t qp_num = 0);
    // The queue fails as by an overrun: IBV_EVENT_CQ_ERR, and no arm ever fires again.
    void break_cq(ibv_cq* cq);

    // --- events ---

    // Events that no arm asked for: spurious ones, duplicates, a burst on one edge.
    void push_events(ibv_cq* cq, int count = 1);
    // The kernel loses the next events, as it does when it runs out of memory.
    void drop_events(ibv_cq* cq, int count = 1);
    // The next events are queued twice.
    void duplicate_events(ibv_cq* cq, int count = 1);
    // The descriptor becomes readable, but ibv_get_cq_event finds nothing: EAGAIN, or it blocks on.
    void push_false_readiness(ibv_comp_channel* channel);
    void push_async_event(ibv_context* context, const ibv_async_event& event);
    // The device is gone: IBV_EVENT_DEVICE_FATAL, then EPOLLERR without EPOLLIN on its descriptors
    // and EIO from reading them. Polling and releases go on; every other verb gives EIO.
    void disassociate(ibv_context* context);
    // The counts of read and acknowledged events start here: for wrap-around at 2^32.
    void start_event_counts_at(ibv_cq* cq, std::uint32_t count);

    // --- queue pairs ---

    // While held, what is posted does not move; deliver() moves up to `count` work requests.
    void hold_delivery();
    int deliver(int count = std::numeric_limits<int>::max());
    // The same for the sends of one queue pair.
    int deliver_from(const ibv_qp* qp, int count = 1);
    // Delivers what is held, and from now on at once.
    void release_delivery();
    // The retry timers of all that waits expire: the first send of each waiting queue pair fails
    // with IBV_WC_RETRY_EXC_ERR, the rest is flushed. Waiting for a receive is not affected.
    void time_out();
    // The next queue pair gets this number, even one that was used before.
    void set_next_qp_num(std::uint32_t qp_num);
    // A fatal error: the queue pair goes to ERR, its requests are flushed, IBV_EVENT_QP_FATAL.
    void break_qp(ibv_qp* qp);

    // --- failures and hooks ---

    void fail(std::string_view verb, Failure failure = {});
    // Counts calls of every verb that can fail, releases excepted: what a release fails to release
    // would be a leak however well the caller behaves.
    void fail_any(Failure failure = {});
    void clear_failures();
    int failures_injected() const;
    // Called before and after every verb without a lock held, so it may call anything here. Verbs
    // called by the hook call the hook again.
    void on_call(std::function<void(const Call&)> hook);

    // --- what happened ---

    std::uint64_t calls(std::string_view verb) const;
    std::uint64_t calls() const;
    CqCounters counters(const ibv_cq* cq) const; // also of one that was destroyed
    CqCounters counters() const;                 // the sum over all
    bool armed(const ibv_cq* cq) const;
    ibv_moderate_cq moderation(const ibv_cq* cq) const;
    int queued_completions(const ibv_cq* cq) const;
    int queued_events(const ibv_comp_channel* channel) const;
    int posted_sends(const ibv_qp* qp) const;
    int posted_receives(const ibv_qp* qp) const;
    ibv_qp_state qp_state(const ibv_qp* qp) const;
    int live_objects() const;

    // --- the audit ---

    std::vector<std::string> problems() const;
    // Returns the problems and forgets them: for tests of failures, and for an explorer that
    // reports in its own way.
    std::vector<std::string> take_problems();
    // Records what the destructor would: every object that is still alive.
    void audit();
    // By default it is a problem to deregister a region that a posted request still uses.
    void allow_dereg_in_use();

private:
    std::unique_ptr<Simulation> simulation_;
};

} // namespace asyncverbs::simulated
