// SPDX-License-Identifier: MIT
// What a pool, the slices that it has lent and those who wait for one share: the memory, and the
// account of which parts of it are free.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <limits>
#include <string>
#include <system_error>
#include <vector>

#include <asyncverbs/core/detail/intrusive_list.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>
#include <asyncverbs/verbs/memory_region.hpp>

namespace asyncverbs::detail {

struct PooledBuffer {
    std::byte* memory = nullptr;
    // Of the pointer that the slices share while it is lent; see lend().
    alignas(std::max_align_t) std::array<std::byte, 64> control_block;
};

// A coroutine that waits for a buffer. It is woken once: with a buffer, or because it is to stop.
// Whichever comes first, on whatever thread, takes the wake; so a buffer is not given to a
// coroutine that is on its way already.
class BufferWaiter : public ListNode {
public:
    using Wake = void (*)(BufferWaiter&);

    explicit BufferWaiter(Wake how) noexcept : wake_(how) {}

    bool take_wake() noexcept { return !woken_.exchange(true, std::memory_order_acq_rel); }
    void wake() noexcept { wake_(*this); }

    PooledBuffer* buffer = nullptr; // that it was given

private:
    const Wake wake_;
    std::atomic<bool> woken_{false};
};

template <class Use>
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

    // Null if there is none. The one that was used last, which the caches may still know.
    [[nodiscard]] PooledBuffer* take() noexcept {
        if (free_.empty()) return nullptr;
        PooledBuffer* const buffer = free_.back();
        free_.pop_back();
        return buffer;
    }

    void enqueue(BufferWaiter& waiter) noexcept { waiters_.push_back(waiter); }

    // To the first who waits and is not to stop. So no buffer is free while somebody waits.
    void put(PooledBuffer& buffer) noexcept {
        while (!waiters_.empty()) {
            BufferWaiter& first = waiters_.take_front();
            if (!first.take_wake()) continue;
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
    Used<std::vector<PooledBuffer>, Use> buffers_;
    Used<std::vector<PooledBuffer*>, Use> free_;
    IntrusiveList<BufferWaiter> waiters_;
};

} // namespace asyncverbs::detail
