// SPDX-License-Identifier: MIT
// Devices, ports and GIDs; contexts and their asynchronous events.
#include "simulation.hpp"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

namespace asyncverbs::simulated {

ibv_gid ipv4_gid(std::uint8_t a, std::uint8_t b, std::uint8_t c, std::uint8_t d) {
    return {.raw = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d}};
}

ibv_gid link_local_gid(std::uint8_t last) {
    return {.raw = {0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, last}};
}

std::vector<GidEntry> default_gids() {
    return {{link_local_gid(1), IBV_GID_TYPE_ROCE_V2},
            {ipv4_gid(10, 7, 0, 1), IBV_GID_TYPE_ROCE_V2}};
}

ibv_port_attr default_port_attr() {
    ibv_port_attr attr{};
    attr.state = IBV_PORT_ACTIVE;
    attr.max_mtu = IBV_MTU_4096;
    attr.active_mtu = IBV_MTU_4096;
    attr.gid_tbl_len = 1024;
    attr.port_cap_flags = IBV_PORT_CM_SUP | IBV_PORT_IP_BASED_GIDS;
    attr.max_msg_sz = 1u << 23;
    attr.pkey_tbl_len = 1;
    attr.max_vl_num = 1;
    attr.active_width = 1;
    attr.active_speed = 1;
    attr.phys_state = 5;
    attr.link_layer = IBV_LINK_LAYER_ETHERNET;
    return attr;
}

ibv_device_attr default_device_attr() {
    ibv_device_attr attr{};
    std::strcpy(attr.fw_ver, "0.0");
    attr.max_mr_size = ~std::uint64_t{0};
    attr.max_qp = 1 << 16;
    attr.max_qp_wr = 1 << 14;
    attr.max_sge = 32;
    attr.max_sge_rd = 32;
    attr.max_cq = 1 << 16;
    attr.max_cqe = 32767;
    attr.max_mr = 1 << 16;
    attr.max_pd = 1 << 16;
    attr.max_qp_rd_atom = 128;
    attr.max_qp_init_rd_atom = 128;
    attr.atomic_cap = IBV_ATOMIC_HCA;
    attr.max_ah = 1 << 16;
    attr.max_srq = 1 << 15;
    attr.max_srq_wr = 1 << 14;
    attr.max_srq_sge = 27;
    attr.max_pkeys = 64;
    return attr;
}

Device::Device(const DeviceOptions& device_options) : ibv_device{}, options(device_options) {
    options.attr.phys_port_cnt = static_cast<std::uint8_t>(options.ports.size());
    node_type = IBV_NODE_CA;
    transport_type = IBV_TRANSPORT_IB;
    options.name.copy(name, sizeof name - 1);
}

Context::Context(Device& opened) : ibv_context{}, opened_device(opened) {
    device = &opened;
    ops.alloc_mw = alloc_mw;
    ops.dealloc_mw = dealloc_mw;
    ops.poll_cq = poll_cq;
    ops.req_notify_cq = req_notify_cq;
    ops.post_send = post_send;
    ops.post_recv = post_recv;
    ops.post_srq_recv = post_srq_recv;
    cmd_fd = -1;
    async_fd = async_events.fd();
    num_comp_vectors = 1;
    // An extended context with only these verbs: inline functions that need others fall back or
    // return EOPNOTSUPP.
    abi_compat = __VERBS_ABI_IS_EXTENDED;
    extended().sz = sizeof(verbs_context);
    extended().create_cq_ex = create_cq_ex;
    if (opened.options.cq_moderation) extended().modify_cq = modify_cq;
}

void Simulation::disassociate(Context& context) {
    if (context.disassociated) {
        return;
    }
    context.disassociated = true;
    ibv_async_event event{};
    event.event_type = IBV_EVENT_DEVICE_FATAL;
    queue_async_event(context, event);
    context.async_events.finish();
    for (CompletionChannel& channel : registry<CompletionChannel>().all()) {
        if (channel.alive && &channel.owner() == &context) {
            channel.events.finish();
        }
    }
}

const PortOptions* find_port(const Context& context, std::uint32_t port) {
    const std::vector<PortOptions>& ports = context.opened_device.options.ports;
    return port >= 1 && port <= ports.size() ? &ports[port - 1] : nullptr;
}

static bool is_empty(const ibv_gid& gid) {
    return std::ranges::all_of(gid.raw, [](std::uint8_t byte) { return byte == 0; });
}

int find_gid(const Context& context, std::uint32_t port, std::uint32_t index, GidEntry& entry) {
    const PortOptions* options = find_port(context, port);
    if (options == nullptr || index >= static_cast<std::uint32_t>(options->attr.gid_tbl_len)) {
        return EINVAL;
    }
    if (index >= options->gids.size() || is_empty(options->gids[index].gid)) {
        return ENODATA;
    }
    entry = options->gids[index];
    return 0;
}

bool valid_address(const Context& context, const ibv_ah_attr& attr) {
    const PortOptions* port = find_port(context, attr.port_num);
    if (port == nullptr) {
        return false;
    }
    if (attr.is_global == 0) {
        return port->attr.link_layer == IBV_LINK_LAYER_INFINIBAND && attr.dlid != 0;
    }
    GidEntry source;
    return find_gid(context, attr.port_num, attr.grh.sgid_index, source) == 0 &&
           !is_empty(attr.grh.dgid);
}

namespace {

ibv_gid_entry to_verbs(const GidEntry& entry, std::uint32_t port, std::uint32_t index) {
    ibv_gid_entry result{};
    result.gid = entry.gid;
    result.gid_index = index;
    result.port_num = port;
    result.gid_type = entry.type;
    return result;
}

} // namespace

void Simulation::queue_async_event(Context& context, const ibv_async_event& event) {
    context.async_events.push(event);
}

namespace {

// The account of the object of an event; null for events of the port or the device.
EventAccount* account_of(Simulation& simulation, Verb verb, const ibv_async_event& event) {
    switch (event.event_type) {
    case IBV_EVENT_CQ_ERR: {
        auto* cq = simulation.check<CompletionQueue>(verb, event.element.cq);
        return cq == nullptr ? nullptr : &cq->async_events;
    }
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
    case IBV_EVENT_COMM_EST:
    case IBV_EVENT_SQ_DRAINED:
    case IBV_EVENT_PATH_MIG:
    case IBV_EVENT_PATH_MIG_ERR:
    case IBV_EVENT_QP_LAST_WQE_REACHED: {
        auto* qp = simulation.check<QueuePair>(verb, event.element.qp);
        return qp == nullptr ? nullptr : &qp->async_events;
    }
    case IBV_EVENT_SRQ_ERR:
    case IBV_EVENT_SRQ_LIMIT_REACHED: {
        auto* srq = simulation.check<SharedReceiveQueue>(verb, event.element.srq);
        return srq == nullptr ? nullptr : &srq->async_events;
    }
    default:
        return nullptr;
    }
}

} // namespace

} // namespace asyncverbs::simulated

using namespace asyncverbs::simulated;

// --- the device list ---

extern "C" ibv_device** ibv_get_device_list(int* num_devices) {
    if (num_devices != nullptr) {
        *num_devices = 0;
    }
    ibv_device** list = nullptr;
    const Outcome outcome = run(Verb::get_device_list, nullptr, [&](Simulation& simulation, Lock&) {
        std::vector<Device*> devices;
        for (Device& device : simulation.registry<Device>().all()) {
            devices.push_back(&device);
            ++device.users;
        }
        list = new ibv_device*[devices.size() + 1]();
        std::ranges::copy(devices, list);
        if (num_devices != nullptr) {
            *num_devices = static_cast<int>(devices.size());
        }
        simulation.device_lists.emplace(list, std::move(devices));
        return Outcome{};
    });
    report(Verb::get_device_list, outcome);
    return list;
}

extern "C" void ibv_free_device_list(ibv_device** list) {
    run(Verb::free_device_list, list, [&](Simulation& simulation, Lock&) {
        const auto found = simulation.device_lists.find(list);
        if (found == simulation.device_lists.end()) {
            simulation.record(Verb::free_device_list, "not a list, or one that was freed before");
            return Outcome{};
        }
        for (Device* device : found->second) {
            --device->users;
        }
        simulation.device_lists.erase(found);
        delete[] list;
        return Outcome{};
    });
}

extern "C" const char* ibv_get_device_name(ibv_device* device) { return device->name; }

// --- contexts ---

extern "C" ibv_context* ibv_open_device(ibv_device* device) {
    return run_create<ibv_context>(
        Verb::open_device, device, [&](Simulation& simulation, ibv_context*& created) {
            Device* opened = simulation.check<Device>(Verb::open_device, device);
            if (opened == nullptr) {
                return EINVAL;
            }
            if (opened->users == 0) {
                simulation.record(Verb::open_device, "the list that " + opened->options.name +
                                                         " was found in has been freed");
                return EINVAL;
            }
            ++opened->users;
            created = &simulation.registry<Context>().add(*opened);
            return 0;
        });
}

extern "C" int ibv_close_device(ibv_context* context) {
    return run_destroy<Context>(
        Verb::close_device, context, [&](Simulation& simulation, auto& closed) {
            --closed.opened_device.users;
            if (!closed.async_events.close()) {
                simulation.record(Verb::close_device,
                                  "async_fd was read or closed by the application");
            }
            closed.async_fd = -1;
        });
}

extern "C" int ibv_query_device(ibv_context* context, ibv_device_attr* attr) {
    return run_on<Context>(Verb::query_device, context, [&](auto&, auto& queried) -> Outcome {
        *attr = queried.opened_device.options.attr;
        return {};
    });
}

extern "C" int(ibv_query_port)(ibv_context* context, std::uint8_t port,
                               _compat_ibv_port_attr* attr) {
    return run_on<Context>(Verb::query_port, context, [&](auto&, auto& queried) -> Outcome {
        const PortOptions* options = find_port(queried, port);
        if (options == nullptr) {
            return {.error = EINVAL};
        }
        // This function writes the attributes before port_cap_flags2 only.
        std::memcpy(attr, &options->attr, offsetof(ibv_port_attr, port_cap_flags2));
        return {};
    });
}

extern "C" int _ibv_query_gid_ex(ibv_context* context, std::uint32_t port, std::uint32_t index,
                                 ibv_gid_entry* entry, std::uint32_t flags,
                                 std::size_t entry_size) {
    return run_on<Context>(Verb::query_gid_ex, context, [&](auto&, auto& queried) -> Outcome {
        if (flags != 0 || entry_size < sizeof(ibv_gid_entry)) {
            return {.error = EINVAL};
        }
        GidEntry found;
        if (const int error = find_gid(queried, port, index, found)) {
            return {.error = error};
        }
        *entry = to_verbs(found, port, index);
        return {};
    });
}

// --- asynchronous events ---

extern "C" int ibv_get_async_event(ibv_context* context, ibv_async_event* event) {
    return run_int(
        Verb::get_async_event, context, [&](Simulation& simulation, Lock& lock) -> Outcome {
            while (true) {
                Context* source = simulation.check<Context>(Verb::get_async_event, context);
                if (source == nullptr) {
                    return {.error = EINVAL};
                }
                if (source->async_events.at_end()) {
                    return {.error = EIO};
                }
                const int fd = source->async_events.fd();
                lock.unlock();
                const int error = read_token(fd);
                lock.lock();
                if (error != 0) {
                    source->async_events.read_failed();
                    return {.error = error};
                }
                if (const auto read = source->async_events.pop()) {
                    *event = *read;
                    if (EventAccount* account =
                            account_of(simulation, Verb::get_async_event, *read)) {
                        ++account->reported;
                    }
                    return {};
                }
            }
        });
}

extern "C" void ibv_ack_async_event(ibv_async_event* event) {
    run(Verb::ack_async_event, event, [&](Simulation& simulation, Lock&) {
        EventAccount* account = account_of(simulation, Verb::ack_async_event, *event);
        if (account == nullptr) {
            return Outcome{};
        }
        if (account->acked == account->reported) {
            simulation.record(Verb::ack_async_event, "an event that was not read, or twice");
            return Outcome{};
        }
        ++account->acked;
        return Outcome{};
    });
}
