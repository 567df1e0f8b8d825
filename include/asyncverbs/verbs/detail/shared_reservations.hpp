// SPDX-License-Identifier: MIT
// What the receives of a shared receive queue reserve in the completion queues that they may
// complete into: all of them in each, since nobody knows which queue pair will take them, and once
// in each, since every receive completes once.
#pragma once

#include <cstdint>
#include <utility>

#include <asyncverbs/verbs/detail/cq_capacity.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/mutex.hpp>

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
        std::unique_ptr<Held>* held = &held_;
        while (*held) {
            std::shared_ptr<CqReservation<Use>> shared = (*held)->reservation.lock();
            if (shared == nullptr) {
                const std::unique_ptr<Held> gone = std::move(*held);
                *held = std::move(gone->next);
            } else if (shared->receives_into(*capacity)) {
                return shared;
            } else {
                held = &(*held)->next;
            }
        }
        auto made = make_reservation(capacity, 0, capacity, receives_);
        *held = std::make_unique<Held>();
        (*held)->reservation = made;
        return made;
    }

private:
    struct Held {
        std::weak_ptr<CqReservation<Use>> reservation;
        std::unique_ptr<Held> next;
    };

    const std::uint64_t receives_;
    std::mutex mutex_;
    std::unique_ptr<Held> held_; // one for each account
};

} // namespace asyncverbs::detail
