// SPDX-License-Identifier: MIT
// The implementation of the simulated verbs: the Simulation that owns all objects, and the
// functions that run a verb on it. Simulation::mutex guards everything, including the objects.
//
// The verbs that poll and arm a completion queue share that mutex, so that threads with one queue
// each do not wait for each other. The data that they modify is also guarded by the mutex of the
// events of the queue, see CompletionQueue; they only read everything else.
#pragma once

#include <asyncverbs/simulation/simulated_verbs.hpp>

#include "objects.hpp"
#include "split_mutex.hpp"

#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

namespace asyncverbs::simulated {

enum class Verb : std::size_t {
    get_device_list,
    free_device_list,
    open_device,
    close_device,
    query_device,
    query_port,
    query_gid_ex,
    get_async_event,
    ack_async_event,
    alloc_pd,
    dealloc_pd,
    alloc_mw,
    dealloc_mw,
    reg_mr,
    reg_dmabuf_mr,
    dereg_mr,
    create_comp_channel,
    destroy_comp_channel,
    create_cq,
    create_cq_ex,
    modify_cq,
    destroy_cq,
    get_cq_event,
    ack_cq_events,
    poll_cq,
    start_poll,
    next_poll,
    req_notify_cq,
    create_qp,
    query_qp,
    modify_qp,
    destroy_qp,
    post_send,
    post_recv,
    create_srq,
    modify_srq,
    query_srq,
    destroy_srq,
    post_srq_recv,
    create_ah,
    create_ah_from_wc,
    destroy_ah,
    create_event_channel,
    destroy_event_channel,
    create_id,
    destroy_id,
    bind_addr,
    listen,
    resolve_addr,
    resolve_route,
    connect,
    accept,
    reject,
    establish,
    disconnect,
    get_cm_event,
    ack_cm_event,
    migrate_id,
    init_qp_attr,
    set_option,
};
inline constexpr std::size_t verb_count = static_cast<std::size_t>(Verb::set_option) + 1;

// How a verb reports an error according to its documentation; `never`: it cannot fail.
enum class Convention { positive, negative, minus_one, null, never };

struct VerbInfo {
    Verb verb;
    std::string_view name;
    Convention convention;
    bool releases = false;
};

const VerbInfo& info(Verb verb);
// Throws std::invalid_argument for an unknown name.
const VerbInfo& info(std::string_view name);

struct Outcome {
    int error = 0;
    int value = 0; // the result of an int verb without an error
    ErrnoSign sign = ErrnoSign::usual;
};

// All objects of one kind. Destroyed objects stay, so that their use is detected.
template <class Object>
class Registry {
public:
    using Native = typename Object::Native;

    template <class... Args>
    Object& add(Args&&... args) {
        Object& object = objects_.emplace_back(std::forward<Args>(args)...);
        object.number = static_cast<std::uint32_t>(objects_.size());
        by_handle_.emplace(static_cast<const Native*>(&object), &object);
        return object;
    }

    // Alive or destroyed; null if no such object ever existed.
    Object* find(const Native* native) const {
        const auto found = by_handle_.find(native);
        return found == by_handle_.end() ? nullptr : found->second;
    }

    std::deque<Object>& all() { return objects_; }
    const std::deque<Object>& all() const { return objects_; }

private:
    std::deque<Object> objects_;
    std::unordered_map<const Native*, Object*> by_handle_;
};

class Simulation {
public:
    using Calls = std::array<std::uint64_t, verb_count>;
    using Mutex = SplitMutex<Calls>;
    using Lock = std::unique_lock<Mutex>;

    mutable Mutex mutex;

    template <class Object>
    Registry<Object>& registry() {
        return std::get<Registry<Object>>(registries_);
    }
    template <class Object>
    const Registry<Object>& registry() const {
        return std::get<Registry<Object>>(registries_);
    }

    void record(std::string problem) {
        const std::lock_guard lock(problems_mutex_); // `mutex` may be held shared
        problems.push_back(std::move(problem));
    }
    void record(Verb verb, const std::string& what) {
        record(std::string(info(verb).name) + ": " + what);
    }

    // The object behind a handle. Null, and a recorded problem, if it was destroyed or never
    // existed.
    template <class Object>
    Object* check(Verb verb, const typename Object::Native* native);
    // The same for a verb that is not a release: returns EINVAL, or EIO after the device was
    // removed.
    template <class Object>
    int use(Verb verb, const typename Object::Native* native, Object*& object);
    // Marks an object as destroyed. EBUSY, and a recorded problem, if other objects need it.
    template <class Object>
    int release(Verb verb, Object& object);
    // Records a problem if acknowledgements are missing: destroying the object would hang.
    template <class Object>
    void check_account(Verb verb, const Object& object, const EventAccount& account,
                       std::string_view events);

    // Counts the call, and returns the error that was injected for it, if any.
    Outcome enter(Verb verb);
    void call_hook(const Call& call) {
        if (hooked) call_present_hook(call);
    }
    std::uint64_t count_calls(Verb verb) const;

    // --- completions and events ---

    void post_completion(CompletionQueue& cq, const CompletionQueue::Entry& entry);
    void break_cq(CompletionQueue& cq);
    void fire(CompletionQueue& cq);
    void queue_event(CompletionQueue& cq);
    void queue_async_event(Context& context, const ibv_async_event& event);
    void disassociate(Context& context);

    // --- queue pairs ---

    QueuePair* find_qp(std::uint32_t qp_num) const;
    void queue_qp_event(QueuePair& qp, ibv_event_type type);
    // State ERR: all posted requests are flushed.
    void to_error(QueuePair& qp);
    // All posted requests complete with IBV_WC_WR_FLUSH_ERR.
    void flush(QueuePair& qp);
    // Executes the first send of a queue pair; false if it has to wait.
    bool step(QueuePair& qp);
    // Executes all possible sends: of one queue pair, or up to `limit` of all.
    void progress(QueuePair& qp);
    int progress_all(int limit = std::numeric_limits<int>::max());
    void expire_retries();

    MemoryRegion* find_region(std::uint32_t key) const;
    MemoryWindow* find_window(std::uint32_t key); // that is bound with this key
    // The local requests IBV_WR_BIND_MW and IBV_WR_LOCAL_INV.
    ibv_wc_status bind(const QueuePair& qp, const SendRequest& request);
    ibv_wc_status invalidate(const QueuePair& qp, std::uint32_t key);
    void unbind(MemoryWindow& window);

    void audit();
    int live_objects() const;

    std::vector<std::string> problems;
    Calls calls{}; // without those of threads that shared `mutex`
    int failures_injected = 0;
    bool held = false;
    bool peers_affected = false; // a queue pair failed: sends of its peers must not wait for it
    std::uint32_t next_qp_num = 17;
    std::map<std::uint32_t, QueuePair*> qps_by_number;
    std::unordered_map<std::uint32_t, MemoryRegion*> regions_by_key;
    std::unordered_map<ibv_device**, std::vector<Device*>> device_lists;
    std::shared_ptr<const std::function<void(const Call&)>> hook;
    std::atomic<bool> hooked = false;

    struct PendingFailure {
        std::optional<Verb> verb; // nullopt: any verb that can fail, except releases
        Failure failure;
    };
    std::vector<PendingFailure> pending_failures;

private:
    template <class Object>
    void audit_kind();
    void call_present_hook(const Call& call);

    TriedMutex problems_mutex_;

    std::tuple<Registry<Device>, Registry<Context>, Registry<ProtectionDomain>,
               Registry<MemoryRegion>, Registry<MemoryWindow>, Registry<AddressHandle>,
               Registry<CompletionChannel>, Registry<CompletionQueue>, Registry<SharedReceiveQueue>,
               Registry<QueuePair>, Registry<EventChannel>, Registry<CmId>>
        registries_;
};

using Lock = Simulation::Lock;

template <class Object>
std::string describe(const Object& object) {
    return std::string(Object::kind) + " " + std::to_string(object.number);
}

// An error completion: everything that is not valid in one is garbage.
ibv_wc error_completion(std::uint64_t wr_id, ibv_wc_status status, std::uint32_t qp_num);

// The ports of a context's device are numbered from 1; null for a port that is not there.
const PortOptions* find_port(const Context& context, std::uint32_t port);
// 0, EINVAL for an index outside the table, or ENODATA for an empty entry.
int find_gid(const Context& context, std::uint32_t port, std::uint32_t index, GidEntry& entry);
// Whether port, source GID and destination are valid.
bool valid_address(const Context& context, const ibv_ah_attr& attr);

// The verbs that applications call through ibv_context::ops.
ibv_mw* alloc_mw(ibv_pd* pd, ibv_mw_type type);
int dealloc_mw(ibv_mw* mw);
int poll_cq(ibv_cq* cq, int num_entries, ibv_wc* wc);
int req_notify_cq(ibv_cq* cq, int solicited_only);
// For ibv_create_cq and ibv_create_cq_ex; returns 0 or an errno.
int create_cq(Simulation& simulation, Verb verb, ibv_context* context,
              const ibv_cq_init_attr_ex& attributes, CompletionQueue*& created);
ibv_cq_ex* create_cq_ex(ibv_context* context, ibv_cq_init_attr_ex* attributes);
int modify_cq(ibv_cq* cq, ibv_modify_cq_attr* attributes);
int post_send(ibv_qp* qp, ibv_send_wr* wr, ibv_send_wr** bad_wr);
int post_recv(ibv_qp* qp, ibv_recv_wr* wr, ibv_recv_wr** bad_wr);
int post_srq_recv(ibv_srq* srq, ibv_recv_wr* wr, ibv_recv_wr** bad_wr);

// The simulation that the verbs act on; null when no SimulatedVerbs exists.
Simulation* active();
void set_active(Simulation* simulation);

// Sets errno, and returns what an int verb returns for this outcome.
int report(Verb verb, const Outcome& outcome);

template <class Object>
Object* Simulation::check(Verb verb, const typename Object::Native* native) {
    Object* object = registry<Object>().find(native);
    if (object == nullptr) {
        record(verb, "not a " + std::string(Object::kind) + " of this simulation");
        return nullptr;
    }
    if (!object->alive) {
        record(verb, describe(*object) + " was destroyed before");
        return nullptr;
    }
    return object;
}

template <class Object>
int Simulation::use(Verb verb, const typename Object::Native* native, Object*& object) {
    object = check<Object>(verb, native);
    if (object == nullptr) {
        return EINVAL;
    }
    return object->owner().disassociated ? EIO : 0;
}

template <class Object>
int Simulation::release(Verb verb, Object& object) {
    if (object.users > 0) {
        record(verb, describe(object) + " is needed by " + std::to_string(object.users) +
                         " object(s) that still exist");
        return EBUSY;
    }
    object.alive = false;
    return 0;
}

template <class Object>
void Simulation::check_account(Verb verb, const Object& object, const EventAccount& account,
                               std::string_view events) {
    if (account.reported != account.acked) {
        record(verb, "would hang: of " + describe(object) + ", " +
                         std::to_string(account.reported) + " " + std::string(events) +
                         " were read and " + std::to_string(account.acked) + " acknowledged");
    }
}

// Runs a verb: hook, count, injected failure or body, hook. The body is called with the simulation
// and its lock, and returns an Outcome. No exception reaches the C caller.
template <class Body>
Outcome run(Verb verb, const void* object, Body body) noexcept {
    Simulation* simulation = active();
    if (simulation == nullptr) {
        return {.error = ENODEV};
    }
    simulation->call_hook({info(verb).name, object, Call::Moment::before});
    Outcome outcome;
    {
        Lock lock(simulation->mutex);
        outcome = simulation->enter(verb);
        if (outcome.error == 0) {
            outcome = body(*simulation, lock);
        }
    }
    simulation->call_hook(
        {info(verb).name, object, Call::Moment::after, outcome.error, outcome.value});
    return outcome;
}

template <class Body>
int run_int(Verb verb, const void* object, Body body) noexcept {
    return report(verb, run(verb, object, body));
}

// The same for a verb on one completion queue, or on its channel, concurrently with those of other
// threads. The body locks the mutex of the events of the queue, and gets either kind of lock.
template <class Body>
int run_concurrently(Verb verb, const void* object, Body body) noexcept {
    Simulation* simulation = active();
    if (simulation == nullptr) {
        return report(verb, {.error = ENODEV});
    }
    {
        std::shared_lock lock(simulation->mutex);
        if (!simulation->hooked && simulation->pending_failures.empty()) {
            ++simulation->mutex.local()[static_cast<std::size_t>(verb)];
            return report(verb, body(*simulation, lock));
        }
    }
    return run_int(verb, object, body);
}

// A verb on an object: the body gets the object. EIO after the device was removed.
template <class Object, class Body>
int run_on(Verb verb, const typename Object::Native* native, Body body) noexcept {
    return run_int(verb, native, [&](Simulation& simulation, Lock&) -> Outcome {
        Object* object = nullptr;
        const int error = simulation.use<Object>(verb, native, object);
        return error != 0 ? Outcome{.error = error} : body(simulation, *object);
    });
}

// A verb that destroys an object: EBUSY, and a recorded problem, if other objects need it; else the
// body releases its parents.
template <class Object, class Body>
int run_destroy(Verb verb, const typename Object::Native* native, Body body) noexcept {
    return run_int(verb, native, [&](Simulation& simulation, Lock&) -> Outcome {
        Object* object = simulation.check<Object>(verb, native);
        const int error = object == nullptr ? EINVAL : simulation.release(verb, *object);
        if (error == 0) {
            body(simulation, *object);
        }
        return {.error = error};
    });
}

// A verb that returns a new object: the body stores it in its last argument, and returns an errno.
template <class Native, class Body>
Native* run_create(Verb verb, const void* parent, Body body) noexcept {
    Native* created = nullptr;
    const Outcome outcome = run(verb, parent, [&](Simulation& simulation, Lock&) {
        return Outcome{.error = body(simulation, created)};
    });
    report(verb, outcome);
    return outcome.error == 0 ? created : nullptr;
}

// The same for a child of another object, which the body gets.
template <class Native, class Parent, class Body>
Native* run_create_in(Verb verb, const typename Parent::Native* native, Body body) noexcept {
    return run_create<Native>(verb, native, [&](Simulation& simulation, Native*& created) {
        Parent* parent = nullptr;
        const int error = simulation.use<Parent>(verb, native, parent);
        return error != 0 ? error : body(simulation, *parent, created);
    });
}

} // namespace asyncverbs::simulated
