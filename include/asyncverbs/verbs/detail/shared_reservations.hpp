// SPDX-License-Identifier: MIT
// What the receives of a shared receive queue reserve in the completion queues that they may
// complete into: all of them in each, since nobody knows which queue pair will take them, and once
// in each, since every receive completes once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
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
        for (std::size_t i = 0; i < held_.size();) {
            std::shared_ptr<CqReservation> shared = held_[i].lock();
            if (shared == nullptr) {
                held_[i].swap(held_.back());
                held_.pop_back();
            } else if (shared->receives_into(*capacity)) {
                return shared;
            } else {
                ++i;
            }
        }
        auto made = make_reservation(capacity, 0, capacity, receives_);
        held_.push_back(made);
        return made;
    }

private:
    const std::uint64_t receives_;
    std::mutex mutex_;
    std::vector<std::weak_ptr<CqReservation>> held_; // one for each account
};

} // namespace asyncverbs::detail
