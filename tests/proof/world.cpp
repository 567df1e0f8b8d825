// SPDX-License-Identifier: MIT
#include "proof/world.hpp"

#include <chrono>
#include <string>
#include <utility>

namespace asyncverbs::proof {

namespace {

using simulated::Call;

constexpr unsigned most_observations = 1000; // in one schedule, or it does not come to rest
constexpr int cq_depth = 16;
constexpr unsigned ack_batch = 2; // so that acks are flushed both on the way and at the end
constexpr int fatal = EIO;

AsyncCqOptions cq_options(const Configuration& configuration) {
    const bool bounded = configuration.count(Step::drop_event) > 0;
    return {.ack_batch = ack_batch, .max_wait = std::chrono::hours(bounded ? 1 : 0)};
}

std::string told(const StepInfo& step, int number) {
    std::string text(step.told);
    if (const std::size_t at = text.find("{}"); at != std::string::npos) {
        text.replace(at, 2, std::to_string(number));
    }
    return text;
}

} // namespace

void run_in_world(const Configuration& configuration, Run& run, simulated::SimulatedVerbs& sim) {
    World world(configuration, run, sim);
    world.explore();
}

World::World(const Configuration& configuration, Run& run, simulated::SimulatedVerbs& sim)
    : configuration_(configuration), run_(run), sim_(sim), properties_(configuration, run),
      context_(Context::open()), loop_(make_loop(configuration, *this)),
      waiters_(static_cast<std::size_t>(configuration.waiters)), left_(configuration.budget) {
    CompletionQueue cq(context_, cq_depth);
    native_ = cq.native_handle();
    channel_ = native_->channel;
    if (configuration.count(Step::foreign_event) > 0) {
        foreign_.emplace(context_, 1, cq.channel());
    }
    cq_.emplace(loop_->adopt(std::move(cq), cq_options(configuration)));
    for (Waiter& waiter : waiters_) {
        waiter.number = static_cast<int>(&waiter - waiters_.data()) + 1;
        if (waiter.number <= configuration.selective) {
            waiter.wanted =
                static_cast<WrId>(configuration.count(Step::complete) - waiter.number + 1);
        }
        // One that has gone leaves an AsyncCq for which nobody waits.
        waiter.again = waiter.number == configuration.waiters || waiter.wanted != 0;
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
            point(Place::program, "between turns");
            ++observations_;
            loop_->turn();
            observed();
        } else if (!step_at_rest()) {
            break;
        }
    }
    exploring_ = false;
    tear_down();
}

// --- the points ---

// Every step that can be taken here, one after the other, as long as one is chosen.
void World::point(Place place, std::string_view where) {
    while (exploring_) {
        const bool device = observations_ != device_declined_;
        const Options can = options(device, place == Place::program);
        if (can.count == 0) return;
        const std::size_t choice = run_.choose(can.count + 1);
        // The device's steps come first here: in another order they are seen just the same.
        const bool declined = choice == 0 || info(can.list[choice - 1].step).actor != Actor::device;
        if (declined) device_declined_ = observations_;
        if (choice == 0) return;
        take(can.list[choice - 1], where);
    }
}

// Nothing happens unless a step is taken. False: none is left.
bool World::step_at_rest() {
    // An event that was dropped is made up for when the wait has lasted too long, and an arm that
    // the device ignores until that event is read as well.
    const bool dropped = native_ != nullptr && sim_.counters(native_).events_dropped > 0;
    if (dropped && loop_->bounded_wait() && properties_.someone_waits_in_vain()) {
        run_.tell(1, "at rest: the longest wait has passed");
        return loop_->pass_time();
    }
    properties_.at_rest(native_ == nullptr || dropped || sim_.armed(native_));
    const Options can = options(true, true);
    if (can.count == 0) return false;
    take(can.list[can.count == 1 ? 0 : run_.choose(can.count)], "at rest");
    return true;
}

World::Options World::options(bool device, bool program) {
    Options can;
    for (const StepInfo& step : all_steps) {
        if (left_[static_cast<std::size_t>(step.step)] == 0) continue;
        if (step.actor == Actor::device && !(device && native_ != nullptr)) continue;
        if (step.actor == Actor::program && !program) continue;
        add_options(can, step.step);
    }
    return can;
}

void World::add_options(Options& to, Step step) {
    switch (step) {
    case Step::complete:
        to.add(step, arrived_ + 1);
        break;
    case Step::start:
        if (cq_) to.add(step, started_ + 1);
        break;
    case Step::cancel:
        for (const Waiter& one : waiters_) {
            if (!one.finished && !one.stop.stop_requested()) to.add(step, one.number);
        }
        break;
    case Step::destroy_waiter:
        for (const Waiter& one : waiters_) {
            if (properties_.waiting(one.number)) to.add(step, one.number);
        }
        break;
    case Step::destroy_cq:
        if (cq_) to.add(step);
        break;
    case Step::pass_time:
        if (loop_->bounded_wait()) to.add(step);
        break;
    default:
        to.add(step);
    }
}

// --- the steps ---

void World::take(const Option& option, std::string_view where) {
    const StepInfo& step = info(option.step);
    --left_[static_cast<std::size_t>(option.step)];
    if (run_.narrated()) run_.tell(1, std::string(where) + ": " + told(step, option.number));
    switch (option.step) {
    case Step::start:
        start(option.number);
        break;
    case Step::cancel:
        properties_.cancelled(option.number);
        waiter(option.number).stop.request_stop();
        break;
    case Step::destroy_waiter:
        properties_.destroyed(option.number);
        waiter(option.number).finished = true;
        waiter(option.number).coroutine.destroy();
        break;
    case Step::destroy_cq:
        properties_.closes();
        cq_.reset();
        break;
    case Step::pass_time:
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
        properties_.arrived(static_cast<WrId>(option.number));
        arrived_ = option.number;
        sim_.complete(native_, static_cast<WrId>(option.number));
        break;
    case Step::spurious_event:
        sim_.push_events(native_);
        break;
    case Step::duplicate_event:
        sim_.duplicate_events(native_);
        break;
    case Step::foreign_event:
        sim_.push_events(foreign_->native_handle());
        break;
    case Step::false_readiness:
        sim_.push_false_readiness(channel_);
        break;
    case Step::drop_event:
        sim_.drop_events(native_);
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
        break; // no other step is the device's
    }
}

void World::start(int number) {
    started_ = number;
    waiter(number).coroutine = poll(*this, waiter(number));
}

// A loop that was stopped is run again, or never again.
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
            wcs[0] = co_await world.cq_->poll_wr_id(self.wanted, error, self.stop.get_token());
            done = room.first(1);
        } else {
            done = co_await world.cq_->poll(room, error, self.stop.get_token());
        }
        world.ends(self, done, error);
        if (error) break;
        self.wanted = 0;
    } while (self.again && world.cq_);
    self.finished = true;
}

void World::begins(const Waiter& waiter) {
    if (run_.narrated()) {
        run_.tell(
            0, waiter_name(waiter.number) +
                   (waiter.wanted == 0 ? " polls" : " polls for " + std::to_string(waiter.wanted)));
    }
    properties_.begins(waiter.number, waiter.wanted);
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
    properties_.ends(waiter.number, std::span(ids).first(count), error);
    if (run_.narrated()) {
        point(Place::program, "in " + waiter_name(waiter.number));
    } else {
        point(Place::program, {});
    }
}

// --- what is watched ---

void World::on_call(const Call& call) {
    if (call.moment == Call::Moment::before) {
        before_call(call);
    } else {
        after_call(call);
    }
}

void World::before_call(const Call& call) {
    if (call.object == native_ && call.verb != "ibv_destroy_cq") properties_.touched();
    if (exploring_ && call.object == native_ && call.verb == "ibv_req_notify_cq") {
        properties_.about_to_arm();
    }
    point(Place::anywhere, run_.narrated() ? "before " + std::string(call.verb) : std::string());
}

void World::after_call(const Call& call) {
    observed();
    const bool own = call.object == native_;
    if (run_.narrated()) {
        std::string line(call.verb);
        if (call.verb == "ibv_poll_cq" && call.error == 0)
            line += ": " + std::to_string(call.value);
        if (call.verb == "ibv_ack_cq_events" && !own) line += " of the other CQ";
        if (call.error != 0) line += ": " + std::system_category().message(call.error);
        run_.tell(1, line);
    }
    if (call.error != 0) {
        if (call.error != EAGAIN && call.error != EINTR) properties_.failed();
    } else if (own && call.verb == "ibv_poll_cq") {
        properties_.polled(call.value);
    } else if (own && call.verb == "ibv_req_notify_cq") {
        properties_.armed();
    } else if (own && call.verb == "ibv_ack_cq_events") {
        const simulated::CqCounters counters = sim_.counters(native_);
        properties_.acked(counters.events_acked == counters.events_reported);
    } else if (own && call.verb == "ibv_destroy_cq") {
        native_ = nullptr;
    } else if (call.verb == "ibv_get_cq_event" && native_ != nullptr) {
        const std::uint64_t read = sim_.counters(native_).events_reported;
        if (std::exchange(events_read_, read) != read) properties_.event_read();
    }
    point(Place::anywhere, run_.narrated() ? "after " + std::string(call.verb) : std::string());
}

void World::observed() {
    if (++observations_ > most_observations) {
        run_.violated(property::rest,
                      std::to_string(most_observations) + " verbs and turns were not enough");
    }
}

void World::wait_begins() {
    run_.tell(1, "waits for the channel");
    properties_.waits();
    point(Place::anywhere, "before the wait");
    observed(); // the notifier may look at once
}

void World::wait_suspended() { point(Place::anywhere, "in the wait"); }

void World::wait_ends(const std::error_code& result) {
    if (run_.narrated())
        run_.tell(0, "the loop tells: " + (result ? result.message() : "readable"));
    if (result == std::errc::timed_out) properties_.timed_out();
    point(Place::anywhere, "after the wait");
}

void World::not_deregistered(int error) {
    run_.violated(property::deregistered, std::system_category().message(error));
}

// --- the end ---

void World::tear_down() {
    run_.tell(0, "the end");
    sim_.clear_failures();
    // An executor may go before those who use it.
    if (configuration_.trigger == Trigger::executor && ended_ && run_.choose(2) == 1) {
        run_.tell(1, "the executor is destroyed");
        loop_.reset();
    }
    waiters_.clear();
    if (cq_) {
        drain();
        properties_.closes();
        cq_.reset();
        properties_.finished();
    }
}

void World::drain() {
    std::array<ibv_wc, 4> wcs{};
    for (;;) {
        const std::span<ibv_wc> left = cq_->try_poll(wcs);
        if (left.empty()) return;
        std::array<WrId, 4> ids{};
        for (std::size_t index = 0; index < left.size(); ++index) ids[index] = left[index].wr_id;
        properties_.drained(std::span(ids).first(left.size()));
    }
}

} // namespace asyncverbs::proof
