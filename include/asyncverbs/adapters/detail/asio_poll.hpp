// SPDX-License-Identifier: MIT
// What an AsioCq and its operations share: the queue, the executor, and the operations that wait.
// Used on the executor alone, but for what is said to be for any thread.
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
#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/cq/async_cq.hpp>

namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR {

// A poll of the queue on behalf of a completion handler, whatever the handler's type.
class AsioPoll : public ListNode {
public:
    struct Destroy {
        void operator()(AsioPoll* poll) const noexcept { poll->destroy(); }
    };
    using Owner = std::unique_ptr<AsioPoll, Destroy>;

    const std::uint64_t id;

    /// Polls. True: the outcome is decided. False: suspend() is to follow.
    bool begin(AsyncCq& cq, std::stop_token stop) {
        wait_.emplace(cq.poll(completions_, error_, std::move(stop)));
        return wait_->awaiter.await_ready();
    }

    /// Waits: complete() is called when the outcome is decided.
    void suspend() { wait_->awaiter.await_suspend(coroutine()).resume(); }

    /// Takes the outcome, and sends it to the handler.
    void complete() noexcept {
        if (wait_) {
            completions_ = wait_->awaiter.await_resume();
            wait_.reset();
        }
        deliver();
    }

    /// The same with the outcome that the poll was cancelled: it takes nothing from the queue.
    void abort() noexcept {
        wait_.reset();
        completions_ = {};
        error_ = std::make_error_code(std::errc::operation_canceled);
        deliver();
    }

protected:
    AsioPoll(std::uint64_t number, std::span<ibv_wc> completions) noexcept
        : id(number), completions_(completions) {}
    ~AsioPoll() = default;

    AsioError error() const { return to_asio(error_); }
    std::span<ibv_wc> completions() const noexcept { return completions_; }

private:
    void deliver() noexcept {
        unlink();
        send();
    }
    virtual std::coroutine_handle<> coroutine() noexcept = 0;
    virtual void send() noexcept = 0;
    virtual void destroy() noexcept = 0; // and the handler with it

    // Done by hand what co_await does, so that a wait can end without its coroutine.
    struct Wait {
        explicit Wait(PollOperation&& poll) noexcept
            : operation(std::move(poll)), awaiter(std::move(operation).operator co_await()) {}
        PollOperation operation;
        awaiter_t<PollOperation> awaiter;
    };

    std::span<ibv_wc> completions_; // to fill, then those that were
    std::error_code error_;
    std::optional<Wait> wait_;
};

template <class Executor>
class AsioCqState final : public AsioResident,
                          public std::enable_shared_from_this<AsioCqState<Executor>> {
public:
    static std::shared_ptr<AsioCqState> create(const Executor& executor, AsyncCq cq) {
        auto state = std::make_shared<AsioCqState>(executor, std::move(cq));
        state->enter(executor);
        return state;
    }

    AsioCqState(const Executor& executor, AsyncCq cq) : executor_(executor), cq_(std::move(cq)) {}

    // From any thread, while the context lives.
    const Executor& executor() const noexcept { return *executor_; }
    std::uint64_t next_id() noexcept { return next_id_.fetch_add(1, std::memory_order_relaxed); }

    bool evicted() const noexcept { return !executor_; }
    AsyncCq& cq() noexcept { return *cq_; }

    void begin(AsioPoll::Owner owner) {
        AsioPoll& poll = *owner.release();
        if (!cq_ || poll.id < cancelled_) return poll.abort();
        if (poll.begin(*cq_, stop_.get_token())) return poll.complete();
        pending_.push_back(poll);
        poll.suspend();
    }

    /// Those that wait, and those that are on their way to. What has left the queue is delivered.
    void cancel() noexcept {
        cancelled_ = next_id_.load(std::memory_order_relaxed);
        if (!pending_.empty()) stop_pending();
    }

    /// The one with this number, if it waits. The last one is stopped, for then the queue has to
    /// stop waiting, too.
    void cancel(std::uint64_t id) noexcept {
        AsioPoll* const poll = pending_.find_if([&](AsioPoll& other) { return other.id == id; });
        if (poll == nullptr) return;
        const bool is_last =
            pending_.find_if([&](AsioPoll& other) { return &other != poll; }) == nullptr;
        is_last ? stop_pending() : poll->abort();
    }

    /// Cancels what waits, and ends the queue.
    void close() noexcept {
        leave();
        while (!pending_.empty()) pending_.front().abort();
        cq_.reset();
    }

private:
    void stop_pending() noexcept {
        try {
            std::exchange(stop_, std::stop_source()).request_stop();
        } catch (const std::bad_alloc&) { // then the queue goes on waiting, but not they
            while (!pending_.empty()) pending_.front().abort();
        }
    }

    // Handlers are destroyed, as Asio does with them; and with one of them perhaps the AsioCq.
    void evict() noexcept override {
        const std::shared_ptr<AsioCqState> alive = this->shared_from_this();
        IntrusiveList<AsioPoll> polls;
        polls.append(pending_);
        while (!polls.empty()) {
            AsioPoll::Owner owner(&polls.front());
            owner->unlink();
        }
        executor_.reset(); // a strand must not outlive its context
    }

    std::optional<Executor> executor_;
    std::optional<AsyncCq> cq_; // until the AsioCq ends
    std::stop_source stop_;     // of those that wait now
    IntrusiveList<AsioPoll> pending_;
    std::uint64_t cancelled_ = 0; // the first that is not, by cancel()
    std::atomic<std::uint64_t> next_id_{0};
};

} // namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR

namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR {

// An async_poll() with its completion handler, in one allocation: the frame of a coroutine that the
// AsyncCq resumes. Handlers never run in there: an exception would end the queue, and the handler's
// place is its executor.
//
//     async_poll ──dispatch──► begin: poll ──► ready ────────┐
//     any thread               the queue's       │ empty     ▼
//                              executor       resumed ──► send ──post──► deliver
//                                                                           │ dispatch
//                              the handler is called on its executor ◄──────┘

/// The signature of what async_poll() completes with.
using AsioPollSignature = void(AsioError, std::span<ibv_wc>);

// Allocates coroutine frames with the allocator of the handler, which is kept behind the frame. The
// compiler asks for no alignment, but places a handler that has one as if the frame had it.
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
        auto* const kept = std::launder(reinterpret_cast<Allocator*>(memory + units(frame)));
        Allocator allocator(std::move(*kept));
        kept->~Allocator();
        Traits::deallocate(allocator, memory, total(frame));
    }
};

template <class Handler, class Executor>
class AsioPollPromise;

template <class Handler, class Executor>
struct AsioPollCoroutine {
    using promise_type = AsioPollPromise<Handler, Executor>;
    promise_type& promise;
};

template <class Handler, class Executor>
class AsioPollPromise final : public AsioPoll {
    using State = AsioCqState<Executor>;
    using Self = std::unique_ptr<AsioPollPromise, AsioPoll::Destroy>;
    using Allocation = AsioFrameAllocation<Handler>;
    using HandlerExecutor = net::associated_executor_t<Handler, Executor>;

public:
    AsioPollPromise(Handler& handler, const std::shared_ptr<State>& state, std::span<ibv_wc> wcs)
        : AsioPoll(state->next_id(), wcs), state_(state), handler_(std::move(handler)) {
        // What waits is work of the queue's executor. The handler's may be another.
        HandlerExecutor executor = handler_executor();
        if constexpr (std::is_same_v<HandlerExecutor, Executor>) {
            if (executor == state->executor()) return;
        }
        work_.emplace(std::move(executor));
    }

    static void start(Handler handler, const std::shared_ptr<State>& state, std::span<ibv_wc> wcs) {
        Self self(&run(handler, state, wcs).promise);
        self->connect_cancellation();
        net::dispatch(state->executor(), Step<&AsioPollPromise::begin>(std::move(self)));
    }

    // --- for the coroutine ---

    static void* operator new(std::size_t size, Handler& handler, const std::shared_ptr<State>&,
                              std::span<ibv_wc>) {
        return Allocation::allocate(size, handler);
    }
    // NOLINTNEXTLINE(misc-new-delete-overloads): it is the one that a coroutine's frame is freed by
    static void operator delete(void* frame, std::size_t size) noexcept {
        Allocation::deallocate(frame, size);
    }

    struct Decided {
        bool await_ready() const noexcept { return false; }
        void await_suspend(std::coroutine_handle<AsioPollPromise> poll) const noexcept {
            poll.promise().complete();
        }
        void await_resume() const noexcept {}
    };
    AsioPollCoroutine<Handler, Executor> get_return_object() noexcept { return {*this}; }
    std::suspend_always initial_suspend() const noexcept { return {}; }
    Decided final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }

private:
    // A function that owns the operation on its way to an executor, and uses its room.
    template <void (*step)(Self)>
    class Step {
    public:
        explicit Step(Self poll) noexcept : poll_(std::move(poll)) {}
        void operator()() { step(std::move(poll_)); }

        using allocator_type = AsioScratchAllocator<std::byte>;
        allocator_type get_allocator() const noexcept { return allocator_type(poll_->scratch_); }

    private:
        Self poll_;
    };

    // Does nothing but to be resumed: the promise is the operation.
    static AsioPollCoroutine<Handler, Executor> run(Handler&, const std::shared_ptr<State>&,
                                                    std::span<ibv_wc>) {
        co_return;
    }

    HandlerExecutor handler_executor() const noexcept {
        return net::get_associated_executor(handler_, state_->executor());
    }

    // On the queue's executor.
    static void begin(Self self) {
        State& state = *self->state_;
        state.begin(AsioPoll::Owner(self.release()));
    }

    // On the queue's executor, called by it.
    static void deliver(Self self) {
        const HandlerExecutor executor = self->handler_executor();
        net::dispatch(executor, Step<&AsioPollPromise::call>(std::move(self)));
    }

    // On the handler's executor. The memory is free by the time that the handler is called, which
    // may well need some for its next operation.
    static void call(Self self) {
        self->disconnect_cancellation();
        const AsioError error = self->error();
        const std::span<ibv_wc> completions = self->completions();
        const auto work = std::move(self->work_);
        Handler handler(std::move(self->handler_));
        AsioPollPromise* const poll = self.release();
        poll->scratch_.when_free(&end, poll);
        std::move(handler)(AsioError(error), std::span(completions));
    }

    std::coroutine_handle<> coroutine() noexcept override {
        return std::coroutine_handle<AsioPollPromise>::from_promise(*this);
    }
    void send() noexcept override {
        const std::shared_ptr<State> state = state_; // this may have ended when post() returns
        net::post(state->executor(), Step<&AsioPollPromise::deliver>(Self(this)));
    }
    void destroy() noexcept override { scratch_.when_free(&end_with_handler, this); }

    static void end(void* poll) { static_cast<AsioPollPromise*>(poll)->coroutine().destroy(); }

    // The handler goes last: it may own what its allocator allocates from.
    static void end_with_handler(void* poll) {
        [[maybe_unused]] const Handler handler(
            std::move(static_cast<AsioPollPromise*>(poll)->handler_));
        end(poll);
    }

#if defined(ASYNCVERBS_ASIO_CANCELLATION)
    // Not at once but by a post: behind an operation that is on its way to begin.
    void connect_cancellation() {
        auto slot = net::get_associated_cancellation_slot(handler_);
        if (!slot.is_connected()) return;
        slot.assign([state = std::weak_ptr<State>(state_), id = id](net::cancellation_type type) {
            if (type == net::cancellation_type::none) return;
            std::shared_ptr<State> alive = state.lock();
            if (alive == nullptr || alive->evicted()) return;
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
    AsioScratch scratch_;
};

} // namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR
