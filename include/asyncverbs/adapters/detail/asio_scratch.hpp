// SPDX-License-Identifier: MIT
// Room for what Asio allocates to bring a handler to its executor, in the object that waits: a
// notifier's waits allocate nothing, and an async_poll() is one allocation all told.
#pragma once

#include <cstddef>
#include <functional>
#include <new>
#include <utility>

#include <asyncverbs/adapters/detail/asio_flavour.hpp>

namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR {

// Blocks are used one after the other, a strand's two at a time; what does not fit is allocated. Of
// these two, a context that is destroyed gives one back after the handler has gone.
class AsioScratch {
public:
    AsioScratch() noexcept = default;
    AsioScratch(const AsioScratch&) = delete;
    AsioScratch& operator=(const AsioScratch&) = delete;

    void* allocate(std::size_t size) {
        constexpr std::size_t alignment = alignof(std::max_align_t);
        const std::size_t rounded = (size + alignment - 1) / alignment * alignment;
        if (rounded > sizeof bytes_ - used_) return ::operator new(size);
        ++blocks_;
        return bytes_ + std::exchange(used_, used_ + rounded);
    }

    void deallocate(void* block) noexcept {
        const auto* const byte = static_cast<std::byte*>(block);
        if (std::less<>()(byte, bytes_) || !std::less<>()(byte, bytes_ + sizeof bytes_)) {
            return ::operator delete(block);
        }
        if (--blocks_ > 0) return;
        used_ = 0;
        if (end_ != nullptr) end_(owner_);
    }

    /// Calls `end`, which may destroy this object, as soon as no block is in use.
    void when_free(void (*end)(void*), void* owner) {
        if (blocks_ == 0) return end(owner);
        end_ = end;
        owner_ = owner;
    }

private:
    alignas(std::max_align_t) std::byte bytes_[256];
    std::size_t used_ = 0;
    unsigned blocks_ = 0;
    void (*end_)(void*) = nullptr;
    void* owner_ = nullptr;
};

// Asio lets a function's allocator go before it calls the function, which may end the operation.
template <class T>
class AsioScratchAllocator {
public:
    using value_type = T;

    explicit AsioScratchAllocator(AsioScratch& scratch) noexcept : scratch_(&scratch) {}
    template <class U>
    AsioScratchAllocator(const AsioScratchAllocator<U>& other) noexcept
        : scratch_(other.scratch_) {}

    T* allocate(std::size_t count) {
        static_assert(alignof(T) <= alignof(std::max_align_t));
        return static_cast<T*>(scratch_->allocate(count * sizeof(T)));
    }
    void deallocate(T* block, std::size_t) noexcept { scratch_->deallocate(block); }

    template <class U>
    bool operator==(const AsioScratchAllocator<U>& other) const noexcept {
        return scratch_ == other.scratch_;
    }

private:
    template <class>
    friend class AsioScratchAllocator;

    AsioScratch* scratch_;
};

} // namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR
