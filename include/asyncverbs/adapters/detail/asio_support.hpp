// SPDX-License-Identifier: MIT
// Asio exists standalone and in Boost, with different namespaces and error_code types. The adapter
// is written once, for the namespace `net`. Its own names are in an inline namespace per flavour,
// so that two translation units of one program may use different flavours.
#pragma once

#include <cerrno>
#include <cstddef>
#include <functional>
#include <memory>
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
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/query.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
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
#include <asio/io_context.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/post.hpp>
#include <asio/query.hpp>
#include <asio/steady_timer.hpp>
#include <asio/strand.hpp>
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
    // Whether it compares equal to errc::operation_canceled depends on the version of Asio.
    if (error == net::error::operation_aborted) {
        return std::make_error_code(std::errc::operation_canceled);
    }
    if (error.category() == net::error::get_system_category()) {
        return {error.value(), std::system_category()};
    }
    return error;
}

// A template because Boost has the direct conversion only since 1.76.
template <class Error = AsioError>
Error to_asio(const std::error_code& error) {
    if (error == std::errc::operation_canceled) return net::error::operation_aborted;
    if (error == std::errc::broken_pipe) return net::error::broken_pipe;
    if constexpr (std::is_constructible_v<Error, const std::error_code&>) {
        return Error(error);
    } else {
        const std::error_condition condition = error.default_error_condition();
        const bool is_errno = condition.category() == std::generic_category();
        return Error(is_errno ? condition.value() : EIO, Error().category());
    }
}

// An io_context, or another execution context whose executors have one type.
template <class Context>
concept AsioContext = std::is_convertible_v<Context&, net::execution_context&> &&
                      requires { typename Context::executor_type; };

struct NoAsioToken {};

// The default completion token of an executor. Before Asio 1.30 most executors have none.
template <class Executor>
using AsioDefaultToken =
    std::conditional_t<std::is_void_v<net::default_completion_token_t<Executor>>, NoAsioToken,
                       net::default_completion_token_t<Executor>>;

// async_initiate(), or one clear error.
template <class Token, class Signature, class Initiation, class... Arguments>
auto initiate_asio(Initiation initiation, std::remove_reference_t<Token>& token,
                   Arguments&&... arguments) {
    if constexpr (std::is_same_v<Token, NoAsioToken>) {
        static_assert(!std::is_same_v<Token, NoAsioToken>,
                      "pass a completion token, for example asio::use_awaitable or a callback: "
                      "before Asio 1.30 this executor has no default");
    } else {
        return net::async_initiate<Token, Signature>(std::move(initiation), token,
                                                     std::forward<Arguments>(arguments)...);
    }
}

// Calls `function` with `executor`, or with what an any_io_executor contains: the executor of an
// io_context, or a strand on it. These allocate from the handler's memory, an any_io_executor does
// not, and what must not fail for lack of memory, as a stop, must reach its executor without.
template <class Executor, class Function>
void with_concrete_executor(const Executor& executor, Function function) {
    if constexpr (std::is_same_v<Executor, net::any_io_executor>) {
        using OfContext = net::io_context::executor_type;
        if (auto* target = executor.template target<OfContext>()) return function(*target);
        if (auto* target = executor.template target<net::strand<OfContext>>()) {
            return function(*target);
        }
    }
    function(executor);
}

// A share of a State, which is closed when this owner is destroyed. Null after a move.
template <class State>
class AsioOwner {
public:
    explicit AsioOwner(std::shared_ptr<State> state) noexcept : state_(std::move(state)) {}
    AsioOwner(AsioOwner&&) noexcept = default;
    AsioOwner& operator=(AsioOwner&& other) noexcept {
        AsioOwner(std::move(other)).state_.swap(state_); // the temporary closes the old state
        return *this;
    }
    ~AsioOwner() {
        if (state_) state_->close();
    }

    const std::shared_ptr<State>& get() const noexcept { return state_; }
    State* operator->() const noexcept { return state_.get(); }

private:
    std::shared_ptr<State> state_;
};

class AsioContextService;

// An object that must release what it holds of an Asio execution context before the context ends:
// an io_context may be destroyed while operations wait, and before the objects that they wait for.
class AsioServiceMember : public ListNode {
public:
    AsioServiceMember() = default;
    AsioServiceMember(const AsioServiceMember&) = delete;
    AsioServiceMember& operator=(const AsioServiceMember&) = delete;

    /// The context is being destroyed: it runs nothing any more, but its services still exist.
    /// Called once, and only for a registered member.
    virtual void shutdown() noexcept = 0;

protected:
    ~AsioServiceMember() = default;

    template <class Executor>
    void join_service(const Executor& executor);
    void leave_service() noexcept;

private:
    friend AsioContextService;

    AsioContextService* service_ = nullptr;
};

// Shuts its members down with the context. Asio shuts services down in the reverse order of their
// creation, so this one comes before the services that its members use.
class AsioContextService : public net::execution_context::service {
public:
    using key_type = AsioContextService;
    static inline net::execution_context::id id;

    explicit AsioContextService(net::execution_context& context)
        : net::execution_context::service(context) {}

    void add(AsioServiceMember& member) {
        const std::lock_guard lock(mutex_);
        members_.push_back(member);
    }
    void remove(AsioServiceMember& member) noexcept {
        const std::lock_guard lock(mutex_);
        member.unlink();
    }

private:
    AsioServiceMember* take_next() noexcept {
        const std::lock_guard lock(mutex_);
        if (members_.empty()) return nullptr;
        AsioServiceMember& member = members_.take_front();
        member.service_ = nullptr;
        return &member;
    }

    void shutdown() override {
        while (AsioServiceMember* const member = take_next()) member->shutdown();
    }

    std::mutex mutex_; // several threads may run the context
    IntrusiveList<AsioServiceMember> members_;
};

template <class Executor>
void AsioServiceMember::join_service(const Executor& executor) {
    net::execution_context& context = net::query(executor, net::execution::context);
    service_ = &net::use_service<AsioContextService>(context);
    service_->add(*this);
}

inline void AsioServiceMember::leave_service() noexcept {
    if (service_ != nullptr) std::exchange(service_, nullptr)->remove(*this);
}

// Memory for what Asio allocates to bring a handler to its executor. It is a member of the object
// that waits, so that a notifier's wait allocates nothing and an async_poll() allocates once.
//
// Blocks are used one at a time; a strand uses two, of which a context that is being destroyed
// returns one after the handler has been destroyed. What does not fit comes from operator new.
class AsioHandlerMemory {
public:
    AsioHandlerMemory() noexcept = default;
    AsioHandlerMemory(const AsioHandlerMemory&) = delete;
    AsioHandlerMemory& operator=(const AsioHandlerMemory&) = delete;

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

    /// Calls `end(owner)`, which may destroy this object, as soon as no block is in use.
    void when_unused(void (*end)(void*), void* owner) {
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

// Asio destroys its copies of a function's allocator before it calls the function, so the function
// may end the operation that contains the memory.
template <class T>
class AsioHandlerAllocator {
public:
    using value_type = T;

    explicit AsioHandlerAllocator(AsioHandlerMemory& memory) noexcept : memory_(&memory) {}
    template <class U>
    AsioHandlerAllocator(const AsioHandlerAllocator<U>& other) noexcept : memory_(other.memory_) {}

    T* allocate(std::size_t count) {
        static_assert(alignof(T) <= alignof(std::max_align_t));
        return static_cast<T*>(memory_->allocate(count * sizeof(T)));
    }
    void deallocate(T* block, std::size_t) noexcept { memory_->deallocate(block); }

    template <class U>
    bool operator==(const AsioHandlerAllocator<U>& other) const noexcept {
        return memory_ == other.memory_;
    }

private:
    template <class>
    friend class AsioHandlerAllocator;

    AsioHandlerMemory* memory_;
};

} // namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR
