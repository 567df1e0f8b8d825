// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <infiniband/verbs.h>

#include <coroutine>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/coro/detail/stop_callback.hpp>
#include <asyncverbs/rdma/detail/buffer_pool_state.hpp>
#include <asyncverbs/verbs/memory.hpp>

namespace asyncverbs {

namespace detail {
template <Scheduler Loop>
class AcquireOperation;
template <class Loop>
class AcquireAwaiter;
} // namespace detail

/// A buffer of a BufferPool, acquired until this is destroyed and the last operation that uses a
/// slice of it has completed.
///
/// Thread: that of the pool. Move-only; a PooledBuffer that was moved from, or made by default, has
/// no buffer: its bytes and slices are empty.
class PooledBuffer {
public:
    PooledBuffer() noexcept = default;

    /// Takes the buffer of `other`.
    PooledBuffer(PooledBuffer&& other) noexcept : use_(std::exchange(other.use_, nullptr)) {}

    /// The same; gives up the buffer that this had, as the destructor does.
    PooledBuffer& operator=(PooledBuffer&& other) noexcept {
        PooledBuffer old(std::move(other));
        std::swap(use_, old.use_);
        return *this;
    }
    ~PooledBuffer() {
        if (use_ != nullptr) use_->abandon();
    }

    /// The whole buffer, to be passed to an operation while this exists; see Slice.
    [[nodiscard]] Slice slice() const noexcept { return use_ != nullptr ? use_->slice() : Slice(); }

    /// The same, for `qp.recv(buffer)`. Not of a temporary, whose buffer returns to the pool.
    operator Slice() const& noexcept { return slice(); }
    operator Slice() const&& = delete;

    /// The bytes from `offset` to the end; see Slice::slice().
    [[nodiscard]] Slice slice(std::size_t offset) const { return slice().slice(offset); }

    /// The `length` bytes at `offset`; see Slice::slice().
    [[nodiscard]] Slice slice(std::size_t offset, std::size_t length) const {
        return slice().slice(offset, length);
    }

    /// The memory itself.
    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return slice().bytes(); }

private:
    template <Scheduler Loop>
    friend class BufferPool;
    template <class Loop>
    friend class detail::AcquireAwaiter;

    PooledBuffer(std::shared_ptr<detail::BufferPoolState> pool, detail::BufferUse& use) noexcept
        : use_(&use) {
        use.acquire(std::move(pool));
    }

    detail::BufferUse* use_ = nullptr;
};

/// One memory region, divided into buffers that coroutines acquire.
///
///     BufferPool pool(executor, domain, 64, 4096);
///     const PooledBuffer buffer = co_await pool.acquire();
///     co_await qp.recv(buffer);
///
/// A buffer returns to the pool when its PooledBuffer is destroyed and no operation uses it: the
/// buffer of a cancelled operation is not reused while the device may write to it.
///
/// Waiters are served in order. They resume in an iteration of the loop, never inside the
/// destructor of a PooledBuffer, nor inside request_stop().
///
/// Thread: that of the loop, which also uses the buffers, and runs the routers of the operations
/// that use them; stop requests may come from any thread.
/// Lifetime: the loop outlives the pool. Buffers keep the memory after the pool is destroyed, and a
/// coroutine that still waits then gets the next buffer that returns. A waiting coroutine may be
/// destroyed at any time; a buffer that was assigned to it goes to the next waiter.
/// Move-only; a moved-from BufferPool can only be destroyed or assigned to.
template <Scheduler Loop>
class BufferPool {
public:
    /// `count` buffers of `size` bytes, zeroed, each at a multiple of 64. `access` as for
    /// MemoryRegion. Throws std::system_error: invalid_argument if `count` or `size` is 0 or their
    /// product overflows; else as MemoryRegion::allocate().
    BufferPool(Loop& loop, const ProtectionDomain& domain, std::size_t count, std::size_t size,
               int access = IBV_ACCESS_LOCAL_WRITE)
        : loop_(&loop),
          state_(std::make_shared<detail::BufferPoolState>(domain, count, size, access)) {}

    BufferPool(BufferPool&&) noexcept = default;
    BufferPool& operator=(BufferPool&&) noexcept = default;

    /// Awaits a PooledBuffer. Allocates nothing. Throws std::system_error (operation_canceled) if
    /// `stop` is requested before a buffer is free.
    [[nodiscard]] detail::AcquireOperation<Loop> acquire(std::stop_token stop = {}) {
        return {*loop_, state_, std::move(stop)};
    }

    /// A buffer, if one is free now.
    [[nodiscard]] std::optional<PooledBuffer> try_acquire() noexcept {
        detail::BufferUse* const buffer = state_->take();
        if (buffer == nullptr) return std::nullopt;
        return PooledBuffer(state_, *buffer);
    }

    /// The region of all buffers, with the key for RDMA of a peer.
    [[nodiscard]] const MemoryRegion& region() const noexcept { return state_->region(); }

    /// Bytes of one buffer.
    [[nodiscard]] std::size_t buffer_size() const noexcept { return state_->size(); }

    /// The number of buffers, acquired or free.
    [[nodiscard]] std::size_t count() const noexcept { return state_->count(); }

    /// The number of free buffers.
    [[nodiscard]] std::size_t available() const noexcept { return state_->available(); }

private:
    Loop* loop_;
    std::shared_ptr<detail::BufferPoolState> state_;
};

namespace detail {

// May be moved until it is awaited.
template <Scheduler Loop>
class AcquireOperation {
public:
    AcquireOperation(Loop& loop, std::shared_ptr<BufferPoolState> pool,
                     std::stop_token stop) noexcept
        : loop_(loop), pool_(std::move(pool)), stop_(std::move(stop)) {}

    AcquireAwaiter<Loop> operator co_await() { return AcquireAwaiter<Loop>(*this); }

private:
    friend AcquireAwaiter<Loop>;

    Loop& loop_;
    std::shared_ptr<BufferPoolState> pool_;
    std::stop_token stop_;
};

// Contains all that a waiting coroutine needs, so waiting allocates nothing. May be moved until it
// is awaited. The operation outlives it: both live until the end of the expression that awaits.
template <class Loop>
class AcquireAwaiter : BufferWaiter {
public:
    explicit AcquireAwaiter(AcquireOperation<Loop>& operation)
        : BufferWaiter(&on_wake), operation_(operation), schedule_(operation.loop_.schedule()),
          rescheduling_(detail::get_awaiter(std::move(schedule_))) {}
    // NOLINTNEXTLINE(*-noexcept-move*): schedule() of a foreign loop may throw
    AcquireAwaiter(AcquireAwaiter&& other) : AcquireAwaiter(other.operation_) {}
    // If the coroutine is destroyed before it sees the buffer, the next waiter gets it.
    ~AcquireAwaiter() {
        if (buffer != nullptr) operation_.pool_->put(*buffer);
    }

    bool await_ready() noexcept {
        if (operation_.stop_.stop_requested()) return true;
        buffer = operation_.pool_->take();
        return buffer != nullptr;
    }

    void await_suspend(std::coroutine_handle<> coroutine) noexcept {
        coroutine_ = coroutine;
        operation_.pool_->enqueue(*this);
        // Last. The stop may come before this returns, on any thread, but on_stop() only schedules
        // the coroutine on the loop, whose thread this is.
        stop_callback_.set(operation_.stop_, *this);
    }

    PooledBuffer await_resume() {
        if (coroutine_) rescheduling_.await_resume();
        if (buffer != nullptr) return {operation_.pool_, *std::exchange(buffer, nullptr)};
        throw std::system_error(std::make_error_code(std::errc::operation_canceled),
                                "BufferPool::acquire");
    }

    void on_stop() noexcept {
        if (claim_wake()) wake();
    }

private:
    static void on_wake(BufferWaiter& waiter) {
        auto& self = static_cast<AcquireAwaiter&>(waiter);
        self.rescheduling_.await_suspend(self.coroutine_);
    }

    using Schedule = decltype(std::declval<Loop&>().schedule());

    AcquireOperation<Loop>& operation_;
    Schedule schedule_;
    awaiter_t<Schedule> rescheduling_;
    std::coroutine_handle<> coroutine_;
    StopCallback<AcquireAwaiter> stop_callback_; // destroyed first: it uses all the others
};

} // namespace detail
} // namespace asyncverbs
