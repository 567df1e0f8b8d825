// SPDX-License-Identifier: MIT
#pragma once

#include <infiniband/verbs.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <limits>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/verbs/error.hpp>
#include <asyncverbs/verbs/memory.hpp>

namespace asyncverbs::detail {

struct PooledBuffer {
    std::byte* memory = nullptr;
    // Of the pointer that the slices share while the buffer is acquired.
    alignas(std::max_align_t) std::array<std::byte, 64> control_block;
};

// A coroutine that waits for a buffer. It is woken once, with a buffer or by a stop: whichever
// claims the wake first, on any thread. So a buffer is never given to a coroutine that was stopped.
class BufferWaiter : public ListNode {
public:
    using Wake = void (*)(BufferWaiter&);

    explicit BufferWaiter(Wake how) noexcept : wake_(how) {}

    bool claim_wake() noexcept { return !woken_.exchange(true, std::memory_order_acq_rel); }
    void wake() noexcept { wake_(*this); }

    PooledBuffer* buffer = nullptr; // the buffer that was assigned to it

private:
    const Wake wake_;
    std::atomic<bool> woken_{false};
};

// State of a BufferPool, shared with its slices and waiters: the memory, and the free buffers.
class BufferPoolState {
public:
    BufferPoolState(const ProtectionDomain& domain, std::size_t count, std::size_t size, int access)
        : size_(size), stride_(stride(count, size)),
          region_(MemoryRegion::allocate(domain, count * stride_, access)), buffers_(count) {
        free_.reserve(count);
        for (std::size_t i = count; i > 0; --i) {
            PooledBuffer& buffer = buffers_[i - 1];
            buffer.memory = region_.bytes().data() + (i - 1) * stride_;
            free_.push_back(&buffer);
        }
    }
    BufferPoolState(const BufferPoolState&) = delete;
    BufferPoolState& operator=(const BufferPoolState&) = delete;

    // Null if none is free. The one that was used last, which may still be in the CPU's caches.
    [[nodiscard]] PooledBuffer* take() noexcept {
        if (free_.empty()) return nullptr;
        PooledBuffer* const buffer = free_.back();
        free_.pop_back();
        return buffer;
    }

    void enqueue(BufferWaiter& waiter) noexcept { waiters_.push_back(waiter); }

    // Gives the buffer to the first waiter that was not stopped. So no buffer is free while a
    // coroutine waits.
    void put(PooledBuffer& buffer) noexcept {
        while (!waiters_.empty()) {
            BufferWaiter& first = waiters_.take_front();
            if (!first.claim_wake()) continue;
            first.buffer = &buffer;
            first.wake();
            return;
        }
        free_.push_back(&buffer); // has room for all
    }

    [[nodiscard]] const MemoryRegion& region() const noexcept { return region_; }
    [[nodiscard]] std::size_t size() const noexcept { return size_; }
    [[nodiscard]] std::size_t count() const noexcept { return buffers_.size(); }
    [[nodiscard]] std::size_t available() const noexcept { return free_.size(); }

private:
    // From one buffer to the next: no two share a cache line.
    static std::size_t stride(std::size_t count, std::size_t size) {
        constexpr std::size_t line = 64;
        constexpr std::size_t most = std::numeric_limits<std::size_t>::max();
        const std::size_t lines = size / line + (size % line != 0 ? 1 : 0);
        if (count == 0 || size == 0 || lines > most / line / count) {
            throw_error(std::errc::invalid_argument, "a pool of " + std::to_string(count) +
                                                         " buffers of " + std::to_string(size) +
                                                         " bytes cannot be");
        }
        return lines * line;
    }

    std::size_t size_;
    std::size_t stride_;
    MemoryRegion region_;
    std::vector<PooledBuffer> buffers_;
    std::vector<PooledBuffer*> free_;
    IntrusiveList<BufferWaiter> waiters_;
};

// Places the control block of the slices' pointer in the pool, so that acquiring a buffer allocates
// nothing. The buffer returns to the pool with the control block, which a weak_ptr keeps longer
// than the last slice.
template <class T>
class PooledSliceAllocator {
public:
    using value_type = T;

    PooledSliceAllocator(std::shared_ptr<BufferPoolState> pool, PooledBuffer& buffer) noexcept
        : pool_(std::move(pool)), buffer_(&buffer) {}
    template <class U>
    PooledSliceAllocator(const PooledSliceAllocator<U>& other) noexcept
        : pool_(other.pool_), buffer_(other.buffer_) {}

    T* allocate(std::size_t) noexcept {
        static_assert(sizeof(T) <= sizeof(PooledBuffer::control_block));
        static_assert(alignof(T) <= alignof(std::max_align_t));
        return reinterpret_cast<T*>(buffer_->control_block.data());
    }
    void deallocate(T*, std::size_t) noexcept { pool_->put(*buffer_); }

    friend bool operator==(const PooledSliceAllocator&,
                           const PooledSliceAllocator&) noexcept = default;

private:
    template <class>
    friend class PooledSliceAllocator;

    std::shared_ptr<BufferPoolState> pool_;
    PooledBuffer* buffer_;
};

// A slice of `buffer`, which was taken from `pool` and returns to it after the last slice: every
// slice of the buffer, also one in a work request, shares the pointer to the region.
[[nodiscard]] inline Slice make_pooled_slice(const std::shared_ptr<BufferPoolState>& pool,
                                             PooledBuffer& buffer) noexcept {
    ibv_mr* const region = pool->region().native_handle();
    const auto leave_registered = [](ibv_mr*) {};
    std::shared_ptr<ibv_mr> owner(region, leave_registered,
                                  PooledSliceAllocator<ibv_mr>(pool, buffer));
    return {buffer.memory, pool->size(), region->lkey, std::move(owner)};
}

} // namespace asyncverbs::detail
