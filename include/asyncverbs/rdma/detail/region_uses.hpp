// SPDX-License-Identifier: MIT
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stop_token>
#include <utility>
#include <vector>

#include <asyncverbs/cq/detail/cq_state.hpp>
#include <asyncverbs/verbs/detail/memory_use.hpp>
#include <asyncverbs/verbs/detail/native.hpp>

namespace asyncverbs::detail {

class RegionUses;

// The use of a memory region by the requests of one Router. It keeps the region registered.
//
// Three events end that, in any order: the last request completes, on the router's thread; the
// MemoryRegion is destroyed, on any thread; the router is destroyed. The count and the flag of
// MemoryUse are not ordered with each other: when one thread ends the last request while another
// one abandons the region, each may miss what the other does. So abandon() also wakes the router,
// which then looks again. On its own cache lines, as its thread writes to it for each request.
class alignas(64) RegionUse final : public MemoryUse {
public:
    explicit RegionUse(RegionUses& router) noexcept : router_(&router) { set_abandoned(true); }

    /// Whether it counts for slices of `region`. Never for a region that was destroyed, whose
    /// address a later region may have.
    bool is_of(const MemoryKeeper& region) const noexcept { return this->region() == &region; }
    const MemoryKeeper* region() const noexcept { return region_.load(std::memory_order_relaxed); }

    /// Whether assign() may be called.
    bool is_spare() const noexcept { return abandoned() && idle(); }

    /// From now on it counts for slices of `region`.
    void assign(const RegionState& region) noexcept {
        Handle<ibv_mr> kept = region.region();
        const std::lock_guard lock(mutex_);
        kept_.swap(kept);
        region_.store(&region, std::memory_order_relaxed);
        set_abandoned(false);
    }

    void abandon() noexcept override;
    /// Does nothing unless it is abandoned and idle.
    void release() noexcept override {
        Handle<ibv_mr> released; // with no lock held: deregistering takes a while
        const std::lock_guard lock(mutex_);
        if (is_spare()) released.swap(kept_);
    }

    /// The router is about to be destroyed: no request is left.
    void close() noexcept {
        Handle<ibv_mr> released;
        const std::lock_guard lock(mutex_);
        released.swap(kept_);
        router_ = nullptr;
    }

private:
    std::atomic<const MemoryKeeper*> region_{nullptr}; // null: it is not assigned
    std::mutex mutex_;                                 // of the following, and of changes above
    Handle<ibv_mr> kept_;
    RegionUses* router_; // null: it was destroyed
};

// The uses of all memory regions that the requests of one Router have used: a hash table with the
// address of the RegionState as key. A work queue remembers the RegionUse that it needed last. So a
// RegionUse is not destroyed before the router, but is assigned again after its region was
// destroyed.
//
// Thread: that of the router, except for prepare_wake().
class RegionUses {
public:
    explicit RegionUses(CqState& cq)
        : cq_(cq), uses_{std::make_shared<RegionUse>(*this)}, spare_(uses_) {}
    RegionUses(const RegionUses&) = delete;
    RegionUses& operator=(const RegionUses&) = delete;
    ~RegionUses() {
        for (const auto& use : uses_) use->close();
    }

    /// One of them, for a work queue that has needed none.
    RegionUse& first() noexcept { return *uses_.front(); }

    /// Throws std::bad_alloc, but not if it was called for the region before.
    RegionUse& find_or_add(RegionState& region) {
        if (RegionUse* const use = find(region)) return *use;
        if (2 * (occupied_ + 1) > table_.size()) rebuild();
        if (spare_.empty()) {
            spare_.reserve(uses_.size() + 1);
            uses_.push_back(std::make_shared<RegionUse>(*this));
            spare_.push_back(uses_.back());
        }
        region.add_use(spare_.back());
        RegionUse& use = *spare_.back();
        spare_.pop_back();
        use.assign(region);
        place(region, use);
        return use;
    }

    /// Releases the regions that were destroyed and whose requests have ended.
    void release_abandoned() noexcept {
        for (const auto& use : uses_) use->release();
    }

    // --- a wake of the router, see CqState::prepare_wake() ---

    std::stop_source prepare_wake() noexcept {
        woken_.store(true, std::memory_order_release);
        return cq_.prepare_wake();
    }
    void on_wake() noexcept {
        if (woken_.exchange(false, std::memory_order_acquire)) release_abandoned();
    }

private:
    std::size_t first_place(const MemoryKeeper& region) const noexcept {
        constexpr std::uint64_t golden_ratio = 0x9e3779b97f4a7c15;
        const auto address = reinterpret_cast<std::uintptr_t>(&region);
        return (address * golden_ratio >> 32) & (table_.size() - 1);
    }
    std::size_t next_place(std::size_t place) const noexcept {
        return (place + 1) & (table_.size() - 1);
    }

    // A place that is not occupied exists: the table is at most half full.
    RegionUse* find(const MemoryKeeper& region) const noexcept {
        if (table_.empty()) return nullptr;
        for (std::size_t i = first_place(region); table_[i] != nullptr; i = next_place(i)) {
            if (table_[i]->is_of(region)) return table_[i];
        }
        return nullptr;
    }

    void place(const MemoryKeeper& region, RegionUse& use) noexcept {
        std::size_t i = first_place(region);
        while (table_[i] != nullptr) i = next_place(i);
        table_[i] = &use;
        ++occupied_;
    }

    void rebuild();

    CqState& cq_;
    std::vector<std::shared_ptr<RegionUse>> uses_;
    std::vector<std::shared_ptr<RegionUse>> spare_; // of these, the ones that are not in the table
    std::vector<RegionUse*> table_;                 // of a size that is a power of two
    std::size_t occupied_ = 0;
    std::atomic<bool> woken_{false};
};

inline void RegionUse::abandon() noexcept {
    Handle<ibv_mr> released;
    std::stop_source wake{std::nostopstate};
    {
        const std::lock_guard lock(mutex_);
        region_.store(nullptr, std::memory_order_relaxed);
        set_abandoned(true);
        if (idle()) {
            released.swap(kept_);
        } else {
            wake = router_->prepare_wake();
        }
    }
    wake.request_stop(); // calls the notifier, hence with no lock held
}

// Makes a table that is at most a quarter full, without what need not be found any more.
inline void RegionUses::rebuild() {
    std::size_t needed = 1;
    for (const auto& use : uses_) {
        if (!use->is_spare()) ++needed;
    }
    std::vector<RegionUse*> table(std::bit_ceil(4 * needed));
    spare_.reserve(uses_.size());
    spare_.clear();
    table_.swap(table);
    occupied_ = 0;
    for (const auto& use : uses_) {
        if (use->is_spare()) {
            spare_.push_back(use);
        } else if (const MemoryKeeper* const region = use->region()) {
            place(*region, *use);
        }
    }
}

} // namespace asyncverbs::detail
