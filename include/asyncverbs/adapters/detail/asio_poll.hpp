// SPDX-License-Identifier: MIT
// The shared state of an AsioCq and the operations that async_poll() starts on it.
//
//     async_poll ──dispatch──► start: poll ──► ready ─────────┐
//     any thread               the queue's        │ empty     ▼
//                              executor       resumed ──► complete ──post──► dispatch
//                                                                            │
//                              the handler is called on its executor ◄───────┘
//
// A handler never runs where the AsyncCq resumes coroutines: it belongs on its own executor, and an
// exception would end the queue.
#pragma once

#include <infiniband/verbs.h>

#include <algorithm>
#include <atomic>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <stop_token>
#include <system_error>
#include <type_traits>
#include <utility>

#include <asyncverbs/adapters/detail/asio_support.hpp>
#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/cq/async_cq.hpp>

namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR {

/// The completion signature of async_poll().
using AsioPollSignature = void(AsioError, std::span<ibv_wc>);

// One async_poll(), for handlers of any type. Used on the queue's executor.
class AsioPoll : public ListNode {
public:
    struct Destroy {
        void operator()(AsioPoll* poll) const noexcept { poll->destroy(); }
    };
    using Owner = std::unique_ptr<AsioPoll, Destroy>;

    const std::uint64_t id;

    /// Polls the queue. Returns true if the result is known; otherwise wait() must follow.
    bool start(AsyncCq& cq, std::stop_token stop) {
        operation_.emplace(cq.poll(completions_, error_, std::move(stop)));
        return operation_->await_ready();
    }

    /// Calls complete() when the result is known.
    void wait() { operation_->await_suspend(coroutine()).resume(); }

    /// Sends the result to the handler.
    void complete() noexcept {
        if (operation_) {
            completions_ = operation_->await_resume();
            operation_.reset();
        }
        unlink();
        post_handler();
    }

    /// Completes as cancelled, and takes nothing from the queue.
    void cancel() noexcept {
        operation_.reset();
        completions_ = {};
        error_ = std::make_error_code(std::errc::operation_canceled);
        complete();
    }

protected:
    AsioPoll(std::uint64_t number, std::span<ibv_wc> completions) noexcept
        : id(number), completions_(completions) {}
    ~AsioPoll() = default;

    AsioError error() const { return to_asio(error_); }
    std::span<ibv_wc> completions() const noexcept { return completions_; }

private:
    virtual std::coroutine_handle<> coroutine() noexcept = 0;
    virtual void post_handler() noexcept = 0;
    virtual void destroy() noexcept = 0; // the handler, too

    std::span<ibv_wc> completions_; // the buffer to fill, then the part that was filled
    std::error_code error_;
    // Awaited by hand, not by co_await, so that it can end without its coroutine.
    std::optional<PollOperation> operation_;
};

// The state that an AsioCq shares with its operations. Used on the executor, except where it says
// otherwise.
template <class Executor>
class AsioCqState final : public AsioServiceMember,
                          public std::enable_shared_from_this<AsioCqState<Executor>> {
public:
    static std::shared_ptr<AsioCqState> create(const Executor& executor, AsyncCq cq) {
        auto state = std::make_shared<AsioCqState>(executor, std::move(cq));
        state->join_service(executor);
        return state;
    }

    AsioCqState(const Executor& executor, AsyncCq cq) : executor_(executor), cq_(std::move(cq)) {}

    // From any thread, while the context exists.
    const Executor& executor() const noexcept { return *executor_; }
    std::uint64_t next_id() noexcept { return next_id_.fetch_add(1, std::memory_order_relaxed); }

    bool is_shut_down() const noexcept { return !executor_; }
    AsyncCq& cq() noexcept { return *cq_; }

    void start(AsioPoll::Owner owner) {
        AsioPoll& poll = *owner.release();
        if (!cq_ || poll.id < first_not_cancelled_) return poll.cancel();
        if (poll.start(*cq_, stop_.get_token())) return poll.complete();
        waiting_.push_back(poll);
        poll.wait();
    }

    /// Cancels all polls that async_poll() has created, except those whose completions have left
    /// the queue.
    void cancel() noexcept {
        first_not_cancelled_ = next_id_.load(std::memory_order_relaxed);
        if (!waiting_.empty()) stop_waiting();
    }

    /// Cancels the poll with this number if it waits. The last one that waits is stopped by its
    /// token, because then the queue must stop waiting, too.
    void cancel(std::uint64_t id) noexcept {
        AsioPoll* const poll = waiting_.find_if([&](AsioPoll& each) { return each.id == id; });
        if (poll == nullptr) return;
        const auto is_other = [&](AsioPoll& each) { return &each != poll; };
        waiting_.find_if(is_other) == nullptr ? stop_waiting() : poll->cancel();
    }

    /// Cancels the polls that wait, and destroys the queue.
    void close() noexcept {
        leave_service();
        cancel_waiting();
        cq_.reset();
    }

private:
    void cancel_waiting() noexcept {
        while (!waiting_.empty()) waiting_.front().cancel();
    }
    void stop_waiting() noexcept {
        try {
            std::exchange(stop_, std::stop_source()).request_stop();
        } catch (const std::bad_alloc&) { // the queue keeps waiting, but no poll does
            cancel_waiting();
        }
    }

    // Destroys the handlers, as Asio does. A handler may own the AsioCq.
    void shutdown() noexcept override {
        const std::shared_ptr<AsioCqState> alive = this->shared_from_this();
        IntrusiveList<AsioPoll> polls;
        polls.append(waiting_);
        while (!polls.empty()) AsioPoll::Destroy()(&polls.take_front());
        executor_.reset(); // a strand must not outlive its context
    }

    std::optional<Executor> executor_;
    std::optional<AsyncCq> cq_; // until the AsioCq is destroyed
    std::stop_source stop_;     // of the polls that wait
    IntrusiveList<AsioPoll> waiting_;
    std::uint64_t first_not_cancelled_ = 0; // by cancel()
    std::atomic<std::uint64_t> next_id_{0};
};

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

// An AsioPoll with its handler, in one allocation. It is the promise of a coroutine that the
// AsyncCq resumes; the coroutine has an empty body and ends at once.
template <class Handler, class Executor>
class AsioPollPromise final : public AsioPoll {
    using State = AsioCqState<Executor>;
    using Self = std::unique_ptr<AsioPollPromise, AsioPoll::Destroy>;
    using FrameAllocation = AsioFrameAllocation<Handler>;
    using HandlerExecutor = net::associated_executor_t<Handler, Executor>;

public:
    struct Coroutine {
        using promise_type = AsioPollPromise;
        AsioPollPromise& promise;
    };

    AsioPollPromise(Handler& handler, const std::shared_ptr<State>& state, std::span<ibv_wc> wcs)
        : AsioPoll(state->next_id(), wcs), state_(state), handler_(std::move(handler)) {
        // A poll that waits is work of the queue's executor. The handler's may be another.
        HandlerExecutor executor = handler_executor();
        if constexpr (std::is_same_v<HandlerExecutor, Executor>) {
            if (executor == state->executor()) return;
        }
        work_.emplace(std::move(executor));
    }

    /// Starts an async_poll(), from any thread.
    static void start(Handler handler, const std::shared_ptr<State>& state, std::span<ibv_wc> wcs) {
        Self self(&run(handler, state, wcs).promise);
        self->connect_cancellation();
        net::dispatch(state->executor(), Step<&AsioPollPromise::start_on_queue>(std::move(self)));
    }

    // --- required by the language ---

    static void* operator new(std::size_t size, Handler& handler, const std::shared_ptr<State>&,
                              std::span<ibv_wc>) {
        return FrameAllocation::allocate(size, handler);
    }
    // NOLINTNEXTLINE(misc-new-delete-overloads): a coroutine frame is freed by this one
    static void operator delete(void* frame, std::size_t size) noexcept {
        FrameAllocation::deallocate(frame, size);
    }

    struct FinalAwaiter {
        bool await_ready() const noexcept { return false; }
        // Returns void: another thread may destroy the coroutine before complete() returns.
        void await_suspend(std::coroutine_handle<AsioPollPromise> self) const noexcept {
            self.promise().complete();
        }
        void await_resume() const noexcept {}
    };
    Coroutine get_return_object() noexcept { return {*this}; }
    std::suspend_always initial_suspend() const noexcept { return {}; }
    FinalAwaiter final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }

private:
    // A function object that owns the operation on its way to an executor, and uses its memory.
    template <void (*step)(Self)>
    class Step {
    public:
        explicit Step(Self poll) noexcept : poll_(std::move(poll)) {}
        void operator()() { step(std::move(poll_)); }

        using allocator_type = AsioHandlerAllocator<std::byte>;
        allocator_type get_allocator() const noexcept { return allocator_type(poll_->memory_); }

    private:
        Self poll_;
    };

    static Coroutine run(Handler&, const std::shared_ptr<State>&, std::span<ibv_wc>) { co_return; }

    HandlerExecutor handler_executor() const noexcept {
        return net::get_associated_executor(handler_, state_->executor());
    }

    // On the queue's executor.
    static void start_on_queue(Self self) {
        State& state = *self->state_;
        state.start(AsioPoll::Owner(self.release()));
    }

    // On the queue's executor, which calls it.
    static void dispatch_handler(Self self) {
        const HandlerExecutor any = self->handler_executor();
        with_concrete_executor(any, [&self](const auto& executor) {
            net::dispatch(executor, Step<&AsioPollPromise::call_handler>(std::move(self)));
        });
    }

    // On the handler's executor. Frees the operation before it calls the handler, which may need
    // the memory for its next operation.
    static void call_handler(Self self) {
        self->disconnect_cancellation();
        const AsioError error = self->error();
        const std::span<ibv_wc> completions = self->completions();
        const auto work = std::move(self->work_);
        Handler handler(std::move(self->handler_));
        AsioPollPromise* const poll = self.release();
        poll->memory_.when_unused(&destroy_frame, poll);
        std::move(handler)(AsioError(error), std::span(completions));
    }

    std::coroutine_handle<> coroutine() noexcept override {
        return std::coroutine_handle<AsioPollPromise>::from_promise(*this);
    }
    void post_handler() noexcept override {
        const std::shared_ptr<State> state = state_; // post() may destroy this object
        with_concrete_executor(state->executor(), [this](const auto& executor) {
            net::post(executor, Step<&AsioPollPromise::dispatch_handler>(Self(this)));
        });
    }
    void destroy() noexcept override { memory_.when_unused(&destroy_with_handler, this); }

    static void destroy_frame(void* poll) {
        static_cast<AsioPollPromise*>(poll)->coroutine().destroy();
    }
    // The handler last: it may own the memory from which its allocator allocates.
    static void destroy_with_handler(void* poll) {
        [[maybe_unused]] const Handler handler(
            std::move(static_cast<AsioPollPromise*>(poll)->handler_));
        destroy_frame(poll);
    }

#if defined(ASYNCVERBS_ASIO_CANCELLATION)
    // Cancels by a post, so that the poll, which may still be on its way to the executor, has
    // started by then.
    void connect_cancellation() {
        auto slot = net::get_associated_cancellation_slot(handler_);
        if (!slot.is_connected()) return;
        slot.assign([state = std::weak_ptr<State>(state_), id = id](net::cancellation_type type) {
            if (type == net::cancellation_type::none) return;
            // On the handler's executor. If this reference becomes the last one, the AsioCq was
            // destroyed, and has destroyed its queue there (I8).
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
