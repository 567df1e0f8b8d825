// SPDX-License-Identifier: MIT
// One executor per core, each on a thread of its own: how a program that needs more than one core
// scales, since an executor, its completion queues and their waiters share nothing with the others.
#pragma once

#include <cstddef>
#include <type_traits>

#include <asyncverbs/core/detail/pool_run.hpp>
#include <asyncverbs/core/detail/pool_state.hpp>
#include <asyncverbs/core/epoll_executor.hpp>
#include <asyncverbs/core/executor_pool_options.hpp>
#include <asyncverbs/core/task.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs {

/// Runs one EpollExecutor per core.
///
///     ExecutorPool pool;
///     pool.run([&](EpollExecutor& executor, std::size_t index) {
///         const int vector = static_cast<int>(index) % context.num_comp_vectors();
///         return serve(AsyncCq::create(CompletionQueue(context, 1024, vector), executor), pool);
///     });
///
/// What belongs to one core: an AsyncCq or Router with all who wait for it, its queue pairs and
/// posting to them, notifiers, scopes. What all cores may use at once: a Context, a
/// ProtectionDomain, a MemoryRegion. (Copies of a Slice count references to its region: cores that
/// post all the time do better with a region each.)
///
/// Between the cores: `pool[i].post(function)` calls a function on core i, and
/// `co_await pool[i].schedule()` takes the coroutine there; neither takes a lock, nor a system call
/// unless core i sleeps. A coroutine that visits another core has to be home again before it ends,
/// or touches what belongs to its own core.
///
/// Thread: run() from one thread at a time, stop() and size() from any; of the executors see
/// EpollExecutor. Do not run or stop them: that is the pool's part.
/// Lifetime: must not be destroyed by what it runs. Functions that were posted and not called are
/// destroyed with it.
template <class Use>
class BasicExecutorPool {
public:
    /// Starts no thread yet. Throws std::system_error naming sched_getaffinity, or what the
    /// executors need: "epoll_create1" (EMFILE), "eventfd", "timerfd_create".
    explicit BasicExecutorPool(const ExecutorPoolOptions& options = {})
        : state_(std::make_shared<detail::PoolState<Use>>(options)) {}
    BasicExecutorPool(const BasicExecutorPool&) = delete;
    BasicExecutorPool& operator=(const BasicExecutorPool&) = delete;

    /// How many executors there are, at least 1.
    [[nodiscard]] std::size_t size() const noexcept { return state_->size(); }

    /// The executors. `index` is less than size(). What is posted to them before run() waits for
    /// it.
    [[nodiscard]] BasicEpollExecutor<Use>& operator[](std::size_t index) noexcept {
        return begin()[index];
    }

    /// The first of them, for a range-based for.
    [[nodiscard]] BasicEpollExecutor<Use>* begin() noexcept { return state_->executors(); }

    /// Behind the last one.
    [[nodiscard]] BasicEpollExecutor<Use>* end() noexcept { return begin() + size(); }

    /// Runs `function(executor, index)`, a Task<>, on each executor, on a thread that is started
    /// for it, and blocks until all of these tasks have ended and the threads with them. As long
    /// as one has not ended, all executors run, and are there for who posts to them; functions
    /// that were posted before the last one ended are called. `function` is called on all threads,
    /// perhaps at the same time, and destroyed at the end.
    ///
    /// The first exception of a task, a posted function or a thread's start ends the run, like
    /// stop(), and is rethrown: "pthread_setaffinity_np" where a thread cannot be pinned. If stop()
    /// comes before all tasks have ended, throws std::system_error (errc::operation_canceled). In
    /// both cases the other tasks are destroyed, by the calling thread, when every executor has
    /// finished what it was at; they must not be on other threads than the pool's. Throws
    /// std::logic_error if the pool is running already.
    template <class F>
        requires std::is_invocable_r_v<Task<>, F&, BasicEpollExecutor<Use>&, std::size_t>
    void run(F function) {
        detail::PoolRun<Use> run(state_);
        run.start(function);
        run.wait();
    }

    /// Ends the run in progress, or else the next one before it begins, as EpollExecutor::stop()
    /// does.
    void stop() noexcept {
        const std::shared_ptr<detail::PoolState<Use>> alive = state_; // perhaps the last run ends
        alive->stop();
    }

private:
    const std::shared_ptr<detail::PoolState<Use>> state_;
};

/// The ExecutorPool of programs: compiled only where it is used, but otherwise as a class.
using ExecutorPool = BasicExecutorPool<OnUse>;

} // namespace asyncverbs
