// SPDX-License-Identifier: MIT
#include "proof/world.hpp"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "proof/clock.hpp"

namespace asyncverbs::proof {

namespace {

using simulated::Call;

constexpr unsigned most_observations = 1000; // in one schedule; with more it never comes to rest
constexpr int cq_depth = 16;
constexpr unsigned ack_batch = 2; // so that acks are flushed during the schedule and at its end
constexpr int fatal = EIO;
constexpr auto longest_wait = std::chrono::hours(1);

// The clock is read before each poll, and once more at the end.
constexpr auto busy_limit = std::chrono::nanoseconds(busy_polls + 1);
constexpr auto adaptive_limit = std::chrono::nanoseconds(16);

BusyPoll busy_poll(Setting setting) {
    switch (setting) {
    case Setting::busy:
        return {.limit = busy_limit};
    case Setting::adaptive:
        return {.limit = adaptive_limit, .adaptive = true};
    default:
        return {};
    }
}

bool may_drop(const Configuration& configuration, int queue) {
    return configuration.count(Step::drop_event) > 0 && queue == configuration.queues();
}

AsyncCqOptions cq_options(const Configuration& configuration, int queue) {
    return {.ack_batch = ack_batch,
            .max_wait = may_drop(configuration, queue) ? longest_wait : std::chrono::hours(0),
            .busy_poll = busy_poll(configuration.setting),
            .solicited_only = configuration.setting == Setting::solicited};
}

ibv_wc completion(WrId id) {
    ibv_wc wc{};
    wc.wr_id = id;
    return wc;
}

} // namespace

void run_in_world(const Configuration& configuration, Run& run, simulated::SimulatedVerbs& sim) {
    World world(configuration, run, sim);
    world.explore();
}

World::World(const Configuration& configuration, Run& run, simulated::SimulatedVerbs& sim)
    : configuration_(configuration), run_(run), sim_(sim), context_(Context::open()),
      loop_(make_loop(configuration, *this)),
      waiters_(static_cast<std::size_t>(configuration.waiters)), left_(configuration.budget) {
    CompletionChannel own(context_);
    if (configuration.shares()) shared_ = loop_->share(std::move(own));
    const CompletionChannel& channel = shared_ ? shared_->channel() : own;
    channel_ = channel.native_handle();
    queues_.reserve(static_cast<std::size_t>(configuration.queues())); // the waiters refer to them
    for (int number = 1; number <= configuration.queues(); ++number) {
        Queue& queue = queues_.emplace_back(number, configuration, run);
        queue.not_adopted.emplace(context_, cq_depth, channel);
        queue.native = queue.not_adopted->native_handle();
        if (configuration.setting == Setting::held) queue.held = queue.not_adopted->shared_handle();
    }
    if (configuration.count(Step::foreign_event) > 0) foreign_.emplace(context_, 1, channel);
    adopt(queues_.front());
    for (Waiter& waiter : waiters_) {
        waiter.number = static_cast<int>(&waiter - waiters_.data()) + 1;
        waiter.queue = configuration.shares()
                           ? &queues_[static_cast<std::size_t>(waiter.number) - 1]
                           : &queues_.front();
        waiter.is_handler =
            configuration.setting == Setting::handler && waiter.number == configuration.waiters;
        if (waiter.number <= configuration.selective) {
            waiter.wanted =
                static_cast<WrId>(configuration.count(Step::complete) - waiter.number + 1);
        }
        // Waiters that poll once leave an AsyncCq without waiters.
        waiter.again =
            waiter.number == configuration.waiters || waiter.wanted != 0 || configuration.shares();
    }
    sim_.on_call([this](const Call& call) { on_call(call); });
}

World::~World() { sim_.on_call(nullptr); }

void World::explore() {
    exploring_ = true;
    while (!ended_) {
        if (std::exchange(stopped_, false)) {
            stopped();
        } else if (loop_->pending()) {
            point(Place::program, "between iterations");
            ++observations_;
            loop_->run_once();
            observed();
        } else if (!step_at_rest()) {
            break;
        }
    }
    exploring_ = false;
    tear_down();
}

// --- the points ---

// Takes steps that are possible here until no more is chosen.
void World::point(Place place, std::string_view where) {
    while (exploring_) {
        const bool device = observations_ != device_declined_;
        const Options can = options(device, place == Place::program);
        if (can.count == 0) return;
        const std::size_t choice = run_.choose(can.count + 1);
        // The device's steps come first: another order looks the same to the library.
        const bool declined = choice == 0 || info(can.list[choice - 1].step).actor != Actor::device;
        if (declined) device_declined_ = observations_;
        if (choice == 0) return;
        take(can.list[choice - 1], where);
    }
}

// Nothing happens without a step. False: none is left.
bool World::step_at_rest() {
    // The longest wait finds the completion of a dropped event or a lost arm, and repeats an arm
    // that the device ignores because of that event.
    for (const Queue& queue : queues_) {
        const bool dropped = queue.native != nullptr && may_miss_events(queue.native);
        if (dropped && loop_->bounded_wait() && queue.properties.any_left_behind()) {
            run_.tell(1, "at rest: the longest wait has passed");
            advance_clock(longest_wait);
            return loop_->pass_time();
        }
        queue.properties.at_rest(queue.native == nullptr || dropped || sim_.armed(queue.native));
    }
    const Options can = options(true, true);
    if (can.count == 0) return false;
    take(can.list[can.count == 1 ? 0 : run_.choose(can.count)], "at rest");
    return true;
}

bool World::may_miss_events(const ibv_cq* cq) const {
    const simulated::CqCounters counters = sim_.counters(cq);
    return counters.events_dropped > 0 || counters.arms_lost > 0;
}

World::Options World::options(bool device, bool program) {
    Options can;
    for (const StepInfo& step : all_steps) {
        if (left_[static_cast<std::size_t>(step.step)] == 0) continue;
        if (step.actor == Actor::device && !(device && any_alive())) continue;
        if (step.actor == Actor::program && !program) continue;
        add_options(can, step.step);
    }
    return can;
}

bool World::any_alive() const {
    return std::ranges::any_of(queues_, [](const Queue& queue) { return queue.native != nullptr; });
}

bool World::can_start(const Waiter& waiter) const {
    if (waiter.is_handler && std::ranges::any_of(waiters_, [](const Waiter& other) {
            return other.queue->properties.waiting(other.number);
        })) {
        return false; // it would be rejected
    }
    return waiter.queue->cq || (waiter.queue->not_adopted && shared_);
}

bool World::may_cancel(const Waiter& waiter) const {
    if (waiter.is_handler) return waiter.queue->properties.waiting(waiter.number);
    return !waiter.finished && !waiter.stop.stop_requested();
}

void World::add_options(Options& to, Step step) {
    switch (step) {
    case Step::complete:
    case Step::spurious_event:
    case Step::duplicate_event:
    case Step::drop_event:
        for (Queue& queue : queues_) {
            if (queue.native == nullptr) continue;
            if (step == Step::drop_event && !may_drop(configuration_, queue.number)) continue;
            to.add({step, arrived_ + 1, &queue});
            const bool either =
                step == Step::complete && configuration_.setting == Setting::solicited;
            if (either) to.add({step, arrived_ + 1, &queue, true});
        }
        break;
    case Step::start:
        if (can_start(waiter(started_ + 1))) to.add({step, started_ + 1});
        break;
    case Step::cancel:
        for (const Waiter& one : waiters_) {
            if (may_cancel(one)) to.add({step, one.number});
        }
        break;
    case Step::destroy_waiter:
        for (const Waiter& one : waiters_) {
            if (one.queue->properties.waiting(one.number)) to.add({step, one.number});
        }
        break;
    case Step::destroy_cq:
        for (Queue& queue : queues_) {
            if (queue.cq) to.add({step, 0, &queue});
        }
        break;
    case Step::destroy_channel:
        if (shared_) to.add({step});
        break;
    case Step::pass_time:
        if (loop_->bounded_wait()) to.add({step});
        break;
    default:
        to.add({step});
    }
}

// --- the steps ---

std::string World::describe(const Option& option) const {
    std::string text(info(option.step).text);
    if (const std::size_t at = text.find("{}"); at != std::string::npos) {
        text.replace(at, 2, std::to_string(option.number));
    }
    if (option.queue != nullptr && configuration_.shares()) {
        text += ", CQ " + std::to_string(option.queue->number);
    }
    if (option.quiet) text += ", not solicited";
    return text;
}

void World::take(const Option& option, std::string_view where) {
    --left_[static_cast<std::size_t>(option.step)];
    if (run_.narrated()) run_.tell(1, std::string(where) + ": " + describe(option));
    switch (option.step) {
    case Step::start:
        start(waiter(option.number));
        break;
    case Step::cancel: {
        Waiter& cancelled = waiter(option.number);
        cancelled.queue->properties.cancelled(option.number);
        if (cancelled.handler) {
            cancelled.woken = true;
            cancelled.handler->wake();
        } else {
            cancelled.stop.request_stop();
        }
        break;
    }
    case Step::destroy_waiter: {
        Waiter& destroyed = waiter(option.number);
        destroyed.queue->properties.destroyed(option.number);
        destroyed.finished = true;
        destroyed.coroutine.destroy();
        break;
    }
    case Step::destroy_cq:
        option.queue->properties.closes();
        option.queue->cq.reset();
        break;
    case Step::destroy_channel:
        shared_.reset();
        break;
    case Step::pass_time:
        advance_clock(longest_wait);
        loop_->pass_time();
        break;
    case Step::stop_loop:
        stopped_ = true;
        loop_->stop();
        break;
    default:
        take_device_step(option);
    }
}

void World::take_device_step(const Option& option) {
    switch (option.step) {
    case Step::complete:
        arrived_ = option.number;
        option.queue->properties.arrived(static_cast<WrId>(option.number), option.quiet);
        sim_.push(option.queue->native, completion(static_cast<WrId>(option.number)),
                  !option.quiet);
        break;
    case Step::spurious_event:
        sim_.push_events(option.queue->native);
        break;
    case Step::duplicate_event:
        sim_.duplicate_events(option.queue->native);
        break;
    case Step::foreign_event:
        sim_.push_events(foreign_->native_handle());
        break;
    case Step::false_readiness:
        sim_.push_false_readiness(channel_);
        break;
    case Step::drop_event:
        sim_.drop_events(option.queue->native);
        break;
    case Step::interrupt_read:
        sim_.fail("ibv_get_cq_event", {.error = EINTR});
        break;
    case Step::fail_read:
        sim_.fail("ibv_get_cq_event", {.error = fatal});
        break;
    case Step::fail_poll:
        sim_.fail("ibv_poll_cq", {.error = fatal});
        break;
    case Step::fail_arm:
        sim_.fail("ibv_req_notify_cq", {.error = fatal});
        break;
    default:
        break; // not a step of the device
    }
}

void World::adopt(Queue& queue) {
    CompletionQueue cq = *std::exchange(queue.not_adopted, std::nullopt);
    const AsyncCqOptions options = cq_options(configuration_, queue.number);
    queue.cq.emplace(shared_ ? shared_->adopt(std::move(cq), options)
                             : loop_->adopt(std::move(cq), options));
}

void World::start(Waiter& waiter) {
    started_ = waiter.number;
    if (!waiter.queue->cq) adopt(*waiter.queue);
    if (waiter.is_handler) {
        waiter.handler = std::make_shared<RecordingHandler>(static_cast<HandlerObserver&>(*this),
                                                            *waiter.queue->cq);
        begins(waiter);
        RecordingHandler::install(waiter.handler);
    } else {
        waiter.coroutine = poll(*this, waiter);
    }
}

// A stopped loop is run again, or not.
void World::stopped() {
    ended_ = run_.choose(2) == 1;
    run_.tell(0, ended_ ? "the loop is not run again" : "the loop is run again");
}

// --- waiters ---

support::Coroutine World::poll(World& world, Waiter& self) {
    std::array<ibv_wc, 4> wcs{};
    const std::span<ibv_wc> room =
        std::span(wcs).first(static_cast<std::size_t>(world.configuration_.span));
    do {
        world.begins(self);
        std::error_code error;
        std::span<ibv_wc> done;
        if (self.wanted != 0) {
            wcs[0] = co_await self.queue->cq->poll_wr_id(self.wanted, error, self.stop.get_token());
            done = room.first(1);
        } else {
            done = co_await self.queue->cq->poll(room, error, self.stop.get_token());
        }
        world.ends(self, done, error);
        if (error) break;
        self.wanted = 0;
    } while (self.again && self.queue->cq);
    self.finished = true;
}

void World::begins(const Waiter& waiter) {
    if (run_.narrated()) {
        run_.tell(
            0, waiter_name(waiter.number) +
                   (waiter.wanted == 0 ? " polls" : " polls for " + std::to_string(waiter.wanted)));
    }
    waiter.queue->properties.begins(waiter.number, waiter.wanted);
}

void World::ends(const Waiter& waiter, std::span<const ibv_wc> completions,
                 const std::error_code& error) {
    std::array<WrId, 4> ids{};
    std::size_t count = 0;
    std::string list;
    for (const ibv_wc& wc : completions) {
        ids[count++] = wc.wr_id;
        if (run_.narrated()) list += ' ' + std::to_string(wc.wr_id);
    }
    if (run_.narrated()) {
        run_.tell(0,
                  waiter_name(waiter.number) + " gets" + (error ? ": " + error.message() : list));
    }
    waiter.queue->properties.ends(waiter.number, std::span(ids).first(count), error);
    if (run_.narrated()) {
        point(Place::program, "in " + waiter_name(waiter.number));
    } else {
        point(Place::program, {});
    }
}

// The handler stays until there is an error. A cancel of its waiter is a wake of the handler.
void World::on_handled(std::span<const ibv_wc> completions, const std::error_code& error) {
    Waiter& self = waiters_.back();
    const bool woken = error == std::errc::operation_canceled;
    if (woken && !std::exchange(self.woken, false)) return; // another waiter was cancelled
    ends(self, completions, error);
    if ((!error || woken) && self.queue->cq) begins(self);
}

// --- observations ---

void World::on_call(const Call& call) {
    if (call.moment == Call::Moment::before) {
        before_call(call);
    } else {
        after_call(call);
    }
}

World::Queue* World::find(const void* native) {
    const auto found = std::ranges::find_if(
        queues_, [native](const Queue& queue) { return queue.native == native; });
    return native == nullptr || found == queues_.end() ? nullptr : &*found;
}

void World::before_call(const Call& call) {
    if (const Queue* queue = find(call.object)) {
        if (call.verb != "ibv_destroy_cq") queue->properties.touched();
        if (exploring_ && call.verb == "ibv_req_notify_cq") queue->properties.about_to_arm();
    }
    point(Place::anywhere, run_.narrated() ? "before " + std::string(call.verb) : std::string());
}

void World::after_call(const Call& call) {
    observed();
    Queue* const queue = find(call.object);
    if (run_.narrated()) {
        std::string line(call.verb);
        if (call.verb == "ibv_poll_cq" && call.error == 0)
            line += ": " + std::to_string(call.value);
        if (queue != nullptr && configuration_.shares()) {
            line += ", CQ " + std::to_string(queue->number);
        }
        if (call.verb == "ibv_ack_cq_events" && queue == nullptr) line += " of the other CQ";
        if (call.error != 0) line += ": " + std::system_category().message(call.error);
        run_.tell(1, line);
    }
    if (call.error != 0) {
        if (call.error != EAGAIN && call.error != EINTR) failed(call);
    } else if (call.verb == "ibv_get_cq_event") {
        for (Queue& one : queues_) {
            if (one.native == nullptr) continue;
            const std::uint64_t read = sim_.counters(one.native).events_reported;
            if (std::exchange(one.events_read, read) != read) one.properties.event_read();
        }
    } else if (queue == nullptr) {
        // not an explored CQ
    } else if (call.verb == "ibv_poll_cq") {
        queue->properties.polled(call.value);
    } else if (call.verb == "ibv_req_notify_cq") {
        queue->properties.armed();
    } else if (call.verb == "ibv_ack_cq_events") {
        const simulated::CqCounters counters = sim_.counters(queue->native);
        queue->properties.acked(counters.events_acked == counters.events_reported);
    } else if (call.verb == "ibv_destroy_cq") {
        queue->native = nullptr;
    }
    point(Place::anywhere, run_.narrated() ? "after " + std::string(call.verb) : std::string());
}

void World::failed(const Call& call) {
    if (Queue* const queue = find(call.object)) return queue->properties.failed();
    for (Queue& queue : queues_) {
        if (configuration_.shares()) {
            queue.properties.channel_failed();
        } else {
            queue.properties.failed();
        }
    }
}

void World::observed() {
    if (++observations_ > most_observations) {
        run_.violated(property::rest,
                      std::to_string(most_observations) + " calls and iterations were not enough");
    }
}

void World::wait_begins(const ibv_cq* cq) {
    if (run_.narrated()) {
        const Queue* const queue = configuration_.shares() ? find(cq) : nullptr;
        run_.tell(1, queue ? "waits for CQ " + std::to_string(queue->number)
                           : std::string("waits for the channel"));
    }
    point(Place::anywhere, "before the wait");
    observed(); // the notifier may poll the descriptor at once
}

// A wait that completes without suspending, such as one for an event that was read, needs no arm.
void World::wait_suspended(const ibv_cq* cq) {
    if (const Queue* const queue = find(cq)) queue->properties.waits();
    point(Place::anywhere, "in the wait");
}

void World::wait_ends(const ibv_cq* cq, const std::error_code& result) {
    if (run_.narrated())
        run_.tell(0, "the loop reports: " + (result ? result.message() : "readable"));
    Queue* const queue = find(cq);
    if (queue != nullptr && result == std::errc::timed_out) queue->properties.timed_out();
    point(Place::anywhere, "after the wait");
}

void World::not_deregistered(int error) {
    run_.violated(property::deregistered, std::system_category().message(error));
}

// --- the end ---

void World::tear_down() {
    run_.tell(0, "the end");
    sim_.clear_failures();
    // An executor may be destroyed before the objects that use it.
    if (configuration_.trigger == Trigger::executor && ended_ && run_.choose(2) == 1) {
        run_.tell(1, "the executor is destroyed");
        loop_.reset();
    }
    waiters_.clear();
    for (Queue& queue : queues_) {
        if (queue.cq) {
            drain(queue);
            queue.properties.closes();
            queue.cq.reset();
            queue.properties.finished();
        }
        queue.held.reset();
    }
    shared_.reset();
}

void World::drain(Queue& queue) {
    std::array<ibv_wc, 4> wcs{};
    for (;;) {
        const std::span<ibv_wc> left = queue.cq->try_poll(wcs);
        if (left.empty()) return;
        std::array<WrId, 4> ids{};
        for (std::size_t index = 0; index < left.size(); ++index) ids[index] = left[index].wr_id;
        queue.properties.drained(std::span(ids).first(left.size()));
    }
}

} // namespace asyncverbs::proof
