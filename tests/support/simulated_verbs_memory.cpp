// SPDX-License-Identifier: MIT
//
// The simulated verbs of protection domains and what belongs to them: memory regions and address
// handles.
#include "support/simulated_verbs_state.hpp"

#include <algorithm>
#include <cerrno>

using namespace asyncverbs::simulated;
using Lock = Simulation::Lock;

namespace asyncverbs::simulated {

MemoryRegion* Simulation::find_region(std::uint32_t key) const {
    const auto found = regions_by_key.find(key);
    return found == regions_by_key.end() ? nullptr : found->second;
}

namespace {

constexpr unsigned int writes_locally_too = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC;

ibv_mr* register_region(ibv_pd* pd, void* address, std::size_t length, std::uint64_t iova,
                        unsigned int access) {
    return run_create<ibv_mr>(Verb::reg_mr, pd, [&](Simulation& simulation, ibv_mr*& created) {
        ProtectionDomain* domain = nullptr;
        if (const int error = simulation.use<ProtectionDomain>(Verb::reg_mr, pd, domain)) {
            return error;
        }
        const bool remote_only =
            (access & writes_locally_too) != 0 && (access & IBV_ACCESS_LOCAL_WRITE) == 0;
        if (remote_only || length == 0) {
            return EINVAL;
        }
        if (address == nullptr) {
            return EFAULT;
        }
        MemoryRegion& region = simulation.registry<MemoryRegion>().add(*domain);
        ++domain->users;
        region.addr = address;
        region.length = length;
        region.handle = region.number;
        region.iova = iova;
        region.access = access;
        // Never equal, so that mixing them up cannot work by accident.
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

// The buffer of a request is the device's until the request completes.
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

} // namespace asyncverbs::simulated

extern "C" ibv_pd* ibv_alloc_pd(ibv_context* context) {
    return run_create<ibv_pd>(
        Verb::alloc_pd, context, [&](Simulation& simulation, ibv_pd*& created) {
            Context* parent = nullptr;
            if (const int error = simulation.use<Context>(Verb::alloc_pd, context, parent)) {
                return error;
            }
            ProtectionDomain& domain = simulation.registry<ProtectionDomain>().add(*parent);
            domain.handle = domain.number;
            ++parent->users;
            created = &domain;
            return 0;
        });
}

extern "C" int ibv_dealloc_pd(ibv_pd* pd) {
    return run_int(Verb::dealloc_pd, pd, [&](Simulation& simulation, Lock&) -> Outcome {
        auto* domain = simulation.check<ProtectionDomain>(Verb::dealloc_pd, pd);
        if (domain == nullptr) {
            return {.error = EINVAL};
        }
        if (const int error = simulation.release(Verb::dealloc_pd, *domain)) {
            return {.error = error};
        }
        --domain->owner().users;
        return {};
    });
}

extern "C" ibv_mr*(ibv_reg_mr)(ibv_pd* pd, void* address, std::size_t length, int access) {
    return register_region(pd, address, length, reinterpret_cast<std::uintptr_t>(address),
                           static_cast<unsigned int>(access));
}

extern "C" ibv_mr*(ibv_reg_mr_iova)(ibv_pd* pd, void* address, std::size_t length,
                                    std::uint64_t iova, int access) {
    return register_region(pd, address, length, iova, static_cast<unsigned int>(access));
}

extern "C" ibv_mr* ibv_reg_mr_iova2(ibv_pd* pd, void* address, std::size_t length,
                                    std::uint64_t iova, unsigned int access) {
    return register_region(pd, address, length, iova, access);
}

extern "C" int ibv_dereg_mr(ibv_mr* mr) {
    return run_int(Verb::dereg_mr, mr, [&](Simulation& simulation, Lock&) -> Outcome {
        auto* region = simulation.check<MemoryRegion>(Verb::dereg_mr, mr);
        if (region == nullptr) {
            return {.error = EINVAL};
        }
        if (const int error = simulation.release(Verb::dereg_mr, *region)) {
            return {.error = error};
        }
        if (!simulation.dereg_in_use_allowed) {
            report_uses(simulation, *region);
        }
        simulation.regions_by_key.erase(region->lkey);
        simulation.regions_by_key.erase(region->rkey);
        region->lkey = 0;
        region->rkey = 0;
        --region->domain.users;
        return {};
    });
}

extern "C" ibv_ah* ibv_create_ah(ibv_pd* pd, ibv_ah_attr* attr) {
    return run_create<ibv_ah>(Verb::create_ah, pd, [&](Simulation& simulation, ibv_ah*& created) {
        ProtectionDomain* domain = nullptr;
        if (const int error = simulation.use<ProtectionDomain>(Verb::create_ah, pd, domain)) {
            return error;
        }
        if (!valid_address(domain->owner(), *attr)) {
            return EINVAL;
        }
        AddressHandle& handle = simulation.registry<AddressHandle>().add(*domain);
        handle.handle = handle.number;
        handle.attr = *attr;
        ++domain->users;
        created = &handle;
        return 0;
    });
}

extern "C" int ibv_init_ah_from_wc(ibv_context* context, std::uint8_t port, ibv_wc* wc,
                                   ibv_grh* grh, ibv_ah_attr* attr) {
    *attr = {};
    attr->dlid = wc->slid;
    attr->sl = wc->sl;
    attr->src_path_bits = wc->dlid_path_bits;
    attr->port_num = port;
    if ((wc->wc_flags & IBV_WC_GRH) == 0) {
        return 0;
    }
    attr->is_global = 1;
    attr->grh.dgid = grh->sgid;
    attr->grh.hop_limit = 0xff;
    // The source of the reply is the entry that the message was sent to.
    ibv_gid own{};
    for (int index = 0; ibv_query_gid(context, port, index, &own) == 0; ++index) {
        if (std::ranges::equal(own.raw, grh->dgid.raw)) {
            attr->grh.sgid_index = static_cast<std::uint8_t>(index);
            return 0;
        }
    }
    errno = ENOENT;
    return -1;
}

extern "C" ibv_ah* ibv_create_ah_from_wc(ibv_pd* pd, ibv_wc* wc, ibv_grh* grh, std::uint8_t port) {
    ibv_ah_attr attr;
    return ibv_init_ah_from_wc(pd->context, port, wc, grh, &attr) == 0 ? ibv_create_ah(pd, &attr)
                                                                       : nullptr;
}

extern "C" int ibv_destroy_ah(ibv_ah* ah) {
    return run_int(Verb::destroy_ah, ah, [&](Simulation& simulation, Lock&) -> Outcome {
        auto* handle = simulation.check<AddressHandle>(Verb::destroy_ah, ah);
        if (handle == nullptr) {
            return {.error = EINVAL};
        }
        if (const int error = simulation.release(Verb::destroy_ah, *handle)) {
            return {.error = error};
        }
        --handle->domain.users;
        return {};
    });
}
