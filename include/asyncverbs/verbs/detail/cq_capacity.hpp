// SPDX-License-Identifier: MIT
// Invariant I10: reserves an entry of a completion queue for each work request that can complete
// into it. A completion queue that is overrun loses completions and never reports again.
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

// The reserved entries of one completion queue. Thread-safe: queue pairs of several threads may
// share it.
class CqCapacity {
public:
    explicit CqCapacity(std::uint64_t entries) noexcept : entries_(entries) {}

    CqCapacity(const CqCapacity&) = delete;
    CqCapacity& operator=(const CqCapacity&) = delete;

    // Reserves all `count` entries or none.
    [[nodiscard]] bool try_reserve(std::uint64_t count) noexcept {
        std::uint64_t reserved = reserved_.load(std::memory_order_relaxed);
        do {
            if (count > entries_ - reserved) {
                return false;
            }
        } while (!reserved_.compare_exchange_weak(reserved, reserved + count,
                                                  std::memory_order_relaxed));
        return true;
    }

    void release(std::uint64_t count) noexcept {
        reserved_.fetch_sub(count, std::memory_order_relaxed);
    }

    [[nodiscard]] std::uint64_t entries() const noexcept { return entries_; }
    [[nodiscard]] std::uint64_t reserved() const noexcept {
        return reserved_.load(std::memory_order_relaxed);
    }

private:
    const std::uint64_t entries_;
    std::atomic<std::uint64_t> reserved_ = 0;
};

// The entries that work requests reserve in their two completion queues, which may be the same.
class CqReservation {
public:
    // Throws no_buffer_space, with the numbers, if the work requests do not fit.
    CqReservation(std::shared_ptr<CqCapacity> send, std::uint64_t send_wrs,
                  std::shared_ptr<CqCapacity> recv, std::uint64_t recv_wrs)
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

    bool receives_into(const CqCapacity& capacity) const noexcept {
        return recv_.get() == &capacity;
    }

    // Never releases the entries: a queue pair that could complete into them was not destroyed.
    // From any thread: queue pairs may share a reservation.
    void keep() noexcept { kept_ = true; }

private:
    static void reserve(CqCapacity& capacity, std::uint64_t count, const std::string& what) {
        if (!capacity.try_reserve(count)) {
            throw_error(std::errc::no_buffer_space,
                        what + " work requests need " + std::to_string(count) +
                            " entries of their completion queue, which has " +
                            std::to_string(capacity.entries()) + ", " +
                            std::to_string(capacity.reserved()) +
                            " of them reserved by other queue pairs");
        }
    }

    std::shared_ptr<CqCapacity> send_;
    std::shared_ptr<CqCapacity> recv_;
    std::uint64_t send_slots_;
    std::uint64_t recv_slots_;
    std::atomic<bool> kept_ = false;
};

// The entries that the receives of a shared receive queue reserve in the completion queues into
// which they may complete: all of them in each queue, because any queue pair may take them, but
// only once in each queue, because every receive completes once. Thread-safe: queue pairs of
// several threads may share the receives.
class SharedReservations {
public:
    explicit SharedReservations(std::uint64_t receives) noexcept : receives_(receives) {}

    // For one queue pair that completes into `capacity`: the first one creates the reservation, the
    // last one that is destroyed releases it. Throws as CqReservation does.
    [[nodiscard]] std::shared_ptr<CqReservation>
    reserve(const std::shared_ptr<CqCapacity>& capacity) {
        const std::lock_guard lock(mutex_);
        for (auto held = held_.begin(); held != held_.end();) {
            std::shared_ptr<CqReservation> shared = held->lock();
            if (shared == nullptr) {
                held = held_.erase(held);
            } else if (shared->receives_into(*capacity)) {
                return shared;
            } else {
                ++held;
            }
        }
        auto created = std::make_shared<CqReservation>(capacity, 0, capacity, receives_);
        held_.push_back(created);
        return created;
    }

private:
    const std::uint64_t receives_;
    std::mutex mutex_;
    std::list<std::weak_ptr<CqReservation>> held_; // one for each completion queue
};

} // namespace asyncverbs::detail
