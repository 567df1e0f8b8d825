# Mutations of coro/.

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
