// SPDX-License-Identifier: MIT
// Registered memory in pieces of one size, to be awaited where there are fewer of them than those
// who want one. Registering costs system calls and pins pages: it is done once, for all.
#pragma once

#include <infiniband/verbs.h>

#include <cstddef>
#include <optional>
#include <stop_token>
#include <utility>

#include <asyncverbs/core/scheduler.hpp>
#include <asyncverbs/rdma/detail/acquire_operation.hpp>
#include <asyncverbs/rdma/detail/buffer_pool_state.hpp>
#include <asyncverbs/rdma/detail/lend.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/protection_domain.hpp>
#include <asyncverbs/verbs/slice.hpp>

namespace asyncverbs {

/// One memory region, cut into buffers that are lent.
///
///     BufferPool pool(executor, domain, 64, 4096);
///     const Slice buffer = co_await pool.acquire();
///
/// A buffer comes back when the last slice of it is gone, also those that work requests hold: who
/// is cancelled leaves his buffer to the device, and nobody else gets it meanwhile.
///
/// Those who wait are served in their order. They resume in a turn of the loop, never inside the
/// destructor of the slice that they have waited for, nor inside request_stop().
///
/// Thread: that of the loop, for everything but stop requests, which may come from any.
/// Lifetime: the loop outlives the pool. Slices keep the memory when the pool is gone, and who
/// still waits then gets the next buffer that comes back. A waiting coroutine may be destroyed at
/// any time; a buffer that it was given goes to the next.
/// Move-only; only to be destroyed or assigned to when moved from.
template <Scheduler Loop>
class BufferPool {
public:
    /// `count` buffers of `size` bytes, zeroed, each at a multiple of 64. `access` as for
    /// MemoryRegion. Throws std::system_error: invalid_argument where there would be no memory or
    /// too much to count; else as MemoryRegion::allocate().
    BufferPool(Loop& loop, const ProtectionDomain& domain, std::size_t count, std::size_t size,
               int access = IBV_ACCESS_LOCAL_WRITE)
        : loop_(&loop),
          state_(std::make_shared<detail::BufferPoolState<Loop>>(domain, count, size, access)) {}

    BufferPool(BufferPool&&) noexcept = default;
    BufferPool& operator=(BufferPool&&) noexcept = default;

    /// Awaits a buffer: a Slice of all of it. Allocates nothing. Throws std::system_error
    /// (operation_canceled) if `stop` is requested before there is one.
    [[nodiscard]] detail::AcquireOperation<Loop> acquire(std::stop_token stop = {}) {
        return {*loop_, state_, std::move(stop)};
    }

    /// A buffer if one is free now.
    [[nodiscard]] std::optional<Slice> try_acquire() noexcept {
        detail::PooledBuffer* const buffer = state_->take();
        return buffer != nullptr ? std::optional(detail::lend(state_, *buffer)) : std::nullopt;
    }

    /// What all buffers are parts of, with the key for a peer's RDMA.
    [[nodiscard]] const MemoryRegion& region() const noexcept { return state_->region(); }

    /// Bytes of one buffer.
    [[nodiscard]] std::size_t buffer_size() const noexcept { return state_->size(); }

    /// How many buffers there are, lent or free.
    [[nodiscard]] std::size_t count() const noexcept { return state_->count(); }

    /// How many are free now.
    [[nodiscard]] std::size_t available() const noexcept { return state_->available(); }

private:
    Loop* loop_;
    std::shared_ptr<detail::BufferPoolState<Loop>> state_;
};

} // namespace asyncverbs
