// SPDX-License-Identifier: MIT
// The calls of librdmacm: the effects of the library, the kernel and the network.
#include <asyncverbs/simulation/simulated_cm.hpp>

#include "simulation.hpp"

#include <arpa/inet.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

namespace asyncverbs::simulated {

namespace {

// The private data of the application is padded to the size of the field in the message.
constexpr std::size_t request_room = 56;
constexpr std::size_t reply_room = 196;
constexpr std::size_t reject_room = 148;
constexpr int rejected_by_program = 28;
constexpr int no_listener = 8;

// An event that the application has read and not acknowledged yet.
struct ReadEvent : rdma_cm_event {
    CmEvent source{};
};

// Guarded by Simulation::mutex.
struct Network {
    ibv_context* device = nullptr;
    std::set<std::string, std::less<>> held;
    std::map<std::string, CmEvent, std::less<>> answers;
    std::map<const rdma_cm_event*, std::unique_ptr<ReadEvent>> given;
    CmId* newest = nullptr;
    std::uint16_t next_port = 40'000;
};

std::unique_ptr<Network> network;

EventChannel& channel_of(const CmId& id) { return static_cast<EventChannel&>(*id.channel); }

void queue(CmEvent event) { channel_of(*event.id).events.push(event); }

std::string padded(const void* data, std::size_t size, std::size_t room) {
    std::string text(static_cast<const char*>(data), data == nullptr ? 0 : size);
    text.resize(room);
    return text;
}

// Queues the event that follows a call, unless the test holds or replaces it.
void follow(Verb verb, CmEvent event) {
    const std::string_view call = info(verb).name;
    if (network->held.contains(call)) {
        return;
    }
    if (const auto found = network->answers.find(call); found != network->answers.end()) {
        CmEvent other = std::move(found->second);
        network->answers.erase(found);
        other.id = event.id;
        event = std::move(other);
    }
    queue(std::move(event));
}

sockaddr_in& ipv4(sockaddr& address) { return reinterpret_cast<sockaddr_in&>(address); }

void bind_to_device(CmId& id) {
    id.verbs = network->device;
    id.port_num = 1;
    sockaddr_in& source = id.route.addr.src_sin;
    if (source.sin_family == 0) {
        source.sin_family = AF_INET;
        source.sin_addr.s_addr = htonl(0x0a070001);
        source.sin_port = htons(network->next_port++);
    }
}

bool is_any(const CmId& id) {
    const rdma_addr& address = id.route.addr;
    return id.route.addr.src_addr.sa_family == AF_INET6
               ? IN6_IS_ADDR_UNSPECIFIED(&address.src_sin6.sin6_addr)
               : address.src_sin.sin_addr.s_addr == INADDR_ANY;
}

// The listener for requests to `to`. An iWARP device does not give an IPv4 peer's request to a
// listener on IPv6.
CmId* find_listener(Simulation& simulation, const sockaddr_in& to) {
    for (CmId& id : simulation.registry<CmId>().all()) {
        const sockaddr_in& listens = id.route.addr.src_sin;
        if (id.alive && id.listening && listens.sin_port == to.sin_port &&
            (listens.sin_family == to.sin_family ||
             (listens.sin_family == AF_INET6 && !id.one_family && !is_iwarp(*network->device)))) {
            return &id;
        }
    }
    return nullptr;
}

// What the kernel answers if `id` wants to use its port.
int check_port(Simulation& simulation, const CmId& id) {
    const sockaddr_in& wanted = id.route.addr.src_sin;
    for (CmId& other : simulation.registry<CmId>().all()) {
        const sockaddr_in& used = other.route.addr.src_sin;
        const bool apart =
            id.one_family && other.one_family && used.sin_family != wanted.sin_family;
        if (&other != &id && other.alive && other.listening && used.sin_port == wanted.sin_port &&
            !apart) {
            return is_any(id) || is_any(other) ? EADDRNOTAVAIL : EADDRINUSE;
        }
    }
    return 0;
}

// On iWARP the kernel takes a queue pair to RTS when its connection is established.
void move_to_rts(Simulation& simulation, const CmId& id) {
    if (QueuePair* const qp = simulation.find_qp(id.parameters.qp_num)) {
        qp->attr.qp_state = IBV_QPS_RTS;
        qp->attr.dest_qp_num = id.peer->parameters.qp_num;
    }
}

// On iWARP the kernel fails the queue pair of an end whose peer has left, before it reports that.
void fail_queue_pair(Simulation& simulation, const CmId& end) {
    if (!is_iwarp(*network->device)) return;
    if (QueuePair* const qp = simulation.find_qp(end.parameters.qp_num)) simulation.to_error(*qp);
}

void drop(Simulation& simulation, CmId& id);

// Drops the unread events of an identifier.
void discard_events(Simulation& simulation, CmId& id) {
    std::vector<CmId*> requests;
    channel_of(id).events.remove_if([&](const CmEvent& event) {
        if (event.id != &id) {
            return false;
        }
        if (event.request != nullptr) {
            requests.push_back(event.request);
        }
        return true;
    });
    for (CmId* request : requests) {
        drop(simulation, *request);
    }
}

// Destroys an identifier, and notifies its peer.
void drop(Simulation& simulation, CmId& id) {
    id.alive = false;
    --channel_of(id).users;
    if (!id.listening && id.peer != nullptr && id.peer->alive) {
        CmId& peer = *id.peer;
        if (peer.peer == nullptr) { // its request was not answered
            queue({&peer, nullptr, RDMA_CM_EVENT_REJECTED, rejected_by_program,
                   std::string(reject_room, '\0')});
        } else if (!id.left) {
            fail_queue_pair(simulation, peer);
            queue({&peer, nullptr, RDMA_CM_EVENT_DISCONNECTED});
        }
        peer.peer = nullptr;
    }
    discard_events(simulation, id);
}

// A call on an identifier.
template <class Body>
int run_on_id(Verb verb, rdma_cm_id* native, Body body) {
    return run_int(verb, native, [&](Simulation& simulation, Lock&) -> Outcome {
        CmId* const id = simulation.check<CmId>(verb, native);
        return {.error = id == nullptr ? EINVAL : body(simulation, *id)};
    });
}

CmId& live_id(const rdma_cm_id* native) {
    CmId* const id = active()->registry<CmId>().find(native);
    if (id == nullptr || !id->alive) {
        throw std::invalid_argument("simulated connection manager: no such identifier");
    }
    return *id;
}

} // namespace

// --- control ---

SimulatedCm::SimulatedCm() {
    if (network) {
        throw std::logic_error("simulated connection manager: one at a time");
    }
    ibv_device** const list = ibv_get_device_list(nullptr);
    ibv_context* const device = ibv_open_device(list[0]);
    ibv_free_device_list(list);
    network = std::make_unique<Network>();
    network->device = device;
}

SimulatedCm::~SimulatedCm() {
    const std::unique_ptr<Network> ended = std::move(network);
    const std::lock_guard lock(active()->mutex);
    for (std::size_t events = ended->given.size(); events > 0; --events) {
        active()->record("leaked: an event that was read and not acknowledged");
    }
    static_cast<Context*>(ended->device)->alive = false; // closed at the end of the process
}

void SimulatedCm::hold(std::string_view call) {
    const std::lock_guard lock(active()->mutex);
    network->held.emplace(info(call).name);
}

void SimulatedCm::answer(std::string_view call, rdma_cm_event_type type, int status,
                         const std::string& data) {
    const std::lock_guard lock(active()->mutex);
    network->answers[std::string(info(call).name)] = {nullptr, nullptr, type, status, data};
}

void SimulatedCm::push(const rdma_cm_id* id, rdma_cm_event_type type, int status,
                       const std::string& data) {
    const std::lock_guard lock(active()->mutex);
    queue({&live_id(id), nullptr, type, status, data});
}

rdma_conn_param SimulatedCm::parameters(const rdma_cm_id* id) const {
    const std::lock_guard lock(active()->mutex);
    return live_id(id).parameters;
}

rdma_cm_id* SimulatedCm::newest() const {
    const std::lock_guard lock(active()->mutex);
    return network->newest;
}

} // namespace asyncverbs::simulated

using namespace asyncverbs::simulated;

// --- channels and events ---

extern "C" rdma_event_channel* rdma_create_event_channel() {
    return run_create<rdma_event_channel>(Verb::create_event_channel, nullptr,
                                          [](Simulation& simulation, rdma_event_channel*& created) {
                                              created = &simulation.registry<EventChannel>().add();
                                              return 0;
                                          });
}

extern "C" void rdma_destroy_event_channel(rdma_event_channel* channel) {
    constexpr Verb verb = Verb::destroy_event_channel;
    run(verb, channel, [&](Simulation& simulation, Lock&) -> Outcome {
        EventChannel* const destroyed = simulation.check<EventChannel>(verb, channel);
        if (destroyed == nullptr || simulation.release(verb, *destroyed) != 0) {
            return {};
        }
        if (!destroyed->events.close()) {
            simulation.record(verb, "the descriptor of " + describe(*destroyed) +
                                        " was read or closed by the application");
        }
        destroyed->fd = -1;
        return {};
    });
}

extern "C" int rdma_get_cm_event(rdma_event_channel* channel, rdma_cm_event** event) {
    constexpr Verb verb = Verb::get_cm_event;
    return run_int(verb, channel, [&](Simulation& simulation, Lock& lock) -> Outcome {
        EventChannel* const source = simulation.check<EventChannel>(verb, channel);
        if (source == nullptr) {
            return {.error = EINVAL};
        }
        lock.unlock();
        const int error = read_token(source->fd);
        lock.lock();
        if (error != 0) {
            source->events.read_failed();
            return {.error = error};
        }
        std::optional<CmEvent> read = source->events.pop();
        if (!read) {
            return {.error = EAGAIN};
        }
        auto given = std::make_unique<ReadEvent>();
        given->source = std::move(*read);
        CmId& id = *given->source.id;
        ++id.events.reported;
        given->event = given->source.type;
        given->status = given->source.status;
        given->id = &id;
        if (given->source.request != nullptr) {
            given->id = network->newest = given->source.request;
            given->listen_id = &id;
        }
        if (given->event == RDMA_CM_EVENT_ADDR_RESOLVED) {
            bind_to_device(id);
        }
        given->param.conn.private_data = given->source.data.data();
        given->param.conn.private_data_len = static_cast<std::uint8_t>(given->source.data.size());
        *event = given.get();
        network->given.emplace(*event, std::move(given));
        return {};
    });
}

extern "C" int rdma_ack_cm_event(rdma_cm_event* event) {
    constexpr Verb verb = Verb::ack_cm_event;
    return run_int(verb, event, [&](Simulation& simulation, Lock&) -> Outcome {
        const auto found = network->given.find(event);
        if (found == network->given.end()) {
            simulation.record(verb, "an event that was not read, or twice");
            return {};
        }
        ++found->second->source.id->events.acked;
        network->given.erase(found);
        return {};
    });
}

extern "C" const char* rdma_event_str(rdma_cm_event_type event) {
    return event == RDMA_CM_EVENT_UNREACHABLE ? "simulated unreachable" : "simulated event";
}

// --- identifiers ---

extern "C" int rdma_create_id(rdma_event_channel* channel, rdma_cm_id** id, void* context,
                              rdma_port_space ps) {
    constexpr Verb verb = Verb::create_id;
    return run_int(verb, channel, [&](Simulation& simulation, Lock&) -> Outcome {
        EventChannel* const events = simulation.check<EventChannel>(verb, channel);
        if (events == nullptr) {
            return {.error = EINVAL};
        }
        CmId& created = simulation.registry<CmId>().add(*events);
        created.context = context;
        created.ps = ps;
        ++events->users;
        *id = network->newest = &created;
        return {};
    });
}

extern "C" int rdma_destroy_id(rdma_cm_id* id) {
    return run_on_id(Verb::destroy_id, id, [](Simulation& simulation, CmId& destroyed) {
        simulation.check_account(Verb::destroy_id, destroyed, destroyed.events, "events");
        drop(simulation, destroyed);
        return 0;
    });
}

extern "C" int rdma_migrate_id(rdma_cm_id* id, rdma_event_channel* channel) {
    return run_on_id(Verb::migrate_id, id, [&](Simulation& simulation, CmId& moved) {
        EventChannel* const to = simulation.check<EventChannel>(Verb::migrate_id, channel);
        if (to == nullptr) {
            return EINVAL;
        }
        simulation.check_account(Verb::migrate_id, moved, moved.events, "events");
        EventChannel& from = channel_of(moved);
        from.events.remove_if([&](const CmEvent& event) {
            if (event.id != &moved) {
                return false;
            }
            to->events.push(event);
            return true;
        });
        --from.users;
        ++to->users;
        moved.channel = to;
        return 0;
    });
}

extern "C" int rdma_bind_addr(rdma_cm_id* id, sockaddr* address) {
    return run_on_id(Verb::bind_addr, id, [&](Simulation& simulation, CmId& bound) {
        const bool ipv6 = address->sa_family == AF_INET6;
        std::memcpy(&bound.route.addr.src_storage, address,
                    ipv6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in));
        std::uint16_t& port = bound.route.addr.src_sin.sin_port; // the same offset in both families
        if (port == 0) {
            port = htons(network->next_port++);
            return 0;
        }
        return check_port(simulation, bound);
    });
}

extern "C" int rdma_set_option(rdma_cm_id* id, int level, int option, void* value, std::size_t) {
    return run_on_id(Verb::set_option, id, [&](Simulation&, CmId& changed) {
        if (level != RDMA_OPTION_ID || option != RDMA_OPTION_ID_AFONLY) {
            return ENOSYS;
        }
        changed.one_family = *static_cast<int*>(value) != 0;
        return 0;
    });
}

extern "C" int rdma_listen(rdma_cm_id* id, int) {
    return run_on_id(Verb::listen, id, [](Simulation&, CmId& listener) {
        listener.listening = true;
        return 0;
    });
}

// --- making a connection ---

extern "C" int rdma_resolve_addr(rdma_cm_id* id, sockaddr*, sockaddr* to, int) {
    return run_on_id(Verb::resolve_addr, id, [&](Simulation&, CmId& active) {
        active.route.addr.dst_sin = ipv4(*to);
        follow(Verb::resolve_addr, {&active, nullptr, RDMA_CM_EVENT_ADDR_RESOLVED});
        return 0;
    });
}

extern "C" int rdma_resolve_route(rdma_cm_id* id, int) {
    return run_on_id(Verb::resolve_route, id, [](Simulation&, CmId& active) {
        if (active.verbs == nullptr) {
            return EINVAL;
        }
        follow(Verb::resolve_route, {&active, nullptr, RDMA_CM_EVENT_ROUTE_RESOLVED});
        return 0;
    });
}

extern "C" int rdma_connect(rdma_cm_id* id, rdma_conn_param* parameters) {
    return run_on_id(Verb::connect, id, [&](Simulation& simulation, CmId& active) {
        if (active.verbs == nullptr || parameters->private_data_len > request_room) {
            return EINVAL;
        }
        active.parameters = *parameters;
        CmId* const listener = find_listener(simulation, active.route.addr.dst_sin);
        if (listener == nullptr) {
            follow(Verb::connect, {&active, nullptr, RDMA_CM_EVENT_REJECTED, no_listener,
                                   std::string(reject_room, '\0')});
            return 0;
        }
        if (network->held.contains("rdma_connect")) {
            return 0; // the request never arrives
        }
        EventChannel& events = channel_of(*listener);
        CmId& passive = simulation.registry<CmId>().add(events);
        ++events.users;
        passive.peer = &active;
        passive.route.addr.src_sin = active.route.addr.dst_sin;
        passive.route.addr.dst_sin = active.route.addr.src_sin;
        bind_to_device(passive);
        follow(Verb::connect,
               {listener, &passive, RDMA_CM_EVENT_CONNECT_REQUEST, 0,
                padded(parameters->private_data, parameters->private_data_len, request_room)});
        return 0;
    });
}

extern "C" int rdma_accept(rdma_cm_id* id, rdma_conn_param* parameters) {
    return run_on_id(Verb::accept, id, [&](Simulation& simulation, CmId& passive) {
        if (passive.peer == nullptr || !passive.peer->alive || passive.peer->peer != nullptr ||
            parameters->private_data_len > reply_room) {
            return EINVAL;
        }
        passive.parameters = *parameters;
        passive.peer->peer = &passive;
        if (is_iwarp(*network->device)) {
            move_to_rts(simulation, passive);
            move_to_rts(simulation, *passive.peer);
            follow(Verb::accept, {passive.peer, nullptr, RDMA_CM_EVENT_ESTABLISHED, 0,
                                  padded(parameters->private_data, parameters->private_data_len,
                                         parameters->private_data_len)});
            queue({&passive, nullptr, RDMA_CM_EVENT_ESTABLISHED});
            return 0;
        }
        follow(Verb::accept,
               {passive.peer, nullptr, RDMA_CM_EVENT_CONNECT_RESPONSE, 0,
                padded(parameters->private_data, parameters->private_data_len, reply_room)});
        return 0;
    });
}

extern "C" int rdma_reject(rdma_cm_id* id, const void* data, std::uint8_t size) {
    return run_on_id(Verb::reject, id, [&](Simulation&, CmId& passive) {
        if (passive.peer == nullptr || size > reject_room) {
            return EINVAL;
        }
        CmId* const active = std::exchange(passive.peer, nullptr);
        if (active->alive) {
            follow(Verb::reject, {active, nullptr, RDMA_CM_EVENT_REJECTED, rejected_by_program,
                                  padded(data, size, reject_room)});
        }
        return 0;
    });
}

extern "C" int rdma_establish(rdma_cm_id* id) {
    return run_on_id(Verb::establish, id, [](Simulation&, CmId& active) {
        if (active.peer == nullptr || is_iwarp(*network->device)) {
            return EINVAL;
        }
        follow(Verb::establish, {active.peer, nullptr, RDMA_CM_EVENT_ESTABLISHED});
        return 0;
    });
}

extern "C" int rdma_disconnect(rdma_cm_id* id) {
    return run_on_id(Verb::disconnect, id, [](Simulation& simulation, CmId& leaving) {
        if (!std::exchange(leaving.left, true) && leaving.peer != nullptr) {
            fail_queue_pair(simulation, *leaving.peer);
            follow(Verb::disconnect, {leaving.peer, nullptr, RDMA_CM_EVENT_DISCONNECTED});
        }
        return 0;
    });
}

extern "C" int rdma_init_qp_attr(rdma_cm_id* id, ibv_qp_attr* attr, int* mask) {
    return run_on_id(Verb::init_qp_attr, id, [&](Simulation&, CmId& of) {
        const ibv_qp_state state = attr->qp_state;
        if (of.verbs == nullptr || (state != IBV_QPS_INIT && of.peer == nullptr)) {
            return EINVAL;
        }
        if (is_iwarp(*network->device)) {
            *mask = state == IBV_QPS_RTS ? 0 : IBV_QP_STATE | IBV_QP_ACCESS_FLAGS;
            attr->qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
            return 0;
        }
        attr->port_num = of.port_num;
        if (state == IBV_QPS_INIT) {
            *mask = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
            attr->qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
            return 0;
        }
        const rdma_conn_param& peer = of.peer->parameters;
        if (state == IBV_QPS_RTS) {
            *mask = IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                    IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC;
            attr->timeout = 14;
            attr->retry_cnt = attr->rnr_retry = 7;
            attr->max_rd_atomic = peer.responder_resources;
            return 0;
        }
        *mask = IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
        attr->ah_attr.is_global = 1;
        attr->ah_attr.port_num = of.port_num;
        attr->ah_attr.grh.sgid_index = 1;
        attr->ah_attr.grh.dgid = ipv4_gid(10, 7, 0, 1);
        attr->path_mtu = IBV_MTU_1024;
        attr->dest_qp_num = peer.qp_num;
        attr->max_dest_rd_atomic = peer.initiator_depth;
        return 0;
    });
}
