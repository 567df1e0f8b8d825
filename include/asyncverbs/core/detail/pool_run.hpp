// SPDX-License-Identifier: MIT
// One run of an ExecutorPool: a thread and a coroutine for each executor. The coroutine calls the
// user's function on its thread, and keeps the executor running until all the others have ended.
//
//     schedule ──► the user's task ──► arrive ···► schedule ──► leave
//     (to its thread)                  (the last resumes all)   (behind all posts until then)
#pragma once

#include <atomic>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include <asyncverbs/core/detail/branch.hpp>
#include <asyncverbs/core/detail/pool_state.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs::detail {

template <class Use>
class PoolRun {
public:
    explicit PoolRun(std::shared_ptr<PoolState<Use>> pool)
        : pool_(std::move(pool)), cores_(pool_->size()), unended_(pool_->size()) {
        pool_->begin();
    }
    PoolRun(const PoolRun&) = delete;
    PoolRun& operator=(const PoolRun&) = delete;
    ~PoolRun() {
        branches_.clear(); // may use the executors, which nobody runs by now
        pool_->finish();
    }

    template <class F>
    void start(F& function) {
        branches_.reserve(pool_->size());
        for (std::size_t i = 0; i < pool_->size(); ++i) {
            branches_.push_back(work(i, function));
            branches_.back().start(*this);
        }
    }

    /// Blocks until no thread is left; then throws what EpollExecutor::run would.
    void wait();

    // --- for the branches, on any thread ---

    void branch_failed(std::exception_ptr exception) noexcept {
        const std::lock_guard lock(mutex_);
        if (!exception_) exception_ = std::move(exception);
    }
    std::coroutine_handle<> branch_done() noexcept {
        // The run may be over, and this object gone, as soon as the threads know of the end.
        const std::shared_ptr<PoolState<Use>> alive = pool_;
        if (failed()) alive->end();
        return std::noop_coroutine();
    }

private:
    struct Core {
        std::coroutine_handle<> arrived;
        bool left = false; // of its thread
    };

    struct Arrival {
        PoolRun& run;
        Core& core;
        bool await_ready() const noexcept { return false; }
        std::coroutine_handle<> await_suspend(std::coroutine_handle<> self) const noexcept {
            return run.arrive(core, self);
        }
        void await_resume() const noexcept {}
    };

    template <class F>
    Branch<PoolRun> work(std::size_t index, F& function);
    std::coroutine_handle<> arrive(Core& core, std::coroutine_handle<> self) noexcept;
    void serve(std::size_t index) noexcept;
    bool failed() noexcept {
        const std::lock_guard lock(mutex_);
        return exception_ != nullptr;
    }

    const std::shared_ptr<PoolState<Use>> pool_;
    std::vector<Core> cores_;
    std::vector<Branch<PoolRun>> branches_;
    std::atomic<std::size_t> unended_;
    std::mutex mutex_;
    std::exception_ptr exception_; // the first
};

template <class Use>
template <class F>
Branch<PoolRun<Use>> PoolRun<Use>::work(std::size_t index, F& function) {
    BasicEpollExecutor<Use>& executor = pool_->executors()[index];
    co_await executor.schedule();
    co_await function(executor, index);
    co_await Arrival{*this, cores_[index]};
    co_await executor.schedule();
    cores_[index].left = true;
    executor.stop();
}

template <class Use>
inline std::coroutine_handle<> PoolRun<Use>::arrive(Core& core,
                                                    std::coroutine_handle<> self) noexcept {
    core.arrived = self;
    // Who is not the last may be resumed at once, by the last: touch nothing any more.
    if (unended_.fetch_sub(1) > 1) return std::noop_coroutine();
    for (Core& other : cores_) {
        if (&other != &core) other.arrived.resume();
    }
    return self;
}

template <class Use>
inline void PoolRun<Use>::serve(std::size_t index) noexcept {
    try {
        pool_->pin(index);
        while (!cores_[index].left && !pool_->ending()) pool_->executors()[index].run();
    } catch (...) {
        branch_failed(std::current_exception());
        pool_->end();
    }
}

template <class Use>
inline void PoolRun<Use>::wait() {
    {
        Used<std::vector<std::jthread>, Use> threads;
        try {
            threads.reserve(pool_->size());
            for (std::size_t i = 0; i < pool_->size(); ++i) {
                threads.emplace_back([this, i] { serve(i); });
            }
        } catch (...) {
            branch_failed(std::current_exception());
            pool_->end();
        }
    }
    branches_.clear();
    if (exception_) std::rethrow_exception(exception_);
    if (unended_ > 0) PoolState<Use>::throw_stopped();
}

} // namespace asyncverbs::detail
