// SPDX-License-Identifier: MIT
// The executors of an ExecutorPool, and whether they run. A stop() that is on its way keeps it
// alive, for the run that it ends may be the last.
#pragma once

#include <atomic>
#include <cstddef>
#include <stdexcept>
#include <system_error>
#include <vector>

#include <asyncverbs/core/detail/cpus.hpp>
#include <asyncverbs/core/epoll_executor.hpp>
#include <asyncverbs/core/executor_pool_options.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs::detail {

template <class Use>
class PoolState {
public:
    explicit PoolState(const ExecutorPoolOptions& options)
        : cpus_(usable_cpus<Used<int, Use>>()),
          size_(options.size != 0 ? options.size : cpus_.size()) {
        if (!options.pin) cpus_.clear();
        executors_.reset(new BasicEpollExecutor<Use>[size_]);
    }

    std::size_t size() const noexcept { return size_; }
    BasicEpollExecutor<Use>* executors() const noexcept { return executors_.get(); }

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

    Used<std::vector<int>, Use> cpus_; // empty: threads are not pinned
    std::size_t size_;
    std::unique_ptr<BasicEpollExecutor<Use>[]> executors_;
    std::atomic<Phase> phase_{Phase::idle};
};

} // namespace asyncverbs::detail
