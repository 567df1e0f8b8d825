// SPDX-License-Identifier: MIT
// How posted requests keep their memory: each thread counts its requests that use it, so threads
// that share a memory region do not contend.
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/verbs/detail/native.hpp>

namespace asyncverbs::detail {

class MemoryUse;

// What a Slice refers to: a MemoryUse, or the RegionState of a memory region, of which each Router
// has a MemoryUse.
class MemoryKeeper {
public:
    MemoryKeeper(const MemoryKeeper&) = delete;
    MemoryKeeper& operator=(const MemoryKeeper&) = delete;

    /// Null: it is a RegionState.
    MemoryUse* use() const noexcept { return use_; }

protected:
    explicit MemoryKeeper(MemoryUse* use) noexcept : use_(use) {}
    ~MemoryKeeper() = default;

private:
    MemoryUse* const use_;
};

// Counts the requests that use some memory, and keeps the memory until it is abandoned and no
// request uses it. One thread counts, so no operation is an atomic read-modify-write.
class MemoryUse : public MemoryKeeper {
public:
    MemoryUse() noexcept : MemoryKeeper(this) {}

    void begin() noexcept {
        requests_.store(requests_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    }
    void end() noexcept {
        const std::uint32_t left = requests_.load(std::memory_order_relaxed) - 1;
        requests_.store(left, std::memory_order_release);
        if (left == 0 && abandoned()) [[unlikely]]
            release(); // may destroy this
    }

    /// The owner of the memory no longer needs it. No request begins until the memory is needed
    /// again.
    virtual void abandon() noexcept = 0;

protected:
    ~MemoryUse() = default;

    /// On another thread than the one that counts: true is final if no request can begin.
    bool idle() const noexcept { return requests_.load(std::memory_order_acquire) == 0; }
    bool abandoned() const noexcept { return abandoned_.load(std::memory_order_acquire); }
    void set_abandoned(bool value) noexcept { abandoned_.store(value, std::memory_order_release); }

    /// Releases the memory: it is abandoned, and the last request has ended.
    virtual void release() noexcept = 0;

private:
    std::atomic<std::uint32_t> requests_{0};
    std::atomic<bool> abandoned_{false};
};

// A request that uses some memory, from its post to its completion.
class MemoryHold {
public:
    MemoryHold() noexcept = default;
    /// `use` may be null.
    explicit MemoryHold(MemoryUse* use) noexcept : use_(use) {
        if (use_ != nullptr) use_->begin();
    }
    MemoryHold(MemoryHold&& other) noexcept : use_(std::exchange(other.use_, nullptr)) {}
    MemoryHold& operator=(MemoryHold&& other) noexcept {
        MemoryHold old(std::move(other));
        std::swap(use_, old.use_);
        return *this;
    }
    ~MemoryHold() { reset(); }

    void reset() noexcept {
        if (MemoryUse* const use = std::exchange(use_, nullptr)) use->end();
    }

private:
    MemoryUse* use_ = nullptr;
};

// State of a MemoryRegion, at an address that does not change, for its slices and for the routers
// that have a use of it.
class RegionState final : public MemoryKeeper {
public:
    explicit RegionState(Handle<ibv_mr> region) noexcept
        : MemoryKeeper(nullptr), region_(std::move(region)) {}
    ~RegionState() { abandon_uses(); }

    const Handle<ibv_mr>& region() const noexcept { return region_; }

    /// The first request of a router. Throws std::bad_alloc.
    void add_use(std::shared_ptr<MemoryUse> use) {
        const std::lock_guard lock(mutex_); // two routers may come at the same time
        const auto is_unused = [](const auto& each) { return each.use_count() == 1; };
        std::erase_if(uses_, is_unused); // the router was destroyed
        uses_.push_back(std::move(use));
    }

    /// As detail::close(): a use that is not idle keeps its handle. No request may begin meanwhile.
    std::error_code close() noexcept {
        abandon_uses();
        return detail::close(region_);
    }

private:
    void abandon_uses() noexcept {
        for (const auto& use : uses_) use->abandon();
        uses_.clear();
    }

    Handle<ibv_mr> region_;
    std::mutex mutex_;
    std::vector<std::shared_ptr<MemoryUse>> uses_;
};

} // namespace asyncverbs::detail
