// SPDX-License-Identifier: MIT
// What a pool, the slices that it has lent and those who wait for one share: the memory, and the
// account of which parts of it are free.
#pragma once

#include <infiniband/verbs.h>

#include <array>
#include <atomic>
#include <coroutine>
#include <cstddef>
#include <limits>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/verbs/memory.hpp>

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
    std::vector<PooledBuffer> buffers_;
    std::vector<PooledBuffer*> free_;
    IntrusiveList<BufferWaiter> waiters_;
};

// A buffer on loan: a slice whose pointer to the region is the loan, so that every slice of it,
// also one that a work request holds, keeps the buffer from being lent again.

// Where the control block of the slices' pointer lives: in the pool, so that lending allocates
// nothing. With it ends the loan, rather than with the last slice, which a weak_ptr may outlive.
template <class T>
class LoanAllocator {
public:
    using value_type = T;

    LoanAllocator(std::shared_ptr<BufferPoolState> pool, PooledBuffer& buffer) noexcept
        : pool_(std::move(pool)), buffer_(&buffer) {}
    template <class U>
    LoanAllocator(const LoanAllocator<U>& other) noexcept
        : pool_(other.pool_), buffer_(other.buffer_) {}

    T* allocate(std::size_t) noexcept {
        static_assert(sizeof(T) <= sizeof(PooledBuffer::control_block));
        static_assert(alignof(T) <= alignof(std::max_align_t));
        return reinterpret_cast<T*>(buffer_->control_block.data());
    }
    void deallocate(T*, std::size_t) noexcept { pool_->put(*buffer_); }

    friend bool operator==(const LoanAllocator&, const LoanAllocator&) noexcept = default;

private:
    template <class>
    friend class LoanAllocator;

    std::shared_ptr<BufferPoolState> pool_;
    PooledBuffer* buffer_;
};

// `buffer` was taken from `pool`, which gets it back after the last slice.
[[nodiscard]] inline Slice lend(const std::shared_ptr<BufferPoolState>& pool,
                                PooledBuffer& buffer) noexcept {
    ibv_mr* const region = pool->region().native_handle();
    const auto leave_registered = [](ibv_mr*) {};
    std::shared_ptr<ibv_mr> loan(region, leave_registered, LoanAllocator<ibv_mr>(pool, buffer));
    return {buffer.memory, pool->size(), region->lkey, std::move(loan)};
}

// A coroutine that waits for a buffer of a pool. Its node and its way back to the loop are in its
// awaiter: waiting allocates nothing.

template <class Loop>
class AcquireAwaiter;

// Movable as long as nobody awaits it.
template <Scheduler Loop>
class AcquireOperation {
public:
    AcquireOperation(Loop& loop, std::shared_ptr<BufferPoolState> pool,
                     std::stop_token stop) noexcept
        : loop_(loop), pool_(std::move(pool)), stop_(std::move(stop)) {}

    AcquireAwaiter<Loop> operator co_await() && { return AcquireAwaiter<Loop>(*this); }

private:
    friend AcquireAwaiter<Loop>;

    Loop& loop_;
    std::shared_ptr<BufferPoolState> pool_;
    std::stop_token stop_;
};

// Pinned: the pool's list points to it. The operation outlives it: both live until the end of the
// expression that awaits.
template <class Loop>
class AcquireAwaiter : BufferWaiter {
public:
    explicit AcquireAwaiter(AcquireOperation<Loop>& operation)
        : BufferWaiter(&on_wake), operation_(operation), schedule_(operation.loop_.schedule()),
          way_back_(detail::get_awaiter(std::move(schedule_))) {}
    // Destroyed with a buffer that it was given and never got to see: the next one gets it.
    ~AcquireAwaiter() {
        if (buffer != nullptr) operation_.pool_->put(*buffer);
    }

    bool await_ready() noexcept {
        if (operation_.stop_.stop_requested()) return true;
        buffer = operation_.pool_->take();
        return buffer != nullptr;
    }

    void await_suspend(std::coroutine_handle<> coroutine) {
        coroutine_ = coroutine;
        operation_.pool_->enqueue(*this);
        // Last. The callback may run before this returns, here or on another thread, but only
        // sends the coroutine to the loop, whose thread this is.
        if (operation_.stop_.stop_possible()) on_stop_.emplace(operation_.stop_, OnStop{*this});
    }

    Slice await_resume() {
        if (coroutine_) way_back_.await_resume();
        if (buffer != nullptr) return lend(operation_.pool_, *std::exchange(buffer, nullptr));
        throw std::system_error(std::make_error_code(std::errc::operation_canceled),
                                "BufferPool::acquire");
    }

private:
    struct OnStop {
        AcquireAwaiter& self;
        void operator()() const {
            if (self.take_wake()) self.wake();
        }
    };

    static void on_wake(BufferWaiter& waiter) {
        auto& self = static_cast<AcquireAwaiter&>(waiter);
        self.way_back_.await_suspend(self.coroutine_);
    }

    using Schedule = decltype(std::declval<Loop&>().schedule());

    AcquireOperation<Loop>& operation_;
    Schedule schedule_;
    awaiter_t<Schedule> way_back_;
    std::coroutine_handle<> coroutine_;
    std::optional<std::stop_callback<OnStop>> on_stop_; // destroyed first: it uses all the others
};

} // namespace asyncverbs::detail

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
          state_(std::make_shared<detail::BufferPoolState>(domain, count, size, access)) {}

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
    std::shared_ptr<detail::BufferPoolState> state_;
};

} // namespace asyncverbs
