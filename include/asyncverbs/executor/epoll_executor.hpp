// SPDX-License-Identifier: MIT
// Waits for a file descriptor on an EpollExecutor.
// The CqNotifier that AsyncCq uses unless a program brings a loop of its own.
#pragma once

#include <cassert>
#include <chrono>
#include <concepts>
#include <coroutine>
#include <exception>
#include <memory>
#include <stop_token>
#include <system_error>
#include <type_traits>
#include <utility>

#include <asyncverbs/coro/detail/coroutine.hpp>
#include <asyncverbs/coro/detail/deadline.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/detail/epoll_awaiters.hpp>
#include <asyncverbs/executor/detail/epoll_loop.hpp>
#include <asyncverbs/executor/detail/run_queue.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>

namespace asyncverbs {

class EpollExecutor;

/// Tells when a file descriptor is readable. Models TimedCqNotifier.
///
///     EpollNotifier readable = executor.notifier(fd);
///     std::error_code error = co_await readable.readable(stop_token);
///
/// Thread: all calls, and its destruction, on the thread that runs the executor, or on any one
/// thread while nobody runs it. Coroutines are resumed by the executor.
/// Lifetime: the fd is not owned and must stay open until the notifier is destroyed. The executor
/// may be destroyed before; a coroutine that waits then is never resumed. One notifier per fd and
/// executor. Movable at any time; a moved-from notifier can only be assigned to or destroyed.
class EpollNotifier {
public:
    /// Registers `fd`. Throws std::system_error, "epoll_ctl(EPOLL_CTL_ADD)": bad_file_descriptor;
    /// operation_not_permitted for a file that cannot be waited for, such as a regular one;
    /// file_exists for an fd that is registered already.
    EpollNotifier(EpollExecutor& executor, int fd) : EpollNotifier(executor, fd, Trigger::level) {}

    /// Registers the fd of `channel`, edge-triggered: each event wakes once, read or not. For
    /// whoever reads at least one event per wake, as AsyncCq does, this is the cheaper one, for the
    /// kernel does not look whether there are more. Errors as above.
    EpollNotifier(EpollExecutor& executor, const CompletionChannel& channel)
        : EpollNotifier(executor, channel.fd(), Trigger::edge) {}

    /// An awaitable of std::error_code: {} when the fd is readable, has an error or was hung up;
    /// errc::operation_canceled when `stop` was requested first, from any thread, or the notifier
    /// was destroyed; errc::device_or_resource_busy when another readable() is outstanding; else
    /// the error of epoll_ctl. A wake may be spurious. What is not read wakes again, except where
    /// it is a channel that was registered.
    ///
    /// Destroying the suspended coroutine cancels the wait. No allocation; no system call but the
    /// executor's epoll_wait, unless the fd became readable while nobody waited.
    [[nodiscard]] detail::EpollReadableOperation readable(std::stop_token stop = {}) {
        assert(registration_ && "asyncverbs: a moved-from EpollNotifier");
        return {*registration_, detail::Deadline::never, std::move(stop)};
    }

    /// The same, with errc::timed_out when `max_wait` has passed since the call. Zero or less comes
    /// back after one turn of the executor, with {} if the fd is readable then.
    [[nodiscard]] detail::EpollReadableOperation readable(std::stop_token stop,
                                                          std::chrono::nanoseconds max_wait) {
        assert(registration_ && "asyncverbs: a moved-from EpollNotifier");
        return {*registration_, detail::Deadline::after(max_wait), std::move(stop)};
    }

    /// The file descriptor.
    int native_handle() const noexcept { return registration_->fd(); }

private:
    using Trigger = detail::EpollTrigger;
    EpollNotifier(EpollExecutor& executor, int fd, Trigger trigger);

    // On the heap: epoll refers to it by address.
    std::unique_ptr<detail::EpollRegistration> registration_;
};

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
class EpollExecutor {
public:
    EpollExecutor() : loop_(std::make_shared<detail::EpollLoop>()) {}
    EpollExecutor(const EpollExecutor&) = delete;
    EpollExecutor& operator=(const EpollExecutor&) = delete;
    ~EpollExecutor() {
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
    [[nodiscard]] detail::ScheduleOperation schedule() noexcept {
        return detail::ScheduleOperation(loop_);
    }

    /// `co_await executor.sleep_for(1ms)` continues when that time has passed since the call: zero
    /// or less, in the next turn. Gives a std::error_code: {}, or errc::operation_canceled when
    /// `stop` was requested first, from any thread. Allocates nothing. Sleeps that end in the
    /// same turn do so in the order of their times, and of their calls.
    template <class Rep, class Period>
    [[nodiscard]] detail::EpollSleepOperation sleep_for(std::chrono::duration<Rep, Period> duration,
                                                        std::stop_token stop = {}) {
        return {loop_, detail::Deadline::after(duration), std::move(stop)};
    }

    /// The same, until a point in time.
    [[nodiscard]] detail::EpollSleepOperation
    sleep_until(std::chrono::steady_clock::time_point time, std::stop_token stop = {}) {
        return {loop_, detail::Deadline::at(time), std::move(stop)};
    }

    /// Registers a file descriptor to wait for. Errors as in EpollNotifier's constructor.
    [[nodiscard]] EpollNotifier notifier(int fd) { return EpollNotifier(*this, fd); }

    /// The same for a completion channel, which is cheaper than for its fd.
    [[nodiscard]] EpollNotifier notifier(const CompletionChannel& channel) {
        return EpollNotifier(*this, channel);
    }

    /// The epoll file descriptor. While the executor does not run, it is readable whenever
    /// run_once() would find something to do: wait for it in another loop, level-triggered. To be
    /// waited for only; owned by the executor.
    int native_handle() const noexcept { return loop_->epoll_fd(); }

private:
    friend class EpollNotifier;

    void run_turns() {
        while (loop_->ends() == 0) loop_->turn(true);
    }

    std::shared_ptr<detail::EpollLoop> loop_;
};

template <class T>
inline T EpollExecutor::run(Task<T> task) {
    struct Root {
        explicit Root(std::shared_ptr<detail::EpollLoop> l) noexcept : loop(std::move(l)) {}
        void task_failed(std::exception_ptr error) noexcept { exception = std::move(error); }
        std::coroutine_handle<> task_done() noexcept {
            // The task may end on another thread, and then this object with the run.
            const std::shared_ptr<detail::EpollLoop> alive = loop;
            alive->end_run(detail::EpollLoop::task_done);
            return std::noop_coroutine();
        }
        std::shared_ptr<detail::EpollLoop> loop;
        std::exception_ptr exception;
    };

    const typename detail::EpollLoop::Run run(*loop_);
    Root root(loop_);
    detail::ResultStorage<T> result;
    auto joined = detail::joined_task<Root>(std::move(task), result);
    if (loop_->ends() == 0) joined.start(root);
    run_turns();
    if ((loop_->ends() & detail::EpollLoop::task_done) == 0) {
        throw std::system_error(std::make_error_code(std::errc::operation_canceled),
                                "EpollExecutor::run: stopped before the task ended");
    }
    if (root.exception) std::rethrow_exception(root.exception);
    if constexpr (!std::is_void_v<T>) return result.take();
}

inline void EpollExecutor::run() {
    const typename detail::EpollLoop::Run run(*loop_);
    run_turns();
}

inline bool EpollExecutor::run_once() {
    const typename detail::EpollLoop::Running running(*loop_);
    return loop_->turn(false);
}

inline void EpollExecutor::stop() noexcept {
    // The run that ends may be the last, and the executor gone before the wake.
    const std::shared_ptr<detail::EpollLoop> alive = loop_;
    alive->end_run(detail::EpollLoop::stopped);
}

template <class Function>
    requires std::invocable<std::decay_t<Function>&>
void EpollExecutor::post(Function&& function) {
    using Node = detail::PostedFunction<std::decay_t<Function>>;
    auto node = std::make_unique<Node>(std::forward<Function>(function));
    // The function may be the last to run, and the executor gone before the wake.
    const std::shared_ptr<detail::EpollLoop> alive = loop_;
    alive->post(*node.release());
}

inline EpollNotifier::EpollNotifier(EpollExecutor& executor, int fd, Trigger trigger)
    : registration_(std::make_unique<detail::EpollRegistration>(executor.loop_, fd, trigger)) {
    executor.loop_->assert_thread();
}

} // namespace asyncverbs
