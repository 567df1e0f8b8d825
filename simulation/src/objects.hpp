// SPDX-License-Identifier: MIT
// The objects behind the handles of the simulated verbs. Each derives from the C struct of the
// application, and adds the state of the library, the driver and the device.
#pragma once

#include <asyncverbs/simulation/simulated_verbs.hpp>

#include "event_queue.hpp"
#include "split_mutex.hpp"

#include <rdma/rdma_cma.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace asyncverbs::simulated {

// The part that all objects have. `users` is the number of live objects that need this one.
struct Tracked {
    bool alive = true;
    std::uint32_t number = 0;
    int users = 0;
};

// Events of one object, which the application must acknowledge before it destroys the object.
struct EventAccount {
    std::uint32_t reported = 0;
    std::uint32_t acked = 0;
};

struct Device : ibv_device, Tracked {
    using Native = ibv_device;
    static constexpr std::string_view kind = "device";

    explicit Device(const DeviceOptions& device_options);

    DeviceOptions options;
};

// Precedes the ibv_context of an extended context in memory: see verbs_get_ctx().
struct alignas(verbs_context) ContextExtension {
    std::array<std::byte, offsetof(verbs_context, context)> bytes{};

    verbs_context& extended() { return *reinterpret_cast<verbs_context*>(bytes.data()); }
};

struct Context : ContextExtension, ibv_context, Tracked {
    using Native = ibv_context;
    static constexpr std::string_view kind = "context";

    explicit Context(Device& opened);
    Context& owner() { return *this; }

    Device& opened_device;
    EventQueue<ibv_async_event> async_events;
    bool disassociated = false;
};

struct ProtectionDomain : ibv_pd, Tracked {
    using Native = ibv_pd;
    static constexpr std::string_view kind = "protection domain";

    explicit ProtectionDomain(Context& parent) : ibv_pd{}, context_(parent) { context = &parent; }
    Context& owner() { return context_; }

private:
    Context& context_;
};

struct MemoryRegion : ibv_mr, Tracked {
    using Native = ibv_mr;
    static constexpr std::string_view kind = "memory region";

    explicit MemoryRegion(ProtectionDomain& parent) : ibv_mr{}, domain(parent) {
        context = parent.context;
        pd = &parent;
    }
    Context& owner() { return domain.owner(); }

    ProtectionDomain& domain;
    std::uint64_t iova = 0;
    unsigned int access = 0;
};

struct QueuePair;

// Of type 2: only the queue pair on which it is bound can be reached with its key.
struct MemoryWindow : ibv_mw, Tracked {
    using Native = ibv_mw;
    static constexpr std::string_view kind = "memory window";

    explicit MemoryWindow(ProtectionDomain& parent) : ibv_mw{}, domain(parent) {
        context = parent.context;
        pd = &parent;
    }
    Context& owner() { return domain.owner(); }

    ProtectionDomain& domain;
    std::uint32_t key = 0;         // the device's; that of ibv_mw is the program's
    const QueuePair* qp = nullptr; // null: not bound
    MemoryRegion* region = nullptr;
    std::uint64_t address = 0;
    std::uint64_t length = 0;
    unsigned int access = 0;
};

struct AddressHandle : ibv_ah, Tracked {
    using Native = ibv_ah;
    static constexpr std::string_view kind = "address handle";

    explicit AddressHandle(ProtectionDomain& parent) : ibv_ah{}, domain(parent) {
        context = parent.context;
        pd = &parent;
    }
    Context& owner() { return domain.owner(); }

    ProtectionDomain& domain;
    ibv_ah_attr attr{};
};

struct CompletionQueue;

struct alignas(64) CompletionChannel : ibv_comp_channel, Tracked {
    using Native = ibv_comp_channel;
    static constexpr std::string_view kind = "completion channel";

    explicit CompletionChannel(Context& parent) : ibv_comp_channel{}, context_(parent) {
        context = &parent;
        fd = events.fd();
    }
    Context& owner() { return context_; }

    TriedMutex mutex;                    // also guards the queues that report on the channel
    EventQueue<CompletionQueue*> events; // null: readiness without an event

private:
    Context& context_;
};

// The members of ibv_cq_ex after those that it shares with ibv_cq, in the same order.
struct CqExtension {
    std::uint32_t comp_mask;
    ibv_wc_status status;
    std::uint64_t wr_id;
    int (*start_poll)(ibv_cq_ex*, ibv_poll_cq_attr*);
    int (*next_poll)(ibv_cq_ex*);
    void (*end_poll)(ibv_cq_ex*);
    std::array<std::byte, sizeof(ibv_cq_ex) - offsetof(ibv_cq_ex, read_opcode)> readers;
};
static_assert(offsetof(ibv_cq_ex, comp_mask) == sizeof(ibv_cq));
static_assert(sizeof(ibv_cq) + sizeof(CqExtension) == sizeof(ibv_cq_ex));

// Guarded by events_mutex() together with Simulation::mutex, which may be held shared.
struct alignas(64) CompletionQueue : ibv_cq, CqExtension, Tracked {
    using Native = ibv_cq;
    static constexpr std::string_view kind = "completion queue";

    enum class Arm { none, solicited, any };

    struct Entry {
        ibv_wc wc{};
        bool solicited = false;
        bool is_receive = false;
        std::uint32_t slots = 0; // slots of the work queue that polling it frees
        std::uint64_t timestamp = 0;
    };

    CompletionQueue(Context& parent, CompletionChannel* events)
        : ibv_cq{}, CqExtension{}, completion_channel(events), context_(parent) {
        context = &parent;
        channel = events;
    }
    ibv_cq_ex* extended() { return reinterpret_cast<ibv_cq_ex*>(static_cast<ibv_cq*>(this)); }
    Context& owner() { return context_; }
    const ProviderModel& provider() const { return context_.opened_device.options.provider; }
    TriedMutex& events_mutex() {
        return completion_channel != nullptr ? completion_channel->mutex : mutex_;
    }
    bool full() const { return entries.size() >= static_cast<std::size_t>(cqe); }

    CompletionChannel* completion_channel;
    std::deque<Entry> entries;
    std::optional<Entry> current; // between ibv_start_poll and ibv_end_poll
    ibv_moderate_cq moderation{};
    Arm arm = Arm::none;
    // Index model: an arm carries the number of events that were read, and the device fires once
    // per number.
    std::uint32_t arm_sequence = 1;
    std::uint32_t fired_sequence = 0;
    std::uint64_t polled_at_arm = std::numeric_limits<std::uint64_t>::max();
    bool broken = false;
    int events_to_drop = 0;
    int events_to_duplicate = 0;
    EventAccount completion_events;
    EventAccount async_events;
    CqCounters counters;

private:
    Context& context_;
    TriedMutex mutex_; // without a channel
};

struct ReceiveRequest {
    std::uint64_t wr_id = 0;
    std::vector<ibv_sge> sges;
};

struct SendRequest {
    ibv_send_wr wr{};
    std::vector<ibv_sge> sges;
    std::vector<std::byte> inline_data;
    std::uint32_t window_key = 0; // as the program knows it, of the window to bind
    bool signaled = false;
};

struct SharedReceiveQueue : ibv_srq, Tracked {
    using Native = ibv_srq;
    static constexpr std::string_view kind = "shared receive queue";

    explicit SharedReceiveQueue(ProtectionDomain& parent) : ibv_srq{}, domain(parent) {
        context = parent.context;
        pd = &parent;
    }
    Context& owner() { return domain.owner(); }

    ProtectionDomain& domain;
    ibv_srq_attr attr{};
    std::deque<ReceiveRequest> receives;
    EventAccount async_events;
};

struct QueuePair : ibv_qp, Tracked {
    using Native = ibv_qp;
    static constexpr std::string_view kind = "queue pair";

    QueuePair(ProtectionDomain& parent, CompletionQueue& send, CompletionQueue& receive,
              SharedReceiveQueue* shared)
        : ibv_qp{}, domain(parent), send_queue_cq(send), receive_queue_cq(receive),
          shared_queue(shared) {
        context = parent.context;
        pd = &parent;
        send_cq = &send;
        recv_cq = &receive;
        srq = shared;
    }
    Context& owner() { return domain.owner(); }
    const ProviderModel& provider() { return owner().opened_device.options.provider; }
    // IBV_QPT_DRIVER stands for EFA's SRD: datagrams whose completions have no order.
    bool sends_datagrams() const { return qp_type == IBV_QPT_UD || qp_type == IBV_QPT_DRIVER; }
    std::deque<ReceiveRequest>& receive_queue() {
        return shared_queue != nullptr ? shared_queue->receives : receives;
    }

    ProtectionDomain& domain;
    CompletionQueue& send_queue_cq;
    CompletionQueue& receive_queue_cq;
    SharedReceiveQueue* shared_queue;
    ibv_qp_init_attr init_attr{};
    // The state of the device; ibv_qp::state is that of the last modify or query.
    ibv_qp_attr attr{};
    std::deque<SendRequest> sends;
    std::deque<ReceiveRequest> receives;
    std::uint32_t send_slots_used = 0;
    std::uint32_t receive_slots_used = 0;
    std::uint32_t unsignaled_done = 0; // completed since the last completion of the send queue
    EventAccount async_events;
};

inline bool is_iwarp(const ibv_context& context) {
    return context.device->transport_type == IBV_TRANSPORT_IWARP;
}

// --- the connection manager ---

struct CmId;

struct CmEvent {
    CmId* id = nullptr;      // the subject of the event
    CmId* request = nullptr; // RDMA_CM_EVENT_CONNECT_REQUEST: the new identifier
    rdma_cm_event_type type{};
    int status = 0;
    std::string data{};
};

struct EventChannel : rdma_event_channel, Tracked {
    using Native = rdma_event_channel;
    static constexpr std::string_view kind = "event channel";

    EventChannel() : rdma_event_channel{} { fd = events.fd(); }

    EventQueue<CmEvent> events;
};

struct CmId : rdma_cm_id, Tracked {
    using Native = rdma_cm_id;
    static constexpr std::string_view kind = "identifier";

    explicit CmId(EventChannel& reported_on) : rdma_cm_id{} { channel = &reported_on; }

    EventAccount events;
    CmId* peer = nullptr;
    bool listening = false;
    bool one_family = false; // RDMA_OPTION_ID_AFONLY
    bool left = false;       // rdma_disconnect was called
    rdma_conn_param parameters{};
};

} // namespace asyncverbs::simulated
