// SPDX-License-Identifier: MIT
#include <asyncverbs/simulation/simulated_verbs.hpp>

#include "simulation.hpp"

#include <algorithm>
#include <stdexcept>

namespace asyncverbs::simulated {

namespace {

// Simulations that ended with live objects: destructors may still use the handles of those.
std::vector<std::unique_ptr<Simulation>>& abandoned() {
    static std::vector<std::unique_ptr<Simulation>> simulations;
    return simulations;
}

template <class Object>
Object& known(Simulation& simulation, const typename Object::Native* native) {
    Object* object = simulation.registry<Object>().find(native);
    if (object == nullptr) {
        throw std::invalid_argument("simulated verbs: not a " + std::string(Object::kind) +
                                    " of this simulation");
    }
    return *object;
}

template <class Object>
Object& living(Simulation& simulation, const typename Object::Native* native) {
    Object& object = known<Object>(simulation, native);
    if (!object.alive) {
        throw std::invalid_argument("simulated verbs: " + describe(object) + " was destroyed");
    }
    return object;
}

Device& device_named(Simulation& simulation, std::string_view name) {
    for (Device& device : simulation.registry<Device>().all()) {
        if (device.options.name == name) {
            return device;
        }
    }
    throw std::invalid_argument("simulated verbs: no device " + std::string(name));
}

PortOptions& port_of(Device& device, std::uint8_t port) {
    if (port < 1 || port > device.options.ports.size()) {
        throw std::invalid_argument("simulated verbs: no such port of " + device.options.name);
    }
    return device.options.ports[port - 1u];
}

void add(CqCounters& sum, const CqCounters& counters) {
    sum.polls += counters.polls;
    sum.empty_polls += counters.empty_polls;
    sum.arms += counters.arms;
    sum.arms_lost += counters.arms_lost;
    sum.completions_pushed += counters.completions_pushed;
    sum.completions_polled += counters.completions_polled;
    sum.completions_lost += counters.completions_lost;
    sum.events_queued += counters.events_queued;
    sum.events_dropped += counters.events_dropped;
    sum.events_reported += counters.events_reported;
    sum.events_acked += counters.events_acked;
}

} // namespace

// --- construction, the audit ---

SimulatedVerbs::SimulatedVerbs(const ProviderModel& provider)
    : SimulatedVerbs(std::vector<DeviceOptions>{DeviceOptions{.provider = provider}}) {}

SimulatedVerbs::SimulatedVerbs(const std::vector<DeviceOptions>& devices)
    : simulation_(std::make_unique<Simulation>()) {
    if (active() != nullptr) {
        throw std::logic_error("simulated verbs: one simulation at a time");
    }
    for (const DeviceOptions& options : devices) {
        add_device(options);
    }
    set_active(simulation_.get());
}

SimulatedVerbs::~SimulatedVerbs() {
    if (active() != simulation_.get()) {
        return;
    }
    audit();
    const bool leaked = live_objects() > 0;
    set_active(nullptr);
    for (const std::string& problem : take_problems()) {
        report_problem(problem);
    }
    if (leaked) {
        abandoned().push_back(std::move(simulation_));
    }
}

std::vector<std::string> SimulatedVerbs::take_problems() {
    const std::lock_guard lock(simulation_->mutex);
    return std::exchange(simulation_->problems, {});
}

void SimulatedVerbs::audit() {
    const std::lock_guard lock(simulation_->mutex);
    simulation_->audit();
}

// --- devices ---

void SimulatedVerbs::add_device(const DeviceOptions& options) {
    const std::lock_guard lock(simulation_->mutex);
    simulation_->registry<Device>().add(options);
}

void SimulatedVerbs::set_port_state(std::string_view name, std::uint8_t port,
                                    ibv_port_state state) {
    const std::lock_guard lock(simulation_->mutex);
    Device& device = device_named(*simulation_, name);
    port_of(device, port).attr.state = state;
    ibv_async_event event{};
    event.event_type = state == IBV_PORT_ACTIVE ? IBV_EVENT_PORT_ACTIVE : IBV_EVENT_PORT_ERR;
    event.element.port_num = port;
    for (Context& context : simulation_->registry<Context>().all()) {
        if (context.alive && &context.opened_device == &device) {
            simulation_->queue_async_event(context, event);
        }
    }
}

void SimulatedVerbs::set_gids(std::string_view name, std::uint8_t port,
                              const std::vector<GidEntry>& gids) {
    const std::lock_guard lock(simulation_->mutex);
    port_of(device_named(*simulation_, name), port).gids = gids;
}

// --- completions and events ---

void SimulatedVerbs::push(ibv_cq* cq, const ibv_wc& wc, bool solicited) {
    const CompletionQueue::Entry entry{.wc = wc, .solicited = solicited};
    {
        const std::shared_lock shared(simulation_->mutex);
        auto& queue = living<CompletionQueue>(*simulation_, cq);
        const std::lock_guard lock(queue.events_mutex());
        if (queue.broken || !queue.full()) {
            simulation_->post_completion(queue, entry);
            return;
        }
    }
    const std::lock_guard lock(simulation_->mutex); // an overrun changes the context as well
    simulation_->post_completion(living<CompletionQueue>(*simulation_, cq), entry);
}

void SimulatedVerbs::complete(ibv_cq* cq, std::uint64_t wr_id, ibv_wc_status status,
                              std::uint32_t qp_num) {
    ibv_wc wc = status == IBV_WC_SUCCESS ? ibv_wc{} : error_completion(wr_id, status, qp_num);
    wc.wr_id = wr_id;
    wc.qp_num = qp_num;
    push(cq, wc);
}

void SimulatedVerbs::break_cq(ibv_cq* cq) {
    const std::lock_guard lock(simulation_->mutex);
    simulation_->break_cq(living<CompletionQueue>(*simulation_, cq));
}

void SimulatedVerbs::push_events(ibv_cq* cq, int count) {
    const std::lock_guard lock(simulation_->mutex);
    CompletionQueue& queue = living<CompletionQueue>(*simulation_, cq);
    if (queue.provider().loses_arm_without_poll) queue.arm = CompletionQueue::Arm::none;
    for (; count > 0; --count) {
        simulation_->queue_event(queue);
    }
}

void SimulatedVerbs::drop_events(ibv_cq* cq, int count) {
    const std::lock_guard lock(simulation_->mutex);
    living<CompletionQueue>(*simulation_, cq).events_to_drop = count;
}

void SimulatedVerbs::duplicate_events(ibv_cq* cq, int count) {
    const std::lock_guard lock(simulation_->mutex);
    living<CompletionQueue>(*simulation_, cq).events_to_duplicate = count;
}

void SimulatedVerbs::push_false_readiness(ibv_comp_channel* channel) {
    const std::lock_guard lock(simulation_->mutex);
    living<CompletionChannel>(*simulation_, channel).events.push(nullptr);
}

void SimulatedVerbs::push_async_event(ibv_context* context, const ibv_async_event& event) {
    const std::lock_guard lock(simulation_->mutex);
    simulation_->queue_async_event(living<Context>(*simulation_, context), event);
}

void SimulatedVerbs::disassociate(ibv_context* context) {
    const std::lock_guard lock(simulation_->mutex);
    simulation_->disassociate(living<Context>(*simulation_, context));
}

void SimulatedVerbs::start_event_counts_at(ibv_cq* cq, std::uint32_t count) {
    const std::lock_guard lock(simulation_->mutex);
    CompletionQueue& queue = living<CompletionQueue>(*simulation_, cq);
    queue.completion_events = {.reported = count, .acked = count};
    queue.comp_events_completed = count;
    queue.fired_sequence = count;
    queue.arm_sequence = count + 1;
}

// --- queue pairs ---

void SimulatedVerbs::hold_delivery() {
    const std::lock_guard lock(simulation_->mutex);
    simulation_->held = true;
}

int SimulatedVerbs::deliver(int count) {
    const std::lock_guard lock(simulation_->mutex);
    const bool held = std::exchange(simulation_->held, false);
    const int moved = simulation_->progress_all(count);
    simulation_->held = held;
    return moved;
}

int SimulatedVerbs::deliver_from(const ibv_qp* qp, int count) {
    const std::lock_guard lock(simulation_->mutex);
    QueuePair& sender = living<QueuePair>(*simulation_, qp);
    const bool held = std::exchange(simulation_->held, false);
    int moved = 0;
    while (moved < count && simulation_->step(sender)) {
        ++moved;
    }
    simulation_->held = held;
    return moved;
}

void SimulatedVerbs::reverse_sends(const ibv_qp* qp) {
    const std::lock_guard lock(simulation_->mutex);
    std::ranges::reverse(living<QueuePair>(*simulation_, qp).sends);
}

void SimulatedVerbs::release_delivery() {
    const std::lock_guard lock(simulation_->mutex);
    simulation_->held = false;
    simulation_->progress_all();
}

void SimulatedVerbs::time_out() {
    const std::lock_guard lock(simulation_->mutex);
    simulation_->expire_retries();
}

void SimulatedVerbs::set_next_qp_num(std::uint32_t qp_num) {
    const std::lock_guard lock(simulation_->mutex);
    simulation_->next_qp_num = qp_num;
}

void SimulatedVerbs::break_qp(ibv_qp* qp) {
    const std::lock_guard lock(simulation_->mutex);
    QueuePair& broken = living<QueuePair>(*simulation_, qp);
    simulation_->to_error(broken);
    simulation_->queue_qp_event(broken, IBV_EVENT_QP_FATAL);
    simulation_->progress_all();
}

// --- failures and hooks ---

void SimulatedVerbs::fail(std::string_view verb, Failure failure) {
    const std::lock_guard lock(simulation_->mutex);
    simulation_->pending_failures.push_back({info(verb).verb, failure});
}

void SimulatedVerbs::fail_any(Failure failure) {
    const std::lock_guard lock(simulation_->mutex);
    simulation_->pending_failures.push_back({std::nullopt, failure});
}

void SimulatedVerbs::clear_failures() {
    const std::lock_guard lock(simulation_->mutex);
    simulation_->pending_failures.clear();
}

int SimulatedVerbs::failures_injected() const {
    const std::lock_guard lock(simulation_->mutex);
    return simulation_->failures_injected;
}

void SimulatedVerbs::on_call(std::function<void(const Call&)> hook) {
    auto shared =
        hook ? std::make_shared<const std::function<void(const Call&)>>(std::move(hook)) : nullptr;
    const std::lock_guard lock(simulation_->mutex);
    simulation_->hook = std::move(shared);
    simulation_->hooked = simulation_->hook != nullptr;
}

// --- observation ---

std::uint64_t SimulatedVerbs::calls(std::string_view verb) const {
    const std::lock_guard lock(simulation_->mutex);
    return simulation_->count_calls(info(verb).verb);
}

std::uint64_t SimulatedVerbs::calls() const {
    const std::lock_guard lock(simulation_->mutex);
    std::uint64_t sum = 0;
    for (std::size_t verb = 0; verb < verb_count; ++verb) {
        sum += simulation_->count_calls(static_cast<Verb>(verb));
    }
    return sum;
}

CqCounters SimulatedVerbs::counters(const ibv_cq* cq) const {
    const std::lock_guard lock(simulation_->mutex);
    return known<CompletionQueue>(*simulation_, cq).counters;
}

CqCounters SimulatedVerbs::counters() const {
    const std::lock_guard lock(simulation_->mutex);
    CqCounters sum;
    for (const CompletionQueue& cq : simulation_->registry<CompletionQueue>().all()) {
        add(sum, cq.counters);
    }
    return sum;
}

bool SimulatedVerbs::armed(const ibv_cq* cq) const {
    const std::lock_guard lock(simulation_->mutex);
    return living<CompletionQueue>(*simulation_, cq).arm != CompletionQueue::Arm::none;
}

ibv_moderate_cq SimulatedVerbs::moderation(const ibv_cq* cq) const {
    const std::lock_guard lock(simulation_->mutex);
    return living<CompletionQueue>(*simulation_, cq).moderation;
}

int SimulatedVerbs::queued_completions(const ibv_cq* cq) const {
    const std::lock_guard lock(simulation_->mutex);
    return static_cast<int>(living<CompletionQueue>(*simulation_, cq).entries.size());
}

int SimulatedVerbs::queued_events(const ibv_comp_channel* channel) const {
    const std::lock_guard lock(simulation_->mutex);
    return static_cast<int>(living<CompletionChannel>(*simulation_, channel).events.size());
}

int SimulatedVerbs::posted_sends(const ibv_qp* qp) const {
    const std::lock_guard lock(simulation_->mutex);
    return static_cast<int>(living<QueuePair>(*simulation_, qp).sends.size());
}

int SimulatedVerbs::posted_receives(const ibv_qp* qp) const {
    const std::lock_guard lock(simulation_->mutex);
    return static_cast<int>(living<QueuePair>(*simulation_, qp).receive_queue().size());
}

ibv_qp_state SimulatedVerbs::qp_state(const ibv_qp* qp) const {
    const std::lock_guard lock(simulation_->mutex);
    return living<QueuePair>(*simulation_, qp).attr.qp_state;
}

int SimulatedVerbs::live_objects() const {
    const std::lock_guard lock(simulation_->mutex);
    return simulation_->live_objects();
}

} // namespace asyncverbs::simulated
