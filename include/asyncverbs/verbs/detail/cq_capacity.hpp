// SPDX-License-Identifier: MIT
// The account behind invariant I10: how many entries of a completion queue are spoken for by the
// work requests that can complete into it.
// A queue that is overrun loses completions and never reports again, so none may be overbooked.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <utility>

#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

// The account of one completion queue. Thread-safe: queue pairs of several threads may share it.
template <class Use>
class CqCapacity {
public:
    explicit CqCapacity(std::uint64_t entries) noexcept : entries_(entries) {}

    CqCapacity(const CqCapacity&) = delete;
    CqCapacity& operator=(const CqCapacity&) = delete;

    // Takes all `slots` or none.
    [[nodiscard]] bool try_reserve(std::uint64_t slots) noexcept {
        std::uint64_t reserved = reserved_.load(std::memory_order_relaxed);
        do {
            if (slots > entries_ - reserved) {
                return false;
            }
        } while (!reserved_.compare_exchange_weak(reserved, reserved + slots,
                                                  std::memory_order_relaxed));
        return true;
    }

    void release(std::uint64_t slots) noexcept {
        reserved_.fetch_sub(slots, std::memory_order_relaxed);
    }

    [[nodiscard]] std::uint64_t entries() const noexcept { return entries_; }
    [[nodiscard]] std::uint64_t reserved() const noexcept {
        return reserved_.load(std::memory_order_relaxed);
    }

private:
    const std::uint64_t entries_;
    std::atomic<std::uint64_t> reserved_ = 0;
};

// What work requests reserve, in the accounts of their two completion queues, which may be one.
template <class Use>
class CqReservation {
public:
    // Throws no_buffer_space with the numbers where the work requests do not fit.
    CqReservation(std::shared_ptr<CqCapacity<Use>> send, std::uint64_t send_wrs,
                  std::shared_ptr<CqCapacity<Use>> recv, std::uint64_t recv_wrs)
        : send_(std::move(send)), recv_(std::move(recv)), send_slots_(send_wrs),
          recv_slots_(recv_wrs) {
        const std::string sends = std::to_string(send_wrs) + " send";
        const std::string receives = std::to_string(recv_wrs) + " receive";
        if (send_ == recv_) {
            send_slots_ += std::exchange(recv_slots_, 0);
            reserve(*send_, send_slots_, sends + " and " + receives);
            return;
        }
        reserve(*send_, send_slots_, sends);
        try {
            reserve(*recv_, recv_slots_, receives);
        } catch (...) {
            send_->release(send_slots_);
            throw;
        }
    }

    CqReservation(const CqReservation&) = delete;
    CqReservation& operator=(const CqReservation&) = delete;

    ~CqReservation() {
        if (kept_) {
            return;
        }
        send_->release(send_slots_);
        recv_->release(recv_slots_);
    }

    bool receives_into(const CqCapacity<Use>& capacity) const noexcept {
        return recv_.get() == &capacity;
    }

    // The slots stay taken for good: what could complete into them was not destroyed. From any
    // thread: queue pairs may share a reservation.
    void keep() noexcept { kept_ = true; }

private:
    static void reserve(CqCapacity<Use>& capacity, std::uint64_t slots, const std::string& what) {
        if (!capacity.try_reserve(slots)) {
            throw_error(std::errc::no_buffer_space,
                        what + " work requests need " + std::to_string(slots) +
                            " entries of their completion queue, which has " +
                            std::to_string(capacity.entries()) + ", " +
                            std::to_string(capacity.reserved()) +
                            " of them reserved by other queue pairs");
        }
    }

    std::shared_ptr<CqCapacity<Use>> send_;
    std::shared_ptr<CqCapacity<Use>> recv_;
    std::uint64_t send_slots_;
    std::uint64_t recv_slots_;
    std::atomic<bool> kept_ = false;
};

// Throws as the constructor does.
template <class Use>
[[nodiscard]] std::shared_ptr<CqReservation<Use>>
make_reservation(const std::shared_ptr<CqCapacity<Use>>& send, std::uint64_t send_wrs,
                 const std::shared_ptr<CqCapacity<Use>>& recv, std::uint64_t recv_wrs) {
    return std::make_shared<CqReservation<Use>>(send, send_wrs, recv, recv_wrs);
}

} // namespace asyncverbs::detail
