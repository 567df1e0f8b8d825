// SPDX-License-Identifier: MIT
// The table of the verbs, injected failures, hooks, and the audit.
#include "simulation.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <stdexcept>

namespace asyncverbs::simulated {

namespace {

constexpr std::array<VerbInfo, verb_count> verb_table{{
    {Verb::get_device_list, "ibv_get_device_list", Convention::null},
    {Verb::free_device_list, "ibv_free_device_list", Convention::never, true},
    {Verb::open_device, "ibv_open_device", Convention::null},
    {Verb::close_device, "ibv_close_device", Convention::positive, true},
    {Verb::query_device, "ibv_query_device", Convention::positive},
    {Verb::query_port, "ibv_query_port", Convention::positive},
    {Verb::query_gid_ex, "ibv_query_gid_ex", Convention::positive},
    {Verb::get_async_event, "ibv_get_async_event", Convention::minus_one},
    {Verb::ack_async_event, "ibv_ack_async_event", Convention::never, true},
    {Verb::alloc_pd, "ibv_alloc_pd", Convention::null},
    {Verb::dealloc_pd, "ibv_dealloc_pd", Convention::positive, true},
    {Verb::alloc_mw, "ibv_alloc_mw", Convention::null},
    {Verb::dealloc_mw, "ibv_dealloc_mw", Convention::positive, true},
    {Verb::reg_mr, "ibv_reg_mr", Convention::null},
    {Verb::reg_dmabuf_mr, "ibv_reg_dmabuf_mr", Convention::null},
    {Verb::dereg_mr, "ibv_dereg_mr", Convention::positive, true},
    {Verb::create_comp_channel, "ibv_create_comp_channel", Convention::null},
    {Verb::destroy_comp_channel, "ibv_destroy_comp_channel", Convention::positive, true},
    {Verb::create_cq, "ibv_create_cq", Convention::null},
    {Verb::create_cq_ex, "ibv_create_cq_ex", Convention::null},
    {Verb::modify_cq, "ibv_modify_cq", Convention::positive},
    {Verb::destroy_cq, "ibv_destroy_cq", Convention::positive, true},
    {Verb::get_cq_event, "ibv_get_cq_event", Convention::minus_one},
    {Verb::ack_cq_events, "ibv_ack_cq_events", Convention::never, true},
    {Verb::poll_cq, "ibv_poll_cq", Convention::negative},
    {Verb::start_poll, "ibv_start_poll", Convention::positive},
    {Verb::next_poll, "ibv_next_poll", Convention::positive},
    {Verb::req_notify_cq, "ibv_req_notify_cq", Convention::positive},
    {Verb::create_qp, "ibv_create_qp", Convention::null},
    {Verb::query_qp, "ibv_query_qp", Convention::positive},
    {Verb::modify_qp, "ibv_modify_qp", Convention::positive},
    {Verb::destroy_qp, "ibv_destroy_qp", Convention::positive, true},
    {Verb::post_send, "ibv_post_send", Convention::positive},
    {Verb::post_recv, "ibv_post_recv", Convention::positive},
    {Verb::create_srq, "ibv_create_srq", Convention::null},
    {Verb::modify_srq, "ibv_modify_srq", Convention::positive},
    {Verb::query_srq, "ibv_query_srq", Convention::positive},
    {Verb::destroy_srq, "ibv_destroy_srq", Convention::positive, true},
    {Verb::post_srq_recv, "ibv_post_srq_recv", Convention::positive},
    {Verb::create_ah, "ibv_create_ah", Convention::null},
    {Verb::create_ah_from_wc, "ibv_create_ah_from_wc", Convention::null},
    {Verb::destroy_ah, "ibv_destroy_ah", Convention::positive, true},
    {Verb::create_event_channel, "rdma_create_event_channel", Convention::null},
    {Verb::destroy_event_channel, "rdma_destroy_event_channel", Convention::never, true},
    {Verb::create_id, "rdma_create_id", Convention::minus_one},
    {Verb::destroy_id, "rdma_destroy_id", Convention::minus_one, true},
    {Verb::bind_addr, "rdma_bind_addr", Convention::minus_one},
    {Verb::listen, "rdma_listen", Convention::minus_one},
    {Verb::resolve_addr, "rdma_resolve_addr", Convention::minus_one},
    {Verb::resolve_route, "rdma_resolve_route", Convention::minus_one},
    {Verb::connect, "rdma_connect", Convention::minus_one},
    {Verb::accept, "rdma_accept", Convention::minus_one},
    {Verb::reject, "rdma_reject", Convention::minus_one},
    {Verb::establish, "rdma_establish", Convention::minus_one},
    {Verb::disconnect, "rdma_disconnect", Convention::minus_one},
    {Verb::get_cm_event, "rdma_get_cm_event", Convention::minus_one},
    {Verb::ack_cm_event, "rdma_ack_cm_event", Convention::never, true},
    {Verb::migrate_id, "rdma_migrate_id", Convention::minus_one},
    {Verb::init_qp_attr, "rdma_init_qp_attr", Convention::minus_one},
    {Verb::set_option, "rdma_set_option", Convention::minus_one},
}};

constexpr bool table_is_in_order() {
    for (std::size_t index = 0; index < verb_table.size(); ++index) {
        if (verb_table[index].verb != static_cast<Verb>(index)) {
            return false;
        }
    }
    return true;
}
static_assert(table_is_in_order());

std::atomic<Simulation*> active_simulation = nullptr;

} // namespace

const VerbInfo& info(Verb verb) { return verb_table[static_cast<std::size_t>(verb)]; }

const VerbInfo& info(std::string_view name) {
    const auto found = std::ranges::find(verb_table, name, &VerbInfo::name);
    if (found == verb_table.end()) {
        throw std::invalid_argument("simulated verbs: no verb " + std::string(name));
    }
    return *found;
}

Simulation* active() { return active_simulation.load(std::memory_order_acquire); }

void set_active(Simulation* simulation) {
    active_simulation.store(simulation, std::memory_order_release);
}

int report(Verb verb, const Outcome& outcome) {
    if (outcome.error == 0) {
        return outcome.value;
    }
    // An errno without meaning, to detect code that reports it.
    constexpr int meaningless = ENOANO;
    const Convention convention = info(verb).convention;
    if (convention == Convention::null) {
        errno = outcome.sign == ErrnoSign::negative ? -outcome.error : outcome.error;
        return 0;
    }
    ErrnoSign sign = outcome.sign;
    if (sign == ErrnoSign::usual) {
        sign = convention == Convention::minus_one  ? ErrnoSign::minus_one
               : convention == Convention::negative ? ErrnoSign::negative
                                                    : ErrnoSign::positive;
    }
    if (verb == Verb::poll_cq && sign == ErrnoSign::positive) {
        sign = ErrnoSign::negative; // a positive result would be a number of completions
    }
    errno = sign == ErrnoSign::minus_one && verb != Verb::poll_cq ? outcome.error : meaningless;
    switch (sign) {
    case ErrnoSign::negative:
        return -outcome.error;
    case ErrnoSign::minus_one:
        return -1;
    default:
        return outcome.error;
    }
}

Outcome Simulation::enter(Verb verb) {
    ++calls[static_cast<std::size_t>(verb)];
    const VerbInfo& called = info(verb);
    if (called.convention == Convention::never) {
        return {};
    }
    Outcome outcome;
    for (PendingFailure& pending : pending_failures) {
        const bool matches = pending.verb ? *pending.verb == verb : !called.releases;
        if (!matches || pending.failure.times == 0) {
            continue;
        }
        if (pending.failure.nth > 1) {
            --pending.failure.nth;
            continue;
        }
        if (outcome.error == 0) {
            --pending.failure.times;
            ++failures_injected;
            outcome = {.error = pending.failure.error, .sign = pending.failure.sign};
        }
    }
    std::erase_if(pending_failures,
                  [](const PendingFailure& pending) { return pending.failure.times == 0; });
    return outcome;
}

std::uint64_t Simulation::count_calls(Verb verb) const {
    const auto index = static_cast<std::size_t>(verb);
    std::uint64_t count = calls[index];
    mutex.for_each_local([&](const Calls& of_thread) { count += of_thread[index]; });
    return count;
}

void Simulation::call_present_hook(const Call& call) {
    std::shared_ptr<const std::function<void(const Call&)>> current;
    {
        const std::lock_guard lock(mutex);
        current = hook;
    }
    if (current == nullptr) {
        return;
    }
    std::string problem;
    try {
        (*current)(call);
        return;
    } catch (const std::exception& error) {
        problem = error.what();
    } catch (...) {
        problem = "an unknown exception";
    }
    const std::lock_guard lock(mutex);
    record(std::string(call.verb) + ": the hook threw " + problem);
}

template <class Object>
void Simulation::audit_kind() {
    for (const Object& object : registry<Object>().all()) {
        if (object.alive) {
            record("leaked: " + describe(object));
        }
    }
}

template <class Object>
static int count_live(const Registry<Object>& registry) {
    return static_cast<int>(std::ranges::count_if(registry.all(), &Tracked::alive));
}

int Simulation::live_objects() const {
    return count_live(registry<CmId>()) + count_live(registry<EventChannel>()) +
           count_live(registry<QueuePair>()) + count_live(registry<SharedReceiveQueue>()) +
           count_live(registry<CompletionQueue>()) + count_live(registry<CompletionChannel>()) +
           count_live(registry<AddressHandle>()) + count_live(registry<MemoryRegion>()) +
           count_live(registry<MemoryWindow>()) + count_live(registry<ProtectionDomain>()) +
           count_live(registry<Context>()) + static_cast<int>(device_lists.size());
}

void Simulation::audit() {
    audit_kind<CmId>();
    audit_kind<EventChannel>();
    audit_kind<QueuePair>();
    audit_kind<SharedReceiveQueue>();
    audit_kind<CompletionQueue>();
    audit_kind<CompletionChannel>();
    audit_kind<MemoryWindow>();
    audit_kind<AddressHandle>();
    audit_kind<MemoryRegion>();
    audit_kind<ProtectionDomain>();
    audit_kind<Context>();
    for (std::size_t lists = device_lists.size(); lists > 0; --lists) {
        record("leaked: a device list");
    }
}

} // namespace asyncverbs::simulated
