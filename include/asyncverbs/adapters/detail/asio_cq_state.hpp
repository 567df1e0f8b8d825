// SPDX-License-Identifier: MIT
// What an AsioCq and its operations share: the queue, the executor, and the operations that wait.
// Used on the executor alone, but for what is said to be for any thread.
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <coroutine>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/adapters/detail/asio_flavour.hpp>
#include <asyncverbs/adapters/detail/asio_resident.hpp>
#include <asyncverbs/core/async_cq.hpp>
#include <asyncverbs/core/awaitable.hpp>
#include <asyncverbs/core/detail/intrusive_list.hpp>
#include <asyncverbs/core/poll_operation.hpp>

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
