// SPDX-License-Identifier: MIT
// What the receives of a shared receive queue reserve in the completion queues that they may
// complete into: all of them in each, since nobody knows which queue pair will take them, and once
// in each, since every receive completes once.
#pragma once

#include <cstdint>
#include <list>
#include <mutex>

#include <asyncverbs/verbs/detail/cq_capacity.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>

namespace asyncverbs::detail {

// Thread-safe: queue pairs of several threads may share the receives.
template <class Use>
class SharedReservations {
public:
    explicit SharedReservations(std::uint64_t receives) noexcept : receives_(receives) {}

    // For one queue pair that completes into `capacity`: made for the first one, released after the
    // last one. Throws as CqReservation does.
    [[nodiscard]] std::shared_ptr<CqReservation<Use>>
    reserve(const std::shared_ptr<CqCapacity<Use>>& capacity) {
        const std::lock_guard lock(mutex_);
        for (auto held = held_.begin(); held != held_.end();) {
            std::shared_ptr<CqReservation<Use>> shared = held->lock();
            if (shared == nullptr) {
                held = held_.erase(held);
            } else if (shared->receives_into(*capacity)) {
                return shared;
            } else {
                ++held;
            }
        }
        auto made = make_reservation(capacity, 0, capacity, receives_);
        held_.push_back(made);
        return made;
    }

private:
    const std::uint64_t receives_;
    std::mutex mutex_;
    std::list<std::weak_ptr<CqReservation<Use>>> held_; // one for each account
};

} // namespace asyncverbs::detail
