// SPDX-License-Identifier: MIT
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <cstddef>
#include <limits>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/verbs/detail/memory_use.hpp>
#include <asyncverbs/verbs/error.hpp>
#include <asyncverbs/verbs/memory.hpp>

namespace asyncverbs::detail {

class BufferPoolState;

// A buffer, and the requests that use it. It returns to the pool when its PooledBuffer is destroyed
// and no request uses it.
class BufferUse final : public MemoryUse {
public:
    std::byte* memory = nullptr;

    /// It belongs to a PooledBuffer from now on.
    void acquire(std::shared_ptr<BufferPoolState> pool) noexcept {
        pool_ = std::move(pool);
        set_abandoned(false);
    }
    /// The PooledBuffer was destroyed.
    void abandon() noexcept override {
        set_abandoned(true);
        if (idle()) release();
    }

    /// Of all of it, while it is acquired.
    Slice slice() noexcept;

private:
    void release() noexcept override;

    std::shared_ptr<BufferPoolState> pool_; // while it is acquired
};

// A coroutine that waits for a buffer. It is woken once, with a buffer or by a stop: whichever
// claims the wake first, on any thread. So a buffer is never given to a coroutine that was stopped.
class BufferWaiter : public ListNode {
public:
    using Wake = void (*)(BufferWaiter&);

    explicit BufferWaiter(Wake how) noexcept : wake_(how) {}

    bool claim_wake() noexcept { return !woken_.exchange(true, std::memory_order_acq_rel); }
    void wake() noexcept { wake_(*this); }

    BufferUse* buffer = nullptr; // the buffer that was assigned to it

private:
    const Wake wake_;
    std::atomic<bool> woken_{false};
};

// State of a BufferPool, shared with its buffers and waiters: the memory, and the free buffers.
class BufferPoolState {
public:
    BufferPoolState(const ProtectionDomain& domain, std::size_t count, std::size_t size, int access)
        : size_(size), stride_(stride(count, size)),
          region_(MemoryRegion::allocate(domain, count * stride_, access)), buffers_(count) {
        free_.reserve(count);
        for (std::size_t i = count; i > 0; --i) {
            BufferUse& buffer = buffers_[i - 1];
            buffer.memory = region_.bytes().data() + (i - 1) * stride_;
            free_.push_back(&buffer);
        }
    }
    BufferPoolState(const BufferPoolState&) = delete;
    BufferPoolState& operator=(const BufferPoolState&) = delete;

    // Null if none is free. The one that was used last, which may still be in the CPU's caches.
    [[nodiscard]] BufferUse* take() noexcept {
        if (free_.empty()) return nullptr;
        BufferUse* const buffer = free_.back();
        free_.pop_back();
        return buffer;
    }

    void enqueue(BufferWaiter& waiter) noexcept { waiters_.push_back(waiter); }

    // Gives the buffer to the first waiter that was not stopped. So no buffer is free while a
    // coroutine waits.
    void put(BufferUse& buffer) noexcept {
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
    std::vector<BufferUse> buffers_;
    std::vector<BufferUse*> free_;
    IntrusiveList<BufferWaiter> waiters_;
};

inline Slice BufferUse::slice() noexcept {
    return {memory, pool_->size(), pool_->region().lkey(), this};
}

inline void BufferUse::release() noexcept {
    const std::shared_ptr<BufferPoolState> pool = std::move(pool_); // may destroy this at last
    pool->put(*this);
}

} // namespace asyncverbs::detail
