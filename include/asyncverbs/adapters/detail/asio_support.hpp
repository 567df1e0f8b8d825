// SPDX-License-Identifier: MIT
// Asio comes alone and in Boost, in another namespace and with another error_code. The adapter is
// written once, for `net`. Its own names are in an inline namespace for each flavour, so that two
// translation units of one program may use one each.
#pragma once

#include <cerrno>
#include <cstddef>
#include <functional>
#include <mutex>
#include <new>
#include <system_error>
#include <type_traits>
#include <utility>

#include <asyncverbs/coro/detail/intrusive_list.hpp>

#if defined(ASYNCVERBS_BOOST_ASIO)
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/associated_allocator.hpp>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/execution.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/query.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/version.hpp>
#include <boost/system/system_error.hpp>
#if BOOST_ASIO_VERSION < 101800
#error "asyncverbs needs Boost 1.74 or newer"
#endif
#if BOOST_ASIO_VERSION >= 101900
#include <boost/asio/associated_cancellation_slot.hpp>
#define ASYNCVERBS_ASIO_CANCELLATION
#endif
#define ASYNCVERBS_ASIO_FLAVOUR with_boost_asio
#else
#include <asio/any_io_executor.hpp>
#include <asio/associated_allocator.hpp>
#include <asio/associated_executor.hpp>
#include <asio/async_result.hpp>
#include <asio/dispatch.hpp>
#include <asio/error.hpp>
#include <asio/execution.hpp>
#include <asio/execution_context.hpp>
#include <asio/executor_work_guard.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/post.hpp>
#include <asio/query.hpp>
#include <asio/steady_timer.hpp>
#include <asio/version.hpp>
#if ASIO_VERSION < 102200
#error "asyncverbs needs Asio 1.22 or newer"
#endif
#include <asio/associated_cancellation_slot.hpp>
#define ASYNCVERBS_ASIO_CANCELLATION
#define ASYNCVERBS_ASIO_FLAVOUR with_asio
#endif

namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR {

#if defined(ASYNCVERBS_BOOST_ASIO)
namespace net = boost::asio;
using AsioError = boost::system::error_code;
using AsioSystemError = boost::system::system_error;
#else
namespace net = ::asio;
using AsioError = std::error_code;
using AsioSystemError = std::system_error;
#endif

inline std::error_code from_asio(const AsioError& error) {
    // Whether it equals the standard's "cancelled" depends on the version of Asio.
    if (error == net::error::operation_aborted) {
        return std::make_error_code(std::errc::operation_canceled);
    }
    if (error.category() == net::error::get_system_category()) {
        return {error.value(), std::system_category()};
    }
    return error;
}

// A template, for it converts in a way that Boost has had only since 1.76.
template <class Error = AsioError>
Error to_asio(const std::error_code& error) {
    if (error == std::errc::operation_canceled) return net::error::operation_aborted;
    if constexpr (std::is_constructible_v<Error, const std::error_code&>) {
        return Error(error);
    } else {
        const std::error_condition condition = error.default_error_condition();
        const bool is_errno = condition.category() == std::generic_category();
        return Error(is_errno ? condition.value() : EIO, Error().category());
    }
}

// An io_context, or whatever else has executors of one type.
template <class Context>
concept AsioContext = std::is_convertible_v<Context&, net::execution_context&> &&
                      requires { typename Context::executor_type; };

} // namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR

namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR {

// What has to let go of an Asio execution context before that ends: an io_context may be destroyed
// while somebody waits, and before the objects that he waits for.

class AsioResidents;

class AsioResident : public ListNode {
public:
    AsioResident() = default;
    AsioResident(const AsioResident&) = delete;
    AsioResident& operator=(const AsioResident&) = delete;

    /// The context is being destroyed: it runs nothing any more, but its services are still there.
    /// Called once, by a resident that is in the list.
    virtual void evict() noexcept = 0;

protected:
    ~AsioResident() = default;

    template <class Executor>
    void enter(const Executor& executor);
    void leave() noexcept;

private:
    friend AsioResidents;

    AsioResidents* residents_ = nullptr;
};

// The service of a context that knows its residents. Asio shuts services down in the reverse of
// their order of creation, so this one goes before those that its residents use.
class AsioResidents : public net::execution_context::service {
public:
    using key_type = AsioResidents;
    static inline net::execution_context::id id;

    explicit AsioResidents(net::execution_context& context)
        : net::execution_context::service(context) {}

    void add(AsioResident& resident) {
        const std::lock_guard lock(mutex_);
        residents_.push_back(resident);
    }
    void remove(AsioResident& resident) noexcept {
        const std::lock_guard lock(mutex_);
        resident.unlink();
    }

private:
    AsioResident* next() noexcept {
        const std::lock_guard lock(mutex_);
        if (residents_.empty()) return nullptr;
        AsioResident& resident = residents_.take_front();
        resident.residents_ = nullptr;
        return &resident;
    }

    void shutdown() override {
        while (AsioResident* const resident = next()) resident->evict();
    }

    std::mutex mutex_; // several threads may run the context
    IntrusiveList<AsioResident> residents_;
};

template <class Executor>
void AsioResident::enter(const Executor& executor) {
    net::execution_context& context = net::query(executor, net::execution::context);
    residents_ = &net::use_service<AsioResidents>(context);
    residents_->add(*this);
}

inline void AsioResident::leave() noexcept {
    if (residents_ != nullptr) std::exchange(residents_, nullptr)->remove(*this);
}

} // namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR

namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR {

// Room for what Asio allocates to bring a handler to its executor, in the object that waits: a
// notifier's waits allocate nothing, and an async_poll() is one allocation all told.

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
