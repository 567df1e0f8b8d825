// SPDX-License-Identifier: MIT
// A buffer on loan: a slice whose pointer to the region is the loan, so that every slice of it,
// also one that a work request holds, keeps the buffer from being lent again.
#pragma once

#include <infiniband/verbs.h>

#include <cstddef>
#include <utility>

#include <asyncverbs/rdma/detail/buffer_pool_state.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/slice.hpp>

namespace asyncverbs::detail {

// Where the control block of the slices' pointer lives: in the pool, so that lending allocates
// nothing. With it ends the loan, rather than with the last slice, which a weak_ptr may outlive.
template <class T, class Use>
class LoanAllocator {
public:
    using value_type = T;

    LoanAllocator(std::shared_ptr<BufferPoolState<Use>> pool, PooledBuffer& buffer) noexcept
        : pool_(std::move(pool)), buffer_(&buffer) {}
    template <class U>
    LoanAllocator(const LoanAllocator<U, Use>& other) noexcept
        : pool_(other.pool_), buffer_(other.buffer_) {}

    T* allocate(std::size_t) noexcept {
        static_assert(sizeof(T) <= sizeof(PooledBuffer::control_block));
        static_assert(alignof(T) <= alignof(std::max_align_t));
        return reinterpret_cast<T*>(buffer_->control_block.data());
    }
    void deallocate(T*, std::size_t) noexcept { pool_->put(*buffer_); }

    friend bool operator==(const LoanAllocator&, const LoanAllocator&) noexcept = default;

private:
    template <class, class>
    friend class LoanAllocator;

    std::shared_ptr<BufferPoolState<Use>> pool_;
    PooledBuffer* buffer_;
};

// `buffer` was taken from `pool`, which gets it back after the last slice.
template <class Use>
[[nodiscard]] Slice lend(const std::shared_ptr<BufferPoolState<Use>>& pool,
                         PooledBuffer& buffer) noexcept {
    ibv_mr* const region = pool->region().native_handle();
    const auto leave_registered = [](ibv_mr*) {};
    std::shared_ptr<ibv_mr> loan(region, leave_registered,
                                 LoanAllocator<ibv_mr, Use>(pool, buffer));
    return {buffer.memory, pool->size(), region->lkey, std::move(loan)};
}

} // namespace asyncverbs::detail
