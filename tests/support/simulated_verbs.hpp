// SPDX-License-Identifier: MIT
// Simulated verbs: a link-time replacement for libibverbs. A test links them instead of the library
// and first declares a SimulatedVerbs; the shipped headers run unchanged. The file descriptors are
// real, for real epoll. A call that would hang or corrupt memory fails the test instead.
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

namespace asyncverbs::simulated {

class Simulation;

// --- devices ---

// flag:  an arm fires for the next completion; completions that are already queued fire no event.
// index: an arm fires at once if completions are queued that were not polled. It is ignored until
//        ibv_get_cq_event has read the event of the previous arm.
enum class ArmModel { flag, index };

struct ProviderModel {
    ArmModel arm_model = ArmModel::flag;
    // A solicited-only arm replaces an outstanding arm for any completion.
    bool solicited_arm_downgrades = false;
    // ibv_destroy_qp removes the queue pair's completions from its completion queues.
    bool purges_on_destroy_qp = false;
    // A slot of a work queue becomes free when its completion, or a later one, is polled.
    bool slots_freed_by_poll = false;
    // An arm is lost if no completion was polled since the previous one. Each event, also one
    // without a completion, uses up the arm.
    bool loses_arm_without_poll = false;
    // The depth of a completion queue is rounded up to a power of two less one.
    bool rounds_up_cqe = false;
};

inline constexpr ProviderModel rxe{};
inline constexpr ProviderModel siw{.solicited_arm_downgrades = true};
inline constexpr ProviderModel mlx5{
    .arm_model = ArmModel::index, .purges_on_destroy_qp = true, .slots_freed_by_poll = true};

inline constexpr ProviderModel mana{.loses_arm_without_poll = true}; // rdma-core #1796

struct GidEntry {
    ibv_gid gid{}; // all zero: the entry is empty
    ibv_gid_type type = IBV_GID_TYPE_ROCE_V2;
};

ibv_gid ipv4_gid(std::uint8_t a, std::uint8_t b, std::uint8_t c, std::uint8_t d);
ibv_gid link_local_gid(std::uint8_t last);

// Active, Ethernet, active MTU 4096.
ibv_port_attr default_port_attr();
// Link-local at index 0, 10.7.0.1 at index 1, both RoCE v2.
std::vector<GidEntry> default_gids();
ibv_device_attr default_device_attr();

struct PortOptions {
    ibv_port_attr attr = default_port_attr();
    std::vector<GidEntry> gids = default_gids();
};

// The defaults are those of a soft-RoCE device with one active port.
struct DeviceOptions {
    std::string name = "sim0";
    ProviderModel provider{};
    ibv_device_attr attr = default_device_attr();
    std::uint32_t max_inline_data = 256;
    // Not available on soft-RoCE: timestamps of completions, ibv_modify_cq and dma-bufs.
    bool completion_timestamps = false;
    bool cq_moderation = false;
    // Regions of a dma-buf. Their addresses must be those of the process.
    bool dmabuf = false;
    std::vector<PortOptions> ports = {PortOptions{}};
};

// --- failures, hooks, counters ---

// How a failing verb reports its error. `usual` is documented for that verb by libibverbs; the
// others are used by providers. If errno has no meaning, it is set to ENOANO.
enum class ErrnoSign { usual, positive, negative, minus_one };

// Starting with the nth call from now, `times` calls fail and have no other effect.
struct Failure {
    int error = EIO;
    int nth = 1;
    int times = 1;
    ErrnoSign sign = ErrnoSign::usual;
};

// The argument of a hook: the verb, its first argument and, after the call, its error (0: none)
// and, on success, the result of an int verb.
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
    std::uint64_t arms_lost = 0;
    std::uint64_t completions_pushed = 0;
    std::uint64_t completions_polled = 0;
    std::uint64_t completions_lost = 0; // to an overrun, or purged with their queue pair
    std::uint64_t events_queued = 0;
    std::uint64_t events_dropped = 0;
    std::uint64_t events_reported = 0; // returned by ibv_get_cq_event
    std::uint64_t events_acked = 0;
};

// A simulation, one at a time; it exists as long as this object. All functions may be called from
// any thread. The destructor audits: each recorded problem, and each object that was not destroyed,
// fails the running test.
class SimulatedVerbs {
public:
    // One device, "sim0", with one active port.
    explicit SimulatedVerbs(const ProviderModel& provider = rxe);
    // These devices, or none.
    explicit SimulatedVerbs(const std::vector<DeviceOptions>& devices);
    ~SimulatedVerbs();

    SimulatedVerbs(const SimulatedVerbs&) = delete;
    SimulatedVerbs& operator=(const SimulatedVerbs&) = delete;

    // --- devices ---

    void add_device(const DeviceOptions& options);
    // Open contexts get IBV_EVENT_PORT_ACTIVE or IBV_EVENT_PORT_ERR. Messages pass nevertheless.
    void set_port_state(std::string_view name, std::uint8_t port, ibv_port_state state);
    void set_gids(std::string_view name, std::uint8_t port, const std::vector<GidEntry>& gids);

    // --- completions ---

    // The device writes a completion. If the queue is full, it is lost and the queue is broken.
    void push(ibv_cq* cq, const ibv_wc& wc, bool solicited = false);
    // The same with the usual values: a successful IBV_WC_SEND, or an error completion with garbage
    // in all fields except wr_id, status, qp_num and vendor_err.
    void complete(ibv_cq* cq, std::uint64_t wr_id, ibv_wc_status status = IBV_WC_SUCCESS,
                  std::uint32_t qp_num = 0);
    // The queue fails as after an overrun: IBV_EVENT_CQ_ERR, and no arm ever fires again.
    void break_cq(ibv_cq* cq);

    // --- events ---

    // Events without an arm: spurious ones, duplicates, a burst on one edge.
    void push_events(ibv_cq* cq, int count = 1);
    // The kernel drops the next events, as it does without memory.
    void drop_events(ibv_cq* cq, int count = 1);
    // The next events are queued twice.
    void duplicate_events(ibv_cq* cq, int count = 1);
    // The descriptor becomes readable, but ibv_get_cq_event finds no event: EAGAIN, or it blocks.
    void push_false_readiness(ibv_comp_channel* channel);
    void push_async_event(ibv_context* context, const ibv_async_event& event);
    // The device is removed: IBV_EVENT_DEVICE_FATAL, then EPOLLERR without EPOLLIN on its
    // descriptors and EIO from reading them. Polling and releases still work, other verbs return
    // EIO.
    void disassociate(ibv_context* context);
    // Sets the counts of read and acknowledged events, to test the wrap-around at 2^32.
    void start_event_counts_at(ibv_cq* cq, std::uint32_t count);

    // --- queue pairs ---

    // Posted requests are held until deliver(), which executes up to `count` of them.
    void hold_delivery();
    int deliver(int count = std::numeric_limits<int>::max());
    // The same for the sends of one queue pair.
    int deliver_from(const ibv_qp* qp, int count = 1);
    // The held sends of a queue pair will be executed in reverse order, as the device may do for
    // IBV_QPT_DRIVER.
    void reverse_sends(const ibv_qp* qp);
    // Executes all held requests, and new ones immediately.
    void release_delivery();
    // All retry timers expire: the first send of each waiting queue pair fails with
    // IBV_WC_RETRY_EXC_ERR, the others are flushed. Sends that wait for a receive are not affected.
    void time_out();
    // The next queue pair gets this number, which may have been used before.
    void set_next_qp_num(std::uint32_t qp_num);
    // A fatal error: the queue pair goes to ERR, its requests are flushed, IBV_EVENT_QP_FATAL.
    void break_qp(ibv_qp* qp);

    // --- failures and hooks ---

    void fail(std::string_view verb, Failure failure = {});
    // Applies to every verb that can fail, except releases: a failed release is a leak that no
    // caller can avoid.
    void fail_any(Failure failure = {});
    void clear_failures();
    int failures_injected() const;
    // Called before and after every verb, with no lock held: it may call all functions of this
    // class. Verbs that the hook calls call it again.
    void on_call(std::function<void(const Call&)> hook);

    // --- observation ---

    std::uint64_t calls(std::string_view verb) const;
    std::uint64_t calls() const;
    CqCounters counters(const ibv_cq* cq) const; // also of a destroyed queue
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

    // Returns and clears the problems: for tests of failures, and for the explorer, which reports
    // them itself.
    std::vector<std::string> take_problems();
    // Records every object that is still alive, as the destructor does.
    void audit();

private:
    std::unique_ptr<Simulation> simulation_;
};

} // namespace asyncverbs::simulated
