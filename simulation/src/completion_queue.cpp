// SPDX-License-Identifier: MIT
// Completion channels and completion queues, ordinary and extended: poll, arm by the arm model of
// the provider, events and their acknowledgement.
#include "simulation.hpp"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <utility>

namespace asyncverbs::simulated {

using Arm = CompletionQueue::Arm;

ibv_wc error_completion(std::uint64_t wr_id, ibv_wc_status status, std::uint32_t qp_num) {
    constexpr std::uint32_t garbage = 0xdeadbeef;
    ibv_wc wc{};
    wc.opcode = static_cast<ibv_wc_opcode>(0x7e);
    wc.byte_len = garbage;
    wc.imm_data = garbage;
    wc.src_qp = garbage;
    wc.wc_flags = garbage;
    wc.wr_id = wr_id;
    wc.status = status;
    wc.qp_num = qp_num;
    wc.vendor_err = 0;
    return wc;
}

void Simulation::post_completion(CompletionQueue& cq, const CompletionQueue::Entry& entry) {
    ++cq.counters.completions_pushed;
    if (!cq.broken && cq.full()) {
        break_cq(cq);
    }
    if (cq.broken) {
        ++cq.counters.completions_lost;
        return;
    }
    cq.entries.push_back(entry);
    cq.entries.back().timestamp = 1000 + cq.counters.completions_pushed;
    // An error counts as solicited.
    const bool solicited = entry.solicited || entry.wc.status != IBV_WC_SUCCESS;
    cq.entries.back().solicited = solicited;
    if (cq.arm == Arm::any || (cq.arm == Arm::solicited && solicited)) {
        fire(cq);
    }
}

void Simulation::break_cq(CompletionQueue& cq) {
    if (cq.broken) {
        return;
    }
    cq.broken = true;
    cq.arm = Arm::none;
    ibv_async_event event{};
    event.event_type = IBV_EVENT_CQ_ERR;
    event.element.cq = &cq;
    queue_async_event(cq.owner(), event);
}

void Simulation::fire(CompletionQueue& cq) {
    cq.arm = Arm::none;
    cq.fired_sequence = cq.arm_sequence;
    if (cq.events_to_drop > 0) {
        --cq.events_to_drop;
        ++cq.counters.events_dropped;
        return;
    }
    queue_event(cq);
    if (cq.events_to_duplicate > 0) {
        --cq.events_to_duplicate;
        queue_event(cq);
    }
}

void Simulation::queue_event(CompletionQueue& cq) {
    if (cq.completion_channel == nullptr) {
        return;
    }
    ++cq.counters.events_queued;
    cq.completion_channel->events.push(&cq);
}

namespace {

void arm_flag(CompletionQueue& cq, Arm wanted) {
    if (wanted == Arm::any || cq.arm != Arm::any || cq.provider().solicited_arm_downgrades) {
        cq.arm = wanted;
    }
}

void arm_index(Simulation& simulation, CompletionQueue& cq, Arm wanted) {
    if (cq.fired_sequence == cq.arm_sequence) {
        return; // ignored: the event of the previous arm was not read yet
    }
    arm_flag(cq, wanted);
    const bool fires = std::ranges::any_of(cq.entries, [&](const CompletionQueue::Entry& entry) {
        return cq.arm == Arm::any || entry.solicited;
    });
    if (fires) {
        simulation.fire(cq);
    }
}

int capacity(const CompletionQueue& cq, int asked) {
    if (!cq.provider().rounds_up_cqe) {
        return asked;
    }
    return static_cast<int>(std::bit_ceil(static_cast<unsigned int>(asked) + 1) - 1);
}

bool valid_depth(const Context& context, int cqe) {
    return cqe >= 1 && cqe <= context.opened_device.options.attr.max_cqe;
}

void free_slots(Simulation& simulation, const CompletionQueue::Entry& entry) {
    QueuePair* qp = entry.slots == 0 ? nullptr : simulation.find_qp(entry.wc.qp_num);
    if (qp != nullptr) {
        std::uint32_t& used = entry.is_receive ? qp->receive_slots_used : qp->send_slots_used;
        used -= std::min(used, entry.slots);
    }
}

// Removes the oldest completion.
CompletionQueue::Entry take_entry(Simulation& simulation, CompletionQueue& cq) {
    const CompletionQueue::Entry entry = cq.entries.front();
    cq.entries.pop_front();
    ++cq.counters.completions_polled;
    free_slots(simulation, entry);
    return entry;
}

} // namespace

int create_cq(Simulation& simulation, Verb verb, ibv_context* context,
              const ibv_cq_init_attr_ex& attributes, CompletionQueue*& created) {
    Context* parent = nullptr;
    if (const int error = simulation.use<Context>(verb, context, parent)) {
        return error;
    }
    CompletionChannel* events = nullptr;
    if (attributes.channel != nullptr) {
        events = simulation.check<CompletionChannel>(verb, attributes.channel);
        if (events == nullptr || &events->owner() != parent) {
            return EINVAL;
        }
    }
    const int cqe = static_cast<int>(attributes.cqe);
    const int comp_vector = static_cast<int>(attributes.comp_vector);
    if (!valid_depth(*parent, cqe) || comp_vector < 0 || comp_vector >= parent->num_comp_vectors) {
        return EINVAL;
    }
    CompletionQueue& cq = simulation.registry<CompletionQueue>().add(*parent, events);
    cq.cq_context = attributes.cq_context;
    cq.handle = cq.number;
    cq.cqe = capacity(cq, cqe);
    ++parent->users;
    if (events != nullptr) {
        ++events->users;
        ++events->refcnt;
    }
    created = &cq;
    return 0;
}

int poll_cq(ibv_cq* cq, int num_entries, ibv_wc* wc) {
    return run_concurrently(Verb::poll_cq, cq, [&](Simulation& simulation, auto&) -> Outcome {
        auto* polled = simulation.check<CompletionQueue>(Verb::poll_cq, cq);
        if (polled == nullptr || num_entries < 0) {
            return {.error = EINVAL};
        }
        const std::lock_guard lock(polled->events_mutex());
        int count = 0;
        for (; count < num_entries && !polled->entries.empty(); ++count) {
            wc[count] = take_entry(simulation, *polled).wc;
        }
        ++polled->counters.polls;
        polled->counters.empty_polls += count == 0 ? 1u : 0u;
        return {.value = count};
    });
}

int req_notify_cq(ibv_cq* cq, int solicited_only) {
    return run_concurrently(Verb::req_notify_cq, cq, [&](Simulation& simulation, auto&) -> Outcome {
        CompletionQueue* armed = nullptr;
        if (const int error = simulation.use<CompletionQueue>(Verb::req_notify_cq, cq, armed)) {
            return {.error = error};
        }
        const std::lock_guard lock(armed->events_mutex());
        ++armed->counters.arms;
        if (armed->broken) {
            return {}; // accepted, but never fires
        }
        const std::uint64_t polled = armed->counters.completions_polled;
        const bool any_polled = std::exchange(armed->polled_at_arm, polled) != polled;
        if (!any_polled && armed->provider().loses_arm_without_poll) {
            ++armed->counters.arms_lost;
            return {};
        }
        const Arm wanted = solicited_only != 0 ? Arm::solicited : Arm::any;
        if (armed->provider().arm_model == ArmModel::index) {
            arm_index(simulation, *armed, wanted);
        } else {
            arm_flag(*armed, wanted);
        }
        return {};
    });
}

namespace {

CompletionQueue& simulated(ibv_cq_ex* cq) {
    return *static_cast<CompletionQueue*>(ibv_cq_ex_to_cq(cq));
}

int take_next(Simulation& simulation, CompletionQueue& cq) {
    if (cq.entries.empty()) return ENOENT;
    cq.current = take_entry(simulation, cq);
    cq.extended()->wr_id = cq.current->wc.wr_id;
    cq.extended()->status = cq.current->wc.status;
    return 0;
}

int start_poll(ibv_cq_ex* cq, ibv_poll_cq_attr* attributes) {
    return run_int(Verb::start_poll, cq, [&](Simulation& simulation, Lock&) -> Outcome {
        auto* polled = simulation.check<CompletionQueue>(Verb::start_poll, ibv_cq_ex_to_cq(cq));
        if (polled == nullptr || attributes->comp_mask != 0) return {.error = EINVAL};
        if (polled->current) simulation.record(Verb::start_poll, "without ibv_end_poll before");
        ++polled->counters.polls;
        polled->counters.empty_polls += polled->entries.empty() ? 1u : 0u;
        return {.error = take_next(simulation, *polled)};
    });
}

int next_poll(ibv_cq_ex* cq) {
    return run_int(Verb::next_poll, cq, [&](Simulation& simulation, Lock&) -> Outcome {
        CompletionQueue& polled = simulated(cq);
        if (!polled.current) simulation.record(Verb::next_poll, "without ibv_start_poll");
        return {.error = take_next(simulation, polled)};
    });
}

void end_poll(ibv_cq_ex* cq) { simulated(cq).current.reset(); }

const ibv_wc& current(ibv_cq_ex* cq) { return simulated(cq).current.value().wc; }
std::uint64_t timestamp(ibv_cq_ex* cq) { return simulated(cq).current.value().timestamp; }

void set_readers(ibv_cq_ex& cq, std::uint64_t wc_flags) {
    cq.start_poll = start_poll;
    cq.next_poll = next_poll;
    cq.end_poll = end_poll;
    cq.read_opcode = [](ibv_cq_ex* c) { return current(c).opcode; };
    cq.read_vendor_err = [](ibv_cq_ex* c) { return current(c).vendor_err; };
    cq.read_wc_flags = [](ibv_cq_ex* c) { return current(c).wc_flags; };
    // Fields that were not requested cannot be read.
    if (wc_flags & IBV_WC_EX_WITH_BYTE_LEN) {
        cq.read_byte_len = [](ibv_cq_ex* c) { return current(c).byte_len; };
    }
    if (wc_flags & IBV_WC_EX_WITH_IMM) {
        cq.read_imm_data = [](ibv_cq_ex* c) { return current(c).imm_data; };
    }
    if (wc_flags & IBV_WC_EX_WITH_QP_NUM) {
        cq.read_qp_num = [](ibv_cq_ex* c) { return current(c).qp_num; };
    }
    if (wc_flags & IBV_WC_EX_WITH_SRC_QP) {
        cq.read_src_qp = [](ibv_cq_ex* c) { return current(c).src_qp; };
    }
    if (wc_flags & IBV_WC_EX_WITH_SLID) {
        cq.read_slid = [](ibv_cq_ex* c) { return std::uint32_t{current(c).slid}; };
    }
    if (wc_flags & IBV_WC_EX_WITH_SL) {
        cq.read_sl = [](ibv_cq_ex* c) { return current(c).sl; };
    }
    if (wc_flags & IBV_WC_EX_WITH_DLID_PATH_BITS) {
        cq.read_dlid_path_bits = [](ibv_cq_ex* c) { return current(c).dlid_path_bits; };
    }
    if (wc_flags & IBV_WC_EX_WITH_COMPLETION_TIMESTAMP) cq.read_completion_ts = timestamp;
    if (wc_flags & IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK) {
        cq.read_completion_wallclock_ns = [](ibv_cq_ex* c) { return timestamp(c) * 1'000'000; };
    }
}

} // namespace

ibv_cq_ex* create_cq_ex(ibv_context* context, ibv_cq_init_attr_ex* attributes) {
    return run_create<ibv_cq_ex>(
        Verb::create_cq_ex, context, [&](Simulation& simulation, ibv_cq_ex*& created) {
            const DeviceOptions& options = static_cast<Context*>(context)->opened_device.options;
            const std::uint64_t offered =
                IBV_WC_STANDARD_FLAGS |
                (options.completion_timestamps ? IBV_WC_EX_WITH_COMPLETION_TIMESTAMP |
                                                     IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK
                                               : 0);
            if ((attributes->wc_flags & ~offered) != 0 || attributes->comp_mask != 0) {
                return EOPNOTSUPP;
            }
            CompletionQueue* cq = nullptr;
            if (const int error =
                    create_cq(simulation, Verb::create_cq_ex, context, *attributes, cq)) {
                return error;
            }
            created = cq->extended();
            set_readers(*created, attributes->wc_flags);
            return 0;
        });
}

int modify_cq(ibv_cq* cq, ibv_modify_cq_attr* attributes) {
    return run_on<CompletionQueue>(Verb::modify_cq, cq, [&](auto&, auto& modified) -> Outcome {
        if (attributes->attr_mask != IBV_CQ_ATTR_MODERATE) return {.error = EINVAL};
        modified.moderation = attributes->moderate;
        return {};
    });
}

} // namespace asyncverbs::simulated

using namespace asyncverbs::simulated;

// --- completion channels ---

extern "C" ibv_comp_channel* ibv_create_comp_channel(ibv_context* context) {
    return run_create_in<ibv_comp_channel, Context>(
        Verb::create_comp_channel, context,
        [&](Simulation& simulation, Context& parent, ibv_comp_channel*& created) {
            ++parent.users;
            created = &simulation.registry<CompletionChannel>().add(parent);
            return 0;
        });
}

extern "C" int ibv_destroy_comp_channel(ibv_comp_channel* channel) {
    constexpr Verb verb = Verb::destroy_comp_channel;
    return run_destroy<CompletionChannel>(
        verb, channel, [&](Simulation& simulation, auto& destroyed) {
            if (!destroyed.events.close()) {
                simulation.record(verb, "the descriptor of " + describe(destroyed) +
                                            " was read or closed by the application");
            }
            destroyed.fd = -1;
            --destroyed.owner().users;
        });
}

// --- completion queues ---

extern "C" ibv_cq* ibv_create_cq(ibv_context* context, int cqe, void* cq_context,
                                 ibv_comp_channel* channel, int comp_vector) {
    return run_create<ibv_cq>(
        Verb::create_cq, context, [&](Simulation& simulation, ibv_cq*& created) {
            ibv_cq_init_attr_ex attributes{};
            attributes.cqe = static_cast<std::uint32_t>(cqe);
            attributes.cq_context = cq_context;
            attributes.channel = channel;
            attributes.comp_vector = static_cast<std::uint32_t>(comp_vector);
            CompletionQueue* cq = nullptr;
            const int error = create_cq(simulation, Verb::create_cq, context, attributes, cq);
            created = cq;
            return error;
        });
}

extern "C" int ibv_destroy_cq(ibv_cq* cq) {
    return run_destroy<CompletionQueue>(
        Verb::destroy_cq, cq, [&](Simulation& simulation, auto& destroyed) {
            // Unread events are dropped with the queue; events that were read must be acknowledged.
            if (CompletionChannel* channel = destroyed.completion_channel) {
                channel->events.remove_if(
                    [&](const CompletionQueue* of) { return of == &destroyed; });
                --channel->users;
                --channel->refcnt;
            }
            Context& parent = destroyed.owner();
            parent.async_events.remove_if([&](const ibv_async_event& event) {
                return event.event_type == IBV_EVENT_CQ_ERR && event.element.cq == &destroyed;
            });
            simulation.check_account(Verb::destroy_cq, destroyed, destroyed.completion_events,
                                     "completion events");
            simulation.check_account(Verb::destroy_cq, destroyed, destroyed.async_events,
                                     "asynchronous events");
            if (destroyed.current) {
                simulation.record(Verb::destroy_cq, "ibv_start_poll without ibv_end_poll");
            }
            destroyed.entries.clear();
            --parent.users;
        });
}

// --- completion events ---

extern "C" int ibv_get_cq_event(ibv_comp_channel* channel, ibv_cq** cq, void** cq_context) {
    constexpr Verb verb = Verb::get_cq_event;
    return run_concurrently(verb, channel, [&](Simulation& simulation, auto& lock) -> Outcome {
        while (true) {
            auto* source = simulation.check<CompletionChannel>(verb, channel);
            if (source == nullptr) {
                return {.error = EINVAL};
            }
            std::unique_lock events_lock(source->mutex);
            if (source->events.at_end()) {
                return {.error = EIO};
            }
            const int fd = source->events.fd();
            events_lock.unlock();
            lock.unlock();
            const int error = read_token(fd);
            lock.lock();
            events_lock.lock();
            if (error != 0) {
                source->events.read_failed();
                return {.error = error};
            }
            const auto event = source->events.pop();
            if (!event || *event == nullptr) {
                continue; // no event: block again, or EAGAIN
            }
            CompletionQueue& reported = **event;
            ++reported.completion_events.reported;
            ++reported.counters.events_reported;
            ++reported.arm_sequence;
            *cq = &reported;
            *cq_context = reported.cq_context;
            return {};
        }
    });
}

extern "C" void ibv_ack_cq_events(ibv_cq* cq, unsigned int nevents) {
    run_concurrently(Verb::ack_cq_events, cq, [&](Simulation& simulation, auto&) -> Outcome {
        auto* acked = simulation.check<CompletionQueue>(Verb::ack_cq_events, cq);
        if (acked == nullptr) {
            return {};
        }
        const std::lock_guard lock(acked->events_mutex());
        EventAccount& account = acked->completion_events;
        const std::uint32_t outstanding = account.reported - account.acked;
        if (nevents > outstanding) {
            simulation.record(Verb::ack_cq_events, std::to_string(nevents) +
                                                       " acknowledged, but of " + describe(*acked) +
                                                       " only " + std::to_string(outstanding) +
                                                       " were read and not yet acknowledged");
        }
        account.acked += nevents;
        acked->comp_events_completed += nevents;
        acked->counters.events_acked += nevents;
        return {};
    });
}
