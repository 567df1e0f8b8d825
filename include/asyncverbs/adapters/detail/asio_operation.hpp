// SPDX-License-Identifier: MIT
// What the asynchronous operations of the adapter for Asio have in common: an operation with its
// handler is one allocation, and the handler is called on its executor.
//
//     initiate ──dispatch──► start on the ──► … ──► complete ──post──► dispatch
//     any thread             I/O object's                              │
//                            executor           the handler is called on its executor
#pragma once

#include <algorithm>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

#include <asyncverbs/adapters/detail/asio_support.hpp>

namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR {

// Allocates coroutine frames with the handler's associated allocator, and stores that allocator
// behind the frame. The compiler requests no alignment, but places an over-aligned handler as if
// the frame were aligned for it.
template <class Handler>
struct AsioFrameAllocation {
    static constexpr std::size_t alignment =
        std::max<std::size_t>(__STDCPP_DEFAULT_NEW_ALIGNMENT__, alignof(Handler));
    struct alignas(alignment) Unit {
        std::byte bytes[alignment];
    };
    using Allocator = typename std::allocator_traits<
        net::associated_allocator_t<Handler>>::template rebind_alloc<Unit>;
    using Traits = std::allocator_traits<Allocator>;

    static std::size_t units(std::size_t bytes) {
        return (bytes + sizeof(Unit) - 1) / sizeof(Unit);
    }
    static std::size_t total(std::size_t frame) { return units(frame) + units(sizeof(Allocator)); }

    static void* allocate(std::size_t frame, Handler& handler) {
        static_assert(alignof(Allocator) <= alignof(Unit));
        Allocator allocator(net::get_associated_allocator(handler));
        Unit* const memory = Traits::allocate(allocator, total(frame));
        ::new (static_cast<void*>(memory + units(frame))) Allocator(std::move(allocator));
        return memory;
    }
    static void deallocate(void* pointer, std::size_t frame) noexcept {
        Unit* const memory = static_cast<Unit*>(pointer);
        auto* const stored = std::launder(reinterpret_cast<Allocator*>(memory + units(frame)));
        Allocator allocator(std::move(*stored));
        stored->~Allocator();
        Traits::deallocate(allocator, memory, total(frame));
    }
};

// The base of `Derived`, the promise of a coroutine that waits for the result. Derived has `id`,
// unique for its state, and result(), the arguments of the handler as a tuple; its frame comes from
// AsioFrameAllocation. `State`, which the
// I/O object shares with its operations, has executor(), is_shut_down(), start(Owner), which takes
// the operation on the executor, and cancel(id).
template <class Derived, class Handler, class State>
class AsioOperation {
    using Executor = typename State::executor_type;
    using HandlerExecutor = net::associated_executor_t<Handler, Executor>;

public:
    struct Destroy {
        void operator()(Derived* operation) const noexcept { of(*operation).destroy(); }
    };
    using Self = std::unique_ptr<Derived, Destroy>;

protected:
    AsioOperation(Handler& handler, const std::shared_ptr<State>& state)
        : state_(state), handler_(std::move(handler)) {
        // What waits is work of the I/O object's executor. The handler's may be another.
        HandlerExecutor executor = handler_executor();
        if constexpr (std::is_same_v<HandlerExecutor, Executor>) {
            if (executor == state->executor()) return;
        }
        work_.emplace(std::move(executor));
    }
    ~AsioOperation() = default;

    State& state() const noexcept { return *state_; }

    /// Starts it on the executor of the I/O object. From any thread.
    static void initiate(Self self) {
        AsioOperation& operation = of(*self);
        operation.connect_cancellation();
        net::dispatch(operation.state_->executor(), Step<&AsioOperation::start>(std::move(self)));
    }

    /// Sends the result to the handler. It may be destroyed before this returns.
    void post_handler() {
        const std::shared_ptr<State> state = state_; // post() may destroy this object
        with_concrete_executor(state->executor(), [this](const auto& executor) {
            net::post(executor, Step<&AsioOperation::dispatch_handler>(Self(&derived())));
        });
    }

    /// Destroys it and the handler, which is not called.
    void destroy() noexcept { memory_.when_unused(&destroy_with_handler, this); }

private:
    // A function object that owns the operation on its way to an executor, and uses its memory.
    template <void (*step)(Self)>
    class Step {
    public:
        explicit Step(Self operation) noexcept : operation_(std::move(operation)) {}
        void operator()() { step(std::move(operation_)); }

        using allocator_type = AsioHandlerAllocator<std::byte>;
        allocator_type get_allocator() const noexcept {
            return allocator_type(of(*operation_).memory_);
        }

    private:
        Self operation_;
    };

    static AsioOperation& of(Derived& operation) noexcept { return operation; }
    Derived& derived() noexcept { return static_cast<Derived&>(*this); }

    HandlerExecutor handler_executor() const noexcept {
        return net::get_associated_executor(handler_, state_->executor());
    }

    // On the executor of the I/O object.
    static void start(Self self) {
        State& state = *of(*self).state_;
        state.start(typename State::Owner(self.release()));
    }

    // On the executor of the I/O object, which calls it.
    static void dispatch_handler(Self self) {
        const HandlerExecutor any = of(*self).handler_executor();
        with_concrete_executor(any, [&self](const auto& executor) {
            net::dispatch(executor, Step<&AsioOperation::call_handler>(std::move(self)));
        });
    }

    // On the handler's executor. Frees the operation before it calls the handler, which may need
    // the memory for its next operation.
    static void call_handler(Self self) {
        AsioOperation& operation = of(*self);
        operation.disconnect_cancellation();
        auto result = self->result();
        const auto work = std::move(operation.work_);
        Handler handler(std::move(operation.handler_));
        static_cast<void>(self.release());
        operation.memory_.when_unused(&destroy_frame, &operation);
        std::apply(std::move(handler), std::move(result));
    }

    static void destroy_frame(void* operation) {
        Derived& promise = static_cast<AsioOperation*>(operation)->derived();
        std::coroutine_handle<Derived>::from_promise(promise).destroy();
    }
    // The handler last: it may own the memory from which its allocator allocates.
    static void destroy_with_handler(void* operation) {
        [[maybe_unused]] const Handler handler(
            std::move(static_cast<AsioOperation*>(operation)->handler_));
        destroy_frame(operation);
    }

#if defined(ASYNCVERBS_ASIO_CANCELLATION)
    // Cancels by a post, so that the operation, which may still be on its way to the executor, has
    // started by then.
    void connect_cancellation() {
        auto slot = net::get_associated_cancellation_slot(handler_);
        if (!slot.is_connected()) return;
        slot.assign(
            [state = std::weak_ptr<State>(state_), id = derived().id](net::cancellation_type type) {
                if (type == net::cancellation_type::none) return;
                // On the handler's executor. If this reference becomes the last one, the I/O object
                // was destroyed, and has destroyed its queue there (I8).
                std::shared_ptr<State> alive = state.lock();
                if (alive == nullptr || alive->is_shut_down()) return;
                net::post(alive->executor(), [alive, id] { alive->cancel(id); });
            });
    }
    void disconnect_cancellation() {
        auto slot = net::get_associated_cancellation_slot(handler_);
        if (slot.is_connected()) slot.clear();
    }
#else
    void connect_cancellation() const noexcept {}
    void disconnect_cancellation() const noexcept {}
#endif

    std::shared_ptr<State> state_;
    Handler handler_;
    std::optional<net::executor_work_guard<HandlerExecutor>> work_;
    AsioHandlerMemory memory_;
};

} // namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR
