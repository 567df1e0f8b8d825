// SPDX-License-Identifier: MIT
// The shared state of an AsioCq and the operations that async_poll() starts on it.
//
//     async_poll ──► start: poll ──► ready ─────────┐
//                                    │ empty        ▼
//                                 resumed ──► complete ──► the handler
//
// A handler never runs where the AsyncCq resumes coroutines: it belongs on its own executor, and an
// exception would end the queue.
#pragma once

#include <infiniband/verbs.h>

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
#include <tuple>
#include <utility>

#include <asyncverbs/adapters/detail/asio_operation.hpp>
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
    using executor_type = Executor;
    using Owner = AsioPoll::Owner;

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

// An AsioPoll with its handler, in one allocation. It is the promise of a coroutine that the
// AsyncCq resumes; the coroutine has an empty body and ends at once.
template <class Handler, class Executor>
class AsioPollPromise final
    : public AsioPoll,
      public AsioOperation<AsioPollPromise<Handler, Executor>, Handler, AsioCqState<Executor>> {
    using State = AsioCqState<Executor>;
    using Operation = AsioOperation<AsioPollPromise, Handler, State>;
    using typename Operation::Self;
    friend Operation;

public:
    struct Coroutine {
        using promise_type = AsioPollPromise;
        AsioPollPromise& promise;
    };

    AsioPollPromise(Handler& handler, const std::shared_ptr<State>& state, std::span<ibv_wc> wcs)
        : AsioPoll(state->next_id(), wcs), Operation(handler, state) {}

    /// Starts an async_poll(), from any thread.
    static void start(Handler handler, const std::shared_ptr<State>& state, std::span<ibv_wc> wcs) {
        Operation::initiate(Self(&run(handler, state, wcs).promise));
    }

    // --- required by the language ---

    static void* operator new(std::size_t size, Handler& handler, const std::shared_ptr<State>&,
                              std::span<ibv_wc>) {
        return AsioFrameAllocation<Handler>::allocate(size, handler);
    }
    // NOLINTNEXTLINE(misc-new-delete-overloads): a coroutine frame is freed by this one
    static void operator delete(void* frame, std::size_t size) noexcept {
        AsioFrameAllocation<Handler>::deallocate(frame, size);
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
    static Coroutine run(Handler&, const std::shared_ptr<State>&, std::span<ibv_wc>) { co_return; }

    auto result() const { return std::tuple(AsioPoll::error(), AsioPoll::completions()); }

    std::coroutine_handle<> coroutine() noexcept override {
        return std::coroutine_handle<AsioPollPromise>::from_promise(*this);
    }
    void post_handler() noexcept override { Operation::post_handler(); }
    void destroy() noexcept override { Operation::destroy(); }
};

} // namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR
