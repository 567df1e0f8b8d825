// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

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
#include <asyncverbs/executor/detail/awaiters.hpp>
#include <asyncverbs/executor/detail/epoll_loop.hpp>
#include <asyncverbs/executor/detail/run_queue.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>

namespace asyncverbs {

class EpollNotifier;

/// Runs coroutines on one thread: the one that calls run() or run_once().
///
///     EpollExecutor executor;
///     executor.run(serve(executor));
///
/// An iteration of its loop looks at file descriptors, timers and posted work, and then resumes
/// what is ready by then. What becomes ready meanwhile waits for the next iteration, so no
/// coroutine starves another one. A resumed coroutine may destroy any notifier or suspended
/// coroutine, and stop the executor, but must not destroy the executor or run it.
///
/// Thread: post(), schedule() and stop() from any thread; the rest on the running thread, or on any
/// one thread while none runs the executor. Coroutines are resumed on the running thread.
/// Lifetime: notifiers, sleeping and scheduled coroutines may outlive it; the coroutines are then
/// never resumed, and can be destroyed. Posted functions that have not run are destroyed with it.
/// Errors: std::system_error that names the system call. An exception of a posted function leaves
/// run() or run_once(); all other work stays queued for the next run.
class EpollExecutor {
public:
    EpollExecutor() : loop_(std::make_shared<detail::EpollLoop>()) {}
    EpollExecutor(const EpollExecutor&) = delete;
    EpollExecutor& operator=(const EpollExecutor&) = delete;
    ~EpollExecutor() {
        loop_->assert_idle();
        loop_->discard_all();
    }

    /// Runs `task` to its end, and all other work meanwhile. Returns its result or rethrows its
    /// exception. If stop() comes first, throws std::system_error (errc::operation_canceled). In
    /// this case, and if an exception of a posted function comes first, the task is destroyed.
    /// Throws std::logic_error if the executor is running already.
    template <class T>
    T run(Task<T> task);

    /// Runs until stop().
    void run() {
        const detail::EpollLoop::Run run(*loop_);
        iterate_until_end();
    }

    /// Runs one iteration without blocking, for use inside another event loop. Returns whether
    /// anything was resumed or called. Ignores stop().
    bool run_once() {
        const detail::EpollLoop::Running running(*loop_);
        return loop_->iterate(false);
    }

    /// Ends the run in progress after the coroutine or function that runs at the moment; if none is
    /// in progress, the next one before it begins. What is ready stays ready for the run after
    /// that.
    void stop() noexcept {
        // The run that ends may be the last one, and the executor destroyed before the wake.
        const std::shared_ptr<detail::EpollLoop> keep_alive = loop_;
        keep_alive->end_run(detail::EpollLoop::stopped);
    }

    /// Calls `function` on the running thread, after what was posted before. One allocation; a
    /// system call only if the executor sleeps and has to be woken.
    template <class Function>
        requires std::invocable<std::decay_t<Function>&>
    void post(Function&& function);

    /// `co_await executor.schedule()` continues on the running thread, in a new iteration.
    /// Allocates nothing.
    [[nodiscard]] detail::ScheduleOperation schedule() noexcept {
        return detail::ScheduleOperation(loop_);
    }

    /// `co_await executor.sleep_for(1ms)` continues when that time has passed since the call; zero
    /// or less, in the next iteration. Gives a std::error_code: {}, or errc::operation_canceled
    /// when `stop` was requested first, from any thread. Allocates nothing. Sleeps that end in the
    /// same iteration do so in the order of their times, then of their calls.
    ///
    /// Throws std::system_error (errc::invalid_argument) if `duration` is not a number.
    template <class Rep, class Period>
    [[nodiscard]] detail::SleepOperation sleep_for(std::chrono::duration<Rep, Period> duration,
                                                   std::stop_token stop = {}) {
        return {loop_, detail::Deadline::after(duration), std::move(stop)};
    }

    /// The same, until a point in time.
    [[nodiscard]] detail::SleepOperation sleep_until(std::chrono::steady_clock::time_point time,
                                                     std::stop_token stop = {}) {
        return {loop_, detail::Deadline::at(time), std::move(stop)};
    }

    /// Registers a file descriptor to wait for. Errors as in EpollNotifier's constructor.
    [[nodiscard]] EpollNotifier notifier(int fd);

    /// The same for a completion channel, which is cheaper than for its fd.
    [[nodiscard]] EpollNotifier notifier(const CompletionChannel& channel);

    /// The epoll file descriptor. While the executor does not run, it is readable whenever
    /// run_once() would find something to do: wait for it in another loop, level-triggered. Do
    /// nothing else with it; the executor owns it.
    int native_handle() const noexcept { return loop_->epoll_fd(); }

private:
    friend class EpollNotifier;

    void iterate_until_end() {
        while (loop_->ends() == 0) loop_->iterate(true);
    }

    const std::shared_ptr<detail::EpollLoop> loop_;
};

/// Waits until a file descriptor is readable. Models TimedCqNotifier. AsyncCq waits with it unless
/// the program has a loop of another kind.
///
///     EpollNotifier readable = executor.notifier(fd);
///     std::error_code error = co_await readable.readable(stop_token);
///
/// Thread: all calls, and its destruction, on the thread that runs the executor, or on any one
/// thread while none runs it. Coroutines are resumed by the executor.
/// Lifetime: the fd is not owned and must stay open until the notifier is destroyed. The executor
/// may be destroyed before; a coroutine that waits then is never resumed. One notifier per fd and
/// executor. Movable at any time; a moved-from notifier can only be assigned to or destroyed.
class EpollNotifier {
public:
    /// Registers `fd`. Throws std::system_error, "epoll_ctl(EPOLL_CTL_ADD)": bad_file_descriptor;
    /// operation_not_permitted for a file that cannot be waited for, such as a regular one;
    /// file_exists for an fd that is registered already.
    EpollNotifier(EpollExecutor& executor, int fd) : EpollNotifier(executor, fd, Trigger::level) {}

    /// Registers the fd of `channel`, edge-triggered: each event wakes once, read or not. The
    /// reader must read at least one event per wake, as AsyncCq does. This is cheaper, because the
    /// kernel does not check whether there are more events. Errors as above.
    EpollNotifier(EpollExecutor& executor, const CompletionChannel& channel)
        : EpollNotifier(executor, channel.fd(), Trigger::edge) {}

    /// An awaitable of std::error_code: {} when the fd is readable, has an error or was hung up;
    /// errc::operation_canceled when `stop` was requested first, from any thread, or the notifier
    /// was destroyed; errc::device_or_resource_busy when another readable() is outstanding; else
    /// the error of epoll_ctl. A wake may be spurious. What is not read wakes again, except on the
    /// notifier of a channel.
    ///
    /// Destroying the suspended coroutine cancels the wait. No allocation; no system call but the
    /// executor's epoll_wait, unless the fd became readable while there was no waiter.
    [[nodiscard]] detail::ReadableOperation readable(std::stop_token stop = {}) {
        return wait(detail::Deadline::never, std::move(stop));
    }

    /// The same, with errc::timed_out when `max_wait` has passed since the call. Zero or less
    /// resumes after one iteration of the executor, with {} if the fd is readable then.
    [[nodiscard]] detail::ReadableOperation readable(std::stop_token stop,
                                                     std::chrono::nanoseconds max_wait) {
        return wait(detail::Deadline::after(max_wait), std::move(stop));
    }

    /// The file descriptor.
    int native_handle() const noexcept { return registration_->fd(); }

    /// For assertions: the loop, which knows its thread.
    const std::shared_ptr<detail::RunQueue>& loop() const noexcept {
        return registration_->shared_loop();
    }

private:
    using Trigger = detail::EpollTrigger;

    EpollNotifier(EpollExecutor& executor, int fd, Trigger trigger)
        : registration_(std::make_unique<detail::EpollRegistration>(executor.loop_, fd, trigger)) {
        executor.loop_->assert_thread();
    }

    detail::ReadableOperation wait(detail::Deadline::Clock::time_point deadline,
                                   std::stop_token stop) noexcept {
        assert(registration_ && "asyncverbs: a moved-from EpollNotifier");
        return {*registration_, deadline, std::move(stop)};
    }

    // On the heap: epoll refers to it by address.
    std::unique_ptr<detail::EpollRegistration> registration_;
};

template <class T>
inline T EpollExecutor::run(Task<T> task) {
    struct Root {
        explicit Root(std::shared_ptr<detail::EpollLoop> l) noexcept : loop(std::move(l)) {}
        void task_failed(std::exception_ptr error) noexcept { exception = std::move(error); }
        std::coroutine_handle<> task_done() noexcept {
            // If the task ends on another thread, run() may return and destroy this object.
            const std::shared_ptr<detail::EpollLoop> keep_alive = loop;
            keep_alive->end_run(detail::EpollLoop::task_done);
            return std::noop_coroutine();
        }
        std::shared_ptr<detail::EpollLoop> loop;
        std::exception_ptr exception;
    };

    const detail::EpollLoop::Run run(*loop_);
    Root root(loop_);
    detail::ResultStorage<T> result;
    auto joined = detail::joined_task<Root>(std::move(task), result);
    if (loop_->ends() == 0) joined.start(root);
    iterate_until_end();
    if ((loop_->ends() & detail::EpollLoop::task_done) == 0) {
        throw std::system_error(std::make_error_code(std::errc::operation_canceled),
                                "EpollExecutor::run: stopped before the task ended");
    }
    if (root.exception) std::rethrow_exception(root.exception);
    if constexpr (!std::is_void_v<T>) return result.take();
}

template <class Function>
    requires std::invocable<std::decay_t<Function>&>
void EpollExecutor::post(Function&& function) {
    using Item = detail::PostedFunction<std::decay_t<Function>>;
    auto item = std::make_unique<Item>(std::forward<Function>(function));
    // The function may be the last one to run, and the executor destroyed before the wake.
    const std::shared_ptr<detail::EpollLoop> keep_alive = loop_;
    keep_alive->post(*item.release());
}

inline EpollNotifier EpollExecutor::notifier(int fd) { return EpollNotifier(*this, fd); }

inline EpollNotifier EpollExecutor::notifier(const CompletionChannel& channel) {
    return EpollNotifier(*this, channel);
}

} // namespace asyncverbs
