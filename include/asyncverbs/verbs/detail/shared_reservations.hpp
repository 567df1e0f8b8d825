// SPDX-License-Identifier: MIT
// What the receives of a shared receive queue reserve in the completion queues that they may
// complete into: all of them in each, since nobody knows which queue pair will take them, and once
// in each, since every receive completes once.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include <asyncverbs/verbs/detail/cq_capacity.hpp>

namespace asyncverbs::detail {

// Thread-safe: queue pairs of several threads may share the receives.
class SharedReservations {
public:
    explicit SharedReservations(std::uint64_t receives) noexcept : receives_(receives) {}

    // For one queue pair that completes into `capacity`: made for the first one, released after the
    // last one. Throws as CqReservation does.
    [[nodiscard]] std::shared_ptr<CqReservation>
    reserve(const std::shared_ptr<CqCapacity>& capacity) {
        const std::lock_guard lock(mutex_);
        std::erase_if(held_, [](const Held& held) { return held.second.expired(); });
        for (const auto& [of, held] : held_) {
            if (of != capacity.get()) {
                continue;
            }
            if (std::shared_ptr<CqReservation> shared = held.lock()) {
                return shared;
            }
        }
        auto made = std::make_shared<CqReservation>(capacity, 0, capacity, receives_);
        held_.emplace_back(capacity.get(), made);
        return made;
    }

private:
    using Held = std::pair<const CqCapacity*, std::weak_ptr<CqReservation>>;

    const std::uint64_t receives_;
    std::mutex mutex_;
    std::vector<Held> held_; // a reservation keeps its account, so no address is used twice
};

} // namespace asyncverbs::detail
