// SPDX-License-Identifier: MIT
// How many executors an ExecutorPool has, and whether their threads stay where they are.
#pragma once

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

/// What an ExecutorPool is made with.
struct ExecutorPoolOptions {
    /// How many executors, each with a thread; 0: one for each CPU that the thread which makes the
    /// pool may run on (sched_getaffinity(2)), which heeds the CPU set of a container, not its
    /// quota of CPU time.
    std::size_t size = 0;

    /// Keeps each thread on one of these CPUs: the first on the first, and so on, again from the
    /// first where there are more threads than CPUs. False: they may run on all of them, for a
    /// program that shares its CPUs with others.
    bool pin = true;
};

namespace detail {

// Templates, so that the vectors are compiled only where they are used.

/// Those of the calling thread, at least one. Throws std::system_error naming sched_getaffinity.
template <class Cpu = int, class Set = cpu_set_t>
std::vector<Cpu> usable_cpus() {
    constexpr std::size_t most_sets = 64; // more CPUs than any kernel can be built for
    std::vector<Set> sets(1);
    while (::sched_getaffinity(0, sets.size() * sizeof(Set), sets.data()) != 0) {
        // EINVAL: the kernel's mask is longer.
        if (errno != EINVAL || sets.size() >= most_sets) {
            throw std::system_error(errno, std::system_category(), "sched_getaffinity");
        }
        sets.resize(2 * sets.size());
    }
    const std::size_t bytes = sets.size() * sizeof(Set);
    std::vector<Cpu> cpus;
    for (std::size_t cpu = 0; cpu < 8 * bytes; ++cpu) {
        if (CPU_ISSET_S(cpu, bytes, sets.data())) cpus.push_back(static_cast<Cpu>(cpu));
    }
    return cpus;
}

/// Throws std::system_error naming pthread_setaffinity_np: invalid_argument where the process may
/// not use that CPU any more.
template <class Set = cpu_set_t>
void pin_this_thread(int cpu) {
    const auto index = static_cast<std::size_t>(cpu);
    std::vector<Set> sets(index / CPU_SETSIZE + 1);
    const std::size_t bytes = sets.size() * sizeof(Set);
    CPU_SET_S(index, bytes, sets.data());
    if (const int error = ::pthread_setaffinity_np(::pthread_self(), bytes, sets.data())) {
        throw std::system_error(error, std::system_category(), "pthread_setaffinity_np");
    }
}

// The executors of an ExecutorPool, and whether they run. A stop() that is on its way keeps it
// alive, for the run that it ends may be the last.

class PoolState {
public:
    explicit PoolState(const ExecutorPoolOptions& options)
        : cpus_(usable_cpus<int>()), size_(options.size != 0 ? options.size : cpus_.size()) {
        if (!options.pin) cpus_.clear();
        executors_.reset(new EpollExecutor[size_]);
    }

    std::size_t size() const noexcept { return size_; }
    EpollExecutor* executors() const noexcept { return executors_.get(); }

    /// Puts the calling thread where the executor's thread belongs.
    void pin(std::size_t index) const {
        if (!cpus_.empty()) pin_this_thread(cpus_[index % cpus_.size()]);
    }

    // --- a run: begin(), then end() or stop() from any thread and any number of times, finish()
    // ---

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
        if (phase_.compare_exchange_strong(phase, Phase::ending)) wake_all();
    }

    /// The run in progress or else the next one ends.
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

    // Threads leave their executors when these stop *and* the run is ending: so a wake that comes
    // too late, when the next run has begun, does no harm.
    void wake_all() noexcept {
        for (std::size_t i = 0; i < size_; ++i) executors_[i].stop();
    }

    std::vector<int> cpus_; // empty: threads are not pinned
    std::size_t size_;
    std::unique_ptr<EpollExecutor[]> executors_;
    std::atomic<Phase> phase_{Phase::idle};
};

// One run of an ExecutorPool: a thread and a coroutine for each executor. The coroutine calls the
// user's function on its thread, and keeps the executor running until all the others have ended.
//
//     schedule ──► the user's task ──► arrive ···► schedule ──► leave
//     (to its thread)                  (the last resumes all)   (behind all posts until then)

class PoolRun {
public:
    explicit PoolRun(std::shared_ptr<PoolState> pool)
        : pool_(std::move(pool)), cores_(pool_->size()), unended_(pool_->size()) {
        pool_->begin();
    }
    PoolRun(const PoolRun&) = delete;
    PoolRun& operator=(const PoolRun&) = delete;
    ~PoolRun() {
        tasks_.clear(); // may use the executors, which nobody runs by now
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

    /// Blocks until no thread is left; then throws what EpollExecutor::run would.
    void wait();

    // --- for the joined tasks, on any thread ---

    void task_failed(std::exception_ptr exception) noexcept {
        const std::lock_guard lock(mutex_);
        if (!exception_) exception_ = std::move(exception);
    }
    std::coroutine_handle<> task_done() noexcept {
        // The run may be over, and this object gone, as soon as the threads know of the end.
        const std::shared_ptr<PoolState> alive = pool_;
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
    // Who is not the last may be resumed at once, by the last: touch nothing any more.
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
class ExecutorPool {
public:
    /// Starts no thread yet. Throws std::system_error naming sched_getaffinity, or what the
    /// executors need: "epoll_create1" (EMFILE), "eventfd", "timerfd_create".
    explicit ExecutorPool(const ExecutorPoolOptions& options = {})
        : state_(std::make_shared<detail::PoolState>(options)) {}
    ExecutorPool(const ExecutorPool&) = delete;
    ExecutorPool& operator=(const ExecutorPool&) = delete;

    /// How many executors there are, at least 1.
    [[nodiscard]] std::size_t size() const noexcept { return state_->size(); }

    /// The executors. `index` is less than size(). What is posted to them before run() waits for
    /// it.
    [[nodiscard]] EpollExecutor& operator[](std::size_t index) noexcept { return begin()[index]; }

    /// The first of them, for a range-based for.
    [[nodiscard]] EpollExecutor* begin() noexcept { return state_->executors(); }

    /// Behind the last one.
    [[nodiscard]] EpollExecutor* end() noexcept { return begin() + size(); }

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
        requires std::is_invocable_r_v<Task<>, F&, EpollExecutor&, std::size_t>
    void run(F function) {
        detail::PoolRun run(state_);
        run.start(function);
        run.wait();
    }

    /// Ends the run in progress, or else the next one before it begins, as EpollExecutor::stop()
    /// does.
    void stop() noexcept {
        const std::shared_ptr<detail::PoolState> alive = state_; // perhaps the last run ends
        alive->stop();
    }

private:
    const std::shared_ptr<detail::PoolState> state_;
};

} // namespace asyncverbs
