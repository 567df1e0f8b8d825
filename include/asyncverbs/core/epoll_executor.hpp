// SPDX-License-Identifier: MIT
// A small single-threaded executor over epoll: file descriptors, timers and work posted from other
// threads. For programs without an event loop of their own, or embedded in one.
#pragma once

#include <concepts>
#include <coroutine>
#include <exception>
#include <stop_token>
#include <system_error>
#include <type_traits>
#include <utility>

#include <asyncverbs/core/detail/branch.hpp>
#include <asyncverbs/core/detail/deadline.hpp>
#include <asyncverbs/core/detail/epoll_loop.hpp>
#include <asyncverbs/core/detail/epoll_sleep.hpp>
#include <asyncverbs/core/detail/posted_function.hpp>
#include <asyncverbs/core/detail/schedule.hpp>
#include <asyncverbs/core/epoll_notifier.hpp>
#include <asyncverbs/core/task.hpp>
#include <asyncverbs/verbs/detail/chrono.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs {

/// Runs coroutines on one thread: the one that calls run() or run_once().
///
///     EpollExecutor executor;
///     executor.run(serve(executor));
///
/// It works in turns. A turn looks at file descriptors, timers and posted work, and then resumes
/// what was ready at its start; what becomes ready meanwhile has to wait for the next turn, so no
/// coroutine starves another one. A resumed coroutine may destroy any notifier or suspended
/// coroutine, and stop the executor, but not destroy it or run it.
///
/// Thread: post(), schedule() and stop() from any thread; the rest on the running thread, or on any
/// one thread while nobody runs the executor. Coroutines are resumed on the running thread.
/// Lifetime: notifiers, sleeping and scheduled coroutines may outlive it; the coroutines are then
/// never resumed, and can be destroyed. Posted functions that have not run are destroyed with it.
/// Errors: std::system_error that names the system call. An exception that leaves a posted
/// function leaves run() or run_once(); all other work stays queued for the next run.
template <class Use>
class BasicEpollExecutor {
public:
    BasicEpollExecutor() : loop_(std::make_shared<detail::EpollLoop<Use>>()) {}
    BasicEpollExecutor(const BasicEpollExecutor&) = delete;
    BasicEpollExecutor& operator=(const BasicEpollExecutor&) = delete;
    ~BasicEpollExecutor() {
        loop_->assert_idle();
        loop_->discard_all();
    }

    /// Runs `task` to its end, and everything else meanwhile. Returns its result or rethrows its
    /// exception. If stop() comes first, throws std::system_error (errc::operation_canceled); then,
    /// as when an exception of a posted function gets here first, the task is destroyed. Throws
    /// std::logic_error if the executor is running already.
    template <class T>
    T run(Task<T> task);

    /// Runs until stop().
    void run();

    /// Takes one turn without blocking, for use inside another event loop. Returns whether
    /// anything was resumed or called. Heeds no stop().
    bool run_once();

    /// Ends the run in progress after the coroutine or function that runs just then, or else the
    /// next one before it begins. What is ready stays so for the run after that.
    void stop() noexcept;

    /// Calls `function` on the running thread, after what was posted before. One allocation; wakes
    /// the executor by a system call only if it sleeps.
    template <class Function>
        requires std::invocable<std::decay_t<Function>&>
    void post(Function&& function);

    /// `co_await executor.schedule()` continues on the running thread, in a turn of its own.
    /// Allocates nothing.
    [[nodiscard]] detail::ScheduleOperation<Use> schedule() noexcept {
        return detail::ScheduleOperation<Use>(loop_);
    }

    /// `co_await executor.sleep_for(1ms)` continues when that time has passed since the call: zero
    /// or less, in the next turn. Gives a std::error_code: {}, or errc::operation_canceled when
    /// `stop` was requested first, from any thread. Allocates nothing. Sleeps that end in the
    /// same turn do so in the order of their times, and of their calls.
    template <class Rep, class Period>
    [[nodiscard]] detail::EpollSleepOperation<Use>
    sleep_for(std::chrono::duration<Rep, Period> duration, std::stop_token stop = {}) {
        return {loop_, detail::Deadline<Use>::after(duration), std::move(stop)};
    }

    /// The same, until a point in time.
    [[nodiscard]] detail::EpollSleepOperation<Use>
    sleep_until(std::chrono::steady_clock::time_point time, std::stop_token stop = {}) {
        return {loop_, detail::Deadline<Use>::at(time), std::move(stop)};
    }

    /// Registers a file descriptor to wait for. Errors as in EpollNotifier's constructor.
    [[nodiscard]] BasicEpollNotifier<Use> notifier(int fd) {
        return BasicEpollNotifier<Use>(*this, fd);
    }

    /// The same for a completion channel, which is cheaper than for its fd.
    [[nodiscard]] BasicEpollNotifier<Use> notifier(const BasicCompletionChannel<Use>& channel) {
        return BasicEpollNotifier<Use>(*this, channel);
    }

    /// The epoll file descriptor. While the executor does not run, it is readable whenever
    /// run_once() would find something to do: wait for it in another loop, level-triggered. To be
    /// waited for only; owned by the executor.
    int native_handle() const noexcept { return loop_->epoll_fd(); }

private:
    template <class>
    friend class BasicEpollNotifier;

    void run_turns() {
        while (loop_->ends() == 0) loop_->turn(true);
    }

    std::shared_ptr<detail::EpollLoop<Use>> loop_;
};

/// The EpollExecutor of programs: compiled only where it is used, but otherwise as a class.
using EpollExecutor = BasicEpollExecutor<OnUse>;

template <class Use>
template <class T>
inline T BasicEpollExecutor<Use>::run(Task<T> task) {
    struct Root {
        explicit Root(std::shared_ptr<detail::EpollLoop<Use>> l) noexcept : loop(std::move(l)) {}
        void branch_failed(std::exception_ptr error) noexcept { exception = std::move(error); }
        std::coroutine_handle<> branch_done() noexcept {
            // The task may end on another thread, and then this object with the run.
            const std::shared_ptr<detail::EpollLoop<Use>> alive = loop;
            alive->end_run(detail::EpollLoop<Use>::task_done);
            return std::noop_coroutine();
        }
        std::shared_ptr<detail::EpollLoop<Use>> loop;
        std::exception_ptr exception;
    };

    const typename detail::EpollLoop<Use>::Run run(*loop_);
    Root root(loop_);
    detail::SlotFor<T> result;
    auto branch = detail::branch<Root>(std::move(task), result);
    if (loop_->ends() == 0) branch.start(root);
    run_turns();
    if ((loop_->ends() & detail::EpollLoop<Use>::task_done) == 0) {
        throw std::system_error(std::make_error_code(std::errc::operation_canceled),
                                "EpollExecutor::run: stopped before the task ended");
    }
    if (root.exception) std::rethrow_exception(root.exception);
    if constexpr (!std::is_void_v<T>) return result.take();
}

template <class Use>
inline void BasicEpollExecutor<Use>::run() {
    const typename detail::EpollLoop<Use>::Run run(*loop_);
    run_turns();
}

template <class Use>
inline bool BasicEpollExecutor<Use>::run_once() {
    const typename detail::EpollLoop<Use>::Running running(*loop_);
    return loop_->turn(false);
}

template <class Use>
inline void BasicEpollExecutor<Use>::stop() noexcept {
    // The run that ends may be the last, and the executor gone before the wake.
    const std::shared_ptr<detail::EpollLoop<Use>> alive = loop_;
    alive->end_run(detail::EpollLoop<Use>::stopped);
}

template <class Use>
template <class Function>
    requires std::invocable<std::decay_t<Function>&>
void BasicEpollExecutor<Use>::post(Function&& function) {
    using Node = detail::PostedFunction<std::decay_t<Function>, Use>;
    auto node = std::make_unique<Node>(std::forward<Function>(function));
    // The function may be the last to run, and the executor gone before the wake.
    const std::shared_ptr<detail::EpollLoop<Use>> alive = loop_;
    alive->post(*node.release());
}

template <class Use>
inline BasicEpollNotifier<Use>::BasicEpollNotifier(BasicEpollExecutor<Use>& executor, int fd,
                                                   Trigger trigger)
    : registration_(std::make_unique<detail::EpollRegistration<Use>>(executor.loop_, fd, trigger)) {
    executor.loop_->assert_thread();
}

} // namespace asyncverbs
