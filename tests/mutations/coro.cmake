# Mutations of coro/.

set(tests coro/task_test.cpp)

mutation(assignment-leaks-the-old-task coro/detail/coroutine.hpp
    [[        UniqueCoroutineHandle(std::move(other)).swap(*this);]]
    [[        handle_ = std::exchange(other.handle_, {});]])

mutation(empty-task-can-be-awaited coro/task.hpp
    [[        if (!task.coroutine_) throw std::logic_error("asyncverbs::Task: awaited while empty");]]
    "")

mutation(task-starts-when-it-is-called coro/detail/coroutine.hpp
    [[    std::suspend_always initial_suspend() const noexcept { return {}; }
    FinalAwaiter]]
    [[    std::suspend_never initial_suspend() const noexcept { return {}; }
    FinalAwaiter]])

set(tests coro/scope_test.cpp)

mutation(join-does-not-wait-for-the-last-child coro/scope.hpp
    [[    if (!running_.empty() || joiner_ == nullptr) return]]
    [[    if (joiner_ == nullptr) return]])

mutation(join-rethrows-the-last-exception coro/scope.hpp
    [[        if (scope != nullptr && !scope->exception_) scope->exception_]]
    [[        if (scope != nullptr) scope->exception_]])

mutation(join-rethrows-each-time coro/scope.hpp
    [[std::exchange(scope_.exception_, nullptr)) {]]
    [[scope_.exception_) {]])

mutation(scope-is-joined-twice coro/scope.hpp
    [[        if (scope_.joiner_ != nullptr) throw std::logic_error("asyncverbs::Scope: joined twice");]]
    "")

set(sanitizer address)

mutation(scope-destroys-the-child-that-runs coro/scope.hpp
    [[        start->child.unlink();]]
    "")

set(sanitizer "")

set(tests coro/when_all_test.cpp)

mutation(when-all-ends-before-all-have-started coro/when_all.hpp
    [[        pending_.store(tasks_.size() + 1, std::memory_order_relaxed);]]
    [[        pending_.store(tasks_.size(), std::memory_order_relaxed);]])

mutation(when-all-rethrows-the-last-exception coro/when_all.hpp
    [[        if (!failed_.exchange(true, std::memory_order_relaxed)) exception_]]
    [[        exception_]])

set(tests executor/epoll_sleep_test.cpp)

mutation(long-times-overflow coro/detail/deadline.hpp
    [[        return duration < never - now ? now + duration : never;]]
    [[        return now + duration;]])

mutation(not-a-number-is-a-time coro/detail/deadline.hpp
    [[        if (!(duration > std::chrono::duration<Rep, Period>::zero())) {]]
    [[        if (duration < std::chrono::duration<Rep, Period>::zero()) {]])

set(tests coro/sync_wait_test.cpp)

mutation(sync-wait-swallows-exceptions coro/sync_wait.hpp
    [[        if (exception_) std::rethrow_exception(exception_);]]
    [[        exception_ = nullptr;]])

set(sanitizer thread)

mutation(sync-wait-returns-while-it-is-notified coro/sync_wait.hpp
    [[        const std::lock_guard lock(mutex_);
        if (exception_)]]
    [[        if (exception_)]])

set(sanitizer "")
