// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <cerrno>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <asyncverbs/coro/detail/coroutine.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

namespace asyncverbs {

namespace detail {
class PoolState;
}

/// Options of an ExecutorPool.
struct ExecutorPoolOptions {
    /// How many executors, each with a thread. 0: one for each CPU that the thread which creates
    /// the pool may run on (sched_getaffinity(2)); this respects the CPU set of a container, not
    /// its quota of CPU time.
    std::size_t size = 0;

    /// Pins each thread to one of these CPUs: the first thread to the first CPU and so on, starting
    /// over if there are more threads than CPUs. False: the threads may run on all of them, for a
    /// program that shares its CPUs with others.
    bool pin = true;
};

/// Runs one EpollExecutor per core.
///
///     ExecutorPool pool;
///     pool.run([&](EpollExecutor& executor, std::size_t index) {
///         const int vector = static_cast<int>(index) % context.num_comp_vectors();
///         return serve(AsyncCq::create(CompletionQueue(context, 1024, vector), executor), pool);
///     });
///
/// What belongs to one core: an AsyncCq or Router with all its waiters, its queue pairs and posting
/// to them, notifiers, scopes. What all cores may use at once: a Context, a ProtectionDomain, a
/// MemoryRegion. A connection that a Listener of one core has taken may be accepted on any core,
/// see IncomingConnection.
///
/// Between the cores: `pool[i].post(function)` calls a function on core i, and
/// `co_await pool[i].schedule()` continues there. Neither takes a lock; a system call only if core
/// i sleeps. A coroutine that moved to another core must move back before it ends, and before it
/// uses what belongs to its own core.
///
/// Thread: run() from one thread at a time, stop() and size() from any; for the executors see
/// EpollExecutor. Do not run or stop the executors: the pool does.
/// Lifetime: must not be destroyed by what it runs. Posted functions that have not run are
/// destroyed with it.
class ExecutorPool {
public:
    /// Starts no thread yet. Throws std::system_error naming sched_getaffinity, or what the
    /// executors need: "epoll_create1" (EMFILE), "eventfd", "timerfd_create".
    explicit ExecutorPool(const ExecutorPoolOptions& options = {});
    ExecutorPool(const ExecutorPool&) = delete;
    ExecutorPool& operator=(const ExecutorPool&) = delete;

    /// How many executors there are, at least 1.
    [[nodiscard]] std::size_t size() const noexcept;

    /// `index` must be less than size(). What is posted before run() waits for it.
    [[nodiscard]] EpollExecutor& operator[](std::size_t index) noexcept { return begin()[index]; }

    /// The first executor, for a range-based for.
    [[nodiscard]] EpollExecutor* begin() noexcept;
    /// Behind the last executor.
    [[nodiscard]] EpollExecutor* end() noexcept { return begin() + size(); }

    /// Runs `function(executor, index)`, a Task<>, on each executor, each on a thread that is
    /// started for it. Blocks until all of these tasks and threads have ended. Until the last task
    /// has ended, all executors run and serve what others post to them; functions that were posted
    /// before that are called. `function` is called on all threads, possibly at the same time, and
    /// destroyed at the end.
    ///
    /// The first exception of a task, of a posted function or of starting a thread ends the run,
    /// like stop(), and is rethrown: "pthread_setaffinity_np" if a thread cannot be pinned. If
    /// stop() comes before all tasks have ended, throws std::system_error
    /// (errc::operation_canceled). In both cases the calling thread destroys the other tasks, after
    /// each executor has finished what it was running; the tasks must not be on threads outside the
    /// pool then. Throws std::logic_error if the pool is running already.
    template <class F>
        requires std::is_invocable_r_v<Task<>, F&, EpollExecutor&, std::size_t>
    void run(F function);

    /// Ends the run in progress, or else the next one before it begins, as EpollExecutor::stop()
    /// does.
    void stop() noexcept;

private:
    const std::shared_ptr<detail::PoolState> state_;
};

namespace detail {

/// The CPUs of the calling thread, at least one. Throws std::system_error naming sched_getaffinity.
inline std::vector<int> usable_cpus() {
    constexpr std::size_t max_sets = 64; // for more CPUs than any kernel can be built for
    std::vector<cpu_set_t> sets(1);
    while (::sched_getaffinity(0, sets.size() * sizeof(cpu_set_t), sets.data()) != 0) {
        // EINVAL: the kernel's mask is longer.
        if (errno != EINVAL || sets.size() >= max_sets) {
            throw std::system_error(errno, std::system_category(), "sched_getaffinity");
        }
        sets.resize(2 * sets.size());
    }
    const std::size_t bytes = sets.size() * sizeof(cpu_set_t);
    std::vector<int> cpus;
    for (std::size_t cpu = 0; cpu < 8 * bytes; ++cpu) {
        if (CPU_ISSET_S(cpu, bytes, sets.data())) cpus.push_back(static_cast<int>(cpu));
    }
    return cpus;
}

/// Throws std::system_error naming pthread_setaffinity_np: invalid_argument if the process may not
/// use that CPU any more.
inline void pin_this_thread(int cpu) {
    const auto index = static_cast<std::size_t>(cpu);
    std::vector<cpu_set_t> sets(index / CPU_SETSIZE + 1);
    const std::size_t bytes = sets.size() * sizeof(cpu_set_t);
    CPU_SET_S(index, bytes, sets.data());
    if (const int error = ::pthread_setaffinity_np(::pthread_self(), bytes, sets.data())) {
        throw std::system_error(error, std::system_category(), "pthread_setaffinity_np");
    }
}

/// The executors of a pool, and whether they run. A stop() that is in progress keeps it alive: the
/// run that it ends may be the last one.
class PoolState {
public:
    explicit PoolState(const ExecutorPoolOptions& options)
        : cpus_(usable_cpus()), size_(options.size != 0 ? options.size : cpus_.size()),
          executors_(std::make_unique<EpollExecutor[]>(size_)) {
        if (!options.pin) cpus_.clear();
    }

    std::size_t size() const noexcept { return size_; }
    EpollExecutor* executors() const noexcept { return executors_.get(); }

    /// Pins the calling thread to the CPU of executor `index`.
    void pin(std::size_t index) const {
        if (!cpus_.empty()) pin_this_thread(cpus_[index % cpus_.size()]);
    }

    // --- a run: begin(); end() or stop() from any thread, any number of times; finish() ---

    void begin() {
        Phase phase = Phase::idle;
        if (phase_.compare_exchange_strong(phase, Phase::running)) return;
        if (phase != Phase::stopped) {
            throw std::logic_error("ExecutorPool: it is running already");
        }
        phase_ = Phase::idle;
        throw_stopped();
    }

    bool ending() const noexcept { return phase_.load() == Phase::ending; }
    void finish() noexcept { phase_ = Phase::idle; }

    void end() noexcept {
        Phase phase = Phase::running;
        if (!phase_.compare_exchange_strong(phase, Phase::ending)) return;
        // Threads leave their executors if these stop *and* the run is ending. So a stop that comes
        // too late, in the next run, does no harm.
        for (std::size_t i = 0; i < size_; ++i) executors_[i].stop();
    }

    /// Ends the run in progress, or else the next one.
    void stop() noexcept {
        Phase phase = Phase::idle;
        if (!phase_.compare_exchange_strong(phase, Phase::stopped)) end();
    }

    [[noreturn]] static void throw_stopped() {
        throw std::system_error(std::make_error_code(std::errc::operation_canceled),
                                "ExecutorPool::run: stopped before all tasks ended");
    }

private:
    enum class Phase { idle, stopped, running, ending };

    std::vector<int> cpus_; // empty: threads are not pinned
    std::size_t size_;
    std::unique_ptr<EpollExecutor[]> executors_;
    std::atomic<Phase> phase_{Phase::idle};
};

/// One run of a pool: a thread and a coroutine for each executor. The coroutine calls the user's
/// function on its thread, and keeps the executor running until all the others have ended.
///
///     schedule ──► the user's task ──► arrive ···► schedule ──► leave
///     (to its thread)                  (the last resumes all)   (after all posts until then)
class PoolRun {
public:
    explicit PoolRun(std::shared_ptr<PoolState> pool)
        : pool_(std::move(pool)), cores_(pool_->size()), unended_(pool_->size()) {
        pool_->begin();
    }
    PoolRun(const PoolRun&) = delete;
    PoolRun& operator=(const PoolRun&) = delete;
    ~PoolRun() {
        tasks_.clear(); // may use the executors, which run on no thread any more
        pool_->finish();
    }

    template <class F>
    void start(F& function) {
        tasks_.reserve(pool_->size());
        for (std::size_t i = 0; i < pool_->size(); ++i) {
            tasks_.push_back(work(i, function));
            tasks_.back().start(*this);
        }
    }

    /// Blocks until all threads have ended; then throws as EpollExecutor::run does.
    void wait();

    // --- for the joined tasks, on any thread ---

    void task_failed(std::exception_ptr exception) noexcept {
        const std::lock_guard lock(mutex_);
        if (!exception_) exception_ = std::move(exception);
    }
    std::coroutine_handle<> task_done() noexcept {
        // When the threads see the end, the run may be over, and this object destroyed.
        const std::shared_ptr<PoolState> keep_alive = pool_;
        if (failed()) keep_alive->end();
        return std::noop_coroutine();
    }

private:
    struct Core {
        std::coroutine_handle<> arrived;
        bool left = false; // the user's task and all others have ended
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
    JoinedTask<PoolRun> work(std::size_t index, F& function);
    std::coroutine_handle<> arrive(Core& core, std::coroutine_handle<> self) noexcept;
    void serve(std::size_t index) noexcept;
    bool failed() noexcept {
        const std::lock_guard lock(mutex_);
        return exception_ != nullptr;
    }

    const std::shared_ptr<PoolState> pool_;
    std::vector<Core> cores_;
    std::vector<JoinedTask<PoolRun>> tasks_;
    std::atomic<std::size_t> unended_;
    std::mutex mutex_;
    std::exception_ptr exception_; // the first
};

template <class F>
JoinedTask<PoolRun> PoolRun::work(std::size_t index, F& function) {
    EpollExecutor& executor = pool_->executors()[index];
    co_await executor.schedule();
    co_await function(executor, index);
    co_await Arrival{*this, cores_[index]};
    co_await executor.schedule();
    cores_[index].left = true;
    executor.stop();
}

inline std::coroutine_handle<> PoolRun::arrive(Core& core, std::coroutine_handle<> self) noexcept {
    core.arrived = self;
    // The last one may resume the others at once, on its own thread: touch nothing afterwards.
    if (unended_.fetch_sub(1) > 1) return std::noop_coroutine();
    for (Core& other : cores_) {
        if (&other != &core) other.arrived.resume();
    }
    return self;
}

inline void PoolRun::serve(std::size_t index) noexcept {
    try {
        pool_->pin(index);
        while (!cores_[index].left && !pool_->ending()) pool_->executors()[index].run();
    } catch (...) {
        task_failed(std::current_exception());
        pool_->end();
    }
}

inline void PoolRun::wait() {
    {
        std::vector<std::jthread> threads;
        try {
            threads.reserve(pool_->size());
            for (std::size_t i = 0; i < pool_->size(); ++i) {
                threads.emplace_back([this, i] { serve(i); });
            }
        } catch (...) {
            task_failed(std::current_exception());
            pool_->end();
        }
    }
    tasks_.clear();
    if (exception_) std::rethrow_exception(exception_);
    if (unended_ > 0) PoolState::throw_stopped();
}

} // namespace detail

inline ExecutorPool::ExecutorPool(const ExecutorPoolOptions& options)
    : state_(std::make_shared<detail::PoolState>(options)) {}

inline std::size_t ExecutorPool::size() const noexcept { return state_->size(); }

inline EpollExecutor* ExecutorPool::begin() noexcept { return state_->executors(); }

template <class F>
    requires std::is_invocable_r_v<Task<>, F&, EpollExecutor&, std::size_t>
void ExecutorPool::run(F function) {
    detail::PoolRun run(state_);
    run.start(function);
    run.wait();
}

inline void ExecutorPool::stop() noexcept {
    const std::shared_ptr<detail::PoolState> keep_alive = state_; // this may end the last run
    keep_alive->stop();
}

} // namespace asyncverbs
