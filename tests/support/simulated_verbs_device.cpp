// SPDX-License-Identifier: MIT
//
// The simulated verbs of devices and contexts: the device list, and what a device and its ports
// are like.
#include "support/simulated_verbs_state.hpp"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

namespace asyncverbs::simulated {

Device::Device(const DeviceOptions& device_options) : ibv_device{}, options(device_options) {
    options.attr.phys_port_cnt = static_cast<std::uint8_t>(options.ports.size());
    node_type = IBV_NODE_CA;
    transport_type = IBV_TRANSPORT_IB;
    options.name.copy(name, sizeof name - 1);
}

Context::Context(Device& opened) : ibv_context{}, opened_device(opened) {
    device = &opened;
    ops.poll_cq = poll_cq;
    ops.req_notify_cq = req_notify_cq;
    ops.post_send = post_send;
    ops.post_recv = post_recv;
    ops.post_srq_recv = post_srq_recv;
    cmd_fd = -1;
    async_fd = async_events.fd();
    num_comp_vectors = 1;
    // Extended, with these alone: inline verbs that need others fall back or report EOPNOTSUPP.
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

} // namespace asyncverbs::simulated

using namespace asyncverbs::simulated;
using Lock = Simulation::Lock;

// --- the device list ---

extern "C" ibv_device** ibv_get_device_list(int* num_devices) {
    if (num_devices != nullptr) {
        *num_devices = 0;
    }
    ibv_device** list = nullptr;
    const Outcome outcome = run(Verb::get_device_list, nullptr, [&](Simulation& simulation, Lock&) {
        std::vector<Device*> devices;
        for (Device& device : simulation.registry<Device>().all()) {
            if (device.plugged) {
                devices.push_back(&device);
                ++device.users;
            }
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

extern "C" int ibv_get_device_index(ibv_device*) { return -1; }

extern "C" __be64 ibv_get_device_guid(ibv_device* device) {
    return static_cast<const Device*>(device)->options.attr.node_guid;
}

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
            if (!opened->plugged) {
                return ENODEV;
            }
            ++opened->users;
            created = &simulation.registry<Context>().add(*opened);
            return 0;
        });
}

extern "C" int ibv_close_device(ibv_context* context) {
    return run_int(Verb::close_device, context, [&](Simulation& simulation, Lock&) -> Outcome {
        Context* closed = simulation.check<Context>(Verb::close_device, context);
        if (closed == nullptr) {
            return {.error = EINVAL};
        }
        if (const int error = simulation.release(Verb::close_device, *closed)) {
            return {.error = error};
        }
        --closed->opened_device.users;
        if (!closed->async_events.close()) {
            simulation.record(Verb::close_device, "async_fd was read or closed behind its back");
        }
        closed->async_fd = -1;
        return {};
    });
}

extern "C" int ibv_query_device(ibv_context* context, ibv_device_attr* attr) {
    return run_int(Verb::query_device, context, [&](Simulation& simulation, Lock&) -> Outcome {
        Context* queried = nullptr;
        if (const int error = simulation.use<Context>(Verb::query_device, context, queried)) {
            return {.error = error};
        }
        *attr = queried->opened_device.options.attr;
        return {};
    });
}

extern "C" int(ibv_query_port)(ibv_context* context, std::uint8_t port,
                               _compat_ibv_port_attr* attr) {
    return run_int(Verb::query_port, context, [&](Simulation& simulation, Lock&) -> Outcome {
        Context* queried = nullptr;
        if (const int error = simulation.use<Context>(Verb::query_port, context, queried)) {
            return {.error = error};
        }
        const PortOptions* options = find_port(*queried, port);
        if (options == nullptr) {
            return {.error = EINVAL};
        }
        // The plain function knows the attributes up to port_cap_flags2 only.
        std::memcpy(attr, &options->attr, offsetof(ibv_port_attr, port_cap_flags2));
        return {};
    });
}

extern "C" int ibv_query_gid(ibv_context* context, std::uint8_t port, int index, ibv_gid* gid) {
    return run_int(Verb::query_gid, context, [&](Simulation& simulation, Lock&) -> Outcome {
        Context* queried = nullptr;
        if (const int error = simulation.use<Context>(Verb::query_gid, context, queried)) {
            return {.error = error};
        }
        GidEntry entry;
        const int error = find_gid(*queried, port, static_cast<std::uint32_t>(index), entry);
        if (error != 0 && error != ENODATA) {
            return {.error = error};
        }
        *gid = entry.gid; // an empty entry reads as zeros
        return {};
    });
}

extern "C" int _ibv_query_gid_ex(ibv_context* context, std::uint32_t port, std::uint32_t index,
                                 ibv_gid_entry* entry, std::uint32_t flags,
                                 std::size_t entry_size) {
    return run_int(Verb::query_gid_ex, context, [&](Simulation& simulation, Lock&) -> Outcome {
        Context* queried = nullptr;
        if (const int error = simulation.use<Context>(Verb::query_gid_ex, context, queried)) {
            return {.error = error};
        }
        if (flags != 0 || entry_size < sizeof(ibv_gid_entry)) {
            return {.error = EINVAL};
        }
        GidEntry found;
        if (const int error = find_gid(*queried, port, index, found)) {
            return {.error = error};
        }
        *entry = to_verbs(found, port, index);
        return {};
    });
}

extern "C" ssize_t _ibv_query_gid_table(ibv_context* context, ibv_gid_entry* entries,
                                        std::size_t max_entries, std::uint32_t flags,
                                        std::size_t entry_size) {
    return run_int(Verb::query_gid_table, context, [&](Simulation& simulation, Lock&) -> Outcome {
        Context* queried = nullptr;
        if (const int error = simulation.use<Context>(Verb::query_gid_table, context, queried)) {
            return {.error = error};
        }
        if (flags != 0 || entry_size != sizeof(ibv_gid_entry)) {
            return {.error = EINVAL};
        }
        std::size_t count = 0;
        const std::vector<PortOptions>& ports = queried->opened_device.options.ports;
        for (std::uint32_t port = 1; port <= ports.size(); ++port) {
            for (std::uint32_t index = 0; index < ports[port - 1].gids.size(); ++index) {
                GidEntry found;
                if (find_gid(*queried, port, index, found) != 0) {
                    continue;
                }
                if (count == max_entries) {
                    return {.error = EINVAL};
                }
                entries[count++] = to_verbs(found, port, index);
            }
        }
        return {.value = static_cast<int>(count)};
    });
}

extern "C" int ibv_query_pkey(ibv_context* context, std::uint8_t port, int index, __be16* pkey) {
    return run_int(Verb::query_pkey, context, [&](Simulation& simulation, Lock&) -> Outcome {
        Context* queried = nullptr;
        if (const int error = simulation.use<Context>(Verb::query_pkey, context, queried)) {
            return {.error = error};
        }
        const PortOptions* options = find_port(*queried, port);
        if (options == nullptr || index < 0 || index >= options->attr.pkey_tbl_len) {
            return {.error = EINVAL};
        }
        *pkey = 0xffff;
        return {};
    });
}

extern "C" int ibv_get_pkey_index(ibv_context*, std::uint8_t, __be16 pkey) {
    return pkey == 0xffff ? 0 : -1;
}

// --- the rest ---

extern "C" int ibv_fork_init() {
    return run_int(Verb::fork_init, nullptr, [](Simulation&, Lock&) { return Outcome{}; });
}

extern "C" ibv_fork_status ibv_is_fork_initialized() { return IBV_FORK_UNNEEDED; }
