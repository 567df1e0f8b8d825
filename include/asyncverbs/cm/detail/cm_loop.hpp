// SPDX-License-Identifier: MIT
// An event loop, as far as the connection manager needs one: it waits for file descriptors. Its
// type is left behind here, for connections that differ in nothing else are of one type.
#pragma once

#include <concepts>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/core/cq_notifier.hpp>
#include <asyncverbs/core/task.hpp>

namespace asyncverbs::detail {

template <class Loop>
concept gives_notifiers = requires(Loop& loop, int fd) {
    { loop.notifier(fd) } -> CqNotifier;
};

class CmLoop {
public:
    template <class Loop>
        requires(!std::same_as<Loop, CmLoop>)
    explicit CmLoop(Loop& loop) noexcept
        : loop_(&loop), readable_(&readable_on<Loop>), watch_(&watch_on<Loop>) {
        static_assert(gives_notifiers<Loop>,
                      "the loop has no member notifier(int) that gives a CqNotifier");
    }

    /// What CqNotifier::readable() gives.
    Task<std::error_code> readable(int fd, std::stop_token stop) const {
        return readable_(loop_, fd, std::move(stop));
    }

    /// Calls `read` with `object` at once, and again whenever `fd` is readable, until it returns
    /// false. Allocates nothing once it has begun.
    Task<> watch(int fd, bool (*read)(void* object), void* object) const {
        return watch_(loop_, fd, read, object);
    }

private:
    template <class Loop>
    static Task<std::error_code> readable_on(void* loop, int fd, std::stop_token stop) {
        auto notifier = static_cast<Loop*>(loop)->notifier(fd);
        co_return co_await notifier.readable(stop);
    }

    template <class Loop>
    static Task<> watch_on(void* loop, int fd, bool (*read)(void*), void* object) {
        auto notifier = static_cast<Loop*>(loop)->notifier(fd);
        while (read(object)) {
            const std::error_code error = co_await notifier.readable({});
            if (error) throw std::system_error(error, "CqNotifier::readable");
        }
    }

    void* loop_;
    Task<std::error_code> (*readable_)(void*, int, std::stop_token);
    Task<> (*watch_)(void*, int, bool (*)(void*), void*);
};

} // namespace asyncverbs::detail
