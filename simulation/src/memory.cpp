// SPDX-License-Identifier: MIT
// Protection domains, memory regions and address handles.
#include "simulation.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace asyncverbs::simulated {

MemoryRegion* Simulation::find_region(std::uint32_t key) const {
    const auto found = regions_by_key.find(key);
    return found == regions_by_key.end() ? nullptr : found->second;
}

namespace {

constexpr unsigned int writes_locally_too = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC;

ibv_mr* register_region(Verb verb, ibv_pd* pd, void* address, std::size_t length,
                        std::uint64_t iova, unsigned int access) {
    return run_create_in<ibv_mr, ProtectionDomain>(
        verb, pd, [&](Simulation& simulation, ProtectionDomain& domain, ibv_mr*& created) {
            if (verb == Verb::reg_dmabuf_mr && !domain.owner().opened_device.options.dmabuf) {
                return EOPNOTSUPP;
            }
            const bool remote_only =
                (access & writes_locally_too) != 0 && (access & IBV_ACCESS_LOCAL_WRITE) == 0;
            if (remote_only || length == 0) {
                return EINVAL;
            }
            if (address == nullptr) {
                return EFAULT;
            }
            MemoryRegion& region = simulation.registry<MemoryRegion>().add(domain);
            ++domain.users;
            region.addr = address;
            region.length = length;
            region.handle = region.number;
            region.iova = iova;
            region.access = access;
            // Never equal, so that using the wrong one fails.
            region.lkey = region.number << 8 | 0x1u;
            region.rkey = region.number << 8 | 0x2u;
            simulation.regions_by_key[region.lkey] = &region;
            simulation.regions_by_key[region.rkey] = &region;
            created = &region;
            return 0;
        });
}

bool uses(const std::vector<ibv_sge>& sges, const MemoryRegion& region) {
    return std::ranges::any_of(
        sges, [&](const ibv_sge& sge) { return sge.length != 0 && sge.lkey == region.lkey; });
}

template <class Requests>
void report_use(Simulation& simulation, const Requests& requests, const MemoryRegion& region,
                const std::string& where) {
    if (std::ranges::any_of(requests,
                            [&](const auto& request) { return uses(request.sges, region); })) {
        simulation.record(Verb::dereg_mr, describe(region) +
                                              " is still used by a request that is posted to " +
                                              where);
    }
}

// The device may access the buffer of a request until the request completes.
void report_uses(Simulation& simulation, const MemoryRegion& region) {
    for (const QueuePair& qp : simulation.registry<QueuePair>().all()) {
        report_use(simulation, qp.sends, region, describe(qp));
        report_use(simulation, qp.receives, region, describe(qp));
    }
    for (const SharedReceiveQueue& srq : simulation.registry<SharedReceiveQueue>().all()) {
        report_use(simulation, srq.receives, region, describe(srq));
    }
}

} // namespace

MemoryWindow* Simulation::find_window(std::uint32_t key) {
    for (MemoryWindow& window : registry<MemoryWindow>().all()) {
        if (window.alive && window.qp != nullptr && window.key == key) return &window;
    }
    return nullptr;
}

void Simulation::unbind(MemoryWindow& window) {
    if (std::exchange(window.qp, nullptr) != nullptr) --window.region->users;
}

// A new key differs in its lowest byte only.
ibv_wc_status Simulation::bind(const QueuePair& qp, const SendRequest& request) {
    const ibv_send_wr& wr = request.wr;
    MemoryWindow* const window = registry<MemoryWindow>().find(wr.bind_mw.mw);
    const ibv_mw_bind_info& info = wr.bind_mw.bind_info;
    MemoryRegion* const region = registry<MemoryRegion>().find(info.mr);
    if (window == nullptr || !window->alive || window->qp != nullptr || region == nullptr ||
        !region->alive || &window->domain != &qp.domain || &region->domain != &qp.domain ||
        window->key != request.window_key || (window->key ^ wr.bind_mw.rkey) - 1 >= 0xff ||
        (region->access & IBV_ACCESS_MW_BIND) == 0 || info.addr < region->iova ||
        info.length > region->length || info.addr - region->iova > region->length - info.length ||
        ((info.mw_access_flags & writes_locally_too) != 0 &&
         (region->access & IBV_ACCESS_LOCAL_WRITE) == 0)) {
        return IBV_WC_MW_BIND_ERR;
    }
    window->key = wr.bind_mw.rkey;
    window->qp = &qp;
    window->region = region;
    window->address = info.addr;
    window->length = info.length;
    window->access = info.mw_access_flags;
    ++region->users;
    return IBV_WC_SUCCESS;
}

ibv_wc_status Simulation::invalidate(const QueuePair& qp, std::uint32_t key) {
    MemoryWindow* const window = find_window(key);
    if (window == nullptr || window->qp != &qp) return IBV_WC_LOC_QP_OP_ERR;
    unbind(*window);
    return IBV_WC_SUCCESS;
}

ibv_mw* alloc_mw(ibv_pd* pd, ibv_mw_type type) {
    return run_create_in<ibv_mw, ProtectionDomain>(
        Verb::alloc_mw, pd,
        [&](Simulation& simulation, ProtectionDomain& domain, ibv_mw*& created) {
            if (is_iwarp(*domain.context)) return EOPNOTSUPP; // as soft-iWARP
            MemoryWindow& window = simulation.registry<MemoryWindow>().add(domain);
            ++domain.users;
            window.handle = window.number;
            window.type = type;
            window.key = window.rkey = 0x80000000u | window.number << 8;
            created = &window;
            return 0;
        });
}

int dealloc_mw(ibv_mw* mw) {
    return run_destroy<MemoryWindow>(Verb::dealloc_mw, mw,
                                     [&](Simulation& simulation, auto& window) {
                                         simulation.unbind(window);
                                         --window.domain.users;
                                     });
}

} // namespace asyncverbs::simulated

using namespace asyncverbs::simulated;

extern "C" ibv_pd* ibv_alloc_pd(ibv_context* context) {
    return run_create_in<ibv_pd, Context>(
        Verb::alloc_pd, context, [&](Simulation& simulation, Context& parent, ibv_pd*& created) {
            ProtectionDomain& domain = simulation.registry<ProtectionDomain>().add(parent);
            domain.handle = domain.number;
            ++parent.users;
            created = &domain;
            return 0;
        });
}

extern "C" int ibv_dealloc_pd(ibv_pd* pd) {
    return run_destroy<ProtectionDomain>(Verb::dealloc_pd, pd,
                                         [&](auto&, auto& domain) { --domain.owner().users; });
}

extern "C" ibv_mr*(ibv_reg_mr)(ibv_pd* pd, void* address, std::size_t length, int access) {
    return register_region(Verb::reg_mr, pd, address, length,
                           reinterpret_cast<std::uintptr_t>(address),
                           static_cast<unsigned int>(access));
}

extern "C" ibv_mr* ibv_reg_mr_iova2(ibv_pd* pd, void* address, std::size_t length,
                                    std::uint64_t iova, unsigned int access) {
    return register_region(Verb::reg_mr, pd, address, length, iova, access);
}

extern "C" ibv_mr* ibv_reg_dmabuf_mr(ibv_pd* pd, std::uint64_t, std::size_t length,
                                     std::uint64_t iova, int, int access) {
    return register_region(Verb::reg_dmabuf_mr, pd, reinterpret_cast<void*>(iova), length, iova,
                           static_cast<unsigned int>(access));
}

extern "C" int ibv_dereg_mr(ibv_mr* mr) {
    return run_destroy<MemoryRegion>(Verb::dereg_mr, mr, [&](Simulation& simulation, auto& region) {
        report_uses(simulation, region);
        simulation.regions_by_key.erase(region.lkey);
        simulation.regions_by_key.erase(region.rkey);
        region.lkey = 0;
        region.rkey = 0;
        --region.domain.users;
    });
}

namespace {

ibv_ah* create_address_handle(Verb verb, ibv_pd* pd, const ibv_ah_attr& attr) {
    return run_create_in<ibv_ah, ProtectionDomain>(
        verb, pd, [&](Simulation& simulation, ProtectionDomain& domain, ibv_ah*& created) {
            if (!valid_address(domain.owner(), attr)) {
                return EINVAL;
            }
            AddressHandle& handle = simulation.registry<AddressHandle>().add(domain);
            handle.handle = handle.number;
            handle.attr = attr;
            ++domain.users;
            created = &handle;
            return 0;
        });
}

} // namespace

extern "C" ibv_ah* ibv_create_ah(ibv_pd* pd, ibv_ah_attr* attr) {
    return create_address_handle(Verb::create_ah, pd, *attr);
}

extern "C" ibv_ah* ibv_create_ah_from_wc(ibv_pd* pd, ibv_wc* wc, ibv_grh* grh,
                                         std::uint8_t port_num) {
    ibv_ah_attr attr{};
    attr.port_num = port_num;
    attr.is_global = (wc->wc_flags & IBV_WC_GRH) != 0 ? 1 : 0;
    attr.grh.dgid = grh->sgid;
    GidEntry own;
    const auto& context = static_cast<const Context&>(*pd->context);
    while (find_gid(context, port_num, attr.grh.sgid_index, own) == 0 &&
           std::memcmp(own.gid.raw, grh->dgid.raw, sizeof own.gid.raw) != 0) {
        ++attr.grh.sgid_index;
    }
    return create_address_handle(Verb::create_ah_from_wc, pd, attr);
}

extern "C" int ibv_destroy_ah(ibv_ah* ah) {
    return run_destroy<AddressHandle>(Verb::destroy_ah, ah,
                                      [&](auto&, auto& handle) { --handle.domain.users; });
}
